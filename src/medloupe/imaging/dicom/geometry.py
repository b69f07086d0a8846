"""Where planes lie in the patient, and whether several of them form one regular grid.

DICOM's patient axes are LPS (PS3.3 C.7.6.2.1.1); here everything is RAS+ mm, so x and y change
sign. Planes are ordered by their position along the normal of their orientation, never by name or
Instance Number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medloupe.imaging.dicom.parse import first, group, numbers

Affine = NDArray[np.float64]
# A slice may lie this far off the regular grid, as a part of the slice step: positions are often
# written with one decimal.
_OFF_GRID: Final = 0.05
_SAME_PLACE_MM: Final = 0.01
_GAP: Final = 1.75  # steps of so many usual ones mean that slices are missing
_TILT_DEGREES: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Sorted planes of one orientation.

    `step` is the usual distance of neighbours in mm, `gaps` the numbers of the planes after which
    some are missing, `off` the largest distance of a plane from the regular grid in mm, `tilt` the
    angle between the direction of stacking and the normal in degrees.
    """

    step: float
    gaps: tuple[int, ...]
    off: float
    tilt: float
    affine: Affine | None


def plane_geometry(
    dataset: Dataset, frame: int, count: int
) -> tuple[Affine | None, tuple[float, float, float] | None]:
    """Affine (column, row, slice) to RAS+ mm of one frame and its (slice, row, column) spacing.

    Where the file gives no slice spacing or thickness, the third axis is 1 mm long. A multi-frame
    file without a position per frame has no affine. Imager Pixel Spacing (at the detector) is no
    spacing in the patient.
    """
    measures = group(dataset, frame, "PixelMeasuresSequence")
    in_plane = numbers(measures, "PixelSpacing", 2)
    if in_plane is None or min(in_plane) <= 0:
        return None, None
    between = first(measures, "SpacingBetweenSlices") or first(measures, "SliceThickness")
    spacing = (abs(between) if between else 1.0, in_plane[0], in_plane[1])
    position = group(dataset, frame, "PlanePositionSequence")
    origin = numbers(position, "ImagePositionPatient", 3)
    cosines = numbers(
        group(dataset, frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6
    )
    if origin is None or cosines is None:
        return None, spacing
    along_row, along_column = np.array(cosines[:3]), np.array(cosines[3:])
    normal = np.cross(along_row, along_column)
    if not np.isclose(np.linalg.norm(normal), 1, atol=1e-2):
        return None, spacing  # not two perpendicular unit vectors
    offset = np.array(origin)
    if position is dataset and count > 1:
        along = _dose_offset(dataset, frame, count)
        if along is None:
            return None, spacing
        offset = offset + along * normal
    affine = np.eye(4)
    affine[:3, 0] = along_row * spacing[2]
    affine[:3, 1] = along_column * spacing[1]
    affine[:3, 2] = normal * spacing[0]
    affine[:3, 3] = offset
    affine[:2] *= -1  # LPS to RAS
    if not np.isfinite(affine).all():
        return None, spacing
    return affine, spacing


def _dose_offset(dataset: Dataset, frame: int, count: int) -> float | None:
    """How far a frame of an RT Dose lies from the first, in mm (PS3.3 C.8.8.3.2).

    Where the first offset is not 0, the offsets are absolute, along z.
    """
    offsets = numbers(dataset, "GridFrameOffsetVector", count)
    return None if offsets is None else offsets[frame] - offsets[0]


def normal_of(affine: Affine) -> NDArray[np.float64]:
    """The unit normal (row x column of DICOM) of a plane, RAS+."""
    # RAS is LPS turned by half a turn about z: a cross product keeps its meaning
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    unit: NDArray[np.float64] = normal / np.linalg.norm(normal)
    return unit


def along_normal(affines: Sequence[Affine]) -> NDArray[np.float64]:
    """The positions of parallel planes along the normal of the first, in mm."""
    origins = np.array([affine[:3, 3] for affine in affines])
    positions: NDArray[np.float64] = origins @ normal_of(affines[0])
    return positions


def orientations(affines: Sequence[Affine]) -> list[list[int]]:
    """The planes by direction and pixel spacing: lists of indices, the largest first."""
    groups: list[list[int]] = []
    for index, affine in enumerate(affines):
        for members in groups:
            if np.allclose(affine[:3, :2], affines[members[0]][:3, :2], atol=1e-3):
                members.append(index)
                break
        else:
            groups.append([index])
    return sorted(groups, key=len, reverse=True)


def same_places(positions: NDArray[np.float64]) -> list[list[int]]:
    """Indices of planes by place, from the lowest to the highest position."""
    order = np.argsort(positions, kind="stable")
    places: list[list[int]] = []
    for index in order.tolist():
        if places and positions[index] - positions[places[-1][0]] <= _SAME_PLACE_MM:
            places[-1].append(index)
        else:
            places.append([index])
    return places


def fit_grid(affines: Sequence[Affine]) -> Grid:
    """The regular grid nearest to sorted planes of one orientation; without affine if none fits.

    A stack whose planes are shifted against each other evenly (a tilted gantry) is a grid too: its
    affine is sheared.
    """
    if len(affines) == 1:
        return Grid(step=0, gaps=(), off=0, tilt=0, affine=affines[0])
    steps = np.diff(along_normal(affines))
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])
    gaps = tuple(int(i) for i in np.flatnonzero(steps > _GAP * usual))
    origins = np.array([affine[:3, 3] for affine in affines])
    number = np.arange(len(affines)) - (len(affines) - 1) / 2
    centre = origins.mean(axis=0)
    step = number @ (origins - centre) / (number @ number)  # least squares
    ideal = centre + number[:, None] * step
    off = float(np.linalg.norm(origins - ideal, axis=1).max())
    length = float(np.linalg.norm(step))
    cosine = float(np.clip(step @ normal_of(affines[0]) / length, -1, 1)) if length else 0.0
    affine = None
    if not gaps and off <= _OFF_GRID * length:
        affine = affines[0].copy()
        affine[:3, 2] = step
        affine[:3, 3] = ideal[0]
    tilt = float(np.degrees(np.arccos(cosine)))
    return Grid(
        step=usual, gaps=gaps, off=off, tilt=tilt if tilt > _TILT_DEGREES else 0.0, affine=affine
    )
