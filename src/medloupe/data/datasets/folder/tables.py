"""A user's tables: CSV, TSV, JSON lines or a JSON list, each row with the line on which it stands."""

from __future__ import annotations

import csv
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from medloupe.data.datasets.folder.columns import find_columns
from medloupe.data.source import read_json_list
from medloupe.errors import DataError, did_you_mean
from medloupe.imaging.deidentify.tree import REPORT
from medloupe.types import Language, Split

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
SPLITS: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_LANGUAGES: Mapping[str, Language] = {"english": "en", "chinese": "zh", "zh-cn": "zh", "cn": "zh"}
# What programs write where nothing is known.
_NOTHING = ("nan", "none", "null", "<na>")
_SEPARATOR = re.compile(r'"?sep=(.)"?[ ,;\t]*\r?\n', re.IGNORECASE)
_JSONL = 'Write one object a line: {"image": "a.png", "label": "mass"}'


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row: where it stands, and its cells. `columns` says which column plays which role.

    `separators` part several values in one cell; JSON may give a list instead.
    """

    file: Path
    number: int
    cells: Mapping[str, Any]
    columns: Mapping[str, str]
    separators: str
    split: Split | None = None

    def has(self, role: str) -> bool:
        """Whether the cell is there and not empty."""
        return bool(self.text(role))

    def text(self, role: str) -> str:
        """The cell as text; "" where there is none."""
        return _as_text(self.cells.get(self.columns.get(role, "")))

    def several(self, role: str) -> tuple[str, ...]:
        """The values of a cell that may hold several."""
        cell = self.cells.get(self.columns.get(role, ""))
        if isinstance(cell, list):
            return tuple(filter(None, map(_as_text, cell)))
        text = _as_text(cell)
        for separator in self.separators[1:]:
            text = text.replace(separator, self.separators[0])
        parts = text.split(self.separators[0]) if self.separators else [text]
        return tuple(part.strip() for part in parts if part.strip())

    def number_of(self, role: str) -> float:
        """The cell as a number.

        Raises:
            DataError: it is none.
        """
        try:
            value = float(self.text(role))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(f"{self.text(role)!r} is no number", role, "Write digits and a point")
        return value

    def split_of(self) -> Split | None:
        """The split that the row names, else that of its file, else None.

        Raises:
            DataError: an unknown name.
        """
        name = self.text("split").casefold()
        if not name:
            return self.split
        if name not in SPLITS:
            known = did_you_mean(name, get_args(Split))
            raise self.error(f"unknown split {name!r}; {known}", "split", "Correct the cell")
        return SPLITS[name]

    def language_of(self, default: Language) -> Language:
        """The row's language.

        Raises:
            DataError: an unknown one.
        """
        name = self.text("language").casefold()
        if not name or name in get_args(Language):
            return "zh" if name == "zh" else "en" if name else default
        if name not in _LANGUAGES:
            raise self.error(f"unknown language {name!r}", "language", "Write en or zh")
        return _LANGUAGES[name]

    def attributes(self) -> dict[str, str]:
        """The cells that play no role."""
        used = set(self.columns.values())
        cells = {name: _as_text(cell) for name, cell in self.cells.items() if name not in used}
        return {name: text for name, text in cells.items() if name and text}

    def error(self, rule: str, role: str, remedy: str = "") -> DataError:
        """A fault of this row."""
        return DataError(
            rule,
            remedy=remedy,
            file=str(self.file),
            row=f"line {self.number}",
            field=self.columns.get(role, role),
        )


def find_tables(source: Path, name: str) -> list[Path]:
    """The tables of a folder: the one that is named, the only one, or one per split; else none. What
    `medloupe deidentify` reports about a folder is no table of it.

    Raises:
        DataError: the named one is not there, or which one is meant cannot be told.
    """
    here = sorted(
        path
        for path in source.iterdir()
        if path.suffix.lower() in SUFFIXES and path.name != REPORT and path.name[0] != "."
    )
    names = [path.name for path in here]
    if name:
        if not (source / name).is_file():
            raise DataError(
                f"no table {name!r} here; {did_you_mean(name, names)}",
                remedy="Name a file of the folder",
                file=str(source),
                field="file",
            )
        return [source / name]
    if len(here) <= 1:
        return here
    splits = [SPLITS.get(path.stem.casefold()) for path in here]
    if None not in splits and len(set(splits)) == len(splits):
        return here
    raise DataError(
        f"there are several tables: {', '.join(names)}",
        remedy="Name the one to read: --set file=my.csv (train, val and test are read together)",
        file=str(source),
    )


def read_lines(path: Path, columns: Mapping[str, str], separators: str) -> list[Line]:
    """Every row of a table that is not empty.

    Raises:
        DataError: unreadable, without rows or columns, or as `find_columns`.
    """
    rows = list(_rows(path))
    header = list(dict.fromkeys(name for _, cells in rows for name in cells))
    if not rows:
        raise DataError("the table has no rows", file=str(path), remedy="Add rows below its header")
    roles = find_columns(header, columns, path)
    split = SPLITS.get(path.stem.casefold())
    lines = [
        Line(
            file=path,
            number=number,
            cells=cells,
            columns=roles,
            separators=separators,
            split=split,
        )
        for number, cells in rows
    ]
    for line in lines:
        _refuse_no_class(line)
    return lines


def spreadsheets(source: Path) -> list[str]:
    """The names of the tables of a folder that are not read."""
    return sorted(
        path.name
        for path in source.iterdir()
        if path.suffix.lower() in SPREADSHEETS and path.name[0] not in ".~"
    )


def _refuse_no_class(line: Line) -> None:
    """A class is asked about by its name: it must be one, and one that can be shown."""
    for role in ("label", "labels"):
        names = line.several(role) if role == "labels" else (line.text(role),)
        for name in names:
            if name.casefold() in _NOTHING:
                raise line.error(
                    f"{name!r} is no class: programs write it where nothing is known",
                    role,
                    "Empty the cell, or write the class in words, such as 'no finding'",
                )
            if any(unicodedata.category(letter) == "Cc" for letter in name):
                raise line.error(
                    f"the class {name!r} has a control character", role, "Correct the cell"
                )


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if path.suffix.lower() == ".json":
        # a list has no lines: rows are counted from 1
        return iter(enumerate(read_json_list(path), start=1))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8: {error.reason} at byte {error.start}"
        raise DataError(rule, remedy="Save the table as CSV UTF-8", file=str(path)) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=str(path)) from None
    return _json_rows(path, text) if path.suffix.lower() == ".jsonl" else _csv_rows(path, text)


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            rule = f"is not JSON: {error}"
            raise DataError(rule, remedy=_JSONL, file=str(path), row=f"line {number}") from None
        if not isinstance(row, dict):
            rule = "is not an object"
            raise DataError(rule, remedy=_JSONL, file=str(path), row=f"line {number}")
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows with the line on which they begin; quoted cells may hold line breaks."""
    told = _SEPARATOR.match(text)  # spreadsheets say so in a first line of its own
    delimiter = told[1] if told else _delimiter(path, text)
    text = "\n" + text[told.end() :] if told else text
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
    header: Sequence[str] = ()
    start = 1
    try:
        for cells in reader:
            number, start = start, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _checked_header(path, cells)
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"the row has {len(cells)} cells, the header {len(header)}",
                    remedy='Put cells that hold a separator between quotes: "a, b"',
                    file=str(path),
                    row=f"line {number}",
                )
            yield number, dict(zip(header, (cell.strip() for cell in cells), strict=True))
    except csv.Error as error:
        raise DataError(
            f"is no table: {error}",
            remedy="Look for a quotation mark that is not closed",
            file=str(path),
            row=f"line {start}",
        ) from None


def _delimiter(path: Path, text: str) -> str:
    """Tab for .tsv; else what the header has most of: spreadsheets in many countries write ";"."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    header = text.lstrip().partition("\n")[0]
    return max((",", ";", "\t"), key=header.count)


def _checked_header(path: Path, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(
            f"two columns are named {twice[0]!r}", remedy="Rename one", file=str(path), row="line 1"
        )
    return names


def _as_text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, list):
        return "; ".join(filter(None, map(_as_text, cell)))
    return json.dumps(cell, ensure_ascii=False)
