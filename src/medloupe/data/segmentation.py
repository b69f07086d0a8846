"""A volume with its label map: boxes in the array that MedLoupe reads, volumes in mm3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medloupe.data.masks import boxes_from_mask
from medloupe.errors import DataError
from medloupe.imaging.read import read_image
from medloupe.types import Box, MedicalImage

_SAME_PLACE_MM = 0.01


@dataclass(frozen=True)
class Segmentation:
    """`boxes` has one box per connected component, `mm3` the size of every named part."""

    boxes: tuple[Box, ...]
    mm3: Mapping[str, float]


def read_segmentation(
    volume: Path, mask: Path, names: Mapping[int, str], *, min_voxels: int = 1
) -> Segmentation:
    """The parts of `mask` that `names` names. Components below `min_voxels` get no box, but count.

    Raises:
        DataError: the mask has another size or place than the volume, or values without a name.
        ImageError: a file cannot be read.
    """
    image, outlined = read_image(volume, kind="volume"), read_image(mask, kind="volume")
    _refuse_other_grid(image, outlined, mask)
    array, spacing = outlined.array, outlined.spacing
    try:
        boxes = boxes_from_mask(array, names, spacing=spacing, min_voxels=min_voxels)
    except DataError as error:
        raise DataError.of(error.at(file=str(mask)).fault) from None
    voxel = float(np.prod(spacing)) if spacing is not None else 0.0
    sizes = {part: float(np.sum(array == value)) * voxel for value, part in names.items()}
    return Segmentation(boxes, sizes if spacing is not None else {})


def _refuse_other_grid(image: MedicalImage, mask: MedicalImage, path: Path) -> None:
    if image.array.shape != mask.array.shape:
        rule = f"the mask is {mask.array.shape} voxels, its volume {image.array.shape}"
        raise DataError(rule, remedy="Complete the copy", file=str(path))
    if image.affine is None or mask.affine is None:
        return
    if not np.allclose(image.affine, mask.affine, atol=_SAME_PLACE_MM):
        raise DataError(
            "the mask lies elsewhere in the patient than its volume",
            remedy="Resample one onto the other, or repair the header that is wrong",
            file=str(path),
        )
