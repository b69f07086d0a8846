"""One encoder for 2D images and another for volumes, in one model."""

from __future__ import annotations

from typing import Self

import torch

from medloupe.errors import ConfigError
from medloupe.imaging.composed import ByKindTransform
from medloupe.imaging.views import ViewTransform
from medloupe.models.encoders.base import Encoder, EncoderConfig, Kind
from medloupe.types import Views


class ByKindConfig(EncoderConfig):
    """`image` takes the 2D images of a conversation, `volume` the volumes. Where their channels differ,
    so must their connectors: use the connector `by_kind`."""

    image: EncoderConfig
    volume: EncoderConfig

    def resolved(self) -> Self:
        resolved = {"image": self.image.resolved(), "volume": self.volume.resolved()}
        return self.model_copy(update=resolved)

    def fitted(self, transform: ViewTransform) -> ViewTransform:
        given = (
            (transform.image, transform.volume)
            if isinstance(transform, ByKindTransform)
            else (transform, transform)
        )
        return ByKindTransform(
            image=self.image.fitted(given[0]), volume=self.volume.fitted(given[1])
        )

    def build(self) -> ByKindEncoder:
        return ByKindEncoder(self)


class ByKindEncoder(Encoder):
    """See `ByKindConfig`; it never runs itself, only the encoder of a kind does."""

    kinds = frozenset({"image", "volume"})

    def __init__(self, config: ByKindConfig) -> None:
        super().__init__()
        self.image, self.volume = config.image.build(), config.volume.build()
        for kind, part in (("image", self.image), ("volume", self.volume)):
            if kind not in part.kinds:
                name = getattr(config, kind).name
                raise ConfigError(f"{name!r} takes no {kind}s", field=f"model.encoder.{kind}")
        self.channels, self.layout = self.image.channels, self.image.layout

    def for_kind(self, kind: Kind) -> Encoder:
        return (self.image if kind == "image" else self.volume).for_kind(kind)

    def forward(self, views: Views) -> torch.Tensor:
        del views
        raise AssertionError("ask for_kind: one of the two encoders runs")

    def load_pretrained(self) -> None:
        self.image.load_pretrained()
        self.volume.load_pretrained()
