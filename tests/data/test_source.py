"""Tables and JSON as publishers ship them: what is read, and how every fault is named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from medloupe.data.source import (
    image_here,
    number,
    one_of,
    partial_copy,
    read_json,
    read_json_list,
    read_table,
    require,
    unique,
    walk,
)
from medloupe.errors import DataError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


def test_a_table_is_read_as_stripped_text_with_all_its_columns(file: Path) -> None:
    file.write_bytes(b'\xef\xbb\xbfid , text,more\r\n1," a, ""b""\nc ",\r\n\r\n2,,x\r\n')
    assert list(read_table(file, ("id", "text"))) == [
        {"id": "1", "text": 'a, "b"\nc', "more": ""},
        {"id": "2", "text": "", "more": "x"},
    ]


def test_a_packed_table_is_read_like_an_unpacked_one(file: Path, tmp_path: Path) -> None:
    packed = tmp_path / "table.csv.gz"
    file.write_text("id;text\n1;é\n", encoding="utf-8")
    packed.write_bytes(gzip.compress(file.read_bytes()))
    plain = list(read_table(file, ("id",), delimiter=";"))
    assert plain == [{"id": "1", "text": "é"}]
    assert list(read_table(packed, ("id",), delimiter=";")) == plain


@pytest.mark.parametrize(
    ("text", "said", "row", "field"),
    [
        (b"", "the table is empty", None, None),
        (b"id,txet\n", "no column 'text'; did you mean 'txet'?", None, "text"),
        (b"id,text,id\n", "occurs 2 times", "id", "header"),
        (b"id,text\n1,a\n2\n", "has 1 fields, the header 2", "line 3", None),
        (b"id,text\n1,a,b\n", "has 3 fields, the header 2", "line 2", None),
        (b"id,text\n1,\xff\n", "is not a table", None, None),
        (b'id,text\n1,"a\n', "is not a table", None, None),
    ],
)
def test_a_faulty_table_is_named(
    file: Path, text: bytes, said: str, row: str | None, field: str | None
) -> None:
    file.write_bytes(text)
    with pytest.raises(DataError, match=said.replace("?", r"\?")) as error:
        list(read_table(file, ("id", "text")))
    fault = error.value.fault
    assert (fault.file, fault.row, fault.field) == (str(file), row, field)


@pytest.mark.parametrize("keep", [0, 3, 12, -3])
def test_a_broken_packed_table_is_named(tmp_path: Path, keep: int) -> None:
    packed = tmp_path / "table.csv.gz"
    whole = gzip.compress(b"id,text\n" + b"1,a\n" * 50)
    packed.write_bytes(whole[:keep] if keep != 3 else b"id,text\n1,a\n")
    with pytest.raises(DataError, match="table") as error:
        list(read_table(packed, ("id",)))
    assert error.value.fault.file == str(packed)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_table(tmp_path / "gone.csv", ()))
    with pytest.raises(DataError, match="no such file"):
        read_json(tmp_path / "gone.json")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


@pytest.mark.parametrize("text", [b"[{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_named(file: Path, text: bytes) -> None:
    file.write_bytes(text)
    with pytest.raises(DataError, match="is not JSON") as error:
        read_json(file)
    assert error.value.fault.file == str(file)


def test_a_json_list_holds_objects(file: Path) -> None:
    file.write_text('[{"a": 1}]')
    assert read_json_list(file) == [{"a": 1}]
    for text in ("[]", "{}", "3"):
        file.write_text(text)
        with pytest.raises(DataError, match="no list of rows"):
            read_json_list(file)
    file.write_text('[{"a": 1}, 2]')
    with pytest.raises(DataError, match="is not an object") as error:
        read_json_list(file)
    assert error.value.fault.row == "number 1"


def test_fields_are_checked_and_named(file: Path) -> None:
    row = {"a": "x", "zero": 0, "n": "-1.5", "empty": "", "none": None, "inf": "inf", "word": "one"}
    assert require(row, "a", file=file, name="r") == "x"
    assert require(row, "zero", file=file, name="r") == 0
    assert number(row, "n", file=file, name="r") == -1.5
    assert one_of(row, "a", ("x", "y"), file=file, name="r") == "x"
    for field, call in (
        ("empty", require),
        ("none", require),
        ("gone", require),
        ("inf", number),
        ("word", number),
    ):
        with pytest.raises(DataError) as error:
            call(row, field, file=file, name="r")
        fault = error.value.fault
        assert (fault.file, fault.row, fault.field) == (str(file), "r", field)
    with pytest.raises(DataError, match="unknown value 'one'; did you mean 'ones'"):
        one_of(row, "word", ("ones", "two"), file=file, name="r")


def test_keys_occur_once(file: Path) -> None:
    unique(["a", "b"], file=file, field="id")
    with pytest.raises(DataError, match="occurs 2 times") as error:
        unique(["a", "b", "b"], file=file, field="id")
    assert (error.value.fault.row, error.value.fault.field) == ("b", "id")


def test_a_missing_image_is_refused_or_left_out_by_name(file: Path) -> None:
    file.write_text("x")
    assert image_here(file, "refuse", row="1")
    gone = file.with_name("gone.png")
    assert not image_here(gone, "leave_out", row="1")
    with pytest.raises(DataError, match=r"missing_images=leave_out.*; or so") as error:
        image_here(gone, "refuse", row="1", otherwise="; or so")
    assert (error.value.fault.file, error.value.fault.row) == (str(gone), "1")


def test_a_copy_is_complete_partial_or_not_that_data_set() -> None:
    published = {"images": 1000, "rows": 5}
    assert partial_copy("x", {"images": 1000, "rows": 5, "more": 9}, published) == ""
    assert partial_copy("x", {"images": 999, "rows": 5}, published) == (
        "999 of 1,000 images, 5 of 5 rows"
    )
    with pytest.raises(DataError, match="1,001 images are here, x was published with 1,000"):
        partial_copy("x", {"images": 1001, "rows": 5}, published)
    with pytest.raises(AssertionError):
        partial_copy("x", {"images": 1000}, published)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "a", root / "c", elsewhere, root / ".hidden"):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "over").symlink_to(root / "c")
    (root / "c" / "back").symlink_to(root / "a")
    (root / "self").symlink_to(root / "self")
    (root / "out").symlink_to(elsewhere)
    found = [path.relative_to(root).as_posix() for _, paths in walk(root) for path in paths]
    assert found == ["self", "a/file", "a/over/file", "c/file", "c/back/file", "out/file"]
