"""The data set as written: balance, splits, words, determinism, and what a user can get wrong."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medloupe.data.check import check_dataset
from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.data.datasets.starter import ON_REQUEST, TASKS, StarterConfig
from medloupe.data.datasets.starter.anatomy import load_template
from medloupe.data.datasets.starter.cases import Case, diagnose
from medloupe.data.datasets.starter.lesions import KINDS
from medloupe.data.datasets.starter.make import draw_patients
from medloupe.data.datasets.starter.series import CHANGES, judge
from medloupe.data.datasets.starter.words import CHINESE, ENGLISH, WORDS
from medloupe.errors import ConfigError, DataError, MissingExtraError
from medloupe.evaluate.benchmark import Benchmark
from medloupe.types import Box, Conversation, Language, Text

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("starter")


@pytest.fixture(scope="module")
def starter(folder: Path) -> Dataset:
    """Fifty patients of small pictures, made by two workers."""
    config = StarterConfig(patients=50, slices_per_patient=6, size=64, volume_size=24)
    return config.prepare(folder, workers=2)


def test_every_task_in_both_languages(starter: Dataset) -> None:
    """The five patients who validate are too few for a balanced group of every task."""
    found = Counter((row.split, row.language, row.task) for row in starter.conversations)
    for split, most in (("train", 0), ("test", 0), ("validation", 3)):
        for language in ("en", "zh"):
            missing = [task for task in TASKS if not found[split, language, task]]
            assert len(missing) <= most, (split, language, missing)


def best_constant(rows: list[Conversation]) -> float:
    answers = Counter(row.messages[-1].text for row in rows)
    return max(answers.values()) / len(rows)


@pytest.mark.parametrize("split", SPLITS)
def test_closed_questions_are_balanced(starter: Dataset, split: Any) -> None:
    """By template, by exact wording, and by exact wording and number of options."""
    groups: defaultdict[tuple[str, ...], list[Conversation]] = defaultdict(list)
    for row in starter.split(split):
        if row.answer_type == "closed":
            groups["template", row.template].append(row)
            groups["words", row.task, row.question].append(row)
            groups["task", row.task, row.language].append(row)
    assert len(groups) > 40
    for name, rows in groups.items():
        chance = 1 / min(len(row.options) for row in rows)
        assert best_constant(rows) <= chance + 0.05, name


@pytest.mark.parametrize("split", SPLITS)
def test_position_of_the_answer_among_the_options_says_nothing(
    starter: Dataset, split: Any
) -> None:
    rows = [row for row in starter.split(split) if row.task == "kind"]
    places = Counter(row.options.index(row.messages[-1].text) for row in rows)
    assert set(places.values()) == {len(rows) / 4}


def test_answers_follow_from_the_records(starter: Dataset) -> None:
    """Each closed answer is worked out again from boxes, widths and sides alone."""
    cases = {record.images[0].uri: Case(record) for record in starter.records}
    english = [row for row in starter.conversations if row.language == "en"]
    for row in english:
        case, answer = cases[row.images[-1].uri], row.messages[-1].text
        kind = next((k for k in KINDS if f"the {k} lesion" in row.question), "")
        found = [finding for finding in case.findings if finding.kind == kind]
        if row.task == "plane":
            assert answer == case.record.attributes["plane"]
        elif row.task in ("presence", "volume_presence"):
            asked = row.question.removeprefix("Is there a ").removesuffix(" lesion?")
            assert (answer == "yes") == any(box.label == asked for box in case.record.boxes)
        elif row.task in ("side", "volume_side"):
            assert [finding.side for finding in found] == [answer]
        elif row.task == "size":
            (box,) = [box for box in case.record.boxes if box.label == kind]
            wide = max(box.x2 - box.x1, box.y2 - box.y1) / 64 > 0.05
            assert answer == ("large" if wide else "small")
        elif row.task == "count":
            assert int(answer) == len(case.record.boxes)
        elif row.task == "kind":
            assert answer == case.record.boxes[0].label
            assert [option for option in row.options if option in case.kinds] == [answer]
        elif row.task == "diagnosis":
            assert answer == diagnose(box.label for box in case.record.boxes)
        elif row.task in ("rec", "volume_rec"):
            (box,) = row.messages[-1].content
            assert isinstance(box, Box)
            assert [known.box for known in case.findings if known.kind == kind] == [box]
            assert row.answer_type == "box"


def test_diagnosis_rule() -> None:
    assert diagnose([]) == "normal"
    assert diagnose(["dark", "wedge", "ring"]) == "neoplastic"
    assert diagnose(["dark", "wedge"]) == "vascular"
    assert diagnose(["dark", "cystic"]) == "inflammatory"


def test_sides_follow_the_affine_of_the_record(starter: Dataset) -> None:
    """An asked "left" lies at x < 0 in RAS+ mm, through the affine as stored."""
    asked = Counter()  # type: Counter[str]
    records = {record.images[0].uri: record for record in starter.records}
    for row in starter.conversations:
        if row.task not in ("side", "volume_side") or row.language != "en":
            continue
        record = records[row.images[0].uri]
        affine = np.array(json.loads(record.attributes["affine"]))
        (box,) = [box for box in record.boxes if box.label == row.attributes["kind"]]
        depth = 0.0 if box.z1 is None or box.z2 is None else (box.z1 + box.z2) / 2 - 0.5
        for column in (box.x1 - 0.5, box.x2 - 0.5):
            for line in (box.y1 - 0.5, box.y2 - 0.5):
                x = (affine @ [column, line, depth, 1])[0]
                assert x < 0 if row.messages[-1].text == "left" else x > 0
        asked[row.messages[-1].text] += 1
    assert asked["left"] == asked["right"] > 20


def test_series_read_in_order(starter: Dataset) -> None:
    records = {record.images[0].uri: record for record in starter.records}
    rows = [row for row in starter.conversations if row.task == "change" and row.language == "en"]
    assert {len(row.images) for row in rows} == {2, 3}
    for row in rows:
        times = [records[image.uri] for image in row.images]
        assert [time.prior for time in times] == [None, *[time.id for time in times[:-1]]]
        days = [time.date_offset_days or 0.0 for time in times]
        assert days == sorted(set(days))
        spoken = row.messages[0].text
        assert spoken.index("first examination") < spoken.index("second examination")
        assert "changed" in row.question


def test_question_box_does_not_name_the_answer(starter: Dataset) -> None:
    rows = [row for row in starter.conversations if row.task == "reg"]
    for row in rows:
        (box,) = [part for part in row.messages[0].content if isinstance(part, Box)]
        assert box.label == "region"


def test_findings_name_every_box(starter: Dataset) -> None:
    records = {record.images[0].uri: record for record in starter.records}
    for row in starter.conversations:
        if row.task == "findings":
            boxes = tuple(part for part in row.messages[-1].content if isinstance(part, Box))
            known = records[row.images[0].uri].boxes
            assert boxes == tuple(box.model_copy(update={"words": ()}) for box in known)
            assert bool(boxes) == (
                "no lesion" not in row.messages[-1].text.replace("无病灶", "no lesion")
            )


def test_patients_never_cross_splits(starter: Dataset) -> None:
    splits: defaultdict[str | None, set[str | None]] = defaultdict(set)
    for row in (*starter.conversations, *starter.records):
        splits[row.patient_id].add(row.split)
    assert {len(found) for found in splits.values()} == {1}
    assert Counter(next(iter(found)) for found in splits.values()) == {
        "train": 35,
        "validation": 5,
        "test": 10,
    }


def test_patients_keep_their_split_whatever_their_number() -> None:
    many, few = draw_patients(4, 95), draw_patients(4, 23)
    assert many[:23] == few
    assert draw_patients(5, 23) != few
    ranks = [patient.rank for patient in many if patient.split == "test"]
    assert ranks == list(range(len(ranks)))


# HiA's four tasks, and what asks for them here.
JOINT = {
    "description": ("report",),
    "disease": ("diagnosis",),
    "location": ("side", "rec", "findings"),
    "comparison": ("change", "comparison", "volume_change"),
}


@pytest.fixture(scope="module")
def joint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("joint")


@pytest.fixture(scope="module")
def joint(joint_folder: Path) -> Dataset:
    tasks = [task for asked in JOINT.values() for task in asked]
    config = StarterConfig.parse(
        {"patients": 50, "slices_per_patient": 6, "size": 64, "volume_size": 24, "tasks": tasks}
    )
    return config.prepare(joint_folder, workers=2)


def test_the_joint_tasks_are_one_benchmark_in_both_languages(joint: Dataset) -> None:
    tasks = tuple(task for asked in JOINT.values() for task in asked)
    rows = Benchmark(name="joint", split="test", tasks=tasks).select(joint)
    found = Counter((row.task, row.language) for row in rows)
    for task in tasks:
        assert found[task, "en"] == found[task, "zh"] > 0
    chinese = [row for row in rows if row.language == "zh"]
    for row in chinese:
        assert not re.search("[A-Za-z]", row.question), row.id
        assert row.answer is not None
        assert row.answer_type == "box" or re.search("[一-龥]", row.answer.text), row.id
    report = check_dataset(joint.root, workers=1)
    assert report.faults == ()


def test_what_is_asked_on_request_changes_nothing_else(
    starter: Dataset, joint: Dataset, folder: Path, joint_folder: Path
) -> None:
    """Images, records and rows of a config stay what they are when pairs of volumes are added."""
    before, after = digests(folder), digests(joint_folder)
    pictures = {name for name in before if name.startswith(("images/", "volumes/"))}
    assert {name: before[name] for name in pictures} == {name: after[name] for name in pictures}
    known = {record.id for record in starter.records}
    assert [record for record in joint.records if record.id in known] == list(starter.records)
    new = [record for record in joint.records if record.id not in known]
    assert {record.attributes["series"] for record in new} == {f"p{n:05d}-w0" for n in range(50)}
    for task in {row.task for row in joint.conversations} - set(ON_REQUEST):
        assert rows_of(joint, task) == rows_of(starter, task)


def rows_of(dataset: Dataset, task: str) -> list[Conversation]:
    return [row for row in dataset.conversations if row.task == task]


def test_a_default_config_keeps_its_fingerprint() -> None:
    """Data sets, grids and their results are found by it: a new field must not change it."""
    assert StarterConfig().fingerprint() == "c83f748bc6886a88"
    assert not set(ON_REQUEST) & set(TASKS)


@pytest.mark.parametrize("split", SPLITS)
def test_changes_of_volumes_are_balanced_and_follow_from_the_boxes(
    joint: Dataset, split: Any
) -> None:
    cases = {record.images[0].uri: Case(record) for record in joint.records}
    rows = [row for row in joint.split(split) if row.task == "volume_change"]
    groups = Counter((row.language, row.question, row.messages[-1].text) for row in rows)
    asked = Counter((language, question) for language, question, _ in groups)
    assert set(asked.values()) == {5}
    for language, question, answer in groups:
        assert {groups[language, question, a] for a in changes(language)} == {
            groups[language, question, answer]
        }
    for row in rows:
        first, second = (cases[image.uri].only(row.attributes["kind"]) for image in row.images)
        assert {image.kind for image in row.images} == {"volume"}
        known = judge(first.width if first else None, second.width if second else None)
        assert known is not None
        assert row.messages[-1].text == WORDS[row.language].names[known]
        records = [cases[image.uri].record for image in row.images]
        assert [record.patient_id for record in records] == [row.patient_id] * 2
        assert row.attributes["days"] == f"0 | {records[1].date_offset_days:g}"
        assert records[1].prior == records[0].id


def changes(language: Language) -> list[str]:
    return [WORDS[language].names[change] for change in CHANGES]


def test_comparison_names_roles_days_and_the_course_of_every_lesion(joint: Dataset) -> None:
    cases = {record.images[0].uri: Case(record) for record in joint.records}
    rows = rows_of(joint, "comparison")
    assert {len(row.images) for row in rows} == {2, 3}
    for row in rows:
        times = [cases[image.uri] for image in row.images]
        days = [case.record.date_offset_days for case in times]
        assert row.attributes["days"] == " | ".join(f"{day:g}" for day in days if day is not None)
        roles = row.attributes["roles"].split(" | ")
        texts = [part.text for part in row.messages[0].content if isinstance(part, Text)]
        assert all(text.startswith(role) for text, role in zip(texts, roles, strict=False))
        assert row.attributes["days_between"] in row.question
        kinds = times[0].kinds | times[-1].kinds
        for kind in kinds:
            assert WORDS[row.language].names[kind] in row.messages[-1].text
        assert kinds or "no lesion" in row.messages[-1].text.replace("无病灶", "no lesion")


def test_every_set_of_roles_is_used_and_both_languages_have_the_same(joint: Dataset) -> None:
    rows = [row for row in rows_of(joint, "comparison") if row.language == "en"]
    used = Counter(row.attributes["roles"] for row in rows if len(row.images) == 2)
    assert used.keys() == {" | ".join(roles) for roles in ENGLISH.roles[2]}
    assert ENGLISH.roles.keys() == CHINESE.roles.keys()
    for times, roles in ENGLISH.roles.items():
        assert len(roles) == len(CHINESE.roles[times])
        assert {len(each) for each in (*roles, *CHINESE.roles[times])} == {times}


def test_course_in_words() -> None:
    changes = [("ring", "left", "grown"), ("dark", "", "unchanged")]
    assert ENGLISH.course(changes) == "ring on the left: grown, dark: unchanged"
    assert CHINESE.course(changes) == "左侧环形增大，低信号不变"
    assert ENGLISH.course([]) == "no lesion"


def test_kinds_are_common_and_rare(starter: Dataset) -> None:
    counts = Counter(box.label for record in starter.records for box in record.boxes)
    assert set(counts) == set(KINDS)
    assert len(KINDS) >= 8
    assert counts["target"] + counts["crescent"] < counts["bright"] / 2


def test_it_passes_check_and_loads_again(starter: Dataset, folder: Path) -> None:
    report = check_dataset(folder, workers=1)
    assert report.faults == ()
    assert report.images == len({record.images[0].uri for record in starter.records})
    assert load_dataset(folder).fingerprint() == starter.fingerprint()


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_same_config_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    config = StarterConfig(patients=4, slices_per_patient=1, size=64, volume_size=24, seed=9)
    seen: list[tuple[int, int]] = []
    config.prepare(tmp_path / "one", workers=1, progress=lambda _, a, b: seen.append((a, b)))
    config.prepare(tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    other = config.model_copy(update={"seed": 10})
    other.prepare(tmp_path / "other", workers=1)
    first, second = digests(tmp_path / "one"), digests(tmp_path / "other")
    assert not {first[name] for name in first} & {second[name] for name in second}


def test_slices_alone_in_one_language(tmp_path: Path) -> None:
    config = StarterConfig(
        patients=10, slices_per_patient=3, series_per_patient=0, volumes_per_patient=0,
        size=64, tasks=("plane", "rec"), languages=("en",), lesion_width=(0.04, 0.12),
    )  # fmt: skip
    made = config.prepare(tmp_path, workers=1)
    assert {row.task for row in made.conversations} == {"plane", "rec"}
    assert {row.language for row in made.conversations} == {"en"}
    widths = [
        float(w)
        for r in made.records
        for w in r.attributes.get("lesion_widths", "").split(",")
        if w
    ]
    assert 4 <= min(widths) <= max(widths) <= 12


def test_every_word_is_there_in_both_languages() -> None:
    assert ENGLISH.names.keys() == CHINESE.names.keys()
    assert ENGLISH.questions.keys() == CHINESE.questions.keys()
    for words in (ENGLISH, CHINESE):
        assert len(set(words.names.values())) == len(words.names)
    assert ENGLISH.spoken("options", "ring,dark,wedge") == "ring, dark or wedge"
    assert CHINESE.spoken("options", "ring,dark,wedge") == "环形、低信号或楔形"


def test_config_is_a_component_and_refuses_nonsense() -> None:
    config = StarterConfig(patients=10, conspicuity=1.0, lesion_width=(0.04, 0.12))
    assert DatasetConfig.parse(config.to_dict()) == config
    assert config.name == "starter"
    for wrong in (
        {"lesion_width": [0.12, 0.007]},
        {"lesion_width": [0.7, 12]},
        {"size": 2000},
        {"tasks": ["sides"]},
        {"tasks": []},
        {"languages": ["en", "en"]},
        {"slices_per_patient": 0, "series_per_patient": 0, "volumes_per_patient": 0},
        {"series_per_patient": 0, "tasks": ["volume_change"]},
        {"most_lesions": 1, "tasks": ["count"]},
        {"most_lesions": 0, "tasks": ["rec"]},
    ):
        with pytest.raises(ConfigError):
            StarterConfig.parse(wrong)


def test_most_lesions_holds_for_slices_and_series(tmp_path: Path) -> None:
    config = StarterConfig(
        patients=8, slices_per_patient=4, volumes_per_patient=0, size=64, most_lesions=1,
        tasks=("rec", "change"), languages=("en",), lesion_width=(0.04, 0.12),
    )  # fmt: skip
    records = config.prepare(tmp_path, workers=1).records
    for kept in (False, True):
        counts = {len(r.boxes) for r in records if ("-c" in r.id) == kept}
        assert counts == {0, 1}


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("here already")
    with pytest.raises(DataError, match="out"):
        StarterConfig(patients=1).prepare(tmp_path / "out")


def test_missing_nilearn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules is Python's own mark of a module that cannot be imported, imported before or not
    monkeypatch.setitem(sys.modules, "nilearn", None)
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"medloupe\[starter\]"):
        load_template()
