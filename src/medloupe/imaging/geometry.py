"""Where a point of the original image lies in the view a model sees, and back.

Every map here is a scaling (or reflection) and a shift along each axis, so a box stays a box and the
inverse is exact. Coordinates are continuous: pixel column j covers [j, j + 1), as in `Box`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medloupe.types import Box


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """`view = original * scale + offset`, for x and y; sizes are (width, height) in pixels."""

    original: tuple[int, int]
    view: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        assert min(self.original) >= 1, f"empty original {self.original}"
        assert min(self.view) >= 1, f"empty view {self.view}"
        assert all(self.scale), f"scale {self.scale} has no inverse"

    @classmethod
    def identity(cls, size: tuple[int, int]) -> Geometry:
        """The view is the original."""
        return cls(original=size, view=size)

    @classmethod
    def mirror(cls, size: tuple[int, int]) -> Geometry:
        """The view is the original with its columns reversed."""
        return cls(original=size, view=size, scale=(-1.0, 1.0), offset=(float(size[0]), 0.0))

    @property
    def matrix(self) -> NDArray[np.float64]:
        """`[3, 3]`: homogeneous original (x, y, 1) to view (x, y, 1)."""
        (sx, sy), (ox, oy) = self.scale, self.offset
        return np.array([[sx, 0.0, ox], [0.0, sy, oy], [0.0, 0.0, 1.0]])

    def forward(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map `[N, 2]` points (x, y) from original to view pixels."""
        view: NDArray[np.float64] = _points(points) * np.array(self.scale) + np.array(self.offset)
        return view

    def back(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map `[N, 2]` points (x, y) from view to original pixels."""
        shifted = _points(points) - np.array(self.offset)
        original: NDArray[np.float64] = shifted / np.array(self.scale)
        return original

    def forward_box(self, box: Box) -> Box:
        """The box in view pixels. It is not clipped: see `clip_box`. Slices stay as they are."""
        return _with_corners(box, self.forward(_corners(box)))

    def back_box(self, box: Box) -> Box:
        """The box in original pixels, not clipped."""
        return _with_corners(box, self.back(_corners(box)))

    def then(self, other: Geometry) -> Geometry:
        """First this map, then `other`, whose original is this view."""
        assert self.view == other.original, f"view {self.view} is not {other.original}"
        (sx, sy), (ox, oy) = self.scale, self.offset
        (tx, ty), (px, py) = other.scale, other.offset
        return Geometry(
            original=self.original,
            view=other.view,
            scale=(sx * tx, sy * ty),
            offset=(ox * tx + px, oy * ty + py),
        )


def clip_box(box: Box, size: tuple[int, int]) -> Box | None:
    """The part of `box` inside an image of `size` (width, height); None where nothing is left."""
    x1, x2 = (min(max(x, 0.0), float(size[0])) for x in (box.x1, box.x2))
    y1, y2 = (min(max(y, 0.0), float(size[1])) for y in (box.y1, box.y2))
    if x1 >= x2 or y1 >= y2:
        return None
    return box.model_copy(update={"x1": x1, "y1": y1, "x2": x2, "y2": y2})


def _points(points: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(points, dtype=np.float64)
    assert array.ndim == 2, f"points must be [N, 2], not {array.shape}"
    assert array.shape[1] == 2, f"points must be [N, 2], not {array.shape}"
    return array


def _corners(box: Box) -> list[list[float]]:
    return [[box.x1, box.y1], [box.x2, box.y2]]


def _with_corners(box: Box, corners: NDArray[np.float64]) -> Box:
    """`box` with new corners; a reflection swaps them, so they are ordered again."""
    (x1, y1), (x2, y2) = np.sort(corners, axis=0).tolist()
    return box.model_copy(update={"x1": x1, "y1": y1, "x2": x2, "y2": y2})
