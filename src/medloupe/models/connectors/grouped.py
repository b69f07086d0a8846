"""Neighbouring tokens joined along channels, then an MLP (LiteGPT, section 3.1.2; MiniGPT-v2).

LiteGPT joins five: 245 tokens of 768 channels become 49 of 3840, then 5632, then 4096. Its last layer
(`layers.2`, 5632 -> 4096) is `llama_proj` of MiniGPT-v2's third stage, its first (`layers.0`) is new;
MiniGPT-v2's own projection is that one layer on groups of four (`group: 4, depth: 1`).
Shapes: N images, T tokens in, U groups out, C channels, D language-model width.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch.nn import functional as F

from medloupe.errors import ConfigError
from medloupe.models.connectors.base import Connector, ConnectorConfig
from medloupe.models.connectors.mlp import linear_layers
from medloupe.types import ImageLayout


class GroupedConnectorConfig(ConnectorConfig):
    """`group` consecutive tokens become one; each slice or tile of an image is grouped on its own.

    Where `group` does not divide its tokens, `pad` fills the last group up with zeros. `norm` puts a
    layer norm without parameters before (LiteGPT's code; its paper is silent). `hidden` defaults to the
    output width.
    """

    group: int = Field(default=5, ge=1)
    pad: bool = False
    norm: bool = False
    depth: int = Field(default=2, ge=1)
    hidden: int | None = Field(default=None, ge=1)

    def build(self, channels: int, width: int) -> GroupedConnector:
        return GroupedConnector(self, channels, width)


class GroupedConnector(Connector):
    """See `GroupedConnectorConfig`."""

    def __init__(self, config: GroupedConnectorConfig, channels: int, width: int) -> None:
        super().__init__()
        self.config = config
        hidden = [config.hidden or width] * (config.depth - 1)
        self.layers = linear_layers([channels * config.group, *hidden, width])

    def layout(self, grid: ImageLayout) -> ImageLayout:
        group, each = self.config.group, grid.rows * grid.columns
        if group == 1:
            return grid
        if each % group and not self.config.pad:
            raise ConfigError(
                f"groups of {group} do not divide {each} tokens",
                field="connector.group",
                remedy="Choose a divisor, or set pad: true to fill the last group up with zeros",
            )
        return ImageLayout(depth=grid.depth, rows=1, columns=-(-each // group))

    def forward(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        out, group = self.layout(grid), self.config.group
        tokens = features_NTC
        if self.config.norm:
            tokens = F.layer_norm(tokens.float(), tokens.shape[-1:])
        units = tokens.unflatten(1, (grid.depth, -1))
        missing = out.tokens // out.depth * group - units.shape[2]
        units = F.pad(units, (0, 0, 0, missing))
        groups_NUC = units.reshape(len(units), out.tokens, -1)
        projected: torch.Tensor = self.layers(groups_NUC.to(next(self.parameters()).dtype))
        return projected
