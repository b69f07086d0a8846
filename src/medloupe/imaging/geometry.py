"""Where a point of the original image lies in the view a model sees, and back.

Coordinates are continuous: pixel column j covers [j, j + 1), as in `Box`, and the centre of column
j lies at j + 0.5. A map is affine. Most only scale (or reflect) and shift along each axis: then a
box stays a box. Under a rotation a box becomes the smallest box round its turned corners, so one
that goes forward and back encloses the box it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medloupe.types import Box


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """x' = sx x + kx y + ox and y' = ky x + sy y + oy; sizes are (width, height) in pixels.

    `scale` is (sx, sy), `shear` (kx, ky), `offset` (ox, oy).
    """

    original: tuple[int, int]
    view: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    shear: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        assert min(self.original) >= 1, f"empty original {self.original}"
        assert min(self.view) >= 1, f"empty view {self.view}"
        assert self._determinant, f"scale {self.scale}, shear {self.shear} have no inverse"

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
        (sx, sy), (kx, ky), (ox, oy) = self.scale, self.shear, self.offset
        return np.array([[sx, kx, ox], [ky, sy, oy], [0.0, 0.0, 1.0]])

    def through(self, depth: int) -> VolumeGeometry:
        """The same map in each of `depth` slices, which stay where they are."""
        matrix = np.eye(4)
        matrix[:2, [0, 1, 3]] = self.matrix[:2]
        original, view = (*self.original, depth), (*self.view, depth)
        return VolumeGeometry(original=original, view=view, matrix=matrix)

    @property
    def upright(self) -> bool:
        """True where the edges of a box stay along the axes, so that a box stays that box."""
        return self.shear == (0.0, 0.0)

    def forward(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map `[N, 2]` points (x, y) from original to view pixels."""
        original = _points(points, 2)
        view: NDArray[np.float64] = original * np.array(self.scale) + np.array(self.offset)
        return view if self.upright else view + original[:, ::-1] * np.array(self.shear)

    def back(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map `[N, 2]` points (x, y) from view to original pixels."""
        shifted = _points(points, 2) - np.array(self.offset)
        original: NDArray[np.float64]
        if self.upright:
            original = shifted / np.array(self.scale)
        else:  # Cramer's rule
            crossed = shifted[:, ::-1] * np.array(self.shear)
            original = (shifted * np.array(self.scale[::-1]) - crossed) / self._determinant
        return original

    def forward_box(self, box: Box) -> Box:
        """The box in view pixels. It is not clipped: see `clip_box`. Slices stay as they are.

        Under a rotation `size_mm` is dropped, since it is that of the unturned box.
        """
        return self._with_corners(box, self.forward(_corners(box)))

    def back_box(self, box: Box) -> Box:
        """The box in original pixels, not clipped."""
        return self._with_corners(box, self.back(_corners(box)))

    def then(self, other: Geometry) -> Geometry:
        """First this map, then `other`, whose original is this view."""
        assert self.view == other.original, f"view {self.view} is not {other.original}"
        (sx, sy), (kx, ky), (ox, oy) = self.scale, self.shear, self.offset
        (tx, ty), (lx, ly), (px, py) = other.scale, other.shear, other.offset
        return Geometry(
            original=self.original,
            view=other.view,
            scale=(sx * tx + lx * ky, sy * ty + ly * kx),
            shear=(kx * tx + lx * sy, ky * ty + ly * sx),
            offset=(ox * tx + lx * oy + px, oy * ty + ly * ox + py),
        )

    def _with_corners(self, box: Box, corners: NDArray[np.float64]) -> Box:
        """`box` round new corners; a reflection swaps them, so they are ordered again."""
        (x1, y1), (x2, y2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        size_mm = box.size_mm if self.upright else ()
        return box.model_copy(update={"x1": x1, "y1": y1, "x2": x2, "y2": y2, "size_mm": size_mm})

    @property
    def _determinant(self) -> float:
        return self.scale[0] * self.scale[1] - self.shear[0] * self.shear[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumeGeometry:
    """Where a point of a volume lies in another grid; sizes are (width, height, depth) in voxels.

    `matrix` is `[4, 4]`: homogeneous original (x, y, z, 1) to view, in the edge coordinates of
    `Box`: voxel (i, j, k) covers [i, i + 1) x [j, j + 1) x [k, k + 1).
    """

    original: tuple[int, int, int]
    view: tuple[int, int, int]
    matrix: NDArray[np.float64]

    def __post_init__(self) -> None:
        assert min(*self.original, *self.view) >= 1, f"empty: {self.original}, {self.view}"
        assert self.matrix.shape == (4, 4), f"matrix must be [4, 4], not {self.matrix.shape}"
        assert np.linalg.det(self.matrix[:3, :3]) != 0, "the map has no inverse"

    def forward(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map `[N, 3]` points (x, y, z) from original to view voxels."""
        return _affine(self.matrix, points)

    def back(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map `[N, 3]` points (x, y, z) from view to original voxels."""
        return _affine(self._inverse, points)

    def forward_box(self, box: Box) -> Box:
        """The box in view voxels, not clipped. A box without slices goes through all of them.

        It stays without slices where the map leaves z alone.
        """
        return _map_box(self.matrix, box, self.original[2])

    def back_box(self, box: Box) -> Box:
        """The box in original voxels, not clipped."""
        return _map_box(self._inverse, box, self.view[2])

    def then(self, other: VolumeGeometry) -> VolumeGeometry:
        """First this map, then `other`, whose original is this view."""
        assert self.view == other.original, f"view {self.view} is not {other.original}"
        return VolumeGeometry(
            original=self.original, view=other.view, matrix=other.matrix @ self.matrix
        )

    @property
    def _inverse(self) -> NDArray[np.float64]:
        return np.linalg.inv(self.matrix).astype(np.float64)


def clip_box(box: Box, size: tuple[int, int]) -> Box | None:
    """The part of `box` inside an image of `size` (width, height); None where nothing is left."""
    x1, x2 = (min(max(x, 0.0), float(size[0])) for x in (box.x1, box.x2))
    y1, y2 = (min(max(y, 0.0), float(size[1])) for y in (box.y1, box.y2))
    if x1 >= x2 or y1 >= y2:
        return None
    return box.model_copy(update={"x1": x1, "y1": y1, "x2": x2, "y2": y2})


def clip_box_3d(box: Box, size: tuple[int, int, int]) -> Box | None:
    """The part of `box` inside a volume of `size` (width, height, depth); None where none is."""
    inside = clip_box(box, size[:2])
    if inside is None or inside.z1 is None or inside.z2 is None:
        return inside
    z1, z2 = (min(max(z, 0.0), float(size[2])) for z in (inside.z1, inside.z2))
    return inside.model_copy(update={"z1": z1, "z2": z2}) if z1 < z2 else None


def _points(points: ArrayLike, axes: int) -> NDArray[np.float64]:
    array = np.asarray(points, dtype=np.float64)
    assert array.ndim == 2, f"points must be [N, {axes}], not {array.shape}"
    assert array.shape[1] == axes, f"points must be [N, {axes}], not {array.shape}"
    return array


def _affine(matrix: NDArray[np.float64], points: ArrayLike) -> NDArray[np.float64]:
    mapped: NDArray[np.float64] = _points(points, 3) @ matrix[:3, :3].T + matrix[:3, 3]
    return mapped


def _corners(box: Box) -> list[list[float]]:
    return [[box.x1, box.y1], [box.x2, box.y2], [box.x1, box.y2], [box.x2, box.y1]]


def _map_box(matrix: NDArray[np.float64], box: Box, depth: int) -> Box:
    flat = box.z1 is None or box.z2 is None
    slices = (0.0, float(depth)) if box.z1 is None or box.z2 is None else (box.z1, box.z2)
    corners = _affine(matrix, list(product((box.x1, box.x2), (box.y1, box.y2), slices)))
    (x1, y1, z1), (x2, y2, z2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    changed = {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "size_mm": _turned(matrix, box.size_mm)}
    if not (flat and not matrix[2, :2].any() and not matrix[:2, 2].any()):
        changed |= {"z1": z1, "z2": z2}
    return box.model_copy(update=changed)


def _turned(matrix: NDArray[np.float64], size_mm: tuple[float, ...]) -> tuple[float, ...]:
    """The extents along the new axes, where every new axis is one of the old; else none."""
    if not size_mm:
        return ()
    axes = len(size_mm)
    used = matrix[:axes, :axes] != 0
    if not (used.sum(axis=0) == 1).all() or not (used.sum(axis=1) == 1).all():
        return ()
    return tuple(size_mm[old] for old in used.argmax(axis=1))
