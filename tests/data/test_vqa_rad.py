"""VQA-RAD: the copies in circulation, what is missing of them, and splits without shared images."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medloupe.data.check import check_dataset
from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.data.datasets.vqa_rad import find_variant, partial_copy, question_type
from medloupe.errors import DataError, LeakError

BY_IMAGE = DatasetConfig.parse("vqa_rad")


def question(qid: int, image: str, answer: Any = "Yes", **fields: Any) -> dict[str, Any]:
    """One row as the publisher writes it."""
    return {
        "qid": qid,
        "image_name": image,
        "image_organ": "CHEST",
        "question": "Is the heart  enlarged? ",
        "answer": answer,
        "answer_type": "CLOSED ",
        "question_type": "SIZE",
        "phrase_type": "freeform",
        "question_rephrase": "NULL",
        **fields,
    }


@pytest.fixture
def source(tmp_path: Path, png: Any) -> Any:
    """Writes a publisher's folder of 40 images with two questions each."""

    def write(*extra: dict[str, Any]) -> Path:
        rows = []
        for i in range(40):
            name = Path(png(f"source/VQA_RAD Image Folder/synpic{i}.png", seed=i, width=6)).name
            rows.append(question(2 * i, name))
            rows.append(question(2 * i + 1, name, 12, answer_type="OPEN", phrase_type="test_para"))
        path = tmp_path / "source" / "VQA_RAD Dataset Public.json"
        path.write_text(json.dumps([*rows, *extra]))
        return path.parent

    return write


@pytest.fixture(scope="module")
def prepared(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("vqa_rad")
    return BY_IMAGE.prepare(out, root=shared_data / "vqa_rad", progress=lambda *_: None)


def test_the_real_copy_is_named_as_partial(prepared: Dataset) -> None:
    assert prepared.card.partial == "255 of 315 images, 2,879 of 3,515 questions"
    assert prepared.card.published == {"images": 315, "questions": 3515}
    assert prepared.card.counts["questions"] == 2879
    assert prepared.card.leak == ""
    assert load_dataset(prepared.root) == prepared


def test_the_real_copy_keeps_every_word_and_its_given_split(
    prepared: Dataset, shared_data: Path
) -> None:
    given = [
        row
        for file in ("train", "test")
        for row in json.loads((shared_data / "vqa_rad" / f"{file}.json").read_text())
    ]
    rows = {row.id: row for row in prepared.conversations}
    assert len(rows) == 2879
    for raw in given:
        row = rows[f"vqa_rad-{raw['qid']}"]
        assert row.question == " ".join(raw["question"].split())
        assert row.answer is not None
        assert row.answer.text == " ".join(raw["answer"].split())
        assert row.patient_id == raw["image"]
        assert row.attributes["organ"] == raw["organ"]
        assert row.attributes["question_type"] == raw["question_type"]
        assert (row.split == "test") == (raw["image_split"] == "test")
    closed = Counter(row.answer_type for row in rows.values())
    assert closed == {"closed": 1689, "open": 1190}
    images = {split: {r.patient_id for r in prepared.split(split)} for split in SPLITS}
    assert len(images["test"]) == 67
    assert 10 <= len(images["validation"]) <= 28  # about a tenth of 188
    assert len(set.union(*images.values())) == sum(map(len, images.values()))


SPLITS: Any = ("train", "validation", "test")


def test_the_real_copy_passes_the_check(prepared: Dataset) -> None:
    report = check_dataset(prepared.root)
    assert (report.rows, report.images, report.faults) == (2879, 255, ())


def test_yes_no_questions_have_options_and_templates_say_the_form(prepared: Dataset) -> None:
    for row in prepared.conversations:
        assert row.answer is not None
        said = row.answer.text.lower()
        if row.answer_type == "closed" and said in ("yes", "no"):
            assert row.options == ("yes", "no")
            assert row.template == f"{row.task}.yes_no"
        else:
            assert row.options == ()
            assert row.template.endswith(".open" if row.answer_type == "open" else ".choice")


def test_the_official_split_is_refused_unless_allowed_and_then_said(
    shared_data: Path, tmp_path: Path, progress: Any
) -> None:
    official = DatasetConfig.parse({"name": "vqa_rad", "split": "official"})
    with pytest.raises(LeakError, match="shares images between train and test"):
        official.prepare(tmp_path, root=shared_data / "vqa_rad", progress=progress)
    allowed = official.with_overrides(["allow_leak=true"])
    made = allowed.prepare(tmp_path, root=shared_data / "vqa_rad", progress=progress)
    assert made.card.leak == "162 patients and 162 images are in more than one split"
    assert len(made.split("test")) == 364


def test_the_publishers_form_is_read(source: Any, tmp_path: Path, progress: Any) -> None:
    made = BY_IMAGE.prepare(tmp_path / "out", root=source(), progress=progress)
    assert made.card.version == "osf-by_image"
    assert made.card.partial == "40 of 315 images, 80 of 2,248 questions"
    first, second = made.conversations[:2]
    assert first.question == "Is the heart enlarged?"
    assert (first.answer_type, first.options, first.template) == (
        "closed",
        ("yes", "no"),
        "size.yes_no",
    )
    assert second.answer is not None
    assert (second.answer.text, second.answer_type) == ("12", "open")
    assert first.attributes == {
        "qid": "0",
        "organ": "CHEST",
        "question_type": "SIZE",
        "answer_type": "CLOSED",
        "phrase_type": "freeform",
    }
    images = {split: {row.patient_id for row in made.split(split)} for split in SPLITS}
    assert sum(map(len, images.values())) == 40
    assert all(images.values())


def test_the_publishers_test_questions_are_known_by_their_phrase_type(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    config = DatasetConfig.parse({"name": "vqa_rad", "split": "official", "allow_leak": True})
    made = config.prepare(tmp_path / "out", root=source(), progress=progress)
    assert {int(row.attributes["qid"]) % 2 for row in made.split("test")} == {1}
    assert "40 images are in more than one split" in made.card.leak


def test_where_an_image_goes_does_not_hang_on_the_others(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    root = source()
    whole = BY_IMAGE.prepare(tmp_path / "whole", root=root, progress=progress)
    file = root / "VQA_RAD Dataset Public.json"
    file.write_text(json.dumps(json.loads(file.read_text())[30:]))
    part = BY_IMAGE.prepare(tmp_path / "part", root=root, progress=progress)
    splits = {row.id: row.split for row in whole.conversations}
    assert {row.id: row.split for row in part.conversations}.items() <= splits.items()


@pytest.mark.parametrize(
    ("extra", "field", "said"),
    [
        (question(900, "gone.png"), "image", "'gone.png' is missing"),
        (question(900, "synpic0.png", " "), "answer", "missing or empty"),
        (question(900, "synpic0.png", None), "answer", "missing or empty"),
        (question(0, "synpic0.png"), "qid", "occurs 2 times"),
        (question(900, "synpic0.png", image_split="dev"), "image_split", "'dev'"),
    ],
)
def test_a_bad_question_is_named(
    source: Any, tmp_path: Path, progress: Any, extra: Any, field: str, said: str
) -> None:
    with pytest.raises(DataError, match=said) as error:
        BY_IMAGE.prepare(tmp_path / "out", root=source(extra), progress=progress)
    assert error.value.fault.field == field
    assert error.value.fault.row == str(extra["qid"])
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_folder_that_is_something_else_is_refused(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    with pytest.raises(DataError, match=r"no copy of VQA-RAD.*Public\.json"):
        BY_IMAGE.prepare(tmp_path / "out", root=tmp_path, progress=progress)
    root = source()
    shutil.rmtree(root / "VQA_RAD Image Folder")
    with pytest.raises(DataError, match="image folder of this copy"):
        BY_IMAGE.prepare(tmp_path / "out", root=root, progress=progress)
    (root / "VQA_RAD Dataset Public.json").write_text("[{")
    with pytest.raises(DataError, match="is not JSON"):
        BY_IMAGE.prepare(tmp_path / "out", root=root, progress=progress)


def test_a_copy_is_complete_partial_or_not_that_data_set(source: Any) -> None:
    variant = find_variant(source())
    assert partial_copy(variant, images=315, questions=2248) == ""
    assert partial_copy(variant, images=314, questions=2248) == (
        "314 of 315 images, 2,248 of 2,248 questions"
    )
    with pytest.raises(DataError, match="3,064 questions are here"):
        partial_copy(variant, images=315, questions=3064)


@pytest.mark.parametrize(
    ("published", "task"),
    [
        ("PRES", "pres"),
        ("Other", "other"),
        ("PRSE", "pres"),
        ("ATRIB", "attrib"),
        ("POS, ABN", "pos"),
    ],
)
def test_question_types_are_one_word(published: str, task: str) -> None:
    assert question_type(published) == task
