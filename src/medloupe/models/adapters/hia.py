"""The high-resolution instruction-aware adapter (HiA; section 2.2 of its paper).

After some layers of the language model, learned queries that have heard the question read a detail view
of each image, and the image's tokens read what they found. Where the paper is silent: attention norms its
queries and keys before it (pre-norm) and has no biases, and its last projection begins as zero, so that a
fresh adapter changes nothing. Queries and what the question adds to them are normed each before they meet:
hidden states are long and much alike, and their plain image beside small queries leaves M queries that are
one, which read one mean of the larger view and tell no place from another.
Shapes: N images, K image tokens, M queries, T detail features, C channels, D language-model width, W the
adapter's.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from medloupe.errors import ConfigError
from medloupe.imaging.composed import DetailedTransform
from medloupe.imaging.views import ViewTransform
from medloupe.models.adapters.base import Adapter, AdapterConfig
from medloupe.models.adapters.detail import at_size_of, detailed
from medloupe.models.connectors.queries import attend
from medloupe.models.encoders import EncoderConfig
from medloupe.types import Anchor

QUERY_STD = 0.02


class HiaConfig(AdapterConfig):
    """`encoder` reads detail views (the paper's: ResNet-50 at 672); it trains with the adapter.

    `layers` n: injected after the decoder layers int(L k / (n + 1)), k = 1 to n, of L, counted from 0.
    `width` is that of the queries (None: the language model's). `instruction_aware=False` leaves out
    the question, `high_resolution=False` feeds the encoder views of the base's size: Table 2.
    `anchor` is where the question is read: the last position of the `prompt`, which predicts the
    answer's first token, or the last token of the `user`'s text. `post_norm` norms the sum of tokens
    and what is added, as the released code does; such an adapter changes tokens from the beginning.
    """

    encoder: EncoderConfig
    queries: int = Field(default=256, ge=1)
    width: int | None = Field(default=None, ge=1)
    heads: int = Field(default=8, ge=1)
    layers: int = Field(default=2, ge=1)
    instruction_aware: bool = True
    high_resolution: bool = True
    anchor: Anchor = "prompt"
    post_norm: bool = False

    def for_base(self, base: EncoderConfig) -> Self:
        if self.high_resolution:
            return self
        return self.model_copy(update={"encoder": at_size_of(self.encoder, base)})

    def resolved(self) -> Self:
        return self.model_copy(update={"encoder": self.encoder.resolved()})

    def fitted(self, transform: ViewTransform) -> DetailedTransform:
        return detailed(transform, self.encoder)

    def build(self, width: int, depth: int) -> Hia:
        return Hia(self, width, depth)


class Hia(Adapter):
    """See `HiaConfig`; `layers` are not shared between decoder layers."""

    def __init__(self, config: HiaConfig, width: int, depth: int) -> None:
        super().__init__(injected_layers(depth, config.layers), config.encoder.build())
        assert self.encoder is not None
        channels = {self.encoder.for_kind(kind).channels for kind in self.encoder.kinds}
        if len(channels) > 1:
            raise ConfigError(
                f"the adapter takes detail features of one width, its encoder gives {sorted(channels)}",
                field="model.adapter.encoder",
                remedy="Use encoders of images and of volumes with equal channels",
            )
        if (config.width or width) % config.heads:
            raise ConfigError(
                f"{config.heads} heads do not divide {config.width or width} channels",
                field="model.adapter.heads",
                remedy="Choose a divisor, or set model.adapter.width",
            )
        self.question_dependent = config.instruction_aware
        self.anchor = config.anchor
        self.layers = nn.ModuleList(
            HiaLayer(config, width, channels=max(channels)) for _ in self.places
        )

    def forward(
        self,
        number: int,
        tokens_NKD: torch.Tensor,
        anchors_ND: torch.Tensor | None,
        details_NTC: torch.Tensor | None,
    ) -> torch.Tensor:
        changed: torch.Tensor = self.layers[number](tokens_NKD, anchors_ND, details_NTC)
        return changed

    def reset(self) -> None:
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        for layer in self.layers:
            assert isinstance(layer, HiaLayer)
            nn.init.normal_(layer.queries, std=QUERY_STD)
            nn.init.zeros_(layer.inject.out.weight)


class HiaLayer(nn.Module):
    """Extractor (eq. 2 and the text after it) and injection of one decoder layer."""

    def __init__(self, config: HiaConfig, width: int, channels: int) -> None:
        super().__init__()
        inner = config.width or width
        self.queries = nn.Parameter(torch.randn(config.queries, inner) * QUERY_STD)
        self.instruct = nn.Linear(width, inner) if config.instruction_aware else None
        self.detail = nn.Linear(channels, inner)
        self.extract = CrossAttention(inner, inner, config.heads)
        self.inject = CrossAttention(width, inner, config.heads)
        self.norm = nn.LayerNorm(width) if config.post_norm else None

    def forward(
        self,
        tokens_NKD: torch.Tensor,
        anchors_ND: torch.Tensor | None,
        details_NTC: torch.Tensor | None,
    ) -> torch.Tensor:
        assert details_NTC is not None, "the model encodes detail views before it runs"
        dtype = self.queries.dtype
        queries_NMW = self.queries.expand(len(tokens_NKD), -1, -1)
        if self.instruct is not None:
            assert anchors_ND is not None, "images come with the place where their question ends"
            queries_NMW = _unit(queries_NMW) + _unit(self.instruct(anchors_ND.to(dtype)))[:, None]
        found_NMW = self.extract(queries_NMW, self.detail(details_NTC.to(dtype)))
        added_NKD: torch.Tensor = self.inject(tokens_NKD.to(dtype), found_NMW)
        if self.norm is not None:
            normed: torch.Tensor = self.norm(tokens_NKD.to(dtype) + added_NKD)
            return normed
        return tokens_NKD + added_NKD.to(tokens_NKD.dtype)


class CrossAttention(nn.Module):
    """Queries of `width` attend to a memory of `inner` channels, and come back at `width`."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm, self.key_norm = nn.LayerNorm(width), nn.LayerNorm(inner)
        self.query = nn.Linear(width, inner, bias=False)
        self.key, self.value = (nn.Linear(inner, inner, bias=False) for _ in range(2))
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        seen = self.key_norm(memory)
        query = self.query(self.query_norm(queries))
        read: torch.Tensor = self.out(attend(query, self.key(seen), self.value(seen), self.heads))
        return read


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Each vector at mean 0 and variance 1 over its channels."""
    return F.layer_norm(x, x.shape[-1:])


def injected_layers(depth: int, layers: int) -> tuple[int, ...]:
    """The decoder layers, from 0, after which tokens change: of 40 layers and n = 2 the 13 and 26.

    Raises:
        ConfigError: two of them are one, or the last is the language model's last, behind which no
            answer can see an image token.
    """
    if depth < layers + 2:
        raise ConfigError(
            f"an adapter after {layers} layers needs at least {layers + 2}, the language model has "
            f"{depth}",
            field="model.adapter.layers",
            remedy="Lower it, or use a deeper language model",
        )
    return tuple(depth * k // (layers + 1) for k in range(1, layers + 1))
