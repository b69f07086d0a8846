"""The Q-Former of BLIP-2 (Li et al. 2023, section 3.1): a BERT whose first tokens are learned queries and
that looks at the image in every second layer.

Only the query branch is here: the text branch of the first pre-training stage is not read. Published
weights are those of transformers' `Blip2ForConditionalGeneration`; the names are mapped both ways.
Shapes: N images, T tokens, Q queries, C channels, H width of the Q-Former, D language-model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from medloupe.errors import CheckpointError
from medloupe.models.connectors.published import read_under
from medloupe.models.connectors.queries import (
    QueryConnector,
    QueryConnectorConfig,
    attend,
    refuse_heads,
)
from medloupe.types import ImageLayout

# Where BLIP-2's Q-Former stands in a checkpoint of transformers.
BLIP2_PREFIXES = ("query_tokens", "qformer.", "language_projection.")
# Parts of a layer that only text passes; checkpoints of the first pre-training stage hold them.
BLIP2_TEXT = ("qformer.embeddings.*", "qformer.encoder.layer.*.intermediate.*",
              "qformer.encoder.layer.*.output.*")  # fmt: skip
NORM_EPS = 1e-12


class QFormerConfig(QueryConnectorConfig):
    """The defaults are BLIP-2's: 32 queries, 12 layers of 768 channels, the image seen in every second.

    `source` is a folder or hub id of a BLIP-2 whose weights are loaded. `fresh` names what is not: our
    tensors that match a pattern stay random. That is the projection to the language model, unless it is
    BLIP-2's own, and `layers.*.cross.key.*` and `layers.*.cross.value.*` under another encoder.
    """

    queries: int = Field(default=32, ge=1)
    width: int = Field(default=768, ge=1)
    depth: int = Field(default=12, ge=1)
    heads: int = Field(default=12, ge=1)
    inner: int = Field(default=3072, ge=1)
    cross_every: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    source: str | None = None
    fresh: tuple[str, ...] = ("project.*",)

    def build(self, channels: int, width: int) -> QFormerConnector:
        return QFormerConnector(self, channels, width)


class QFormerConnector(QueryConnector):
    """See `QFormerConfig`."""

    def __init__(self, config: QFormerConfig, channels: int, width: int) -> None:
        super().__init__(config, channels)
        refuse_heads(config.width, config.heads)
        self.config = config
        self.query = nn.Parameter(torch.randn(1, config.queries, config.width) * 0.02)
        self.norm = nn.LayerNorm(config.width, NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(config, channels if number % config.cross_every == 0 else None)
            for number in range(config.depth)
        )
        self.project = nn.Linear(config.width, width)

    def forward(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        tokens_NTC = self.placed(features_NTC, grid)
        states_NQH = self.dropout(self.norm(self.query)).expand(len(tokens_NTC), -1, -1)
        for layer in self.layers:
            states_NQH = layer(states_NQH, tokens_NTC)
        projected: torch.Tensor = self.project(states_NQH)
        return projected

    def load_pretrained(self) -> None:
        source = self.config.source
        if source is not None:
            self.load_blip2(read_under(source, BLIP2_PREFIXES), source)

    def load_blip2(self, tensors: Mapping[str, torch.Tensor], source: str) -> None:
        """Copy BLIP-2's tensors in, named as transformers names them; `config.fresh` stay as they are.

        Raises:
            CheckpointError: a tensor fits nothing, is missing, or has another shape.
        """
        names = blip2_names(self.config.depth, self.config.cross_every)
        own, kept = self.state_dict(), {}
        for name, tensor in tensors.items():
            if name in names:
                kept[names[name]] = tensor
            elif not any(fnmatch(name, pattern) for pattern in BLIP2_TEXT):
                raise CheckpointError(f"tensor {name!r} of {source!r} fits nothing in the Q-Former")
        for name in own:
            if name == "slices_SC" or any(fnmatch(name, fresh) for fresh in self.config.fresh):
                kept[name] = own[name]
            elif name not in kept:
                raise CheckpointError(f"{source!r} lacks the Q-Former's tensor {name!r}")
            elif kept[name].shape != own[name].shape:
                raise CheckpointError(
                    f"{name!r} is {list(kept[name].shape)} in {source!r}, here {list(own[name].shape)}",
                    field="connector.fresh",
                    remedy="If it may start fresh, name it there",
                )
        self.load_state_dict(kept)

    def to_blip2(self) -> dict[str, torch.Tensor]:
        """The tensors as transformers' BLIP-2 names them; a position of slices has no name there."""
        own = self.state_dict()
        names = blip2_names(self.config.depth, self.config.cross_every)
        return {theirs: own[ours] for theirs, ours in names.items()}


class QFormerLayer(nn.Module):
    """Self-attention, cross-attention where `channels` are given, feed-forward; norms after each."""

    def __init__(self, config: QFormerConfig, channels: int | None) -> None:
        super().__init__()
        self.attention = QFormerAttention(config, config.width)
        self.cross = QFormerAttention(config, channels) if channels is not None else None
        self.up = nn.Linear(config.width, config.inner)
        self.down = nn.Linear(config.inner, config.width)
        self.norm = nn.LayerNorm(config.width, NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states_NQH: torch.Tensor, tokens_NTC: torch.Tensor) -> torch.Tensor:
        states_NQH = self.attention(states_NQH, states_NQH)
        if self.cross is not None:
            states_NQH = self.cross(states_NQH, tokens_NTC)
        moved = self.dropout(self.down(F.gelu(self.up(states_NQH))))
        normed: torch.Tensor = self.norm(moved + states_NQH)
        return normed


class QFormerAttention(nn.Module):
    """Queries look at `seen`, of `channels`; a skip, and the norm after it."""

    def __init__(self, config: QFormerConfig, channels: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key, self.value = (nn.Linear(channels, config.width) for _ in range(2))
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states_NQH: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        dropout = self.dropout.p if self.training else 0.0
        attended = attend(
            self.query(states_NQH), self.key(seen), self.value(seen), self.heads, dropout
        )
        normed: torch.Tensor = self.norm(self.dropout(self.out(attended)) + states_NQH)
        return normed


def blip2_names(depth: int, cross_every: int) -> dict[str, str]:
    """Every tensor of the query branch: transformers' name -> ours."""
    parts = {"qformer.layernorm": "norm", "language_projection": "project"}
    for number in range(depth):
        theirs, ours = f"qformer.encoder.layer.{number}", f"layers.{number}"
        crossing = {"crossattention": "cross"} if number % cross_every == 0 else {}
        for block, own in ({"attention": "attention"} | crossing).items():
            for name in ("query", "key", "value"):
                parts[f"{theirs}.{block}.attention.{name}"] = f"{ours}.{own}.{name}"
            parts[f"{theirs}.{block}.output.dense"] = f"{ours}.{own}.out"
            parts[f"{theirs}.{block}.output.LayerNorm"] = f"{ours}.{own}.norm"
        parts[f"{theirs}.intermediate_query.dense"] = f"{ours}.up"
        parts[f"{theirs}.output_query.dense"] = f"{ours}.down"
        parts[f"{theirs}.output_query.LayerNorm"] = f"{ours}.norm"
    pairs = parts.items()
    leaves = {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in pairs for leaf in ("weight", "bias")}
    return {"query_tokens": "query"} | leaves
