"""Transforms made of transforms: slices and whole volumes, several views, one transform per kind, a view
with another in detail."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from medloupe.errors import ImageError
from medloupe.imaging.geometry import Geometry, VolumeGeometry
from medloupe.imaging.resample import resample
from medloupe.imaging.slices import SliceSelection
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.views import Arrays, ViewTransform, is_plane, single
from medloupe.imaging.windows import Window, grey_values, settled, to_display
from medloupe.types import MedicalImage

Positive = Annotated[float, Field(gt=0)]
Length = Annotated[int, Field(ge=1, le=4096)]


class SlicesTransform(ViewTransform):
    """The chosen slices of a volume, each made a view by `transform`: `[slices, 3, size, size]`.

    A 2D image is one slice. `selection` counts slices, since the number of units must follow from an
    image's size alone; for slices by mm, resample the volume when the data set is prepared.
    """

    version: Literal[1] = 1
    transform: ImageTransform = ImageTransform()
    selection: SliceSelection = SliceSelection()

    @model_validator(mode="after")
    def _by_count(self) -> Self:
        if self.selection.every_mm is not None:
            raise ValueError("slices of a view are chosen by count, not by every_mm")
        return self

    def display(self, image: MedicalImage) -> Arrays:
        if is_plane(image):
            return self.transform.display(image)[None]
        indices = self.selection.plan_of(image).indices
        window = settled(image, self.transform.window)
        transform = self.transform.model_copy(update={"window": window})
        return np.stack([transform.display(image, index=index) for index in indices])

    def normalise(self, display: Arrays) -> Arrays:
        return np.stack([self.transform.normalise(one) for one in single(display)])

    def geometry(self, width: int, height: int) -> Geometry:
        return self.transform.geometry(width, height)

    def volume_geometry(self, width: int, height: int, depth: int) -> VolumeGeometry:
        plan = self.selection.plan(depth)
        within = self.transform.geometry(width, height).through(plan.count)
        return plan.geometry((width, height)).then(within)

    def shown(self, image: MedicalImage) -> NDArray[np.uint8]:
        return self.transform.shown(image)

    def units(self, size: tuple[int, ...]) -> int:
        return self.selection.plan(size[2]).count if len(size) == 3 else 1


class VolumeTransform(ViewTransform):
    """A whole volume resized to `shape` (slices, rows, columns), whatever its spacing: `[1, *shape]`.

    Grey values go through `window` to 0..1, are resized trilinearly with outer edges on outer edges
    (`smooth`: over what a new voxel covers), and normalised by `mean` and `std`. MedM-VL, section 3.2:
    32 x 256 x 256.
    """

    version: Literal[1] = 1
    shape: tuple[Length, Length, Length] = (32, 256, 256)
    window: Window = Window()
    smooth: bool = True
    mean: float = 0.0
    std: Positive = 1.0

    @model_validator(mode="after")
    def _one_window(self) -> Self:
        if self.window.channels is not None:
            raise ValueError("a volume has one channel, so its window cannot be of mode rgb")
        return self

    def display(self, image: MedicalImage) -> Arrays:
        if is_plane(image):
            raise ImageError(
                "a volume is wanted and this is one 2D image",
                remedy="Name its kind in the data (kind: volume), or use a model with a 2D encoder",
                file=image.source.uri if image.source else None,
            )
        window = settled(image, self.window)
        shown = [grey_values(image, window, index=k) for k in range(len(image.array))]
        volume = dataclasses.replace(image, array=np.stack(shown), units="stored")
        return resample(volume, size=self.shape, smooth=self.smooth).array.astype(np.float32)[None]

    def normalise(self, display: Arrays) -> Arrays:
        view: NDArray[np.float32] = single(display) * np.float32(1 / (255 * self.std))
        view -= np.float32(self.mean / self.std)
        return view

    def geometry(self, width: int, height: int) -> Geometry:
        _, rows, columns = self.shape
        scale = columns / width, rows / height
        return Geometry(original=(width, height), view=(columns, rows), scale=scale)

    def volume_geometry(self, width: int, height: int, depth: int) -> VolumeGeometry:
        original, view = (width, height, depth), self.shape[::-1]
        matrix = np.diag([*(new / old for new, old in zip(view, original, strict=True)), 1.0])
        return VolumeGeometry(original=original, view=view, matrix=matrix)

    def shown(self, image: MedicalImage) -> NDArray[np.uint8]:
        return to_display(image, self.window)


class SeveralTransform(ViewTransform):
    """One transform for each of several encoders. Boxes are written in the first one's view."""

    version: Literal[1] = 1
    transforms: tuple[ViewTransform, ...] = Field(min_length=1)

    def display(self, image: MedicalImage) -> Arrays:
        return tuple(transform.display(image) for transform in self.transforms)

    def normalise(self, display: Arrays) -> Arrays:
        assert isinstance(display, tuple)
        pairs = zip(self.transforms, display, strict=True)
        return tuple(transform.normalise(one) for transform, one in pairs)

    def geometry(self, width: int, height: int) -> Geometry:
        return self.transforms[0].geometry(width, height)

    def shown(self, image: MedicalImage) -> NDArray[np.uint8]:
        return self.transforms[0].shown(image)


class ByKindTransform(ViewTransform):
    """`image` for 2D images, `volume` for volumes. A display remembers its kind by its place:
    `(display, ())` or `((), display)`."""

    version: Literal[1] = 1
    image: ViewTransform
    volume: ViewTransform

    def display(self, image: MedicalImage) -> Arrays:
        display = self._of(image).display(image)
        return (display, ()) if is_plane(image) else ((), display)

    def normalise(self, display: Arrays) -> Arrays:
        assert isinstance(display, tuple)
        plane, volume = display
        is_volume = isinstance(plane, tuple) and not plane
        return self.volume.normalise(volume) if is_volume else self.image.normalise(plane)

    def geometry(self, width: int, height: int) -> Geometry:
        return self.image.geometry(width, height)

    def volume_geometry(self, width: int, height: int, depth: int) -> VolumeGeometry:
        return self.volume.volume_geometry(width, height, depth)

    def shown(self, image: MedicalImage) -> NDArray[np.uint8]:
        return self._of(image).shown(image)

    def units(self, size: tuple[int, ...]) -> int:
        return (self.volume if len(size) == 3 else self.image).units(size)

    def _of(self, image: MedicalImage) -> ViewTransform:
        return self.image if is_plane(image) else self.volume


class DetailedTransform(ViewTransform):
    """The model's own view by `base`, and a `detail` view of the same image for an adapter. Boxes and
    units are those of `base`; a display is the pair of both."""

    version: Literal[1] = 1
    base: ViewTransform
    detail: ViewTransform

    def display(self, image: MedicalImage) -> Arrays:
        return self.base.display(image), self.detail.display(image)

    def normalise(self, display: Arrays) -> Arrays:
        assert isinstance(display, tuple)
        base, detail = display
        return self.base.normalise(base), self.detail.normalise(detail)

    def geometry(self, width: int, height: int) -> Geometry:
        return self.base.geometry(width, height)

    def volume_geometry(self, width: int, height: int, depth: int) -> VolumeGeometry:
        return self.base.volume_geometry(width, height, depth)

    def shown(self, image: MedicalImage) -> NDArray[np.uint8]:
        return self.base.shown(image)

    def units(self, size: tuple[int, ...]) -> int:
        return self.base.units(size)
