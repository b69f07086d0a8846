"""What every transform from a `MedicalImage` to an encoder's views is.

Transforms nest as encoders do: one encoder's views are an array, those of several a tuple with one
entry each. A transform is a value with a fingerprint and is saved with the model; whoever changes its
arithmetic raises its `version`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medloupe.config import ComponentConfig
from medloupe.imaging.geometry import Geometry, VolumeGeometry
from medloupe.imaging.windows import to_display
from medloupe.types import MedicalImage

Arrays = NDArray[np.float32] | tuple["Arrays", ...]
"""Views of one image, without a batch axis."""


class ViewTransform(ComponentConfig, abc.ABC):
    """From one image to the views a model takes; plain fields without a name are an `image`'s."""

    family: ClassVar[str] = "transform"
    default: ClassVar[str | None] = "image"
    table: ClassVar[Mapping[str, str]] = {
        "image": "medloupe.imaging.transforms:ImageTransform",
        "tiles": "medloupe.imaging.tiles:TiledTransform",
        "slices": "medloupe.imaging.composed:SlicesTransform",
        "volume": "medloupe.imaging.composed:VolumeTransform",
        "several": "medloupe.imaging.composed:SeveralTransform",
        "by_kind": "medloupe.imaging.composed:ByKindTransform",
        "detailed": "medloupe.imaging.composed:DetailedTransform",
    }

    def apply(self, image: MedicalImage) -> Arrays:
        """The views, normalised float32.

        Raises:
            ImageError: the image does not fit (units, kind, slices).
        """
        return self.normalise(self.display(image))

    @abc.abstractmethod
    def display(self, image: MedicalImage) -> Arrays:
        """`apply` before normalising, display values from 0 to 255: what is worth keeping."""

    @abc.abstractmethod
    def normalise(self, display: Arrays) -> Arrays:
        """The views from `display`."""

    @abc.abstractmethod
    def geometry(self, width: int, height: int) -> Geometry:
        """Where each point of an original of `width` x `height` pixels lies in the whole view, in
        which boxes are written."""

    def volume_geometry(self, width: int, height: int, depth: int) -> VolumeGeometry:
        """As `geometry`, of a volume of `depth` slices; here each slice stays where it is."""
        return self.geometry(width, height).through(depth)

    def placement(self, size: tuple[int, ...]) -> Geometry | VolumeGeometry:
        """The geometry of an image of (width, height) or of a volume of (width, height, depth)."""
        if len(size) == 3:
            return self.volume_geometry(*size)
        return self.geometry(*size[:2])

    def shown(self, image: MedicalImage) -> NDArray[np.uint8]:
        """The image (of a volume: its middle slice) as people are shown it, through this transform's
        window where it has one: `[H, W]` or `[H, W, 3]`."""
        return to_display(image)

    def units(self, size: tuple[int, ...]) -> int:
        """How many units (tiles, slices) an image of (width, height[, depth]) is cut into."""
        del size
        return 1


def single(arrays: Arrays) -> NDArray[np.float32]:
    """Views that are one array."""
    assert not isinstance(arrays, tuple), "one view was expected"
    return arrays


def is_plane(image: MedicalImage) -> bool:
    """Whether it was asked for as a 2D image. A volume may have one slice."""
    if image.source is not None:
        return image.source.kind == "image"
    return image.units == "rgb" or len(image.array) == 1
