"""Masks to boxes: one box per connected component.

Voxels that touch by a face, an edge or a corner belong together (8 neighbours in 2D, 26 in 3D), so a
thin oblique lesion stays one; `connectivity="face"` counts faces alone (4 and 6). A box is the
smallest one round all voxels of its component, in the mask's own pixels, edges continuous.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from medloupe.errors import DataError, did_you_mean
from medloupe.types import Box

Connectivity = Literal["full", "face"]
Region = tuple[slice, ...]


def boxes_from_mask(
    mask: NDArray[Any],
    names: Mapping[int, str],
    *,
    spacing: Sequence[float] | None = None,
    min_voxels: int = 1,
    image: int = 0,
    connectivity: Connectivity = "full",
) -> tuple[Box, ...]:
    """A box for every connected component of every value that `names` names.

    Args:
        mask: `[H, W]` or `[D, H, W]` whole numbers (any type); 0 is background. Three dimensions give
            boxes with `z1`, `z2` even where D is 1.
        names: value -> label. A value in the mask that has no name is an error.
        spacing: mm between slices, rows and columns (the slice may be left out in 2D); gives
            `Box.size_mm` along x, y and z.
        min_voxels: smaller components are left out.
        image: the image that the boxes lie on.

    Returns:
        Boxes in the order of `names`, then by slice, row and column.

    Raises:
        DataError: no such shape, values that are not whole or have no name, or a spacing that is not
            positive.
    """
    if mask.ndim not in (2, 3) or 0 in mask.shape:
        raise DataError(
            f"a mask is [H, W] or [D, H, W], this one is {list(mask.shape)}", field="mask"
        )
    steps = _spacing(spacing, mask.ndim)
    regions = _regions(_whole(mask), names)
    boxes = []
    for value, label in names.items():
        if value not in regions:
            continue
        inside = mask[regions[value]] == value
        found = [
            _shifted(part, regions[value]) for part in _components(inside, min_voxels, connectivity)
        ]
        found.sort(key=lambda part: [axis.start for axis in part])
        boxes += [_box(label, part, steps, image) for part in found]
    return tuple(boxes)


def _whole(mask: NDArray[Any]) -> NDArray[np.int64]:
    if mask.dtype.kind not in "biuf":
        raise DataError(f"a mask holds numbers, this one {mask.dtype}", field="mask")
    if mask.dtype.kind == "f" and not np.all(np.isfinite(mask) & (mask == np.rint(mask))):
        raise DataError(
            "the mask holds values that are not whole",
            remedy="Take the label map, not a probability or a resampled picture of it",
            field="mask",
        )
    return mask.astype(np.int64)


def _regions(mask: NDArray[np.int64], names: Mapping[int, str]) -> dict[int, Region]:
    """Where each value lies: its bounding box, found in one pass."""
    values = [int(value) for value in np.unique(mask) if value != 0]
    unnamed = [value for value in values if value not in names]
    if unnamed:
        known = {str(value) for value in names}
        raise DataError(
            f"the mask holds values without a name: {', '.join(map(str, unnamed[:10]))}; "
            f"{did_you_mean(str(unnamed[0]), known)}",
            remedy="Name every value of the mask but 0",
            field="mask",
        )
    # numbers 1..n: ITK's filters take no negative values
    ranks = np.searchsorted(np.array(values, np.int64), mask) + 1 if values else mask
    found = _bounds(np.where(mask == 0, 0, ranks).astype(np.uint32))
    return {value: found[rank][0] for rank, value in enumerate(values, start=1)}


def _components(
    inside: NDArray[np.bool_], min_voxels: int, connectivity: Connectivity
) -> Iterator[Region]:
    parts = SimpleITK.ConnectedComponent(
        SimpleITK.GetImageFromArray(inside.astype(np.uint8)), connectivity == "full"
    )
    for region, voxels in _bounds(SimpleITK.GetArrayViewFromImage(parts)).values():
        if voxels >= min_voxels:
            yield region


def _bounds(labels: NDArray[Any]) -> dict[int, tuple[Region, int]]:
    """label -> (bounding box as slices in array order, number of voxels)."""
    measure = SimpleITK.LabelShapeStatisticsImageFilter()
    measure.ComputePerimeterOff()
    measure.Execute(SimpleITK.GetImageFromArray(labels))
    found = {}
    for label in measure.GetLabels():
        box = measure.GetBoundingBox(label)  # starts, then sizes, in x, y, z
        starts, sizes = box[: labels.ndim], box[labels.ndim :]
        axes = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        found[int(label)] = (tuple(reversed(axes)), int(measure.GetNumberOfPixels(label)))
    return found


def _shifted(part: Region, region: Region) -> Region:
    return tuple(
        slice(inner.start + outer.start, inner.stop + outer.start)
        for inner, outer in zip(part, region, strict=True)
    )


def _spacing(spacing: Sequence[float] | None, dimensions: int) -> tuple[float, ...] | None:
    if spacing is None:
        return None
    steps = tuple(float(step) for step in spacing)[-dimensions:]
    if len(steps) < dimensions or not all(np.isfinite(step) and step > 0 for step in steps):
        raise DataError(
            f"the spacing {list(spacing)} does not fit a mask of {dimensions} dimensions",
            remedy="Give positive mm between slices, rows and columns",
            field="spacing",
        )
    return steps


def _box(label: str, part: Region, steps: tuple[float, ...] | None, image: int) -> Box:
    size = (
        ()
        if steps is None
        else [(axis.stop - axis.start) * step for axis, step in zip(part, steps, strict=True)]
    )
    rows, columns = part[-2], part[-1]
    depth = part[0] if len(part) == 3 else None
    return Box(
        label=label,
        x1=columns.start,
        x2=columns.stop,
        y1=rows.start,
        y2=rows.stop,
        z1=None if depth is None else depth.start,
        z2=None if depth is None else depth.stop,
        image=image,
        size_mm=tuple(reversed(size)),
    )
