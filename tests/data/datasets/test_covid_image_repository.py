"""COVID-19 Image Repository: series of one patient, offsets, square crops, and what is asked."""

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
from medloupe.data.datasets.covid_image_repository import read_records
from medloupe.errors import DataError

CONFIG = DatasetConfig.parse({"name": "covid_image_repository", "images": "reference"})
HEADER = (
    "patient_id,image_id,sex,admission_offset,icu_admission_offset,icu_release_offset,modality,"
    "projection,crp_offset,crp_val,width,height"
)
ROWS = [
    "p1,a1,m,0,2.0,4.0,CR,pa,0.0,-inf,40,30",  # in hospital, not yet in intensive care
    "p1,a3,m,-5,-3.0,-1.0,CR,pa,0.0,12.0,40,30",  # back from intensive care
    "p1,a2,m,-3,-1.0,1.0,DX,ap,,,40,30",  # in intensive care; out of order
    "p2,b1,f,,,,CR,ap,,,40,30",  # no date
    "p3,c1,f,-1,0.0,,CR,ap,,,40,30",
    "p3,c2,f,-1,0.0,,CR,ap,,,40,30",  # the same day
    "p3,c3,f,-2,-1.0,,CR,ap,,,40,30",
]


@pytest.fixture(scope="module")
def prepared(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("covid_image_repository")
    return CONFIG.prepare(out, root=shared_data / "cxr_hannover", progress=lambda *_: None)


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Writes `data.csv` and a picture per row; with boxes, a square crop of a1."""

    def write(*rows: str, folder: str = "png", boxes: dict[str, Any] | None = None) -> Path:
        root = tmp_path / "source"
        names = [f"{folder}/{line.split(',')[1]}.png" for line in rows]
        names += [] if boxes is None else ["images_sq/a1.png"]
        for number, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (30, 40), np.uint8)
            Image.fromarray(pixels).save(root / name)
        (root / "data.csv").write_text("\n".join([HEADER, *rows]) + "\n")
        if boxes is not None:
            (root / "lung_boxes_sq.json").write_text(json.dumps(boxes))
        return root

    return write


SQUARE = {
    "a1": {
        "image": "images_sq/a1.png",
        "boxes": [
            {"label": "Left Lung", "box": [22.5, 2.0, 40.0, 28.0]},
            {"label": "Right Lung", "box": [0.0, 2.0, 18.0, 28.0]},
        ],
    }
}


def test_the_real_copy_is_partial_and_passes_the_check(prepared: Dataset) -> None:
    card = prepared.card
    assert card.partial == "183 of 243 radiographs, 64 of 71 patients"
    assert (card.counts["records"], card.counts["images"]) == (279, 279)
    assert load_dataset(prepared.root) == prepared
    assert check_dataset(prepared.root, workers=1).faults == ()


def test_real_pairs_and_days_are_those_of_the_copy(prepared: Dataset, shared_data: Path) -> None:
    pairs = json.loads((shared_data / "cxr_hannover" / "pairs.json").read_text())
    by_id = {record.id: record for record in prepared.records}
    assert {record.id: record.prior for record in prepared.records if record.prior} == {
        pair["current"]: pair["prior"] for pair in pairs
    }
    for pair in pairs:
        assert by_id[pair["current"]].date_offset_days == pair["day_current"]
        assert by_id[pair["prior"]].date_offset_days == pair["day_prior"]


def test_the_real_right_lung_lies_left_in_every_crop(prepared: Dataset) -> None:
    crops = [record for record in prepared.records if record.boxes]
    assert len(crops) == 96
    for record in crops:
        middle = {box.label: (box.x1 + box.x2) / 2 for box in record.boxes}
        assert middle["right lung"] < middle["left lung"], record.id


def test_real_changes_of_projection_are_asked_as_often_as_none(prepared: Dataset) -> None:
    rows = [row for row in prepared.conversations if row.task == "projection_change"]
    assert Counter(row.answer.text for row in rows if row.answer) == {"yes": 8, "no": 8}
    by_id = {record.id: record for record in prepared.records}
    for row in rows:
        record = by_id[row.id.split("/")[0]]
        assert record.prior is not None
        same = record.attributes["view"] == by_id[record.prior].attributes["view"]
        assert row.answer is not None
        assert row.answer.text == ("yes" if same else "no")


def test_every_real_pair_is_asked_which_is_later_in_both_orders(
    prepared: Dataset, shared_data: Path
) -> None:
    pairs = json.loads((shared_data / "cxr_hannover" / "pairs.json").read_text())
    rows = [row for row in prepared.conversations if row.task == "comparison_order"]
    answers = Counter((row.split, row.language, row.answer.text) for row in rows if row.answer)
    assert sum(answers.values()) == 4 * len(pairs) == 440
    for split, times, patients in (("train", 86, 24), ("validation", 2, 1), ("test", 22, 3)):
        assert {answers[split, "en", a] for a in ("first", "second")} == {times}
        assert {answers[split, "zh", a] for a in ("第一张", "第二张")} == {times}
        assert len({row.patient_id for row in rows if row.split == split}) == patients
    later = {pair["current"]: pair["prior"] for pair in pairs}
    for row in rows:
        first, second = (image.study for image in row.images)
        assert row.answer is not None
        place = row.options.index(row.answer.text)
        assert later[(first, second)[place]] == (first, second)[1 - place]


def test_series_are_ordered_by_day_and_pictures_of_one_day_have_no_order(source: Any) -> None:
    records = {record.id: record for record in read_records(source(*ROWS))}
    assert {name: record.prior for name, record in records.items()} == {
        "a1": None,
        "a2": "a1",
        "a3": "a2",
        "b1": None,
        "c1": None,
        "c2": None,
        "c3": "c2",
    }
    assert [records[name].date_offset_days for name in ("a1", "a2", "a3")] == [0, 3, 5]
    assert records["b1"].date_offset_days is None


def test_attributes_say_what_happened_when_the_picture_was_taken(source: Any) -> None:
    records = {record.id: record for record in read_records(source(*ROWS))}
    in_icu = {name: record.attributes["in_icu"] for name, record in records.items()}
    assert in_icu == {
        "a1": "no",
        "a2": "yes",
        "a3": "no",
        "b1": "no",
        "c1": "yes",
        "c2": "yes",
        "c3": "yes",
    }
    assert records["a1"].attributes | {"crp_val": "-inf", "sex": "M", "view": "PA"} == (
        records["a1"].attributes
    )
    assert "crp_val" not in records["a2"].attributes
    assert records["a2"].images[0].modality == "DX"


def test_a_small_copy_goes_all_the_way(source: Any, tmp_path: Path, progress: Any) -> None:
    root = source(*ROWS, boxes=SQUARE)
    made = CONFIG.prepare(tmp_path / "out", root=root, progress=progress)
    assert check_dataset(made.root, workers=1).faults == ()
    assert made.card.partial == "7 of 243 radiographs, 3 of 71 patients"
    tasks = Counter(row.task for row in made.conversations)
    # of the changes: a1 -> a2 no, a2 -> a3 no, c2 -> c3 yes; one of each stays
    assert tasks == {
        "projection": 7,
        "projection_change": 2,
        "comparison_order": 12,  # three pairs, two orders, two languages
        "rec": 2,
        "reg": 2,
    }
    crop = next(record for record in made.records if record.id == "a1-square")
    assert crop.prior is None
    assert crop.patient_id == "p1"
    assert [box.label for box in crop.boxes] == ["left lung", "right lung"]


def test_a_copy_without_lung_boxes_is_read(source: Any) -> None:
    assert len(read_records(source(*ROWS, folder="images"))) == 7


@pytest.mark.parametrize(
    ("line", "message", "field"),
    [
        ("p1,a1,m,0,,,CR,lateral,,,40,30", "unknown projection 'lateral'", "projection"),
        ("p1,a1,m,early,,,CR,ap,,,40,30", "'early' is no number of days", None),
        (",a1,m,0,,,CR,ap,,,40,30", "missing or empty", "patient_id"),
    ],
)
def test_faulty_rows_are_named(source: Any, line: str, message: str, field: str | None) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_records(source(line))
    assert (error.value.fault.row, error.value.fault.field) == ("a1", field)


def test_missing_pictures_and_boxes_of_nothing_are_named(source: Any) -> None:
    with pytest.raises(DataError, match="of no radiograph") as error:
        read_records(source(ROWS[3], boxes=SQUARE))
    assert error.value.fault.row == "a1"
    root = source(*ROWS)
    (root / "png" / "a2.png").unlink()
    with pytest.raises(DataError, match="picture is missing") as error:
        read_records(root)
    assert error.value.fault.row == "a2"
    with pytest.raises(DataError, match="folder of pictures is missing"):
        read_records(root.parent)
