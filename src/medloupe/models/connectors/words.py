"""A connector whose tokens are words: it says which labels it sees, where, in the language model's own
input embeddings.

An MLP maps every encoder token into the language model's space, where the grounding objective aligns
it with the directions of label words. `forward` reads those alignments off as probabilities, keeps
the `keep` most certain tokens in reading order and writes each as the probability-weighted sum of its
words' embeddings, behind one token for the words of the whole image. A small language model reads
words from the first step; it needs thousands of steps to learn to read 196 vectors of no known
meaning. A residual from the aligned token and its coordinates, zero at the start, carries what words
cannot (an exact place), if the language stage trains the connector.
Close relatives: Ovis (Lu et al. 2024), whose visual tokens are mixtures over an embedding table, and
concept bottlenecks (Koh et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field, model_validator
from torch import nn

from medloupe.errors import ConfigError
from medloupe.models.connectors.base import (
    ALIGNMENT_OFFSET,
    ALIGNMENT_SLOPE,
    Connector,
    ConnectorConfig,
    word_directions,
    word_embeddings,
)
from medloupe.models.connectors.mlp import MLPConnector, MLPConnectorConfig, sine_cosine_grid
from medloupe.types import ImageLayout


class WordsConnectorConfig(ConnectorConfig):
    """`words` are said of places, `image_words` of the whole image; `neutral` stands where no word
    fits. `sharpness` multiplies the logits: high values say one word or none."""

    words: tuple[str, ...] = Field(min_length=1)
    image_words: tuple[str, ...] = ()
    neutral: str = "tissue"
    keep: int = Field(default=16, ge=1)
    sharpness: float = Field(default=4.0, gt=0)
    depth: int = Field(default=2, ge=1)
    position: int = Field(default=16, ge=4, multiple_of=4)

    @model_validator(mode="after")
    def _each_word_once(self) -> WordsConnectorConfig:
        said = (*self.words, *self.image_words)
        if len(set(said)) != len(said):
            raise ValueError("a word is listed twice")
        return self

    def build(self, channels: int, width: int, layout: ImageLayout) -> WordsConnector:
        return WordsConnector(self, channels, width, layout)


class WordsConnector(Connector):
    """K words, of which the first `local` are said of places. T grid tokens, U = keep + 1 tokens."""

    embeddings_KD: torch.Tensor
    directions_KD: torch.Tensor
    neutral_D: torch.Tensor

    def __init__(
        self, config: WordsConnectorConfig, channels: int, width: int, layout: ImageLayout
    ) -> None:
        super().__init__()
        if config.keep > layout.tokens:
            raise ConfigError(
                f"keep {config.keep} exceeds the encoder's {layout.tokens} tokens",
                field="connector.keep",
            )
        self.config, self.grid = config, layout
        self.layout = ImageLayout(rows=1, columns=config.keep + 1)
        align = MLPConnectorConfig(depth=config.depth, position=config.position)
        self.align: MLPConnector = align.build(channels, width, layout)
        self.residual = nn.Linear(width + config.position, width, bias=False)
        nn.init.zeros_(self.residual.weight)
        said = len(config.words) + len(config.image_words)
        self.register_buffer("embeddings_KD", torch.zeros(said, width))
        self.register_buffer("directions_KD", torch.zeros(said, width))
        self.register_buffer("neutral_D", torch.zeros(width))

    def learn_words(self, encode: Callable[[str], Sequence[int]], table_VD: torch.Tensor) -> None:
        words = (*self.config.words, *self.config.image_words)
        self.embeddings_KD.copy_(word_embeddings(encode, table_VD, words))
        self.directions_KD.copy_(word_directions(encode, table_VD, words))
        self.neutral_D.copy_(word_embeddings(encode, table_VD, (self.config.neutral,))[0])

    def grid_tokens(self, features_NTC: torch.Tensor) -> torch.Tensor:
        aligned: torch.Tensor = self.align(features_NTC)
        return aligned

    def forward(self, features_NTC: torch.Tensor) -> torch.Tensor:
        aligned = self.grid_tokens(features_NTC)
        local = len(self.config.words)
        embeddings, directions = self.embeddings_KD.to(aligned), self.directions_KD.to(aligned)
        logits = (aligned @ directions.T).float() * ALIGNMENT_SLOPE + ALIGNMENT_OFFSET
        places = torch.sigmoid(logits[..., :local] * self.config.sharpness).to(aligned)
        means = logits[..., local:].mean(1, keepdim=True)
        whole = torch.sigmoid(means * self.config.sharpness).to(aligned)
        certain = places.amax(-1)
        chosen = certain.topk(self.config.keep, dim=1).indices.sort(dim=1).values[..., None]
        background = (1 - certain[..., None]) * self.neutral_D.to(aligned)
        spoken = places @ embeddings[:local] + background
        spoken = spoken + self.residual(self._with_coordinates(aligned))
        kept = spoken.gather(1, chosen.expand(-1, -1, spoken.shape[-1]))
        return torch.cat([whole @ embeddings[local:], kept], dim=1)

    def _with_coordinates(self, aligned_NTD: torch.Tensor) -> torch.Tensor:
        grid = sine_cosine_grid(self.grid.rows, self.grid.columns, self.config.position)
        places = grid.to(aligned_NTD).repeat(self.grid.depth, 1)
        return torch.cat([aligned_NTD, places.expand(len(aligned_NTD), -1, -1)], dim=-1)
