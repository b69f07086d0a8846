"""From a `MedicalImage` to the tensor an encoder takes: one value, saved with the model.

Equal `ImageTransform`s give equal bits on one machine: the arithmetic is numpy and Pillow's resize
on float32, never a library whose backend depends on what else is installed. Whoever changes the
arithmetic raises `version`, so that a saved model refuses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from medloupe.imaging.flips import HorizontalFlip, swap_sides
from medloupe.imaging.geometry import Geometry, clip_box
from medloupe.imaging.views import Arrays, ViewTransform, single
from medloupe.imaging.windows import Window, grey_channels, to_display
from medloupe.types import MedicalImage

__all__ = [
    "Geometry",
    "HorizontalFlip",
    "ImageTransform",
    "Window",
    "clip_box",
    "swap_sides",
    "to_display",
]

_RESAMPLING: Final = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
Positive = Annotated[float, Field(gt=0)]
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


class ImageTransform(ViewTransform):
    """Window, resize to `size` x `size`, normalise.

    `pad` keeps the whole image, `crop` the central square, `stretch` ignores the aspect ratio.
    Resizing filters over the area a view pixel covers when it shrinks (Pillow's resize of the
    float32 display values), and its overshoot is clipped to 0..255. `mean` and `std` are per
    channel, of display values divided by 255.
    """

    version: Literal[1] = 1
    size: int = Field(default=224, ge=1, le=16384)
    fit: Literal["pad", "crop", "stretch"] = "pad"
    padding: Literal["black", "mean"] = "black"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    window: Window = Window()
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[Positive, Positive, Positive] = IMAGENET_STD

    def geometry(self, width: int, height: int, *, view: tuple[int, int] | None = None) -> Geometry:
        """Where each point of an original of `width` x `height` pixels lies in the view.

        `view` is (width, height) of another view than the square, of which tiles are cut.
        """
        shown = view or (self.size, self.size)
        plan = self._plan((width, height), shown)
        (x1, y1, x2, y2), (left, top, columns, rows) = plan.source, plan.target
        scale = columns / (x2 - x1), rows / (y2 - y1)
        return Geometry(
            original=(width, height),
            view=shown,
            scale=scale,
            offset=(left - x1 * scale[0], top - y1 * scale[1]),
        )

    def apply(
        self,
        image: MedicalImage,
        *,
        index: int | None = None,
        view: tuple[int, int] | None = None,
    ) -> NDArray[np.float32]:
        """The view, `[3, size, size]` float32, normalised. Of a volume: slice `index` (middle).

        With `view` (width, height) it is `[3, height, width]`.

        Raises:
            ImageError: the window does not fit the image's units, or there is no such slice.
        """
        return self.normalise(self.display(image, index=index, view=view))

    def display(
        self,
        image: MedicalImage,
        *,
        index: int | None = None,
        view: tuple[int, int] | None = None,
    ) -> NDArray[np.float32]:
        """`apply` before normalising: float32 display values, 0 to 255.

        `[1, height, width]` where the three channels are alike, as in most grey images, else
        `[3, height, width]`: a third to keep of what a model sees.

        Raises:
            ImageError: as `apply`.
        """
        width, height = view or (self.size, self.size)
        plan = self._plan(image.size, (width, height))
        left, top, columns, rows = plan.target
        channels = [self._resample(channel, plan) for channel in self._channels(image, index)]
        padded = (columns, rows) != (width, height)
        alike = len(channels) == 1 and not (padded and self.padding == "mean")
        shown = np.empty((1 if alike else 3, height, width), dtype=np.float32)
        if padded:
            shown[:] = self._filling()[: len(shown), None, None]
        # one grey channel fills three by broadcasting
        shown[:, top : top + rows, left : left + columns] = np.stack(channels)
        return shown

    def normalise(
        self, display: Arrays, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """`[3, height, width]` from `display`; into `out` where given, the slot of a batch."""
        display = single(display)
        shown = np.empty((3, *display.shape[1:]), dtype=np.float32) if out is None else out
        scale = 1 / (255 * np.array(self.std))
        shift = np.array(self.mean) / np.array(self.std)
        planes = np.broadcast_to(display, shown.shape)
        for channel, plane, factor, less in zip(
            shown, planes, scale.astype(np.float32), shift.astype(np.float32), strict=True
        ):
            np.multiply(plane, factor, out=channel)
            channel -= less  # while it is in the cache
        return shown

    def shown(self, image: MedicalImage) -> NDArray[np.uint8]:
        return to_display(image, self.window)

    def _channels(self, image: MedicalImage, index: int | None) -> list[NDArray[np.float32]]:
        """Display values of the one grey or the three other channels, each `[H, W]`."""
        if image.units != "rgb":
            return grey_channels(image, self.window, index=index)
        return [image.array[..., c].astype(np.float32, order="C") for c in range(3)]

    def _filling(self) -> NDArray[np.float32]:
        """Display values of the padding, one per channel."""
        values = (0.0, 0.0, 0.0) if self.padding == "black" else self.mean
        return np.array(values, dtype=np.float32) * 255

    def _resample(self, channel: NDArray[np.float32], plan: _Plan) -> NDArray[np.float32]:
        """The plan's source area of one channel `[H, W]`, at its target size."""
        rows, columns = channel.shape
        size = plan.target[2:]
        if plan.source == (0, 0, columns, rows) and size == (columns, rows):
            return channel
        picture = Image.fromarray(channel)
        resized = picture.resize(size, _RESAMPLING[self.interpolation], box=plan.source)
        within: NDArray[np.float32] = np.clip(np.asarray(resized), 0, 255)
        return within

    def _plan(self, original: tuple[int, int], view: tuple[int, int]) -> _Plan:
        (width, height), (columns, rows) = original, view
        assert min(*original, *view) >= 1, f"empty: {original} into {view}"
        whole = (0.0, 0.0, float(width), float(height))
        wide = width * rows >= columns * height  # as wide as the view, or wider
        if self.fit == "stretch":
            return _Plan(source=whole, target=(0, 0, columns, rows))
        if self.fit == "crop":
            across = height * columns / rows if wide else width
            down = height if wide else width * rows / columns
            x, y = (width - across) / 2, (height - down) / 2
            return _Plan(source=(x, y, x + across, y + down), target=(0, 0, columns, rows))
        # at least one pixel, however thin the image
        across = columns if wide else max(1, math.floor(width * rows / height + 0.5))
        down = max(1, math.floor(height * columns / width + 0.5)) if wide else rows
        left, top = (columns - across) // 2, (rows - down) // 2
        return _Plan(source=whole, target=(left, top, across, down))


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Which area of the original (x1, y1, x2, y2) fills which (left, top, columns, rows)."""

    source: tuple[float, float, float, float]
    target: tuple[int, int, int, int]
