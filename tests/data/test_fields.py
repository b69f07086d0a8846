"""Fields of JSON rows that must be numbers, objects or boxes; and loaders under altered rows."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medloupe.data.datasets import bccd, covid_chestxray, covid_image_repository, pyradiomics
from medloupe.data.fields import box_of, listed_boxes, mapping, number
from medloupe.errors import DataError, MedLoupeError

FILE = Path("rows.json")


def test_numbers() -> None:
    row = {"a": 3, "b": 2.5, "c": None}
    assert [number(row, key, file=FILE, name="r") for key in "abcd"] == [3.0, 2.5, None, None]
    for wrong in ("3", True, float("nan"), [1]):
        with pytest.raises(DataError, match="is no number") as error:
            number({"a": wrong}, "a", file=FILE, name="r")
        assert (error.value.fault.row, error.value.fault.field) == ("r", "a")


def test_objects() -> None:
    assert mapping({"a": {"x": 1}}, "a", file=FILE, name="r") == {"x": 1}
    assert mapping({"a": None}, "a", file=FILE, name="r") == {}
    with pytest.raises(DataError, match="is not an object"):
        mapping({"a": [1]}, "a", file=FILE, name="r")


def test_boxes() -> None:
    assert box_of("x", ["1", "2", "3.5", "4"], file=FILE, name="r").x2 == 3.5
    items = {"boxes": [{"label": "x", "box": [1, 2, 3, 4], "kind": "k"}]}
    ((item, box),) = listed_boxes(items, file=FILE, name="r")
    assert (item["kind"], box.label, box.y2) == ("k", "x", 4.0)
    assert list(listed_boxes({}, file=FILE, name="r")) == []


@pytest.mark.parametrize(
    "boxes",
    [
        "none",
        {"label": "x"},
        [3],
        [{"box": [1, 2, 3, 4]}],
        [{"label": "x"}],
        [{"label": "x", "box": [1, 2, 3]}],
        [{"label": "x", "box": [3, 2, 1, 4]}],
        [{"label": "x", "box": [1, 2, "three", 4]}],
        [{"label": "x", "box": 7}],
    ],
)
def test_what_is_no_box_names_the_row(boxes: Any) -> None:
    with pytest.raises(DataError) as error:
        list(listed_boxes({"boxes": boxes}, file=FILE, name="r"))
    assert (error.value.fault.row, error.value.fault.file) == ("r", "rows.json")


READERS: list[tuple[str, str, Callable[[Path], Any]]] = [
    ("bccd", "annotations.json", bccd.read_records),
    ("cxr_covid_cc", "records.json", covid_chestxray.read_records),
    ("cxr_hannover", "lung_boxes_sq.json", covid_image_repository.read_records),
    ("radiomics_ct_mr", "slices.json", pyradiomics.read_records),
]
WRONG: tuple[Any, ...] = (None, "", "x", 7, -1.5, [], [1], {}, {"x": 1}, True)


@pytest.mark.parametrize(("folder", "file", "read"), READERS, ids=[r[0] for r in READERS])
def test_altered_rows_give_records_or_an_error_of_ours(
    shared_data: Path, tmp_path: Path, folder: str, file: str, read: Callable[[Path], Any]
) -> None:
    """Any field of the published JSON may hold anything: no other exception comes out."""
    source = tmp_path / folder
    shutil.copytree(shared_data / folder, source, copy_function=_link)
    rows = json.loads((shared_data / folder / file).read_text())
    rows = dict(list(rows.items())[:4]) if isinstance(rows, dict) else rows[:4]
    if folder == "radiomics_ct_mr":  # its smallest volume, which is read every time
        rows = [row | {"volume": "breast1"} for row in rows]
        _keep_one(source / "index.json", "breast1")
    rng = random.Random(0)
    errors = []
    for _ in range(60):
        altered = copy.deepcopy(rows)
        _alter(altered, rng)
        (source / file).unlink()
        (source / file).write_text(json.dumps(altered))
        errors += [error for error in [_refusal(read, source)] if error is not None]
    assert len(errors) > 10
    assert all(error.fault.file for error in errors)


def _refusal(read: Callable[[Path], Any], source: Path) -> MedLoupeError | None:
    try:
        read(source)
    except MedLoupeError as error:
        return error
    return None


def _keep_one(path: Path, name: str) -> None:
    rows = [row for row in json.loads(path.read_text()) if row["id"] == name]
    path.unlink()
    path.write_text(json.dumps(rows))


def _link(one: str, other: str) -> None:
    Path(other).symlink_to(one)


def _alter(value: Any, rng: random.Random) -> None:
    """Put something else into one place, at any depth."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        deeper = isinstance(value[key], dict | list) and value[key]
        if not deeper or rng.random() < 0.3:
            value[key] = rng.choice(WRONG)
            return
        value = value[key]
