"""What an image encoder is: views in, a grid of tokens out.

Encoders nest: one that cuts into tiles, joins others or goes through a volume slice by slice holds
encoders and is one. Views nest in the same way: a tensor for one encoder, a tuple for several.
Shapes: N images, H rows, W columns, T tokens (row-major over the grid), C channels.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from medloupe.config import ComponentConfig
from medloupe.errors import ConfigError
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.views import ViewTransform
from medloupe.types import ImageLayout, Views

# Fields of transforms that encoders decide.
DECIDED = ("size", "mean", "std", "shape")
Kind = Literal["image", "volume"]


class Encoder(nn.Module, abc.ABC):
    """Maps the views of N images of one shape to `features_NTC`.

    `layout` is the grid of an image's tokens, or, where views are cut into units, of one unit's.
    """

    channels: int
    layout: ImageLayout
    kinds: frozenset[Kind] = frozenset({"image"})
    cuts: bool = False  # whether views come in units, along a tensor's second axis
    passes: int = 1  # how often networks run for a view, or for one unit of it

    @abc.abstractmethod
    def forward(self, views: Views) -> torch.Tensor:
        """Encode the views of N images; every tensor's first axis is N."""

    def grid(self, views: Views) -> ImageLayout:
        """The grid of the tokens that these views become."""
        del views
        return self.layout

    def for_kind(self, kind: Kind) -> Encoder:
        """The encoder of images of that kind, one of `kinds`."""
        assert kind in self.kinds, f"the processor lets no {kind} through to this encoder"
        return self

    @abc.abstractmethod
    def load_pretrained(self) -> None:
        """Load the published weights that the config names.

        Raises:
            MissingExtraError: the package that carries them is not installed.
            CheckpointError: they do not fit.
        """


class EncoderConfig(ComponentConfig):
    """Base of all encoder configs."""

    family: ClassVar[str] = "encoder"
    table: ClassVar[Mapping[str, str]] = {
        "efficientnet_lite0": "medloupe.models.encoders.efficientnet:EfficientNetLite0Config",
        "clip": "medloupe.models.encoders.hf_vision:CLIPEncoderConfig",
        "siglip": "medloupe.models.encoders.hf_vision:SiglipEncoderConfig",
        "siglip2": "medloupe.models.encoders.hf_vision:Siglip2EncoderConfig",
        "dinov2": "medloupe.models.encoders.hf_vision:Dinov2EncoderConfig",
        "dinov3": "medloupe.models.encoders.hf_vision:Dinov3EncoderConfig",
        "hf_vision": "medloupe.models.encoders.hf_any:HFVisionEncoderConfig",
        "biomedclip": "medloupe.models.encoders.biomedclip:BiomedCLIPEncoderConfig",
        "resnet": "medloupe.models.encoders.convolutions:ResNetEncoderConfig",
        "convnext": "medloupe.models.encoders.convolutions:ConvNextEncoderConfig",
        "m3d_clip": "medloupe.models.encoders.vit3d:M3DCLIPEncoderConfig",
        "vit3d": "medloupe.models.encoders.vit3d:ViT3DConfig",
        "trimmed": "medloupe.models.encoders.trimmed:TrimmedConfig",
        "scales": "medloupe.models.resolution.scales:ScalesConfig",
        "tiles": "medloupe.models.resolution.units:TilesConfig",
        "slices": "medloupe.models.resolution.units:SlicesConfig",
        "joined": "medloupe.models.resolution.joined:JoinedConfig",
        "by_kind": "medloupe.models.resolution.by_kind:ByKindConfig",
    }

    @abc.abstractmethod
    def build(self) -> Encoder:
        """The module with random weights."""

    @abc.abstractmethod
    def fitted(self, transform: ViewTransform) -> ViewTransform:
        """The transform that makes this encoder's views, with the choices (window, fit) of the given
        one, which may be plainer than what is needed.

        Raises:
            ConfigError: it states something that the encoder cannot take.
        """

    def resolved(self) -> Self:
        """The config with everything filled in that building needs, so no other file is read."""
        return self


class PlaneEncoderConfig(EncoderConfig):
    """An encoder of one view `[N, 3, image_size, image_size]`, normalised by `mean` and `std`."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def fitted(self, transform: ViewTransform) -> ViewTransform:
        if not isinstance(transform, ImageTransform):
            raise ConfigError(
                f"the encoder {self.name!r} takes one 2D view, not what the transform "
                f"{transform.name!r} makes",
                field="processor.transform",
            )
        size = self.image_size or self.resolved().image_size
        return fill(transform, {"size": size, "mean": self.mean, "std": self.std})


def fill(transform: ImageTransform, wanted: Mapping[str, object]) -> ImageTransform:
    """The transform with the fields an encoder decides.

    Raises:
        ConfigError: it states another value for one.
    """
    for field in sorted(transform.model_fields_set & wanted.keys()):
        if getattr(transform, field) != wanted[field]:
            raise ConfigError(
                f"processor.transform.{field} is {getattr(transform, field)}, but the encoder wants "
                f"{wanted[field]}; leave the field out or set it to the same"
            )
    fields = {name: getattr(transform, name) for name in ImageTransform.model_fields}
    return ImageTransform(**(fields | dict(wanted)))


def undecided(transform: Any) -> Any:
    """The plain data of a transform without the fields that encoders decide, at every depth."""
    if isinstance(transform, dict):
        return {k: undecided(v) for k, v in transform.items() if k not in DECIDED}
    return [undecided(item) for item in transform] if isinstance(transform, list) else transform
