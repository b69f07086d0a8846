"""What an image encoder is: pixels in, a grid of tokens out.

Shapes: N images, H rows, W columns, T tokens (row-major over the grid), C channels.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import nn

from medloupe.config import ComponentConfig
from medloupe.types import ImageLayout


class Encoder(nn.Module, abc.ABC):
    """Maps `pixel_values_N3HW`, normalised by `mean` and `std`, to `features_NTC`."""

    channels: int
    layout: ImageLayout

    @abc.abstractmethod
    def forward(self, pixel_values_N3HW: torch.Tensor) -> torch.Tensor:
        """Encode images of the configured size."""

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
    }

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @abc.abstractmethod
    def build(self) -> Encoder:
        """The module with random weights."""

    def resolved(self) -> Self:
        """The config with everything filled in that building needs, so no other file is read."""
        return self
