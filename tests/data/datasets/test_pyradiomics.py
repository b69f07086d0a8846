"""PyRadiomics cases: boxes of volumes and of slices agree with what was published about them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from medloupe.data.check import check_dataset
from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import DataError
from medloupe.types import Box

CONFIG = DatasetConfig.parse({"name": "pyradiomics", "images": "reference"})


@pytest.fixture(scope="module")
def prepared(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("pyradiomics")
    return CONFIG.prepare(out, root=shared_data / "radiomics_ct_mr", progress=lambda *_: None)


def write(root: Path) -> Path:
    """One CT, halved in plane: 8 x 6 x 4 voxels of 2 x 2 x 5 mm, stored L, P, S as the lungs are."""
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])
    mask = np.zeros((8, 6, 4), np.uint8)
    mask[2:5, 1:3, 1:3] = 1
    array = np.random.default_rng(0).integers(-900, 900, mask.shape).astype(np.int16)
    (root / "volumes").mkdir(parents=True)
    (root / "slices").mkdir()
    for name, values in (("lung1", array), ("lung1_lesion", mask)):
        nibabel.save(nibabel.Nifti1Image(values, affine), root / "volumes" / f"{name}.nii.gz")
    slices = []
    for z in (0, 1):
        pixels = np.random.default_rng(z).integers(0, 256, (12, 16), np.uint8)
        Image.fromarray(pixels).save(root / "slices" / f"lung1_z{z:03d}.png")
        boxes = [{"label": "tumour", "box": [4, 2, 10, 6]}] if z else []
        row = {"image": f"slices/lung1_z{z:03d}.png", "volume": "lung1", "z": z, "boxes": boxes}
        slices.append(row)
    volume = {
        "id": "lung1",
        "modality": "CT",
        "spacing_xyz": [2.0, 2.0, 5.0],
        "downsample_inplane": 2,
    }
    (root / "index.json").write_text(json.dumps([volume]))
    (root / "slices.json").write_text(json.dumps(slices))
    return root


def test_the_real_copy_is_complete_and_passes_the_check(prepared: Dataset) -> None:
    assert prepared.card.partial == ""
    assert (prepared.card.counts["records"], prepared.card.counts["patients"]) == (63, 5)
    assert load_dataset(prepared.root) == prepared
    assert check_dataset(prepared.root, workers=1).faults == ()
    splits = defaultdict(set)
    for item in (*prepared.records, *prepared.conversations):
        splits[item.patient_id].add(item.split)
    assert all(len(found) == 1 for found in splits.values())


def test_real_boxes_of_masks_span_the_published_ones(prepared: Dataset, shared_data: Path) -> None:
    index = json.loads((shared_data / "radiomics_ct_mr" / "index.json").read_text())
    by_id = {record.id: record for record in prepared.records}
    for row in index:
        boxes = by_id[row["id"]].boxes
        x1, y1, z1, x2, y2, z2 = row["lesion_box_xyzxyz"]
        if row["id"].startswith("brain"):  # stored from the back, read from the front
            rows = row["shape_zyx"][1]
            y1, y2 = rows - y2, rows - y1
        assert min(b.x1 for b in boxes) == x1
        assert max(b.x2 for b in boxes) == x2
        assert min(b.y1 for b in boxes) == y1
        assert max(b.y2 for b in boxes) == y2
        assert min(b.z1 for b in boxes if b.z1 is not None) == z1
        assert max(b.z2 for b in boxes if b.z2 is not None) == z2
        first = boxes[0]
        assert first.size_mm[0] == pytest.approx((first.x2 - first.x1) * row["spacing_xyz"][0])
    assert len(by_id["brain1"].boxes) == 2  # two foci


def test_real_slices_keep_the_sides_of_their_volume(prepared: Dataset) -> None:
    """A slice's tumour lies in the columns of its volume's: halved for the lungs."""
    volumes = {record.id: record for record in prepared.records if record.masks}
    checked = 0
    for record in prepared.records:
        if record.masks or not record.boxes:
            continue
        volume = volumes[str(record.patient_id)]
        scale = 2 if record.attributes["region"] == "lung" else 1
        low = min(box.x1 for box in volume.boxes) * scale
        high = max(box.x2 for box in volume.boxes) * scale
        for box in record.boxes:
            assert low - scale <= box.x1 < box.x2 <= high + scale
            assert box.size_mm[0] > 3
        checked += 1
    assert checked == 24


def test_real_presence_and_modality_are_balanced(prepared: Dataset) -> None:
    answers = defaultdict(Counter)
    for row in prepared.conversations:
        assert row.answer is not None
        answers[row.task][row.answer.text] += 1
    assert answers["presence"] == {"yes": 24, "no": 24}
    assert answers["modality"] == {"CT": 20, "MRI": 20}


def test_a_small_copy_goes_all_the_way(tmp_path: Path, progress: Any) -> None:
    made = CONFIG.prepare(tmp_path / "out", root=write(tmp_path / "in"), progress=progress)
    assert check_dataset(made.root, workers=1).faults == ()
    assert made.card.partial == "1 of 5 cases"
    by_id = {record.id: record for record in made.records}
    assert by_id["lung1"].boxes == (
        Box(label="tumour", x1=2, x2=5, y1=1, y2=3, z1=1, z2=3, size_mm=(6.0, 4.0, 10.0)),
    )
    assert by_id["lung1_z001"].boxes == (
        Box(label="tumour", x1=4, x2=10, y1=2, y2=6, size_mm=(6.0, 4.0)),
    )
    assert by_id["lung1_z000"].boxes == ()
    tasks = Counter(row.task for row in made.conversations)
    assert tasks == {"rec": 2, "presence": 2, "region": 1}  # one modality only: not asked


def test_a_slice_of_no_volume_is_named(tmp_path: Path, progress: Any) -> None:
    root = write(tmp_path / "in")
    rows = json.loads((root / "slices.json").read_text())
    rows[1]["volume"] = "lung9"
    (root / "slices.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="no volume 'lung9'") as error:
        CONFIG.prepare(tmp_path / "out", root=root, progress=progress)
    assert error.value.fault.row == "slices/lung1_z001.png"
