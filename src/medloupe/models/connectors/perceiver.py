"""The perceiver resampler (Flamingo, Alayrac et al. 2022, section 2.1 and Figure 5).

Learned latents look, layer after layer, at the image's tokens and at themselves; keys and values are
those of the tokens followed by the latents. As in Flamingo it runs at the encoder's width; a linear
layer then leads to the language model's.
Shapes: N images, T tokens, Q latents, C channels, D language-model width.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from medloupe.models.connectors.queries import (
    Position,
    QueryConnector,
    QueryConnectorConfig,
    attend,
)
from medloupe.types import ImageLayout

Activation = Literal["squared_relu", "relu", "gelu"]


class PerceiverConfig(QueryConnectorConfig):
    """The defaults are Flamingo's: 64 latents, 6 layers, 16 heads of 96, squared ReLU, a learned position
    per slice. Idefics has ReLU, no position, and may norm queries and keys (`qk_norm`)."""

    slice_position: Position | None = "learned"
    depth: int = Field(default=6, ge=1)
    heads: int = Field(default=16, ge=1)
    head_size: int = Field(default=96, ge=1)
    expansion: int = Field(default=4, ge=1)
    activation: Activation = "squared_relu"
    qk_norm: bool = False

    def build(self, channels: int, width: int) -> PerceiverConnector:
        return PerceiverConnector(self, channels, width)


class PerceiverConnector(QueryConnector):
    """See `PerceiverConfig`."""

    def __init__(self, config: PerceiverConfig, channels: int, width: int) -> None:
        super().__init__(config, channels)
        self.latents = nn.Parameter(torch.randn(config.queries, channels))
        self.layers = nn.ModuleList(PerceiverLayer(config, channels) for _ in range(config.depth))
        self.norm = nn.LayerNorm(channels)
        self.project = nn.Linear(channels, width)

    def forward(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        tokens_NTC = self.placed(features_NTC, grid)
        latents_NQC = self.latents.expand(len(tokens_NTC), -1, -1)
        for layer in self.layers:
            latents_NQC = layer(latents_NQC, tokens_NTC)
        projected: torch.Tensor = self.project(self.norm(latents_NQC))
        return projected


class PerceiverLayer(nn.Module):
    """Cross-attention and a feed-forward layer, each with its norms before and a skip round it."""

    def __init__(self, config: PerceiverConfig, channels: int) -> None:
        super().__init__()
        inner = config.heads * config.head_size
        self.heads, self.activation = config.heads, config.activation
        self.token_norm, self.latent_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query, self.key, self.value = (
            nn.Linear(channels, inner, bias=False) for _ in range(3)
        )
        self.query_norm, self.key_norm = (
            nn.LayerNorm(config.head_size) if config.qk_norm else nn.Identity() for _ in range(2)
        )
        self.out = nn.Linear(inner, channels, bias=False)
        self.norm = nn.LayerNorm(channels)
        self.up = nn.Linear(channels, config.expansion * channels, bias=False)
        self.down = nn.Linear(config.expansion * channels, channels, bias=False)

    def forward(self, latents_NQC: torch.Tensor, tokens_NTC: torch.Tensor) -> torch.Tensor:
        normed = self.latent_norm(latents_NQC)
        seen = torch.cat([self.token_norm(tokens_NTC), normed], dim=1)
        query = self._by_head(self.query(normed), self.query_norm)
        key = self._by_head(self.key(seen), self.key_norm)
        latents_NQC = latents_NQC + self.out(attend(query, key, self.value(seen), self.heads))
        wide = activated(self.up(self.norm(latents_NQC)), self.activation)
        moved: torch.Tensor = latents_NQC + self.down(wide)
        return moved

    def _by_head(self, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        normed: torch.Tensor = norm(x.unflatten(-1, (self.heads, -1))).flatten(2)
        return normed


def activated(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "gelu":
        return F.gelu(x)
    positive = F.relu(x)
    return positive.square() if activation == "squared_relu" else positive
