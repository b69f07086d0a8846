"""SLAKE: the real questions without images, and a small copy in the publisher's layout."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import ConfigError, DataError, LeakError
from medloupe.types import Box

PARTS = ("train", "validate", "test")


def config(**fields: Any) -> DatasetConfig:
    return DatasetConfig.parse({"name": "slake", **fields})


def question(qid: int, image: int, **fields: Any) -> dict[str, Any]:
    """One row as the publisher writes it."""
    return {
        "img_id": image,
        "img_name": f"xmlab{image}/source.jpg",
        "question": "Does the picture contain liver?",
        "answer": "Yes",
        "q_lang": "en",
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": "CLOSED",
        "base_type": "vqa",
        "content_type": "Organ",
        "triple": ["vhead", "_", "_"],
        "qid": qid,
        **fields,
    }


ZH = {"q_lang": "zh", "question": "图中的器官功能是什么?", "answer": "呼吸", "answer_type": "OPEN"}
KG = {"base_type": "kvqa", "content_type": "KG", "triple": ["vhead", "功能", "ktail"]}
MADE = {
    "train": [question(0, 1), question(1, 1, **ZH, **KG), question(2, 2, answer=" No ")],
    "validate": [question(3, 3)],
    "test": [question(4, 4), question(1622, 4, answer="")],
}


@pytest.fixture
def source(tmp_path: Path, png: Any) -> Any:
    """Writes four images, the first with two boxes and a mask, and the three lists of questions."""

    def write(parts: dict[str, list[Any]] = MADE, boxes: Any = None) -> Path:
        root = tmp_path / "source"
        for i in range(1, 5):
            png(f"source/imgs/xmlab{i}/source.jpg", seed=i)
            png(f"source/imgs/xmlab{i}/mask.png", seed=10 + i)
            (root / f"imgs/xmlab{i}/detection.json").write_text("[]")
        found = boxes or [{"Liver": [2.0, 3.0, 10.0, 5.0]}, {"Liver": [20.0, 3.0, 1.0, 1.0]}]
        (root / "imgs/xmlab1/detection.json").write_text(json.dumps(found))
        for name, rows in parts.items():
            (root / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False))
        return root

    return write


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """All real questions, split by image."""
    out = tmp_path_factory.mktemp("slake")
    alone = config(missing_images="text_only")
    return alone.prepare(out, root=shared_data / "slake_text", progress=lambda *_: None)


def test_the_real_questions_are_all_there_and_counted(real: Dataset) -> None:
    assert real.card.partial == (
        "0 of 642 images, 9,835 of 9,835 train questions, 2,099 of 2,099 validation questions, "
        "2,094 of 2,094 test questions"
    )
    assert real.card.counts["questions without an answer"] == 1
    assert real.card.leak == ""
    assert len(real.conversations) == 14_027
    assert Counter(row.language for row in real.conversations) == {"en": 7032, "zh": 6995}
    assert Counter(row.answer_type for row in real.conversations) == {"closed": 5561, "open": 8466}
    assert not any(row.attributes["qid"] == "1622" for row in real.conversations)


def test_the_real_words_are_kept(real: Dataset, shared_data: Path) -> None:
    rows = {row.attributes["qid"]: row for row in real.conversations}
    for part in PARTS:
        for raw in json.loads((shared_data / "slake_text" / f"{part}.json").read_text()):
            if raw["qid"] == 1622:
                continue
            row = rows[str(raw["qid"])]
            assert row.question.startswith(raw["question"].strip())
            assert row.answer is not None
            assert row.answer.text == raw["answer"].strip()
            assert row.patient_id == raw["img_name"].split("/")[0]
            assert row.language == raw["q_lang"]
            assert row.task == raw["content_type"].lower()


def test_both_languages_follow_the_published_split_of_the_english_questions(real: Dataset) -> None:
    splits = ("train", "validation", "test")
    images = {s: {row.patient_id for row in real.split(s)} for s in splits}
    assert [len(images[s]) for s in splits] == [450, 96, 96]
    assert len(set.union(*images.values())) == 642
    # Table 2 of Llama3-Med: 4919 / 1053 / 1061, one of them without an answer.
    english = Counter(row.split for row in real.conversations if row.language == "en")
    assert english == {"train": 4918, "validation": 1053, "test": 1061}
    assert {r.attributes["published_split"] for r in real.split("test") if r.language == "en"} == {
        "test"
    }


def test_the_published_splits_of_two_languages_share_images(
    shared_data: Path, tmp_path: Path, progress: Any
) -> None:
    official = {"split": "official", "missing_images": "text_only"}
    root = shared_data / "slake_text"
    with pytest.raises(LeakError, match=r"297 more leaks.*allow_leak"):
        config(**official).prepare(tmp_path, root=root, progress=progress)
    chinese = config(**official, languages=["zh"])
    made = chinese.prepare(tmp_path, root=root, progress=progress)
    assert made.card.leak == ""
    assert Counter(row.split for row in made.conversations) == {
        "train": 4916,
        "validation": 1046,
        "test": 1033,
    }


def test_without_images_the_real_copy_is_refused(
    shared_data: Path, tmp_path: Path, progress: Any
) -> None:
    with pytest.raises(DataError, match="missing_images=text_only") as error:
        config().prepare(tmp_path, root=shared_data / "slake_text", progress=progress)
    assert error.value.fault.row == "qid 0"
    assert not (tmp_path / "dataset.json").exists()


def test_the_publishers_layout_is_read(source: Any, tmp_path: Path, progress: Any) -> None:
    made = config().prepare(tmp_path / "out", root=source(), progress=progress)
    assert made.card.counts["images"] == 4
    assert made.card.partial.startswith("4 of 642 images, 3 of 9,835 train questions")
    assert made.card.counts["questions without an answer"] == 1
    assert {row.attributes["qid"] for row in made.conversations} == {"0", "1", "2", "3", "4"}
    first = made.records[0]
    assert first.boxes == (
        Box(label="Liver", x1=2, y1=3, x2=12, y2=8),
        Box(label="Liver", x1=20, y1=3, x2=21, y2=4),
    )
    assert first.attributes == {"modality": "MRI", "location": "Abdomen"}
    assert [ref.uri for ref in first.masks] == ["images/imgs/xmlab1/mask.png"]
    assert first.images[0].modality == "MR"
    assert (made.root / first.images[0].uri).is_file()
    closed, known = made.conversations[:2]
    assert (closed.options, closed.template) == (("yes", "no"), "organ/yes_no/en")
    assert (known.language, known.task, known.answer_type) == ("zh", "kg", "open")
    assert known.attributes["triple"] == "vhead | 功能 | ktail"
    assert made.conversations[2].answer is not None
    assert made.conversations[2].answer.text == "No"
    assert load_dataset(made.root) == made


def test_boxes_become_questions_of_where_and_what(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    made = config(tasks=["rec", "reg"]).prepare(tmp_path / "out", root=source(), progress=progress)
    where, *what = made.conversations
    assert [part for part in where.parts() if isinstance(part, Box)] == list(made.records[0].boxes)
    assert where.answer_type == "box"
    assert [row.answer.text for row in what if row.answer is not None] == ["Liver", "Liver"]


def test_one_language_is_counted_against_its_own_numbers(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    made = config(languages=["zh"]).prepare(tmp_path / "out", root=source(), progress=progress)
    assert [row.language for row in made.conversations] == ["zh"]
    assert made.card.published["train questions"] == 4916
    assert made.card.languages == ("zh",)
    with pytest.raises(ConfigError, match="no language"):
        config(languages=[]).prepare(tmp_path / "none", root=source(), progress=progress)


def test_rows_without_their_image_can_be_left_out(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    root = source()
    (root / "imgs/xmlab2/source.jpg").unlink()
    with pytest.raises(DataError, match="not in this copy") as error:
        config().prepare(tmp_path / "out", root=root, progress=progress)
    assert error.value.fault.row == "qid 2"
    some = config(missing_images="leave_out")
    made = some.prepare(tmp_path / "out", root=root, progress=progress)
    assert len(made.conversations) == 4
    assert made.card.partial.startswith("3 of 642 images, 2 of 9,835 train questions")


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"answer": ""}, "answer", "missing or empty"),
        ({"question": None}, "question", "missing or empty"),
        ({"q_lang": "fr"}, "q_lang", "unknown value 'fr'"),
        ({"modality": "US"}, "modality", "unknown value 'US'"),
        ({"answer_type": "OPENED"}, "answer_type", "did you mean 'OPEN'"),
        ({"content_type": "Colour"}, "content_type", "did you mean 'Color'"),
        ({"qid": 0}, "qid", "occurs 2 times"),
    ],
)
def test_a_bad_question_is_named(
    source: Any, tmp_path: Path, progress: Any, fields: Any, field: str, said: str
) -> None:
    bad = {**question(99, 4), **fields}
    root = source({**MADE, "test": [bad]})
    with pytest.raises(DataError, match=said) as error:
        config().prepare(tmp_path / "out", root=root, progress=progress)
    assert error.value.fault.field == field
    assert error.value.fault.row == str(bad["qid"])


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ({"Liver": [1, 2, 3, 4]}, "no list of boxes"),
        ([{"Liver": [1, 2, 3]}], "is not \\[x, y, width, height\\]"),
        ([{"Liver": [1, 2, 0, 4]}], "is not"),
        ([{"Liver": "1 2 3 4"}], "is not"),
    ],
)
def test_bad_boxes_are_named(
    source: Any, tmp_path: Path, progress: Any, boxes: Any, said: str
) -> None:
    with pytest.raises(DataError, match=said) as error:
        config().prepare(tmp_path / "out", root=source(boxes=boxes), progress=progress)
    assert error.value.fault.file is not None
    assert error.value.fault.file.endswith("xmlab1/detection.json")


def test_the_hubs_name_of_the_validation_file_is_known(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    root = source()
    (root / "validate.json").rename(root / "validation.json")
    made = config().prepare(tmp_path / "out", root=root, progress=progress)
    assert len(made.conversations) == 5
    (root / "validation.json").unlink()
    with pytest.raises(DataError, match="no such file"):
        config().prepare(tmp_path / "gone", root=root, progress=progress)
