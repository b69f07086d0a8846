"""JSON read row by row: equal to the standard reader at any piece size, and clear when broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medloupe.data import streaming
from medloupe.data.streaming import stream_entries, stream_rows
from medloupe.errors import DataError

ROWS: list[Any] = [
    {"id": 1, "text": 'a "quoted" ] , } text', "list": [1, [2, {"x": None}]]},
    {"id": 12345.5, "text": "中文 \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")},
    {},
    {"long": "x" * 200},
]


@pytest.fixture(params=[1, 2, 7, 1 << 20])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(streaming, "_PIECE", request.param)
    return int(request.param)


@pytest.mark.parametrize("indent", [None, 2])
def test_rows_equal_those_of_the_standard_reader(
    tmp_path: Path, piece: int, indent: int | None
) -> None:
    path = tmp_path / "a.json"
    path.write_text("\n " + json.dumps(ROWS, indent=indent, ensure_ascii=False) + "\n", "utf-8")
    assert list(stream_rows(path)) == ROWS


def test_entries_keep_order_and_numbers_at_the_edge_of_a_piece(tmp_path: Path, piece: int) -> None:
    path = tmp_path / "a.json"
    path.write_text('\ufeff{"a": 1234567, "b" : [12, 345], "c": -1.25e3 , "d": true}', "utf-8")
    assert list(stream_entries(path)) == [
        ("a", 1234567),
        ("b", [12, 345]),
        ("c", -1250.0),
        ("d", True),
    ]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('[{"a": 1}, {"b": ', "is not JSON"),
        ('[{"a": 1} {"b": 2}]', "expected ','"),
        ('[{"a": 1}', "expected ','"),
        ('[{"a": 1}] x', "text after its end"),
        ('{"a": 1}', "holds no list of rows"),
        ("[]", "is empty"),
        ("", "holds no list of rows"),
        ("[1]", "is not an object"),
        ('[{"a": nope}]', "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, rule: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rule) as caught:
        list(stream_rows(path))
    assert caught.value.fault.file == str(path)


def test_an_object_without_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{1: 2}")
    with pytest.raises(DataError, match="expected a name"):
        list(stream_entries(path))


def test_missing_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(stream_rows(tmp_path / "none.json"))
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": "\xff\xfe"}]')
    with pytest.raises(DataError, match="not UTF-8"):
        list(stream_rows(path))
    with pytest.raises(DataError, match="cannot be read"):
        list(stream_rows(tmp_path))
