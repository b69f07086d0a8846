"""OpenSlide regions: three large pictures, two of one slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medloupe.data.check import check_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import DataError
from medloupe.imaging.read import read_ref

CONFIG = DatasetConfig.parse({"name": "openslide_regions", "images": "reference"})


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_the_real_copy_passes_the_check(shared_data: Path, tmp_path: Path, progress: Any) -> None:
    made = CONFIG.prepare(tmp_path, root=shared_data / "pathology_roi", progress=progress)
    assert made.card.partial == ""
    assert check_dataset(made.root, workers=1).faults == ()
    sizes = {r.id: read_ref(r.images[0], made.root).size for r in made.records}
    assert sizes == {
        "OS-1-detail": (1101, 1101),
        "OS-2-ndpi": (2202, 2202),
        "OS-2-vsi": (1445, 1445),
    }
    answers = {row.id: row.answer.text for row in made.conversations if row.answer is not None}
    assert answers == {
        "OS-1-detail/stain": "H&E",
        "OS-2-ndpi/stain": "Ki-67",
        "OS-2-vsi/stain": "Ki-67",
    }


def test_scans_of_one_slide_stay_together(tmp_path: Path, progress: Any) -> None:
    for number, name in enumerate(("OS-2-ndpi.jpg", "OS-2-vsi.jpg")):
        picture(tmp_path / "in" / name, number)
    for seed in range(5):
        config = CONFIG.with_overrides([f"seed={seed}"])
        made = config.prepare(tmp_path / f"out{seed}", root=tmp_path / "in", progress=progress)
        assert made.card.partial == "2 of 3 regions"
        assert {record.patient_id for record in made.records} == {"OS-2"}
        assert len({row.split for row in (*made.records, *made.conversations)}) == 1


def test_a_folder_without_regions_says_what_was_expected(tmp_path: Path, progress: Any) -> None:
    with pytest.raises(DataError, match=r"no region is here.*OS-1-detail\.jpg"):
        CONFIG.prepare(tmp_path / "out", root=tmp_path, progress=progress)
