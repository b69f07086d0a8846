"""MSD hippocampus: volumes counted from masks, 3D boxes in the array that is read, balanced questions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medloupe.data.check import check_dataset
from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import DataError
from medloupe.types import Box

CONFIG = DatasetConfig.parse({"name": "msd_hippocampus", "images": "reference"})


@pytest.fixture(scope="module")
def prepared(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("msd_hippocampus")
    return CONFIG.prepare(out, root=shared_data / "msd_hippocampus", progress=lambda *_: None)


def write(root: Path, parts: list[tuple[int, int]], folders: tuple[str, str]) -> Path:
    """Volumes of 20 x 40 x 20 voxels of 1 mm: a slab of `anterior` rows before one of `posterior`."""
    for number, (anterior, posterior) in enumerate(parts):
        mask = np.zeros((20, 40, 20), np.uint8)  # j runs from back to front
        mask[5:15, 20 : 20 + anterior, 5:15] = 1
        mask[5:15, 20 - posterior : 20, 5:15] = 2
        image = np.random.default_rng(number).integers(0, 900, mask.shape).astype(np.int16)
        for folder, array in zip(folders, (image, mask), strict=True):
            (root / folder).mkdir(parents=True, exist_ok=True)
            path = root / folder / f"hippocampus_{number:03d}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return root


# (anterior, posterior) in rows of 100 mm3: sizes 2.9, 3.3, 3.7 mL; the last one has no larger part
PARTS = [(19, 10), (13, 20), (19, 18), (20, 20)]


def test_the_real_copy_is_partial_and_passes_the_check(prepared: Dataset) -> None:
    assert prepared.card.partial == "214 of 260 volumes"
    assert (prepared.card.counts["records"], prepared.card.counts["images"]) == (214, 214)
    assert load_dataset(prepared.root) == prepared
    assert check_dataset(prepared.root, workers=1).faults == ()


def test_real_volumes_are_those_of_the_index(prepared: Dataset, shared_data: Path) -> None:
    index = json.loads((shared_data / "msd_hippocampus" / "index.json").read_text())
    by_id = {record.id: record for record in prepared.records}
    for row in index:
        attributes = by_id[row["id"]].attributes
        assert float(attributes["anterior_mm3"]) == row["anterior_mm3"]
        assert float(attributes["posterior_mm3"]) == row["posterior_mm3"]


def test_the_real_anterior_part_lies_before_the_posterior(prepared: Dataset) -> None:
    for record in prepared.records:
        front = min(box.y1 for box in record.boxes if box.label == "anterior hippocampus")
        back = min(box.y1 for box in record.boxes if box.label == "posterior hippocampus")
        assert front < back, record.id


def test_real_answers_are_balanced_and_true(prepared: Dataset) -> None:
    by_id = {record.id: record for record in prepared.records}
    said = Counter()
    for row in prepared.conversations:
        if row.task != "larger_part":
            continue
        assert row.answer is not None
        sizes = by_id[row.id.split("/")[0]].attributes
        mm3 = {part: float(sizes[f"{part}_mm3"]) for part in ("anterior", "posterior")}
        assert row.answer.text == max(mm3, key=lambda part: mm3[part])
        said[row.answer.text] += 1
    assert said == {"anterior": 59, "posterior": 59}
    sizes = Counter(r.answer.text for r in prepared.conversations if r.task == "size" and r.answer)
    assert set(sizes.values()) == {67}


@pytest.mark.parametrize("folders", [("imagesTr", "labelsTr"), ("images", "labels")])
def test_a_small_copy_goes_all_the_way(
    tmp_path: Path, progress: Any, folders: tuple[str, str]
) -> None:
    made = CONFIG.prepare(
        tmp_path / "out", root=write(tmp_path / "in", PARTS, folders), progress=progress
    )
    assert check_dataset(made.root, workers=1).faults == ()
    assert made.card.partial == "4 of 260 volumes"
    first = made.records[0]
    assert first.attributes == {"anterior_mm3": "1900", "posterior_mm3": "1000"}
    # rows count from the front: j = 20..38 is row 1..19 of 40
    assert first.boxes[0] == Box(
        label="anterior hippocampus",
        x1=5,
        x2=15,
        y1=1,
        y2=20,
        z1=5,
        z2=15,
        size_mm=(10.0, 19.0, 10.0),
    )
    answers = {r.id: r.answer.text for r in made.conversations if r.answer is not None}
    asked = [name for name in answers if "larger_part" in name]
    assert Counter(answers[name] for name in asked) == {"anterior": 1, "posterior": 1}
    assert not any(name.startswith("hippocampus_003") for name in asked)
    assert {answers[name] for name in answers if name.endswith("/size")} == {
        "below 3.1 mL",
        "3.1 to 3.5 mL",
        "3.5 mL or more",
    }
    assert first.patient_id is None  # which volumes are of one subject is not known


def test_a_mask_without_a_part_and_folders_that_are_none_are_named(
    tmp_path: Path, progress: Any
) -> None:
    folders = ("images", "labels")
    root = write(tmp_path / "in", [(19, 10), (19, 0)], folders)
    with pytest.raises(DataError, match="a part of the hippocampus is missing") as error:
        CONFIG.prepare(tmp_path / "out", root=root, progress=progress)
    assert error.value.fault.file == str(root / "labels" / "hippocampus_001.nii.gz")
    with pytest.raises(DataError, match="imagesTr and labelsTr, or images and labels"):
        CONFIG.prepare(tmp_path / "out", root=tmp_path, progress=progress)
    for file in (root / "images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="no volume"):
        CONFIG.prepare(tmp_path / "out", root=root, progress=progress)
