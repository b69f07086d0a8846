"""Patients and their slices: everything that is decided before a pixel is drawn.

Nothing here depends on the picture's size: places and widths are fractions of the field of view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medloupe.data.datasets.starter.anatomy import (
    AXES,
    BRAIN,
    FIELD_MM,
    GREY,
    GRID,
    PLANES,
    WHITE,
    Anatomy,
    Plane,
    Template,
    draw_anatomy,
    frame_points,
    sample_slice,
)
from medloupe.data.datasets.starter.lesions import KINDS, Shape, draw_shape

Frame = NDArray[np.float64]

MIDLINE_MM = 2.0  # a lesion has a side if its whole box is further than this from x = 0
CROSSING = 0.1  # share of lesions that may lie anywhere, the midline included
MOST_LESIONS = 4
PLACES = 96  # cells per side of the grid of candidate centres
ATTEMPTS = 12  # widths drawn for one lesion before it is given up

# Where the middle of the field lies, mm, and how deep slices go, mm; sagittal depths to both sides.
CENTRES: dict[Plane, tuple[float, float, float]] = {
    "axial": (0.0, -18.0, 0.0),
    "coronal": (0.0, 0.0, 14.0),
    "sagittal": (0.0, -18.0, 8.0),
}
DEPTHS: dict[Plane, tuple[float, float]] = {
    "axial": (-12.0, 48.0),
    "coronal": (-62.0, 34.0),
    "sagittal": (6.0, 44.0),
}


@dataclass(frozen=True, eq=False)
class Lesion:
    """A planted lesion. `u`, `v` (centre of its box) and `width` are fractions of the field."""

    kind: str
    u: float
    v: float
    width: float
    shape: Shape
    side: str  # "left" or "right" of the patient, "" where it has none

    def box(self, size: int) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 in pixels of a picture of `size` x `size`."""
        half_u, half_v = (self.width * extent / 2 for extent in self.shape.extent)
        edges = (self.u - half_u, self.v - half_v, self.u + half_u, self.v + half_v)
        x1, y1, x2, y2 = (edge * size for edge in edges)
        return x1, y1, x2, y2


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice of one patient: geometry, lesions, and the key of its texture and noise."""

    plane: Plane
    frame: Frame
    anatomy: Anatomy
    maps: NDArray[np.float32]  # [4, GRID, GRID]: the template as this slice cuts it
    lesions: tuple[Lesion, ...]
    noise_key: tuple[int, ...]

    def affine(self, size: int) -> NDArray[np.float64]:
        """`[4, 4]`: (column, row, 0, 1) of pixel centres -> RAS+ mm."""
        step = FIELD_MM / size
        affine = np.eye(4)
        affine[:3, :3] = self.frame[:, :3] * step
        affine[:3, 3] = to_patient(self.frame, 0.5 / size, 0.5 / size)
        return affine


def to_patient(frame: Frame, u: float, v: float) -> NDArray[np.float64]:
    """A place in a slice (fractions of the field) in patient mm."""
    place = np.array([u * FIELD_MM - FIELD_MM / 2, v * FIELD_MM - FIELD_MM / 2, 0.0, 1.0])
    point: NDArray[np.float64] = frame @ place
    return point


def side_of(plane: Plane, frame: Frame, lesion: Lesion) -> str:
    """The patient's side on which the lesion's whole box lies, or "".

    A sagittal slice does not show which side of the patient it cuts.
    """
    if plane == "sagittal":
        return ""
    u1, v1, u2, v2 = lesion.box(1)
    return side_of_points([to_patient(frame, u, v) for u in (u1, u2) for v in (v1, v2)])


def side_of_points(points: Sequence[NDArray[np.float64]]) -> str:
    """The side of points in RAS+ mm: left is x < 0."""
    x = [float(point[0]) for point in points]
    if max(x) < -MIDLINE_MM:
        return "left"
    return "right" if min(x) > MIDLINE_MM else ""


def draw_slice(
    template: Template,
    seed: int,
    patient: int,
    number: int,
    widths: tuple[float, float],
    most: int = MOST_LESIONS,
) -> Slice:
    """Slice `number` of `patient`: planes in turn, 0 to `most` lesions."""
    rng = np.random.default_rng((seed, patient, 1, number))
    plane = PLANES[(patient + number) % len(PLANES)]
    shares = np.array([1.0] + [1.5] * most)
    count = int(rng.choice(most + 1, p=shares / shares.sum()))
    names, weights = list(KINDS), np.array(list(KINDS.values()))
    kinds = rng.choice(names, size=count, p=weights / weights.sum()).tolist()
    anatomy, frame = patient_anatomy(seed, patient), draw_frame(plane, rng)
    maps = sample_slice(template, anatomy, frame)
    ground = Ground(plane, frame, maps)
    found = [ground.add(kind, widths, rng) for kind in kinds]
    return Slice(
        plane=plane,
        frame=frame,
        anatomy=anatomy,
        maps=maps,
        lesions=tuple(lesion for lesion in found if lesion is not None),
        noise_key=(seed, patient, 2, number),
    )


def patient_anatomy(seed: int, patient: int) -> Anatomy:
    """The patient's brain, the same in all slices, series and volumes."""
    return draw_anatomy(np.random.default_rng((seed, patient, 0)))


def draw_frame(plane: Plane, rng: np.random.Generator) -> Frame:
    """A slice's pose: its depth, and a few degrees and mm of head position."""
    depth = rng.uniform(*DEPTHS[plane])
    if plane == "sagittal":
        depth *= rng.choice((-1.0, 1.0))
    axes = AXES[plane]
    angles = np.radians(rng.normal(0, (1.5, 1.5, 3.0)))
    shift = axes @ np.array([*rng.normal(0, 3.0, size=2), 0.0])
    inward = np.abs(axes[:, 2])
    frame = np.zeros((3, 4))
    frame[:, :3] = axes @ rotation(angles)
    frame[:, 3] = np.array(CENTRES[plane]) * (1 - inward) + inward * depth + shift
    return frame


def rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """About u, v and w in turn; radians."""
    (cu, cv, cw), (su, sv, sw) = np.cos(angles), np.sin(angles)
    about_u = np.array([[1, 0, 0], [0, cu, -su], [0, su, cu]])
    about_v = np.array([[cv, 0, sv], [0, 1, 0], [-sv, 0, cv]])
    about_w = np.array([[cw, -sw, 0], [sw, cw, 0], [0, 0, 1]])
    turned: NDArray[np.float64] = about_w @ about_v @ about_u
    return turned


class Ground:
    """The free tissue of one slice, on a grid of `PLACES` x `PLACES` cells; lesions go into it."""

    def __init__(self, plane: Plane, frame: Frame, maps: NDArray[np.float32]) -> None:
        self.plane, self.frame = plane, frame
        self.brain = _coarse(maps[BRAIN])
        self.tissue = _coarse(maps[GREY] + maps[WHITE])
        self.free = np.ones((PLACES, PLACES), dtype=np.float32)
        self.from_midline = np.abs(frame_points(frame, PLACES)[..., 0])

    def add(
        self, kind: str, widths: tuple[float, float], rng: np.random.Generator
    ) -> Lesion | None:
        """A lesion whose width is log-uniform in `widths`, inside the brain, apart from the others.

        A width that fits nowhere is drawn again; after `ATTEMPTS` there is none.
        """
        shape = draw_shape(kind, rng)
        sided = self.plane != "sagittal" and rng.random() >= CROSSING
        for _ in range(ATTEMPTS):
            width = float(np.exp(rng.uniform(*np.log(widths))))
            place = self._place(width, sided, rng)
            if place is not None:
                return self._occupied_by(Lesion(kind, *place, width, shape, ""))
        return None

    def _place(
        self, width: float, sided: bool, rng: np.random.Generator
    ) -> tuple[float, float] | None:
        half = max(1, round(width * PLACES / 2))
        fits = (box_mean(self.brain, half + 1) > 0.99) & (box_mean(self.tissue, half) > 0.82)
        fits &= (box_mean(self.free, half + 1) > 0.999) & (self.tissue > 0.9)
        if sided:
            fits &= self.from_midline > width * FIELD_MM * 0.55 + MIDLINE_MM + FIELD_MM / PLACES
        rows, columns = np.nonzero(fits)
        if len(rows) == 0:
            return None
        pick = int(rng.integers(len(rows)))
        u, v = float(columns[pick]) + rng.uniform(), float(rows[pick]) + rng.uniform()
        return u / PLACES, v / PLACES

    def _occupied_by(self, lesion: Lesion) -> Lesion:
        x1, y1, x2, y2 = (int(edge) for edge in lesion.box(PLACES))
        self.free[max(y1 - 1, 0) : y2 + 2, max(x1 - 1, 0) : x2 + 2] = 0
        return replace(lesion, side=side_of(self.plane, self.frame, lesion))


def _coarse(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[GRID, GRID]` -> `[PLACES, PLACES]` by means of blocks."""
    block = GRID // PLACES
    blocks = field.reshape(PLACES, block, PLACES, block)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)


def box_mean(field: NDArray[np.float32], half: int) -> NDArray[np.float32]:
    """Mean over the square (or cube) of `2 half + 1` cells round each cell; 0 outside."""
    side = 2 * half + 1
    total = np.pad(field, [(half + 1, half)] * field.ndim).astype(np.float64)
    for axis in range(field.ndim):
        summed = np.moveaxis(total.cumsum(axis=axis), axis, 0)
        total = np.moveaxis(summed[side:] - summed[:-side], 0, axis)
    return np.asarray(total / side**field.ndim, dtype=np.float32)
