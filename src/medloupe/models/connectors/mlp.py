"""Linear and MLP connectors (LLaVA, Liu et al. 2023), with two options that LLaVA lacks.

`window` joins each window x window block of neighbouring tokens along channels, so a 14x14 grid becomes
7x7 without losing a number. `position` joins fixed 2D sine-cosine coordinates to each token: a language
model sees image tokens as one line, and needs many steps to learn which of them stand on the left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from pydantic import Field
from torch import nn

from medloupe.errors import ConfigError
from medloupe.models.connectors.base import Connector, ConnectorConfig
from medloupe.types import ImageLayout


class LinearConnectorConfig(ConnectorConfig):
    """One linear layer."""

    def build(self, channels: int, width: int) -> MLPConnector:
        return MLPConnector(MLPConnectorConfig(depth=1), channels, width)


class MLPConnectorConfig(ConnectorConfig):
    """`depth` linear layers with GELU between them; `hidden` defaults to the output width."""

    depth: int = Field(default=2, ge=1)
    hidden: int | None = Field(default=None, ge=1)
    window: int = Field(default=1, ge=1)
    position: int = Field(default=0, ge=0, multiple_of=4)

    def build(self, channels: int, width: int) -> MLPConnector:
        return MLPConnector(self, channels, width)


class MLPConnector(Connector):
    """See `MLPConnectorConfig`."""

    def __init__(self, config: MLPConnectorConfig, channels: int, width: int) -> None:
        super().__init__()
        self.window, self.position = config.window, config.position
        sizes = [channels * config.window**2 + config.position]
        sizes += [config.hidden or width] * (config.depth - 1) + [width]
        self.layers = linear_layers(sizes)

    def layout(self, grid: ImageLayout) -> ImageLayout:
        window = self.window
        if grid.rows % window or grid.columns % window:
            raise ConfigError(
                f"window {window} does not divide the {grid.rows}x{grid.columns} token grid",
                field="connector.window",
            )
        return ImageLayout(
            depth=grid.depth, rows=grid.rows // window, columns=grid.columns // window
        )

    def forward(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        tokens, out = join_windows(features_NTC, grid, self.window), self.layout(grid)
        if self.position:
            places = sine_cosine_grid(out.rows, out.columns, self.position).to(tokens)
            places = places.repeat(out.depth, 1).expand(len(tokens), -1, -1)
            tokens = torch.cat([tokens, places], dim=-1)
        tokens = tokens.to(next(self.layers.parameters()).dtype)
        projected: torch.Tensor = self.layers(tokens)
        return projected


def linear_layers(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers from size to size, GELU between them; linear layer k has the number 2k."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise(sizes):
        layers += [nn.Linear(inner, outer), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def join_windows(tokens_NTC: torch.Tensor, layout: ImageLayout, window: int) -> torch.Tensor:
    """Join each `window` x `window` block along channels, row-major inside the block."""
    if window == 1:
        return tokens_NTC
    images, channels = len(tokens_NTC), tokens_NTC.shape[-1]
    rows, columns = layout.rows // window, layout.columns // window
    x = tokens_NTC.view(images, layout.depth, rows, window, columns, window, channels)
    return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(images, -1, window * window * channels)


def sine_cosine_grid(rows: int, columns: int, channels: int) -> torch.Tensor:
    """`[rows * columns, channels]`: half the channels speak of the row, half of the column.

    Coordinates run over [0, 1] at cell centres; frequency f has 2**f half turns across the image.
    """

    def axis(count: int) -> torch.Tensor:
        centres = (torch.arange(count) + 0.5) / count
        angles = centres[:, None] * math.pi * 2.0 ** torch.arange(channels // 4)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    row, column = axis(rows), axis(columns)
    return torch.cat([row.repeat_interleave(columns, dim=0), column.repeat(rows, 1)], dim=-1)
