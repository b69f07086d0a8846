"""An image cut into units that one 2D encoder sees each on its own: tiles of a picture (AnyRes, Liu et
al. 2024, LLaVA-NeXT), slices of a volume (MedM-VL, section 3.2).

Units stand one after another as the depth of the token grid. How many there are may differ from image
to image; the transform cuts them (`imaging`), so a hash of the transform covers it.
Shapes: N images, U units of each, T tokens of a unit, C channels.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field
from torch.utils.checkpoint import checkpoint

from medloupe.errors import ConfigError
from medloupe.imaging.composed import SlicesTransform
from medloupe.imaging.tiles import TiledTransform
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.views import ViewTransform
from medloupe.models.encoders.base import Encoder, EncoderConfig, Kind
from medloupe.types import ImageLayout, Views


class UnitsConfig(EncoderConfig):
    """`chunk` is the number of units encoded at once (see `encode_in_chunks`); None takes all of a
    batch."""

    cut: ClassVar[type[TiledTransform | SlicesTransform]]
    seen: ClassVar[frozenset[Kind]]

    encoder: EncoderConfig
    chunk: int | None = Field(default=None, ge=1)

    def resolved(self) -> Self:
        return self.model_copy(update={"encoder": self.encoder.resolved()})

    def fitted(self, transform: ViewTransform) -> ViewTransform:
        cut = type(self).cut
        if isinstance(transform, ImageTransform):
            transform = cut(transform=transform)
        if not isinstance(transform, cut):
            raise ConfigError(
                f"the encoder {self.name!r} cannot take what the transform {transform.name!r} makes",
                field="processor.transform",
            )
        view = self.encoder.fitted(transform.transform)
        if not isinstance(view, ImageTransform):
            raise ConfigError(
                f"each unit has one view, and the encoder {self.encoder.name!r} takes several",
                field="model.encoder.encoder",
            )
        return transform.model_copy(update={"transform": view})

    def build(self) -> UnitsEncoder:
        return UnitsEncoder(self)


class TilesConfig(UnitsConfig):
    """An overview of the whole picture, then tiles of it at a higher resolution."""

    cut = TiledTransform
    seen = frozenset({"image"})


class SlicesConfig(UnitsConfig):
    """Slices of a volume; a picture is one slice."""

    cut = SlicesTransform
    seen = frozenset({"image", "volume"})


class UnitsEncoder(Encoder):
    """`views_NUCHW` to `features_NTC`, T the tokens of all units."""

    cuts = True

    def __init__(self, config: UnitsConfig) -> None:
        super().__init__()
        self.kinds, self.chunk = type(config).seen, config.chunk
        self.encoder = config.encoder.build()
        self.layout, self.channels = self.encoder.layout, self.encoder.channels
        self.passes = self.encoder.passes
        if self.encoder.cuts or self.encoder.kinds != {"image"}:
            raise ConfigError(
                f"units are encoded by a 2D encoder, not by {config.encoder.name!r}",
                field="model.encoder.encoder",
            )

    def forward(self, views: Views) -> torch.Tensor:
        assert isinstance(views, torch.Tensor)
        features_MTC = encode_in_chunks(self.encoder, views.flatten(0, 1), self.chunk)
        images, units = views.shape[:2]
        return features_MTC.reshape(images, units * features_MTC.shape[1], -1)

    def grid(self, views: Views) -> ImageLayout:
        assert isinstance(views, torch.Tensor)
        depth = views.shape[1] * self.layout.depth
        return self.layout.model_copy(update={"depth": depth})

    def load_pretrained(self) -> None:
        self.encoder.load_pretrained()


def encode_in_chunks(
    encoder: Encoder, pictures_M3HW: torch.Tensor, chunk: int | None
) -> torch.Tensor:
    """Features of M pictures, at most `chunk` at once: the memory of a chunk is all that is needed.

    Where the encoder trains, a chunk is encoded once more in the backward pass instead of being kept.
    """
    pictures = pictures_M3HW.contiguous(memory_format=torch.channels_last)
    if chunk is None or len(pictures) <= chunk:
        features: torch.Tensor = encoder(pictures)
        return features
    trains = torch.is_grad_enabled() and any(p.requires_grad for p in encoder.parameters())
    return torch.cat(
        [
            checkpoint(encoder, part, use_reentrant=False) if trains else encoder(part)
            for part in pictures.split(chunk)
        ]
    )
