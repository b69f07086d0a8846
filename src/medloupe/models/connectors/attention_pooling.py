"""Attention pooling, then an MLP (MedM-VL, eq. 6): learned queries look at the tokens of all slices.

One layer of `torch.nn.MultiheadAttention`, as in MedM-VL's public code, whose tensors fit by prefix
(`query`, `attn.`, `connector.` -> `query`, `attention.`, `layers.`).
Shapes: N images, T tokens, Q queries, C channels, D language-model width.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from medloupe.models.connectors.mlp import linear_layers
from medloupe.models.connectors.queries import QueryConnector, QueryConnectorConfig, refuse_heads
from medloupe.types import ImageLayout


class AttentionPoolingConfig(QueryConnectorConfig):
    """The defaults are MedM-VL's: 256 queries, 8 heads, no slice position, no norm. `norm` puts a layer
    norm over the tokens before positions are added; `depth` and `hidden` are those of the MLP."""

    queries: int = Field(default=256, ge=1)
    heads: int = Field(default=8, ge=1)
    norm: bool = False
    depth: int = Field(default=2, ge=1)
    hidden: int | None = Field(default=None, ge=1)

    def build(self, channels: int, width: int) -> AttentionPoolingConnector:
        return AttentionPoolingConnector(self, channels, width)


class AttentionPoolingConnector(QueryConnector):
    """See `AttentionPoolingConfig`."""

    def __init__(self, config: AttentionPoolingConfig, channels: int, width: int) -> None:
        super().__init__(config, channels)
        refuse_heads(channels, config.heads)
        self.norm = nn.LayerNorm(channels) if config.norm else nn.Identity()
        self.query = nn.Parameter(torch.randn(config.queries, channels))
        self.attention = nn.MultiheadAttention(channels, config.heads, batch_first=True)
        hidden = [config.hidden or width] * (config.depth - 1)
        self.layers = linear_layers([channels, *hidden, width])

    def forward(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        normed = self.norm(features_NTC.to(self.query.dtype))
        tokens_NTC = self.placed(normed, grid)
        queries_NQC = self.query.expand(len(tokens_NTC), -1, -1)
        pooled, _ = self.attention(queries_NQC, tokens_NTC, tokens_NTC, need_weights=False)
        projected: torch.Tensor = self.layers(pooled)
        return projected
