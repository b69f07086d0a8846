"""A connector whose tokens are words: it says which labels it sees, where, in the language model's own
input embeddings.

An MLP maps every encoder token into the language model's space, where the grounding objective aligns
it with the directions of label words. `forward` reads those alignments off as probabilities, takes
the `keep` most certain places that are more certain than their neighbours, in reading order, and says
each place's likeliest words, one token a word, behind one token for the words of the whole image. A
small language model reads words from the first steps; it needs thousands to learn to read 196 vectors
of no known meaning, and hundreds where a token is the sum of two words. What no word says (an exact
place) is lost: use another connector where boxes are asked for.
Close relatives: Ovis (Lu et al. 2024), whose visual tokens are mixtures over an embedding table, and
concept bottlenecks (Koh et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field, model_validator
from torch.nn import functional as F

from medloupe.errors import ConfigError
from medloupe.models.connectors.base import (
    ALIGNMENT_OFFSET,
    ALIGNMENT_SLOPE,
    Connector,
    ConnectorConfig,
    word_directions,
    word_embeddings,
)
from medloupe.models.connectors.mlp import MLPConnector, MLPConnectorConfig
from medloupe.types import ImageLayout

BELOW_ALL_PEAKS = 1e4


class WordsConnectorConfig(ConnectorConfig):
    """`words` are said of places, in this order within a place; `image_words` of the whole image.
    `neutral` stands where no word fits. `words_per_place` words are said of each of `keep` places.
    `sharpness` multiplies the logits: high values say one word or none."""

    words: tuple[str, ...] = Field(min_length=1)
    image_words: tuple[str, ...] = ()
    neutral: str = "tissue"
    keep: int = Field(default=8, ge=1)
    words_per_place: int = Field(default=2, ge=1)
    sharpness: float = Field(default=4.0, gt=0)
    depth: int = Field(default=2, ge=1)
    position: int = Field(default=16, ge=0, multiple_of=4)

    @model_validator(mode="after")
    def _each_word_once(self) -> WordsConnectorConfig:
        said = (*self.words, *self.image_words)
        if len(set(said)) != len(said):
            raise ValueError("a word is listed twice")
        if self.words_per_place > len(self.words):
            raise ValueError(f"words_per_place {self.words_per_place}, {len(self.words)} words")
        return self

    def build(self, channels: int, width: int) -> WordsConnector:
        return WordsConnector(self, channels, width)


class WordsConnector(Connector):
    """K words, of which the first `local` are said of places. T grid tokens, P places, W words of a
    place, U = 1 + P * W tokens."""

    embeddings_KD: torch.Tensor
    directions_KD: torch.Tensor
    neutral_D: torch.Tensor

    def __init__(self, config: WordsConnectorConfig, channels: int, width: int) -> None:
        super().__init__()
        self.config = config
        align = MLPConnectorConfig(depth=config.depth, position=config.position)
        self.align: MLPConnector = align.build(channels, width)
        said = len(config.words) + len(config.image_words)
        self.register_buffer("embeddings_KD", torch.zeros(said, width))
        self.register_buffer("directions_KD", torch.zeros(said, width))
        self.register_buffer("neutral_D", torch.zeros(width))

    def learn_words(self, encode: Callable[[str], Sequence[int]], table_VD: torch.Tensor) -> None:
        words = (*self.config.words, *self.config.image_words)
        self.embeddings_KD.copy_(word_embeddings(encode, table_VD, words))
        self.directions_KD.copy_(word_directions(encode, table_VD, words))
        self.neutral_D.copy_(word_embeddings(encode, table_VD, (self.config.neutral,))[0])

    def layout(self, grid: ImageLayout) -> ImageLayout:
        if self.config.keep > grid.tokens:
            raise ConfigError(
                f"keep {self.config.keep} exceeds the encoder's {grid.tokens} tokens",
                field="connector.keep",
            )
        return ImageLayout(rows=1, columns=1 + self.config.keep * self.config.words_per_place)

    def grid_tokens(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        aligned: torch.Tensor = self.align(features_NTC, grid)
        return aligned

    def forward(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        aligned = self.grid_tokens(features_NTC, grid)
        embeddings, directions = self.embeddings_KD.to(aligned), self.directions_KD.to(aligned)
        logits = (aligned @ directions.T).float() * ALIGNMENT_SLOPE + ALIGNMENT_OFFSET
        local = len(self.config.words)
        said_NTK = torch.sigmoid(logits[..., :local] * self.config.sharpness)
        places_NP = self._places(logits[..., :local].amax(-1), grid)
        said_NPK = said_NTK.gather(1, places_NP[..., None].expand(-1, -1, local))
        words_NPW = said_NPK.topk(self.config.words_per_place, dim=-1).indices.sort(dim=-1).values
        sure = said_NPK.gather(-1, words_NPW)[..., None].to(aligned)
        spoken = sure * embeddings[words_NPW] + (1 - sure) * self.neutral_D.to(aligned)
        means = logits[..., local:].mean(1, keepdim=True)
        whole = torch.sigmoid(means * self.config.sharpness).to(aligned) @ embeddings[local:]
        return torch.cat([whole, spoken.flatten(1, 2)], dim=1)

    def _places(self, certain_NT: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        """`[N, P]`, the most certain places of the grid in reading order; peaks before all others.

        From logits: probabilities saturate, and neighbours inside one lesion would tie.
        """
        map_NDRC = certain_NT.view(-1, 1, grid.depth, grid.rows, grid.columns)
        peaks = F.max_pool3d(map_NDRC, kernel_size=3, stride=1, padding=1).flatten(1)
        ranked = torch.where(certain_NT >= peaks, certain_NT, certain_NT - BELOW_ALL_PEAKS)
        return ranked.topk(self.config.keep, dim=1).indices.sort(dim=1).values
