"""One array order for every volume, whatever order its file stores.

A volume comes out as `[D, H, W]` = (slice k, row j, column i) with k from inferior to superior, j
from anterior to posterior and i from the patient's right to left: "LPS" by the direction in which
(i, j, k) increase. Slice by slice that is an axial picture in the radiologist's view. A single
coronal or sagittal plane comes out as one slice, superior at the top.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from medloupe.errors import ImageError

# Directions of increasing (i, j, k) for a volume or an axial, a coronal and a sagittal plane, by
# the world axis (R, A, S) that the slices stack along.
_DIRECTIONS: Final = {2: ("L", "P", "S"), 1: ("L", "I", "P"), 0: ("P", "I", "L")}


def to_display_order(
    values: NDArray[Any], affine: NDArray[np.float64], name: str
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """`[i, j, k]` in the file's order to `[k, j, i]` in ours (a view), with its affine.

    Args:
        values: one number a voxel, in the order of `affine`.
        affine: `[4, 4]`, voxel indices to RAS+ mm.
        name: the file, for errors.

    Raises:
        ImageError: the affine has no inverse.
    """
    stored = orientation_of(affine, name)
    world_lengths = {int(axis): values.shape[i] for i, (axis, _) in enumerate(stored)}
    planes = [axis for axis, length in world_lengths.items() if length == 1]
    stacked = planes[0] if len(planes) == 1 else 2
    turn = ornt_transform(stored, axcodes2ornt(_DIRECTIONS[stacked]))
    turned = affine @ inv_ornt_aff(turn, values.shape)
    return np.transpose(apply_orientation(values, turn), (2, 1, 0)), turned


def orientation_of(affine: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """nibabel's `[3, 2]` orientation (world axis, sign) of the voxel axes i, j, k.

    Raises:
        ImageError: the affine has no inverse.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ImageError(
            "the affine has no inverse, so the sides of the patient are unknown",
            remedy="Repair the orientation in the file's header, or take it out",
            file=name,
        )
    orientation: NDArray[np.float64] = io_orientation(affine)
    return orientation


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """(slice, row, column) in mm: the lengths of the affine's columns k, j, i."""
    column, row, depth = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return depth, row, column
