"""Label maps on volumes: the array order of boxes, sizes in mm, and masks that do not fit."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medloupe.data.segmentation import read_segmentation
from medloupe.errors import DataError, ImageError

NAMES = {1: "head", 2: "tail"}


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return save(tmp_path / "v.nii.gz", np.zeros((10, 12, 8), np.int16), AFFINE)


# i to the right, j to the front, k up: our array turns the first two round.
AFFINE = np.diag([0.5, 2.0, 3.0, 1.0])


def mask(tmp_path: Path, affine: np.ndarray = AFFINE) -> Path:
    """head: i 1..3, j 2..5, k 4..5; tail: two pieces, of 1 and of 2 voxels."""
    array = np.zeros((10, 12, 8), np.uint8)
    array[1:4, 2:6, 4:6] = 1
    array[9, 0, 0] = 2
    array[5:7, 11, 7] = 2
    return save(tmp_path / "m.nii.gz", array, affine)


def test_boxes_are_in_the_array_that_is_read_and_sizes_in_mm(tmp_path: Path, volume: Path) -> None:
    found = read_segmentation(volume, mask(tmp_path), NAMES)
    head, first, second = found.boxes
    # columns run from the right: 10 - 4 .. 10 - 1; rows from the front: 12 - 6 .. 12 - 2
    assert (head.x1, head.x2, head.y1, head.y2, head.z1, head.z2) == (6, 9, 6, 10, 4, 6)
    assert head.size_mm == (1.5, 8.0, 6.0)
    assert (first.x1, first.x2, first.y1, first.y2, first.z1) == (0, 1, 11, 12, 0)
    assert (second.x1, second.x2, second.y1, second.y2, second.z1) == (3, 5, 0, 1, 7)
    assert found.mm3 == {"head": 24 * 3.0, "tail": 3 * 3.0}


def test_specks_get_no_box_but_count(tmp_path: Path, volume: Path) -> None:
    found = read_segmentation(volume, mask(tmp_path), NAMES, min_voxels=2)
    assert [box.label for box in found.boxes] == ["head", "tail"]
    assert found.mm3["tail"] == 9.0


def test_a_mask_of_another_size_place_or_with_other_values_is_refused(
    tmp_path: Path, volume: Path
) -> None:
    small = save(tmp_path / "small.nii.gz", np.ones((10, 12, 7), np.uint8), AFFINE)
    with pytest.raises(DataError, match=r"\(7, 12, 10\) voxels.*") as error:
        read_segmentation(volume, small, NAMES)
    assert error.value.fault.file == str(small)
    moved = AFFINE.copy()
    moved[0, 3] = 1.0
    with pytest.raises(DataError, match="elsewhere in the patient"):
        read_segmentation(volume, mask(tmp_path, moved), NAMES)
    with pytest.raises(DataError, match="without a name: 2") as error:
        read_segmentation(volume, mask(tmp_path), {1: "head"})
    assert error.value.fault.file == str(tmp_path / "m.nii.gz")
    with pytest.raises(ImageError, match="no such image file"):
        read_segmentation(volume, tmp_path / "none.nii.gz", NAMES)
