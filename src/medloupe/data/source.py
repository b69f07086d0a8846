"""Reading what publishers ship: tables and JSON with errors that name file, row and column."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from medloupe.errors import DataError, did_you_mean

MissingImages = Literal["refuse", "leave_out"]
"""What to do about rows whose image is not in the copy. What is left out is counted: the copy is
then called partial."""


def walk(
    root: Path, *, enter: Callable[[Path], bool] = lambda _: True
) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder below `root` with its files, by name. Links are followed, but never back into a
    folder that holds them; hidden files and folders, and those that `enter` refuses, are left out.
    """
    for place, folders, names in os.walk(root, followlinks=True):
        here = Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and not _leads_back(here / name, root)
            and enter(here / name)
        )
        yield here, [here / name for name in sorted(names) if not name.startswith(".")]


def _leads_back(folder: Path, root: Path) -> bool:
    """Whether a folder is a link to one that it was reached through."""
    if not folder.is_symlink():
        return False
    through = [root, *(above for above in folder.parents if root in above.parents)]
    target = folder.resolve()
    return any(target == way or target in way.parents for way in (w.resolve() for w in through))


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        DataError: missing, not UTF-8, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _missing(path, error) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"is not JSON: {error}", file=str(path)) from None


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """A JSON file that holds a list of objects, which may not be empty.

    Raises:
        DataError: as `read_json`, or something else than such a list.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise DataError("holds no list of rows", file=str(path))
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError("is not an object", file=str(path), row=f"number {number}")
    return rows


def read_table(
    path: Path, columns: Sequence[str], *, delimiter: str = ","
) -> Iterator[dict[str, str]]:
    """The rows of a CSV file (`.gz` too) as text, stripped; columns beside the named ones are kept.

    Raises:
        DataError: missing, empty, not UTF-8, a named column that the header lacks or has twice, or a
            row with another number of fields than the header.
    """
    try:
        with _open_text(path) as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _require_columns(path, header, columns)
            for fields in reader:
                if not any(fields):
                    continue
                if len(fields) != len(header):
                    rule = f"the row has {len(fields)} fields, the header {len(header)}"
                    raise DataError(rule, file=str(path), row=f"line {reader.line_num}")
                values = (field.strip() for field in fields)
                yield dict(zip(header, values, strict=True))
    except (csv.Error, UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"is not a table: {error}", remedy="Fetch the file again", file=str(path)
        ) from None
    except OSError as error:
        raise _missing(path, error) from None


def require(row: Mapping[str, Any], field: str, *, file: Path, name: str) -> Any:
    """A field of a row that may not be missing or empty.

    Raises:
        DataError: it is; names the file, the row `name` and the field.
    """
    value = row.get(field)
    if value is None or value == "" or value == []:
        raise DataError("the field is missing or empty", file=str(file), row=name, field=field)
    return value


def number(row: Mapping[str, Any], field: str, *, file: Path, name: str) -> float:
    """A field that is a finite number.

    Raises:
        DataError: missing, empty, or something else.
    """
    value = require(row, field, file=file, name=name)
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise DataError(f"{value!r} is no number", file=str(file), row=name, field=field)
    return found


def one_of(
    row: Mapping[str, Any], field: str, known: Collection[str], *, file: Path, name: str
) -> str:
    """A field whose value is one of the published ones.

    Raises:
        DataError: missing, empty, or unknown.
    """
    value = str(require(row, field, file=file, name=name))
    if value not in known:
        raise DataError(
            f"unknown value {value!r}; {did_you_mean(value, known)}",
            file=str(file),
            row=name,
            field=field,
        )
    return value


def image_here(path: Path, missing: MissingImages, *, row: str, otherwise: str = "") -> bool:
    """Whether an image that a row names is in the copy. `otherwise` says what else a set allows.

    Raises:
        DataError: it is not, and rows without an image were not allowed to be left out.
    """
    if path.is_file():
        return True
    if missing == "leave_out":
        return False
    raise DataError(
        "the image is not in this copy",
        remedy="Complete the copy, or set missing_images=leave_out: rows without their image are "
        f"then left out, and the copy is called partial{otherwise}",
        file=str(path),
        row=row,
        field="image",
    )


def unique(keys: Sequence[str], *, file: Path, field: str) -> None:
    """Refuse a key that occurs twice.

    Raises:
        DataError: names the first one.
    """
    for key, times in Counter(keys).items():
        if times > 1:
            raise DataError(f"occurs {times} times", file=str(file), row=key, field=field)


def partial_copy(name: str, found: Mapping[str, int], published: Mapping[str, int]) -> str:
    """ "255 of 315 images, 2,879 of 3,515 questions", or "" for a complete copy.

    Raises:
        DataError: more than was published: whatever this is, it is not that data set.
    """
    assert published.keys() <= found.keys(), "every published count has to be counted here"
    for what, number in published.items():
        if found[what] > number:
            raise DataError(
                f"{found[what]:,} {what} are here, {name} was published with {number:,}",
                remedy="Use an unchanged copy; import your own data with 'folder', 'native' or "
                "'llava'",
            )
    if all(found[what] == number for what, number in published.items()):
        return ""
    return ", ".join(f"{found[what]:,} of {number:,} {what}" for what, number in published.items())


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _require_columns(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    if not any(header):
        raise DataError("the table is empty", remedy="Fetch the file again", file=str(path))
    unique([column for column in header if column], file=path, field="header")
    for column in columns:
        if column not in header:
            raise DataError(
                f"the table has no column {column!r}; {did_you_mean(column, header)}",
                file=str(path),
                field=column,
            )


def _missing(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError("no such file", remedy="Complete the copy", file=str(path))
    return DataError(f"cannot be read: {error.strerror}", file=str(path))
