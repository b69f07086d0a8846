"""MedPix 2.0 and MPx-Single: the publishers' files in small, and what is wrong with broken ones."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medloupe.data.check import check_dataset
from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import DataError

Row = dict[str, Any]
ALL = ["caption", "modality", "plane", "location", "report", "diagnosis"]


def case(name: str, ct: list[str], mri: list[str], **told: str | None) -> Row:
    """A row of Case_topic.json, with the publisher's keys."""
    return {
        "U_id": name,
        "TAC": ct,
        "MRI": mri,
        "Case": {
            "Title": "Bladder Diverticulum",
            "History": "73-year-old male with hematuria",
            "Exam": "N/A",
            "Findings": "Bladder with thickened wall.",
            "Differential Diagnosis": "Bladder Diverticulum",
            "Case Diagnosis": "Bladder Diverticulum",
            "Diagnosis By": "N/A",
            **told,
        },
        "Topic": {"Title": "t", "Disease Discussion": "d", "ACR Code": "8.9", "Category": "c"},
    }


def described(name: str, kind: str = "CT", place: str = "Abdomen", **said: str | None) -> Row:
    """A row of Descriptions.json, with the publisher's keys."""
    return {
        "Type": kind,
        "U_id": name.partition("_")[0],
        "image": name,
        "Description": {
            "ACR Codes": "8.-1",
            "Age": "73",
            "Caption": "The prostate is enlarged.",
            "Figure Part": None,
            "Modality": "CT - noncontrast",
            "Plane": "Axial",
            "Sex": "male",
            **said,
        },
        "Location": "Genitourinary",
        "Location Category": place,
    }


CASES = [
    case("MPX1009", ["MPX1009_synpic1"], ["MPX1009_synpic2"]),
    case("MPX1024", ["MPX1024_synpic3"], [], Findings="N/A"),
    case("MPX1012", [], ["MPX1012_synpic4"]),
]
DESCRIBED = [
    described("MPX1009_synpic1"),
    described("MPX1009_synpic2", "MR", "Head", Plane=None, Caption="word " * 30),
    described("MPX1024_synpic3", Sex="N/A"),
    described("MPX1012_synpic4", "MR", Sex="female"),
]
SPLIT = {
    "train": ["MPX1009"],
    "train_1": [],
    "train_2": [],
    "dev": ["MPX1024"],
    "test": ["MPX1012"],
}


@pytest.fixture
def medpix(tmp_path: Path, png: Callable[..., str]) -> Callable[..., Path]:
    """Writes MedPix-2-0 as its repository has it."""

    def write(
        cases: list[Row] = CASES,
        rows: list[Row] = DESCRIBED,
        split: Row | None = SPLIT,
        absent: str = "",
    ) -> Path:
        root = tmp_path / "MedPix-2-0"
        for number, row in enumerate(rows):
            if row["image"] != absent:
                png(f"MedPix-2-0/images/{row['image']}.png", seed=number)
        root.mkdir(exist_ok=True)
        (root / "Case_topic.json").write_text(json.dumps(cases))
        (root / "Descriptions.json").write_text(json.dumps(rows))
        if split is not None:
            (root / "splitted_dataset").mkdir(exist_ok=True)
            (root / "splitted_dataset" / "uid_list.json").write_text(json.dumps(split))
        return root

    return write


def prepare(root: Path, name: str = "medpix", **fields: Any) -> Dataset:
    config = DatasetConfig.parse({"name": name, **fields})
    return config.prepare(root.parent / "out", root=root, progress=lambda *_: None)


def test_cases_and_images_with_the_published_split(medpix: Callable[..., Path]) -> None:
    dataset = prepare(medpix(), tasks=ALL)
    assert dataset.card.partial == "3 of 671 cases, 4 of 2,050 images"
    assert dataset.card.leak == ""
    assert Counter(row.split for row in dataset.records) == {"train": 3, "validation": 2, "test": 2}
    assert load_dataset(dataset.root) == dataset
    assert check_dataset(dataset.root).faults == ()
    whole = next(row for row in dataset.records if row.id == "medpix/MPX1009")
    assert [ref.modality for ref in whole.images] == ["CT", "MR"]
    assert whole.patient_id == whole.study_id == "MPX1009"
    assert set(whole.report) == {"history", "findings", "impression", "differential"}  # no "N/A"


def test_questions_and_answers(medpix: Callable[..., Path]) -> None:
    rows = {row.id: row for row in prepare(medpix(), tasks=ALL).conversations}
    assert Counter(row.task for row in rows.values()) == {
        "caption": 4,
        "modality": 4,
        "location": 4,
        "plane": 3,  # one is not given
        "report": 3,
        "diagnosis": 3,
    }
    second = "medpix/MPX1009_synpic2"
    assert rows[f"{second}/modality"].answer.text == "MRI"
    assert rows[f"{second}/location"].answer.text == "Head"
    assert rows[f"{second}/caption"].template == "caption/detailed/en"  # 30 words
    first = rows["medpix/MPX1009_synpic1/caption"]
    assert first.template == "caption/brief/en"
    assert first.attributes["sex"] == "M"
    assert first.attributes["age"] == "73"
    assert first.attributes["view"] == "Axial"
    assert "sex" not in rows["medpix/MPX1024_synpic3/caption"].attributes
    whole = rows["medpix/MPX1009/report"]
    assert len(whole.images) == 2
    assert whole.answer.text == (
        "Findings: Bladder with thickened wall.\nImpression: Bladder Diverticulum"
    )
    assert rows["medpix/MPX1024/report"].answer.text == "Bladder Diverticulum"


def test_without_the_published_split_cases_are_split(medpix: Callable[..., Path]) -> None:
    dataset = prepare(medpix(split=None))
    assert "by MedLoupe" in dataset.card.splits
    by_case: dict[str | None, set[str | None]] = {}
    for row in dataset.conversations:
        by_case.setdefault(row.patient_id, set()).add(row.split)
    assert all(len(splits) == 1 for splits in by_case.values())


@pytest.mark.parametrize(
    ("change", "rule", "field"),
    [
        ({"rows": [described("MPX1009_synpic1", "PET")]}, "unknown value 'PET'", "Type"),
        (
            {"rows": [described("MPX1_a", place="Foot")]},
            "unknown value 'Foot'",
            "Location Category",
        ),
        ({"rows": [described("MPX1_a", Sex="mail")]}, "did you mean 'male'", "Sex"),
        ({"rows": [described("MPX1_a", Caption="")]}, "missing or empty", "Caption"),
        ({"rows": [DESCRIBED[0], DESCRIBED[0]]}, "occurs 2 times", "image"),
        ({"rows": DESCRIBED[1:]}, "'MPX1009_synpic1' of the case is not described", None),
        ({"cases": CASES[1:]}, "no case 'MPX1009'", "U_id"),
        ({"split": {**SPLIT, "train": []}}, "the case is in no split", None),
        ({"split": {**SPLIT, "test": ["MPX1009"]}}, "the case is in two splits", None),
        ({"split": {"train": []}}, "lists no train, dev and test", None),
        ({"absent": "MPX1009_synpic1"}, "not in this copy", "image"),
    ],
)
def test_what_is_wrong_is_named(
    medpix: Callable[..., Path], change: Row, rule: str, field: str | None
) -> None:
    with pytest.raises(DataError, match=rule) as caught:
        prepare(medpix(**change))
    assert caught.value.fault.file is not None
    assert caught.value.fault.field == field


def test_rows_without_their_image_may_be_left_out(medpix: Callable[..., Path]) -> None:
    dataset = prepare(medpix(absent="MPX1024_synpic3"), missing_images="leave_out")
    assert dataset.card.partial == "2 of 671 cases, 3 of 2,050 images"
    assert all("MPX1024" not in row.id for row in dataset.records)


@pytest.fixture
def mpx(tmp_path: Path, png: Callable[..., str]) -> Callable[..., Path]:
    """Writes MPx-Single as RadFM tabulates it."""

    def write(
        rows: list[tuple[str, ...]], test: list[tuple[str, ...]], header: str = "name,type,context"
    ) -> Path:
        root = tmp_path / "mpx"
        root.mkdir(exist_ok=True)
        for split, lines in (("train", rows), ("test", test)):
            with (root / f"MedPix_single_{split}.csv").open("w", newline="") as stream:
                stream.write(header + "\n")
                csv.writer(stream).writerows(lines)
        for number, name in enumerate({row[0] for row in (*rows, *test)} - {"absent.png"}):
            png(f"mpx/images/{name}", seed=100 + number)
        return root

    return write


TRAIN = [
    ("MPX1_synpic1.png", "caption", "A fracture, displaced."),
    ("MPX1_synpic1.png", "modality", "XR - Plain Film"),
    ("MPX1_synpic1.png", "caption", "A second caption."),
    ("MPX1_synpic2.png", "plane", "Lateral"),
]
TEST = [("synpic9.png", "caption", "A nodule.")]


def test_single_images_with_their_rows(mpx: Callable[..., Path]) -> None:
    dataset = prepare(mpx(TRAIN, TEST), "mpx_single", validation=0)
    assert dataset.card.partial == ""
    assert Counter(row.split for row in dataset.conversations) == {"train": 4, "test": 1}
    assert {row.patient_id for row in dataset.records} == {"MPX1", "synpic9.png"}
    answers = [(row.task, row.answer.text) for row in dataset.conversations]
    assert answers[1] == ("modality", "XR - Plain Film")
    assert answers[3] == ("plane", "Lateral")
    captions = prepare(mpx(TRAIN, TEST), "mpx_single", types=["caption"])
    assert {row.task for row in captions.conversations} == {"caption"}


def test_the_held_out_part_of_the_training_rows_is_whole_cases(mpx: Callable[..., Path]) -> None:
    rows = [(f"MPX{i}_synpic{j}.png", "plane", "Axial") for i in range(60) for j in range(2)]
    dataset = prepare(mpx(rows, TEST), "mpx_single", validation=0.3)
    splits: dict[str | None, set[str | None]] = {}
    for row in dataset.conversations:
        splits.setdefault(row.patient_id, set()).add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    held_out = sum(found == {"validation"} for found in splits.values())
    assert 8 < held_out < 30  # 18 expected of 60


def test_broken_tables_are_named(mpx: Callable[..., Path]) -> None:
    root = mpx(TRAIN, TEST)
    for write, rule in (
        (lambda: mpx(TRAIN, TEST, header="name,kind,context"), "no column 'type'"),
        (lambda: mpx([("a.png", "captoin", "x")], TEST), "did you mean 'caption'"),
        (lambda: mpx([("a.png", "caption", "")], TEST), "the row has no text"),
        (lambda: mpx([("absent.png", "caption", "x")], TEST), "not in this copy"),
    ):
        write()
        with pytest.raises(DataError, match=rule):
            prepare(root, "mpx_single")
    (root / "MedPix_single_test.csv").unlink()
    with pytest.raises(DataError, match="no such file"):
        prepare(root, "mpx_single", missing_images="leave_out")


def test_incomplete_rows_may_be_left_out_and_are_counted(mpx: Callable[..., Path]) -> None:
    rows = [*TRAIN, ("absent.png", "caption", "x"), ("a.png", "caption", "")]
    dataset = prepare(mpx(rows, TEST), "mpx_single", missing_images="leave_out")
    assert dataset.card.partial == "5 of 7 rows"
