"""Report files: text, CSV, JSON and JSON lines, copied as they are or with every identifier masked.

In a table or in JSON the name of a column says what its values are, so a `patient_name` is found
whatever it says. Patient numbers become the pseudonym that the same patient has in the DICOM files,
and UIDs the new UIDs, so that masked reports still belong to their images.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from medloupe.errors import DataError
from medloupe.imaging.deidentify.key import PseudonymKey
from medloupe.imaging.deidentify.report import TextFinding
from medloupe.imaging.deidentify.text import OLDEST_AGE, Finding, mask

SUFFIXES: Final = (".txt", ".csv", ".tsv", ".json", ".jsonl")
Find = Callable[[str], tuple[Finding, ...]]
Renamed = Callable[[str, bool], str | None]
_WIDEST_FIELD: Final = 1 << 30

# What a column holds, by its name in lower case with `_` between words; the first that fits.
_PATIENT_NUMBER: Final = "patient number"
_NUMBER: Final = r"_?(id|no|nr|num|number|key|code)"
_STAFF: Final = "physician|doctor|radiologist|referring|attending|referring_physician"
_COLUMNS: Final = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (
            _PATIENT_NUMBER,
            rf"(patient|pt|subject|person){_NUMBER}|mrn|pid|病历号|病案号|患者(编号|id)",
        ),
        (
            "id",
            r"(accession|acc|hospital|admission|visit|encounter|order|episode|medical_record|ssn|"
            rf"social_security|insurance|nhs)({_NUMBER})?|(住院|门诊|检查|影像|登记|身份证|医保)号码?",
        ),
        (
            "name",
            rf"name|surname|({_STAFF})|((patient|pt|person|full|first|last|middle|family|given|maiden|"
            rf"mother|father|{_STAFF})s?_?name)|(患者)?姓名|(报告|审核)?医[生师]",
        ),
        ("date", r"birth_?da(te|y)|dob|(\w+_)?date(_?time)?(_of_birth)?|studydate|(出生|检查)日期"),
        ("address", r"(\w+_)?(address|street|city|zip|zip_?code|postal_?code)|住址|地址"),
        ("phone", r"(\w+_)?(phone|telephone|tel|fax|mobile|cell)(_?(no|number))?|电话|手机"),
        ("age", r"(patient_?)?age(_?(years|at_\w+))?|年龄"),
    )
)

# A class and a patient may be called like a folder: only in these columns is the folder meant.
_PATHS: Final = re.compile("image|volume|file|path|scan|folder|series|dicom", re.IGNORECASE)


def clean_document(
    data: bytes,
    name: str,
    find: Find,
    key: PseudonymKey,
    *,
    masking: bool,
    patients: frozenset[str] = frozenset(),
    renamed: Renamed = lambda *_: None,
) -> tuple[bytes, tuple[TextFinding, ...]]:
    """The file's new content and where its identifiers stood; without `masking` the content is `data`.

    `patients` are the Patient IDs of the DICOM files beside it; `renamed` gives the new path of a file
    that a cell of a table or a string of JSON names (of a folder too, where its second argument says
    that the column holds paths), None for anything else.

    Raises:
        DataError: the file is not UTF-8, or not the table or JSON that its name says.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the report is not UTF-8 (byte {error.start})", remedy="Save it as UTF-8", file=name
        ) from None
    cleaner = _Cleaner(find, key, patients, masking, renamed)
    form = Path(name).suffix.lower()
    try:
        if form in (".csv", ".tsv"):
            made = cleaner.table(text, "\t" if form == ".tsv" else _delimiter(text))
        elif form == ".jsonl":
            lines = enumerate(text.split("\n"), start=1)
            made = "\n".join(
                cleaner.json(line, f"line {n}") if line.strip() else line for n, line in lines
            )
        else:
            made = cleaner.json(text, "") if form == ".json" else cleaner.words(text, "")
    except (json.JSONDecodeError, RecursionError, csv.Error) as error:
        raise DataError(f"not {form[1:].upper()}: {error}", file=name) from None
    return (made.encode() if masking else data), tuple(cleaner.found)


class _Cleaner:
    """Goes through one document; `found` fills up on the way."""

    def __init__(
        self,
        find: Find,
        key: PseudonymKey,
        patients: frozenset[str],
        masking: bool,
        renamed: Renamed,
    ) -> None:
        self._find, self._key, self._patients, self._masking = find, key, patients, masking
        self._renamed = renamed
        self.found: list[TextFinding] = []

    def table(self, text: str, delimiter: str) -> str:
        csv.field_size_limit(_WIDEST_FIELD)
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
        columns: list[str] = []
        for number, row in enumerate(
            csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 1
        ):
            if not columns:
                columns = [
                    self.words(cell, f"row {number}, column {n}") for n, cell in enumerate(row, 1)
                ]
                writer.writerow(columns)
                continue
            names = [*columns, *("" for _ in row[len(columns) :])]
            writer.writerow(
                self.value(cell, column, f"row {number}, column {column or n}")
                for n, (cell, column) in enumerate(zip(row, names, strict=False), 1)
            )
        return out.getvalue()

    def json(self, text: str, at: str) -> str:
        made = self._inside(json.loads(text), "", at)
        return json.dumps(made, ensure_ascii=False, indent=None if at else 2)

    def _inside(self, value: Any, column: str, at: str) -> Any:
        if isinstance(value, dict):
            return dict(self._pair(name, item, at) for name, item in value.items())
        if isinstance(value, list):
            return [self._inside(item, column, f"{at}[{n}]") for n, item in enumerate(value)]
        if isinstance(value, str):
            return self.value(value, column, at)
        if isinstance(value, bool) or value is None or kind_of_column(column) is None:
            return value
        said = str(value)
        made = self.value(said, column, at)
        return value if made == said else made

    def _pair(self, name: str, value: Any, at: str) -> tuple[str, Any]:
        """A key can be a patient's name too."""
        named = self.words(name, f"{at} key".strip())
        return named, self._inside(value, name, f"{at}.{named}".strip("."))

    def value(self, text: str, column: str, at: str) -> str:
        """A cell or string: a whole identifier where its column says so, else searched by the rules."""
        kind = kind_of_column(column)
        if kind is None and (new := self._renamed(text.strip(), bool(_PATHS.search(column)))):
            return new
        if kind is None or not text.strip():
            return self.words(text, at)
        if kind == "age":
            years = text.strip().split(".")[0].rstrip("yY岁")
            if not years.isdigit() or int(years) <= OLDEST_AGE:
                return text
        self._note(kind, "column", 0, len(text), at)
        if kind == _PATIENT_NUMBER or text.strip() in self._patients:
            return self._key.patient(text)
        return f"[{kind.upper()}]"

    def words(self, text: str, at: str) -> str:
        """Running text; what is found is masked whether or not the result is used, so that a place
        named in the report never says more than it may."""
        findings = self._find(text)
        for finding in findings:
            self._note(finding.kind, finding.rule, finding.start, finding.end, at)
        return mask(text, findings, self._replacement)

    def _replacement(self, finding: Finding, old: str) -> str:
        if finding.kind == "uid":
            return self._key.uid(old)
        return self._key.patient(old) if old in self._patients else f"[{finding.kind.upper()}]"

    def _note(self, kind: str, rule: str, start: int, end: int, at: str) -> None:
        kind = "id" if kind == _PATIENT_NUMBER else kind
        self.found.append(
            TextFinding(kind=kind, rule=rule, start=start, end=end, at=at, masked=self._masking)
        )


def kind_of_column(name: str) -> str | None:
    """What a column of this name holds of a person, None for all others."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", re.sub("['’]", "", name))
    plain = re.sub(r"[\W_]+", "_", split).strip("_").lower()
    return next((kind for kind, pattern in _COLUMNS if pattern.fullmatch(plain)), None)


def _delimiter(text: str) -> str:
    """A comma, or the semicolon of Europe's spreadsheets."""
    head = text.split("\n", 1)[0]
    return ";" if head.count(";") > head.count(",") else ","
