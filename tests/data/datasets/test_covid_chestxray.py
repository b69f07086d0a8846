"""COVID-19 Image Data Collection: notes, follow-ups, larger copies, and guesses that stay guesses."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medloupe.data.check import check_dataset
from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.data.datasets.covid_chestxray import change, read_records, sections
from medloupe.errors import DataError
from medloupe.types import Box

SPLITS = ("train", "validation", "test")
CONFIG = DatasetConfig.parse({"name": "covid_chestxray", "images": "reference"})


@pytest.fixture(scope="module")
def prepared(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("covid_chestxray")
    return CONFIG.prepare(out, root=shared_data / "cxr_covid_cc", progress=lambda *_: None)


def row(name: str, patient: str, note: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": name,
        "image": f"images/{name}.jpg",
        "patient": patient,
        "day": None,
        "view": "AP Supine",
        "finding": "COVID-19",
        "sex": "F",
        "survival": "?",
        "intubated": None,
        "in_icu": "N",
        "clinical_notes": note,
        "license": "CC BY-NC-SA",
        "doi": None,
        "source_url": f"https://example.org/{name}",
        "boxes": [
            {"label": "Right Lung", "kind": "anatomy", "box": [2.0, 3.0, 18.5, 25.0]},
            {"label": "Left Lung", "kind": "anatomy", "box": [21.0, 3.0, 38.0, 25.0]},
        ],
    } | fields


HIRES = {
    "image": "images_hires/a.jpg",
    "boxes": [
        {"label": "Right Lung", "kind": "anatomy", "box": [4, 6, 37, 50]},
        {"label": "Ground Glass Opacities", "kind": "pathology", "box": [6, 10, 20, 20]},
        {"label": "Ground Glass Opacities", "kind": "pathology", "box": [50, 10, 70, 40]},
        {"label": "Nasogastric Tube", "kind": "device", "box": [38, 0, 42, 59]},
    ],
}


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Writes a folder of the given rows and pairs, with an image for each row and larger copy."""

    def write(rows: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> Path:
        root = tmp_path / "source"
        sizes = {item["image"]: (40, 30) for item in rows}
        sizes |= {item["hires"]["image"]: (80, 60) for item in rows if item.get("hires")}
        for number, (uri, (width, height)) in enumerate(sizes.items()):
            (root / uri).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (height, width), np.uint8)
            Image.fromarray(pixels).save(root / uri)
        (root / "records.json").write_text(json.dumps(rows))
        (root / "pairs.json").write_text(json.dumps(pairs))
        return root

    return write


ROWS = [
    row(
        "a",
        "p1",
        "Presentation: Cough. . Imaging Notes: Both lungs opaque.. . Discussion: None",
        day=0.0,
        hires=HIRES,
        severity={"geographic_extent_0_8": 4.0, "opacity_0_6": 2.3},
    ),
    row("b", "p1", "Less consolidation than before.", day=3.0),
    row("c", "p2", "Fever for three days."),
    row("d", "p3", "Clear lungs."),
    row("e", "p3", "Clear lungs."),
]
PAIRS = [
    {
        "patient": "p1",
        "prior": "a",
        "current": "b",
        "interval_days": 3.0,
        "note_current": "Less consolidation than before.",
        "keyword_change": "better_kw",
        "severity_delta": -1.3,
    }
]


def test_the_real_copy_is_partial_and_passes_the_check(prepared: Dataset) -> None:
    card = prepared.card
    assert card.partial == "206 of 616 radiographs"
    assert (card.counts["records"], card.counts["patients"]) == (240, 122)
    assert "NON-COMMERCIAL" in card.description
    assert load_dataset(prepared.root) == prepared
    assert check_dataset(prepared.root, workers=1).faults == ()
    licences = Counter(r.licence for r in prepared.records if not r.id.endswith("-hires"))
    assert licences["CC BY-NC-SA"] == 141
    assert licences["CC BY-NC-SA 4.0"] == 59


def test_no_real_patient_is_in_two_splits(prepared: Dataset) -> None:
    splits = defaultdict(set)
    for item in (*prepared.records, *prepared.conversations):
        splits[item.patient_id].add(item.split)
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "validation", "test"}


def test_the_real_right_lung_lies_left_in_every_picture(prepared: Dataset) -> None:
    for record in prepared.records:
        middle = {box.label: (box.x1 + box.x2) / 2 for box in record.boxes}
        if {"right lung", "left lung"} <= set(middle):
            assert middle["right lung"] < middle["left lung"], record.id


def test_real_pairs_name_their_prior_and_only_experts_judge_a_change(
    prepared: Dataset, shared_data: Path
) -> None:
    pairs = json.loads((shared_data / "cxr_covid_cc" / "pairs.json").read_text())
    by_id = {record.id: record for record in prepared.records}
    assert {record.id: record.prior for record in prepared.records if record.prior} == {
        pair["current"]: pair["prior"] for pair in pairs
    }
    for pair in pairs:
        prior, current = by_id[pair["prior"]], by_id[pair["current"]]
        assert prior.date_offset_days is not None
        assert current.date_offset_days == prior.date_offset_days + pair["interval_days"]
    judged = {
        r.id: r.answer.text for r in prepared.conversations if r.task == "comparison" and r.answer
    }
    assert judged == {
        "cxr0239/comparison": "unchanged",  # 0.0
        "cxr0241/comparison": "worse",  # 3.0
        "cxr0242/comparison": "unchanged",  # 0.7
        "cxr0239/comparison/zh": "不变",
        "cxr0241/comparison/zh": "加重",
        "cxr0242/comparison/zh": "不变",
    }
    for item in prepared.conversations:
        assert item.answer is not None
        assert "_kw" not in item.question + item.answer.text
    guessed = [r for r in prepared.conversations if r.attributes.get("keyword_change")]
    assert guessed
    assert {r.task for r in guessed} == {"comparison", "follow_up"}


def test_every_real_pair_is_asked_which_is_later_in_both_orders(prepared: Dataset) -> None:
    rows = [row for row in prepared.conversations if row.task == "comparison_order"]
    answers = Counter((r.language, r.answer.text) for r in rows if r.answer)
    assert set(answers.values()) == {62}
    assert set(answers) == {("en", "first"), ("en", "second"), ("zh", "第一张"), ("zh", "第二张")}
    days = {r.images[0].uri: r.date_offset_days for r in prepared.records}
    for row in rows:
        first, second = (days[image.uri] for image in row.images)
        assert first is not None
        assert second is not None
        assert row.answer is not None
        assert (row.answer.text == row.options[0]) == (first > second)
    assert {split: len({r.patient_id for r in rows if r.split == split}) for split in SPLITS} == {
        "train": 21,
        "validation": 3,
        "test": 8,
    }


def test_a_small_copy_goes_all_the_way(source: Any, tmp_path: Path, progress: Any) -> None:
    made = CONFIG.prepare(tmp_path / "out", root=source(ROWS, PAIRS), progress=progress)
    assert check_dataset(made.root, workers=1).faults == ()
    assert made.card.partial == "5 of 616 radiographs"
    answers = {r.id: r.answer.text for r in made.conversations if r.answer is not None}
    assert answers["a/report"] == "Both lungs opaque."
    assert answers["a/severity"] == "Extent 4.0 of 8, opacity 2.3 of 6"
    assert answers["a/view"] == "AP supine"
    assert answers["b/comparison"] == "better"
    assert answers["b/comparison/zh"] == "好转"
    assert answers["b/comparison_order/later_first"] == "first"
    assert answers["b/follow_up"] == "Less consolidation than before."
    texts = [r.id for r in made.conversations if r.task in ("report", "caption", "follow_up")]
    # b only beside a; c is history alone; d and e share their note
    assert texts == ["a/report", "b/follow_up"]
    assert len(next(r for r in made.conversations if r.id == "b/follow_up").images) == 2


def test_a_larger_copy_has_its_own_boxes_and_no_note(source: Any) -> None:
    records = {record.id: record for record in read_records(source(ROWS, PAIRS))}
    large, small = records["a-hires"], records["a"]
    assert large.patient_id == small.patient_id
    assert large.study_id == small.study_id
    assert large.images[0].uri == "images_hires/a.jpg"
    assert large.report == {}
    assert large.labels == ("ground-glass opacities", "nasogastric tube")
    assert [box.x2 for box in large.boxes] == [37, 20, 70, 42]
    assert small.boxes[0] == Box(
        label="right lung", x1=2.0, y1=3.0, x2=18.5, y2=25.0, words=("anatomy",)
    )
    assert small.attributes["sex"] == "F"
    assert "survival" not in small.attributes  # "?" says nothing
    assert records["b"].prior == "a"


def test_findings_name_pathology_and_no_device(source: Any, tmp_path: Path, progress: Any) -> None:
    made = CONFIG.prepare(tmp_path / "out", root=source(ROWS, PAIRS), progress=progress)
    found = next(r for r in made.conversations if r.task == "findings")
    assert found.answer is not None
    boxes = [part for part in found.answer.content if isinstance(part, Box)]
    assert [box.label for box in boxes] == ["ground-glass opacities"] * 2
    # one larger copy: every presence has one answer only, so none is asked
    assert not any(r.task == "presence" for r in made.conversations)


def test_the_diagnosis_is_asked_for_only_by_name(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    root = source(ROWS, PAIRS)
    plain = CONFIG.prepare(tmp_path / "out", root=root, progress=progress)
    assert "diagnosis" not in {r.task for r in plain.conversations} | set(plain.card.tasks)
    wanted = CONFIG.with_overrides(["diagnosis=true"])
    asked = wanted.prepare(tmp_path / "asked", root=root, progress=progress)
    assert sum(r.task == "diagnosis" for r in asked.conversations) == 5
    assert "diagnosis" in asked.card.tasks


def test_notes_fall_into_their_headed_parts() -> None:
    assert sections("Cough. Clear lungs.") == {"note": "Cough. Clear lungs."}
    assert sections("Presentation: Cough.. Imaging notes: Heart normal.. Lungs clear. . ") == {
        "history": "Cough.",
        "findings": "Heart normal. Lungs clear.",
    }


@pytest.mark.parametrize(
    ("delta", "name"),
    [(0.0, "unchanged"), (0.9, "unchanged"), (-0.9, "unchanged"), (1.0, "worse"), (-1.0, "better")],
)
def test_a_change_needs_a_whole_point(delta: float, name: str) -> None:
    assert ("better", "unchanged", "worse")[change(delta)] == name


def test_a_pair_without_days_is_not_asked_for_its_order(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    undated = [ROWS[0] | {"day": None}, *ROWS[1:]]
    made = CONFIG.prepare(tmp_path / "out", root=source(undated, PAIRS), progress=progress)
    assert {r.task for r in made.conversations if len(r.images) == 2} == {"comparison", "follow_up"}


def test_faulty_rows_are_named(source: Any, tmp_path: Path, progress: Any) -> None:
    with pytest.raises(DataError, match="missing or empty") as error:
        read_records(source([row("a", "", "Note.")], PAIRS))
    assert (error.value.fault.row, error.value.fault.field) == ("a", "patient")
    stray = [PAIRS[0] | {"prior": "x"}]
    with pytest.raises(DataError, match="'x'"):
        CONFIG.prepare(tmp_path / "out", root=source(ROWS, stray), progress=progress)
