"""BCCD: both layouts, the partial copy, which cells are asked about, and faulty rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medloupe.data.check import check_dataset
from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.data.datasets.bccd import read_records
from medloupe.errors import DataError
from medloupe.types import Box

BCCD = DatasetConfig.parse({"name": "bccd", "images": "reference"})
CELLS = [("RBC", [1, 2, 9, 12]), ("WBC", [10, 10, 30, 28]), ("Platelets", [31, 5, 34, 8])]


@pytest.fixture(scope="module")
def prepared(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("bccd")
    return BCCD.prepare(out, root=shared_data / "bccd", progress=lambda *_: None)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_json(root: Path, *rows: dict[str, Any]) -> Path:
    made = []
    for number, row in enumerate(rows):
        name = f"BloodImage_{number:05d}"
        picture(root / "images" / f"{name}.jpg", number)
        boxes = [{"label": label, "box": box} for label, box in CELLS]
        made.append(
            {
                "id": name,
                "image": f"images/{name}.jpg",
                "width": 40,
                "height": 30,
                "split": "train",
                "boxes": boxes,
            }
            | row
        )
    (root / "annotations.json").write_text(json.dumps(made))
    return root


def write_voc(root: Path, names: list[str]) -> Path:
    """The publisher's folders; the first picture has a box without area, as two of the set do."""
    for number, name in enumerate(names):
        picture(root / "JPEGImages" / f"{name}.jpg", number)
        cells = [*CELLS, ("RBC", [5, 5, 5, 9])] if number == 0 else CELLS
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin>"
            f"<xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>"
            for label, b in cells
        )
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    main = root / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for split, name in zip(("train", "val", "test"), names, strict=True):
        (main / f"{split}.txt").write_text(name + "\n")
    return root


def test_the_real_copy_is_partial_and_passes_the_check(prepared: Dataset) -> None:
    card = prepared.card
    assert card.partial == "306 of 364 images, 4,064 of 4,886 boxes"
    assert (card.counts["conversations"], card.counts["records"]) == (2210, 306)
    assert load_dataset(prepared.root) == prepared
    assert check_dataset(prepared.root, workers=1).faults == ()
    splits = Counter(record.split for record in prepared.records)
    assert splits == {"train": 173, "validation": 73, "test": 60}


def test_the_real_questions_ask_for_what_is_completely_outlined(prepared: Dataset) -> None:
    by_id = {record.id: record for record in prepared.records}
    for row in prepared.conversations:
        record, task = by_id[row.id.split("/")[0]], row.task
        assert row.answer is not None
        asked = row.question + row.answer.text
        if task != "reg":
            assert "red blood cell" not in asked
        if task == "count":
            number = sum(box.label == "platelet" for box in record.boxes)
            assert row.answer.text == str(number)
        if task == "rec":
            label = row.template.split("/")[1]
            boxes = [part for part in row.answer.content if isinstance(part, Box)]
            assert sorted(boxes, key=str) == sorted(
                (box for box in record.boxes if box.label == label), key=str
            )
    presence = Counter(
        row.answer.text for row in prepared.conversations if row.task == "presence" and row.answer
    )
    assert presence == {"yes": 140, "no": 140}


def test_both_layouts_give_the_same_records(tmp_path: Path) -> None:
    rows = [{"split": split} for split in ("train", "val", "test")]
    from_json = read_records(write_json(tmp_path / "json", *rows))
    names = [record.id for record in from_json]
    from_voc = read_records(write_voc(tmp_path / "voc", names))
    assert [r.boxes for r in from_voc] == [r.boxes for r in from_json]
    assert [r.split for r in from_voc] == ["train", "validation", "test"]
    assert from_voc[0].images[0].uri == f"JPEGImages/{names[0]}.jpg"
    nested = read_records(write_voc(tmp_path / "repository" / "BCCD", names).parent)
    assert nested[0].images[0].uri == f"BCCD/JPEGImages/{names[0]}.jpg"
    assert [box.label for box in from_json[0].boxes] == [
        "red blood cell",
        "white blood cell",
        "platelet",
    ]


def test_a_small_copy_goes_all_the_way(tmp_path: Path, progress: Any) -> None:
    source = write_voc(tmp_path / "voc", ["a", "b", "c"])
    made = BCCD.prepare(tmp_path / "out", root=source, progress=progress)
    assert made.card.partial == "3 of 364 images, 9 of 4,886 boxes"
    assert check_dataset(made.root, workers=1).faults == ()
    # everywhere a platelet: whether there is one is no question
    assert {row.task for row in made.conversations} == {"rec", "reg", "detection", "count"}
    detection = next(row for row in made.conversations if row.task == "detection")
    assert detection.answer is not None
    assert detection.answer.text == "white blood cell , platelet "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": [{"label": "EBC", "box": [1, 1, 2, 2]}]}, "unknown cell 'EBC'"),
        ({"boxes": [{"label": "RBC", "box": [1, 1, 2]}]}, "is no box"),
        ({"boxes": [{"label": "RBC", "box": [9, 1, 2, 2]}]}, "is no box"),
        ({"split": "dev"}, "in no split"),
        ({"image": ""}, "missing or empty"),
    ],
)
def test_faulty_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    source = write_json(tmp_path, {}, change)
    with pytest.raises(DataError, match=message) as error:
        read_records(source)
    assert error.value.fault.row == "BloodImage_00001"
    assert error.value.fault.file == str(source / "annotations.json")


def test_what_is_no_copy_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no copy of BCCD.*annotations\.json"):
        read_records(tmp_path)
    write_voc(tmp_path, ["a", "b", "c"])
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation>")
    with pytest.raises(DataError, match="is not XML") as error:
        read_records(tmp_path)
    assert error.value.fault.file is not None
    assert error.value.fault.file.endswith("b.xml")
    (tmp_path / "ImageSets" / "Main" / "val.txt").unlink()
    with pytest.raises(DataError, match="no such file"):
        read_records(tmp_path)
