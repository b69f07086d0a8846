"""SA-Med2D-20M: masks in the publisher's layout become the boxes that a hand would draw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medloupe.data.check import check_dataset
from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import ConfigError, DataError, MedLoupeError
from medloupe.types import Box

Part = tuple[int, int, int, int]  # x1, y1, x2, y2
CLASSES = {
    "CAD_PE": {"pulmonary_embolism": "0000", "lung": "0001", "whole_lung": "0002"},
    "covid_19_ct_cxr": {"lung": "0000"},
    "BraTS2021": {"tumor": "0011"},
}
CT = "ct_00--CAD_PE--001--x_0125"
NEXT = "ct_00--CAD_PE--001--x_0126"
XRAY = "x_ray--covid_19_ct_cxr--16660_5_1--2d_none"
MR = "mr_t1--BraTS2021--BraTS2021_00218--z_0141"


@pytest.fixture
def sa_med2d(tmp_path: Path, png: Callable[..., str]) -> Callable[..., Path]:
    """Writes SAMed2Dv1 with images of 40 x 30 pixels; a mask is a list of filled parts."""
    root = tmp_path / "SAMed2Dv1"

    def write(images: dict[str, dict[str, list[Part]]], **change: Any) -> Path:
        (root / "masks").mkdir(parents=True, exist_ok=True)
        index: dict[str, Any] = {}
        for number, (stem, masks) in enumerate(images.items()):
            png(f"SAMed2Dv1/images/{stem}.png", seed=number)
            for name, parts in masks.items():
                mask = np.zeros(change.get("size", (30, 40)), np.uint8)
                for x1, y1, x2, y2 in parts:
                    mask[y1:y2, x1:x2] = change.get("value", 1)
                Image.fromarray(mask).convert(change.get("mode", "L")).save(
                    root / "masks" / f"{stem}--{name}.png"
                )
            index[f"images/{stem}.png"] = [f"masks/{stem}--{name}.png" for name in masks]
        index |= change.get("index", {})
        (root / "SAMed2D_v1.json").write_text(json.dumps(index))
        classes = change.get("classes", CLASSES)
        (root / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(classes))
        return root

    return write


def prepare(root: Path, **fields: Any) -> Dataset:
    config = DatasetConfig.parse({"name": "sa_med2d", **fields})
    return config.prepare(root.parent / "out", root=root, progress=lambda *_: None)


TWO_PARTS: list[Part] = [(2, 3, 6, 9), (20, 10, 21, 30)]
LUNG: list[Part] = [(5, 5, 35, 25)]


def test_every_part_of_a_mask_is_a_box(sa_med2d: Callable[..., Path]) -> None:
    root = sa_med2d({CT: {"0000_000": TWO_PARTS, "0001_000": LUNG}})
    dataset = prepare(root)
    record = dataset.records[0]
    assert record.boxes == (
        Box(label="pulmonary_embolism", x1=2, y1=3, x2=6, y2=9),
        Box(label="pulmonary_embolism", x1=20, y1=10, x2=21, y2=30),
        Box(label="lung", x1=5, y1=5, x2=35, y2=25),
    )
    assert record.labels == ("pulmonary_embolism", "lung")
    assert record.patient_id == "CAD_PE/001"
    assert record.images[0].modality == "CT"
    assert record.attributes == {"source": "CAD_PE", "axis": "x", "slice": "125"}
    assert len(record.masks) == 2
    assert load_dataset(dataset.root) == dataset
    assert check_dataset(dataset.root).faults == ()


@pytest.mark.parametrize(("value", "mode"), [(1, "L"), (255, "L"), (255, "RGB"), (255, "1")])
def test_masks_are_binary_however_they_are_saved(
    sa_med2d: Callable[..., Path], value: int, mode: str
) -> None:
    root = sa_med2d({CT: {"0000_000": TWO_PARTS}}, value=value, mode=mode)
    assert len(prepare(root).records[0].boxes) == 2


def test_questions_both_ways(sa_med2d: Callable[..., Path]) -> None:
    root = sa_med2d({CT: {"0000_000": TWO_PARTS, "0001_000": LUNG, "0002_000": LUNG}})
    rows = prepare(root).conversations
    where = [row for row in rows if row.task == "rec"]
    assert [row.question.count("pulmonary embolism") for row in where] == [1, 0, 0]
    assert [part for part in where[0].answer.content if isinstance(part, Box)] == [
        Box(label="pulmonary_embolism", x1=2, y1=3, x2=6, y2=9),
        Box(label="pulmonary_embolism", x1=20, y1=10, x2=21, y2=30),
    ]
    what = [row.answer.text for row in rows if row.task == "reg"]
    # two structures in one and the same box cannot be told apart by it
    assert what == ["pulmonary embolism", "pulmonary embolism", "lung, whole lung"]


def test_small_parts_can_be_left_out(sa_med2d: Callable[..., Path]) -> None:
    root = sa_med2d({CT: {"0000_000": [(0, 0, 1, 2), (10, 10, 14, 14)]}})
    assert len(prepare(root, min_pixels=3).records[0].boxes) == 1


def test_slices_and_sequences_of_a_case_stay_together(sa_med2d: Callable[..., Path]) -> None:
    images = {
        f"mr_{kind}--BraTS2021--case{case}--z_{number:04d}": {"0011_000": LUNG}
        for kind in ("t1", "flair")
        for case in range(12)
        for number in (3, 4)
    }
    dataset = prepare(sa_med2d(images))
    assert dataset.card.leak == ""
    splits: dict[str | None, set[str | None]] = {}
    for row in dataset.conversations:
        splits.setdefault(row.patient_id, set()).add(row.split)
    assert len(splits) == 12
    assert all(len(found) == 1 for found in splits.values())
    assert dataset.records[0].attributes["sub_modality"] == "flair"


def test_a_choice_is_fixed_and_named_as_partial(sa_med2d: Callable[..., Path]) -> None:
    everything = {stem: {"0000_000": LUNG} for stem in (CT, NEXT, XRAY)} | {MR: {"0011_000": LUNG}}
    root = sa_med2d(everything)
    assert prepare(root).card.partial == "4 of 4,600,000 images, 4 of 19,700,000 masks"
    xray = prepare(root, modalities=["x_ray"]).records
    assert [row.id for row in xray] == [f"sa_med2d/{XRAY}"]
    assert xray[0].attributes == {"source": "covid_19_ct_cxr"}
    assert xray[0].images[0].modality == "DX"
    assert len(prepare(root, sources=["CAD_PE", "BraTS2021"]).records) == 3
    some = [prepare(root, max_images=2, seed=seed).records for seed in (1, 1, 2, 3, 4)]
    assert [len(rows) for rows in some] == [2] * 5
    assert some[0] == some[1]
    assert len({tuple(row.id for row in rows) for rows in some}) > 1


@pytest.mark.parametrize(
    ("change", "fields", "rule"),
    [
        ({"index": {"images/liver.png": ["masks/a.png"]}}, {}, "publisher's convention"),
        ({"index": {f"images/{NEXT}.png": []}}, {}, "no list of masks"),
        ({"index": {f"images/{NEXT}.png": [f"masks/{CT}--0000_000.png"]}}, {}, "no such image"),
        ({"index": {f"images/{CT}.png": [f"masks/{NEXT}--0000_000.png"]}}, {}, "of another image"),
        ({"index": {f"images/{CT}.png": [f"masks/{CT}--0000_007.png"]}}, {}, "no such image"),
        ({"index": {f"images/{CT}.png": [f"masks/{CT}--0009_000.png"]}}, {}, "class 0009 has no"),
        ({"index": {"images/xct_00--a--b--x_1.png": ["a"]}}, {}, "did you mean 'ct'"),
        ({"size": (40, 30)}, {}, "the mask is 30 x 40, its image 40 x 30"),
        ({"classes": {"CAD_PE": {"lung": "three"}}}, {}, "no class number"),
        ({"classes": []}, {}, "holds no classes"),
        ({}, {"sources": ["CAD"]}, "unknown name 'CAD'; did you mean 'CAD_PE'"),
        ({}, {"modalities": ["pet"]}, "no image is of these"),
        ({}, {"tasks": []}, "no task"),
    ],
)
def test_what_is_wrong_is_named(
    sa_med2d: Callable[..., Path], change: dict[str, Any], fields: dict[str, Any], rule: str
) -> None:
    root = sa_med2d({CT: {"0000_000": LUNG}}, **change)
    with pytest.raises(MedLoupeError, match=rule) as caught:
        prepare(root, **fields)
    assert isinstance(caught.value, ConfigError if fields else DataError)


def test_an_index_that_was_cut_off_is_refused(sa_med2d: Callable[..., Path]) -> None:
    root = sa_med2d({CT: {"0000_000": LUNG}, NEXT: {"0000_000": LUNG}})
    text = (root / "SAMed2D_v1.json").read_text()
    (root / "SAMed2D_v1.json").write_text(text[:-20])
    with pytest.raises(DataError, match="was it cut off"):
        prepare(root)
    (root / "SAMed2D_v1.json").unlink()
    with pytest.raises(DataError, match="no such file"):
        prepare(root)
