"""What a connector is: it maps encoder tokens to language-model tokens and says how many come out.

The grid of the tokens may differ from image to image (tiles, slices), so it comes with them.

Shapes: N images, T tokens in, U tokens out, C encoder channels, D language-model width.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from medloupe.config import ComponentConfig
from medloupe.errors import ConfigError
from medloupe.types import ImageLayout

Kind = Literal["image", "volume"]

# A token says a word with logit SLOPE * (its length along the word's direction) + OFFSET.
ALIGNMENT_SLOPE = 3.0
ALIGNMENT_OFFSET = -4.0


class Connector(nn.Module, abc.ABC):
    """Maps `features_NTC` on a grid to `tokens_NUD`."""

    @abc.abstractmethod
    def forward(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        """Project the encoder's tokens, which stand on `grid`."""

    @abc.abstractmethod
    def layout(self, grid: ImageLayout) -> ImageLayout:
        """The grid of the U tokens that come out for tokens on `grid`.

        Raises:
            ConfigError: the connector cannot take such a grid.
        """

    def grid_tokens(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        """`[N, T, D]`: one token a place, in reading order; what the grounding objective aligns."""
        tokens: torch.Tensor = self(features_NTC, grid)
        return tokens

    def for_kind(self, kind: Kind) -> Connector:
        """The connector of such images."""
        del kind
        return self

    def load_pretrained(self) -> None:
        """Load the published weights that the config names; most name none.

        Raises:
            CheckpointError: they cannot be read or do not fit.
        """

    def learn_words(self, encode: Callable[[str], Sequence[int]], table_VD: torch.Tensor) -> None:
        """Take what the connector needs of the language model it is composed with: its tokenizer
        (`encode`, text to ids) and its input embeddings. Most need nothing."""


class ConnectorConfig(ComponentConfig):
    """Base of all connector configs."""

    family: ClassVar[str] = "connector"
    table: ClassVar[Mapping[str, str]] = {
        "linear": "medloupe.models.connectors.mlp:LinearConnectorConfig",
        "mlp": "medloupe.models.connectors.mlp:MLPConnectorConfig",
        "words": "medloupe.models.connectors.words:WordsConnectorConfig",
        "grouped": "medloupe.models.connectors.grouped:GroupedConnectorConfig",
        "pooled": "medloupe.models.connectors.pooling:PooledConnectorConfig",
        "mean_slices": "medloupe.models.connectors.pooling:MeanSlicesConnectorConfig",
        "attention_pooling": "medloupe.models.connectors.attention_pooling:AttentionPoolingConfig",
        "perceiver": "medloupe.models.connectors.perceiver:PerceiverConfig",
        "q_former": "medloupe.models.connectors.q_former:QFormerConfig",
        "by_kind": "medloupe.models.connectors.by_kind:ByKindConnectorConfig",
    }

    @abc.abstractmethod
    def build(self, channels: int, width: int) -> Connector:
        """The module with random weights, from `channels` to `width`."""

    def build_for(self, channels: Mapping[Kind, int], width: int) -> Connector:
        """The module for an encoder whose channels may differ by the kind of image.

        Raises:
            ConfigError: they do, and this connector takes one width.
        """
        if len(set(channels.values())) > 1:
            raise ConfigError(
                f"the connector {self.name!r} takes features of one width, the encoder gives "
                + " and ".join(f"{number} for {kind}s" for kind, number in channels.items()),
                field="model.connector",
                remedy="Use the connector by_kind, with one connector for each",
            )
        return self.build(next(iter(channels.values())), width)


def word_embeddings(
    encode: Callable[[str], Sequence[int]], table_VD: torch.Tensor, words: Sequence[str]
) -> torch.Tensor:
    """`[K, D]`: the mean input embedding of each word's tokens, in the middle of a text."""
    return torch.stack([table_VD[list(encode(" " + word))].float().mean(0) for word in words])


def word_directions(
    encode: Callable[[str], Sequence[int]], table_VD: torch.Tensor, words: Sequence[str]
) -> torch.Tensor:
    """`[K, D]`, unit length: the words' embeddings less the mean of the whole table."""
    centred = word_embeddings(encode, table_VD, words) - table_VD.float().mean(0)
    return F.normalize(centred, dim=1)
