"""Who trains and who is held out: stable, by patient, and proven."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medloupe.data.splits import assign_splits, carve, refuse_leaks, split_by_patient
from medloupe.errors import ConfigError, LeakError
from medloupe.types import Conversation, ImageRef, Message, Record, Text


def asked(name: str, *uris: str, sha256: str | None = None, **fields: Any) -> Conversation:
    refs = tuple(ImageRef(uri=uri, sha256=sha256) for uri in uris)
    return Conversation(
        id=name, messages=(Message(role="user", content=(*refs, Text(text="?"))),), **fields
    )


def test_the_split_follows_the_hash_as_documented() -> None:
    name = "patient-7"
    digest = hashlib.sha256(b"3:patient-7").digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    expected = "train" if at < 0.5 else "test"
    fractions = {"train": 0.5, "test": 0.5}
    assert split_by_patient([name], fractions, seed=3) == {name: expected}  # type: ignore[arg-type]


@given(st.sets(st.text(min_size=1), max_size=30), st.sets(st.text(min_size=1), max_size=30))
def test_new_patients_move_nobody(old: set[str], new: set[str]) -> None:
    before = split_by_patient(sorted(old), seed=1)
    after = split_by_patient(sorted(old | new, reverse=True), seed=1)
    assert {name: after[name] for name in old} == before


def test_sizes_come_close_to_the_fractions_and_seeds_differ() -> None:
    ids = [f"p{i}" for i in range(10_000)]
    split = split_by_patient(ids, {"train": 0.7, "validation": 0.1, "test": 0.2}, seed=0)
    counts = Counter(split.values())
    assert counts["train"] == pytest.approx(7000, abs=200)
    assert counts["validation"] == pytest.approx(1000, abs=120)
    assert split_by_patient(ids, seed=1) != split


@pytest.mark.parametrize("fractions", [{"train": 0.7}, {"train": 1.5, "test": -0.5}])
def test_fractions_that_are_no_shares_are_refused(fractions: Any) -> None:
    with pytest.raises(ConfigError, match="do not add up to 1"):
        split_by_patient(["a"], fractions)


def test_rows_that_share_a_patient_or_an_image_stay_together() -> None:
    for seed in range(20):
        rows = [
            asked("a", "1.png", patient_id="p"),
            asked("b", "2.png", patient_id="p"),
            asked("c", "2.png"),
            asked("d", "3.png", "2.png"),
            asked("e", "3.png"),
        ]
        record = Record(id="r", images=(ImageRef(uri="3.png"),), patient_id="q")
        split, records = assign_splits(rows, [record], seed=seed)
        assert len({row.split for row in (*split, *records)}) == 1
        assert refuse_leaks(split, records) == ""


def test_the_same_bytes_under_two_names_stay_together() -> None:
    rows = [asked("a", "1.png", sha256="5" * 64), asked("b", "2.png", sha256="5" * 64)]
    for seed in range(10):
        split, _ = assign_splits(rows, seed=seed)
        assert split[0].split == split[1].split


def test_a_given_split_is_kept_and_followed() -> None:
    rows = [asked(str(i), f"{i}.png", patient_id="p") for i in range(3)]
    rows[2] = rows[2].model_copy(update={"split": "test"})
    split, _ = assign_splits(rows, fractions={"train": 1.0})
    assert {row.split for row in split} == {"test"}


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [asked(str(i), f"{i}.png", f"{i // 3}-shared.png") for i in range(60)]
    forward, _ = assign_splits(rows)
    backward, _ = assign_splits(rows[::-1])
    assert {row.id: row.split for row in forward} == {row.id: row.split for row in backward}
    assert len({row.split for row in forward}) == 3


def test_carving_takes_whole_patients_from_the_source_only() -> None:
    rows = [
        asked(f"{p}-{i}", f"{p}-{i}.png", patient_id=f"p{p}", split="test" if p > 150 else "train")
        for p in range(200)
        for i in range(3)
    ]
    carved = carve(rows, 0.25)
    moved = {row.patient_id for row in carved if row.split == "validation"}
    assert len(moved) == pytest.approx(0.25 * 151, abs=15)
    assert refuse_leaks(carved) == ""
    tested = [row.id for row in rows if row.split == "test"]
    assert [row.id for row in carved if row.split == "test"] == tested


def test_carving_leaves_alone_who_is_also_elsewhere() -> None:
    rows = [asked("a", "1.png", split="train"), asked("b", "1.png", split="test")]
    assert carve(rows, 0.999) == tuple(rows)


def test_a_shared_patient_is_refused_and_can_be_allowed_by_name() -> None:
    rows = [
        asked("a", "1.png", patient_id="p", split="train"),
        asked("b", "1.png", patient_id="p", split="test"),
        asked("c", "2.png", patient_id="p", split="validation"),
    ]
    with pytest.raises(LeakError, match=r"patient 'p' is in train.*1 more leaks") as error:
        refuse_leaks(rows)
    assert error.value.fault.row == "b"
    assert "allow_leak" in error.value.fault.remedy
    statement = refuse_leaks(rows, allow_leak=True)
    assert statement == "1 patients and 1 images are in more than one split"


def test_the_hash_of_the_file_decides_what_is_the_same_image() -> None:
    rows = [asked("a", "1.png", split="train"), asked("b", "2.png", split="test")]
    assert refuse_leaks(rows) == ""
    with pytest.raises(LeakError, match=r"image '1\.png'"):
        refuse_leaks(rows, hashes={"1.png": "5" * 64, "2.png": "5" * 64})


def test_of_a_few_patients_one_trains() -> None:
    fractions: dict[Any, float] = {"train": 0.5, "test": 0.5}
    moved = 0
    for seed in range(40):
        rows = [asked(f"r{i}", f"{i}.png", patient_id=f"p{i}") for i in range(3)]
        by_hash = split_by_patient((f"p{i}" for i in range(3)), fractions, seed)
        found = {row.patient_id: row.split for row in assign_splits(rows, (), fractions, seed)[0]}
        assert "train" in found.values()
        if "train" in by_hash.values():
            assert found == by_hash
        else:
            moved += 1
            assert sorted(found.values()) == ["test", "test", "train"]
            turned = assign_splits(rows[::-1], (), fractions, seed)[0]
            assert {row.patient_id: row.split for row in turned} == found
    assert moved


def test_nobody_is_moved_who_was_put_there_or_where_nobody_is_to_train() -> None:
    given = [asked("a", "a.png", patient_id="p", split="test")]
    assert assign_splits(given)[0][0].split == "test"
    rows = [asked("b", "b.png", patient_id="q")]
    assert assign_splits(rows, (), {"test": 1.0})[0][0].split == "test"
    many = [asked(f"{i}", f"{i}.png", patient_id=f"p{i}") for i in range(20)]
    few: dict[Any, float] = {"train": 1e-9, "test": 1 - 1e-9}
    assert {row.split for row in assign_splits(many, (), few)[0]} == {"test"}
    assert [row.split for row in assign_splits(many[:19], (), few)[0]].count("train") == 1
