"""Detail views: another view of the same image for an adapter's encoder, with the geometry of the base's.

Both views are padded, cropped or stretched alike and differ in size and normalisation alone, so that a
place in one is the same place in the other.
"""

from __future__ import annotations

from typing import TypeVar

from medloupe.errors import ConfigError
from medloupe.imaging.composed import (
    ByKindTransform,
    DetailedTransform,
    SeveralTransform,
    SlicesTransform,
    VolumeTransform,
)
from medloupe.imaging.tiles import TiledTransform
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.views import ViewTransform
from medloupe.models.encoders.base import EncoderConfig, PlaneEncoderConfig, undecided
from medloupe.models.resolution.by_kind import ByKindConfig
from medloupe.models.resolution.units import UnitsConfig

Encoding = TypeVar("Encoding", bound=EncoderConfig)


def detailed(transform: ViewTransform, encoder: EncoderConfig) -> DetailedTransform:
    """The base's transform joined with that of `encoder`'s detail views.

    Raises:
        ConfigError: it states a detail view of its own that is not the base's at the encoder's size.
    """
    if not isinstance(transform, DetailedTransform):
        return DetailedTransform(base=transform, detail=detail_of(transform, encoder))
    wanted = detail_of(transform.base, encoder)
    if encoder.fitted(transform.detail) != wanted:
        raise ConfigError(
            f"the detail view is {transform.detail.to_json()}, and the one with the geometry and the "
            f"window of the base's view is {wanted.to_json()}",
            field="processor.transform.detail",
            remedy="Give the base's transform alone: that of the detail view follows from it",
        )
    return DetailedTransform(base=transform.base, detail=wanted)


def detail_of(base: ViewTransform, encoder: EncoderConfig) -> ViewTransform:
    """What makes `encoder`'s views with the choices (window, fit, slices) of the base's transform."""
    makes = type(encoder.fitted(ImageTransform()))
    if isinstance(base, ByKindTransform) and makes is not ByKindTransform:
        return ByKindTransform(
            image=detail_of(base.image, encoder), volume=detail_of(base.volume, encoder)
        )
    is_same = makes is type(base) and makes is not SeveralTransform
    chosen = base if is_same else plane(base)
    return encoder.fitted(ViewTransform.parse(undecided(chosen.to_dict())))


def plane(transform: ViewTransform) -> ImageTransform:
    """The transform of one 2D view with the geometry and the window of the given one.

    Raises:
        ConfigError: it is from outside of the package.
    """
    match transform:
        case ImageTransform():
            return transform
        case TiledTransform() | SlicesTransform():
            return transform.transform
        case SeveralTransform():
            return plane(transform.transforms[0])
        case ByKindTransform():
            return plane(transform.image)
        case VolumeTransform():
            side = transform.shape[-1]
            return ImageTransform(size=side, fit="stretch", window=transform.window)
    raise ConfigError(
        f"no detail view is known that has the geometry of the transform {transform.name!r}",
        field="processor.transform",
        remedy="Use one of MedLoupe's transforms, or no adapter",
    )


def at_size_of(encoder: Encoding, base: EncoderConfig) -> Encoding:
    """The encoder, to be fed views of the size that the base's encoder takes.

    Raises:
        ConfigError: it has no size that could be another.
    """
    return _sized(encoder, plane(base.fitted(ImageTransform())).size)


def _sized(encoder: Encoding, side: int) -> Encoding:
    if isinstance(encoder, PlaneEncoderConfig):
        return encoder.model_copy(update={"image_size": side})
    if isinstance(encoder, UnitsConfig):
        return encoder.model_copy(update={"encoder": _sized(encoder.encoder, side)})
    if isinstance(encoder, ByKindConfig):
        parts = {"image": _sized(encoder.image, side), "volume": _sized(encoder.volume, side)}
        return encoder.model_copy(update=parts)
    raise ConfigError(
        f"the encoder {encoder.name!r} cannot be fed views of another size",
        field="model.adapter.high_resolution",
        remedy="Use a 2D encoder for the adapter, for volumes inside slices",
    )
