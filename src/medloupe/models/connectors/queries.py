"""What connectors share that read an image's tokens with learned queries.

However many tokens an image has, as many come out as there are queries, and they stand on no grid.
Shapes: N images, T tokens, S slices, C channels.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from medloupe.errors import ConfigError
from medloupe.models.connectors.base import Connector, ConnectorConfig
from medloupe.types import ImageLayout

Position = Literal["learned", "sine"]
TOKEN_STD = 0.02
LONGEST_WAVE = 10000.0


class QueryConnectorConfig(ConnectorConfig):
    """`slice_position` adds a vector per slice (or tile) to its tokens, learned or of sines and cosines,
    for up to `max_slices`; None adds nothing, and the order of slices is not seen."""

    queries: int = Field(default=64, ge=1)
    slice_position: Position | None = None
    max_slices: int = Field(default=64, ge=1)


class QueryConnector(Connector):
    """See the module's docstring."""

    def __init__(self, config: QueryConnectorConfig, channels: int) -> None:
        super().__init__()
        self.queries, self.max_slices = config.queries, config.max_slices
        self.slice_position = config.slice_position
        if self.slice_position == "learned":
            self.slices_SC = nn.Parameter(torch.randn(self.max_slices, channels) * TOKEN_STD)

    def layout(self, grid: ImageLayout) -> ImageLayout:
        if self.slice_position is not None and grid.depth > self.max_slices:
            raise ConfigError(
                f"an image of {grid.depth} slices, positions for {self.max_slices}",
                field="connector.max_slices",
                remedy="Raise max_slices, or let the transform take fewer slices",
            )
        return ImageLayout(rows=1, columns=self.queries)

    def grid_tokens(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        del features_NTC, grid
        raise ConfigError(
            f"{type(self).__name__}: its {self.queries} tokens are queries and stand for no place",
            field="connector",
            remedy="Use a connector that keeps the encoder's grid, such as mlp",
        )

    def placed(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        """The features in the parameters' dtype, with the position of their slice."""
        self.layout(grid)
        tokens = features_NTC.to(next(self.parameters()).dtype)
        if self.slice_position is None:
            return tokens
        places_SC = (
            self.slices_SC[: grid.depth]
            if self.slice_position == "learned"
            else sine_cosine_line(grid.depth, tokens.shape[-1]).to(tokens)
        )
        return tokens + places_SC.repeat_interleave(grid.rows * grid.columns, dim=0)


def sine_cosine_line(count: int, channels: int) -> torch.Tensor:
    """`[count, channels]`: sines, then cosines, of 0, 1, ... (Vaswani et al. 2017, section 3.5)."""
    half = -(-channels // 2)
    waves = torch.exp(torch.arange(half) * (-math.log(LONGEST_WAVE) / half))
    angles = torch.arange(count)[:, None] * waves
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :channels]


def refuse_heads(width: int, heads: int) -> None:
    """Refuse attention whose heads do not divide its width.

    Raises:
        ConfigError: they do not.
    """
    if width % heads:
        raise ConfigError(
            f"{heads} heads do not divide {width} channels",
            field="connector.heads",
            remedy="Choose a divisor",
        )


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, dropout: float = 0.0
) -> torch.Tensor:
    """Scaled dot-product attention of `[N, tokens, heads * size]` inputs, in the query's shape."""
    q, k, v = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)
