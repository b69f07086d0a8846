"""Source rows out of a prepared data set or a JSONL file, one line at a time, in file order."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from medloupe.config import Config
from medloupe.data import jsonl
from medloupe.data.dataset import (
    CARD_FILE,
    CONVERSATIONS_FILE,
    RECORDS_FILE,
    DatasetCard,
    image_path,
    read_card,
)
from medloupe.errors import ConfigError, DataError, did_you_mean
from medloupe.synthesis.types import Kind, SourceRow
from medloupe.types import Box, Conversation, ImageRef, Language, Record, Split

_CHINESE = re.compile("[\u3400-\u9fff]")
_LISTS = ("mentions", "labels", "images", "boxes")
_MAPPED = tuple(name for name in SourceRow.model_fields if name != "kind")


class SourceConfig(Config):
    """Where the rows come from.

    `path` is a prepared data set, or a JSONL file. Of a set, `form` says whether its records or its
    conversations (whose last answer is the caption or the report) are read; "auto" takes records where
    there are some. Records become "pair" rows where `pairs` is set and they name a prior.

    Of a file, `fields` gives for each field of `SourceRow` the key that holds it, dotted where it lies
    deeper; keys of the same name need no entry. Images are file names relative to `images` (default: the
    file's folder).

    The rest is put in the place of what rows do not say; `kind`, `language`, `licence` and `access` also
    over what they say. A row that states no language is Chinese if its text, sections or labels hold some.
    """

    path: Path
    form: Literal["auto", "records", "conversations"] = "auto"
    kind: Kind | None = None
    pairs: bool = False
    tasks: tuple[str, ...] = ()
    splits: tuple[Split, ...] = ()
    fields: dict[str, str] = Field(default_factory=dict)
    images: Path | None = None
    limit: int | None = Field(default=None, ge=1)
    language: Language | None = None
    licence: str | None = None
    access: str | None = None
    dataset: str = ""
    modality: str = ""
    anatomy: str = ""
    domain: str = ""

    @field_validator("fields")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name not in _MAPPED:
                raise ValueError(
                    f"no field {name!r} of a source row; {did_you_mean(name, _MAPPED)}"
                )
        return value

    def card(self) -> DatasetCard:
        """What the source says about itself as a whole.

        Raises:
            ConfigError: there is nothing at `path`.
            DataError: the card is broken.
        """
        if not self.path.exists():
            raise ConfigError("no such file or folder", file=str(self.path), field="source.path")
        found = DatasetCard(name=self.dataset or self.path.resolve().stem)
        if (self.path / CARD_FILE).exists():
            card, faults = read_card(self.path)
            if card is None:
                raise DataError.of(faults[0])
            found = card
        stated = {"licence": self.licence, "access": self.access, "name": self.dataset or None}
        return found.model_copy(update={k: v for k, v in stated.items() if v is not None})

    def rows(self) -> Iterator[SourceRow]:
        """Every row, again from the first each time; constant memory.

        Raises:
            DataError: a line is not what it should be; names file, row and field.
        """
        card = self.card()
        given = 0
        for row in self._read():
            if self.splits and row.split not in self.splits:
                continue
            if given == self.limit:
                return
            given += 1
            yield self._completed(row, card)

    def _read(self) -> Iterator[SourceRow]:
        if not self.path.is_dir():
            yield from self._mapped()
        elif self.form == "records" or (
            self.form == "auto" and (self.path / RECORDS_FILE).is_file()
        ):
            yield from self._records()
        else:
            for number, row in _lines(self.path / CONVERSATIONS_FILE, Conversation):
                if not self.tasks or row.task in self.tasks:
                    yield self._checked(_of_conversation(row), number)

    def _records(self) -> Iterator[SourceRow]:
        path = self.path / RECORDS_FILE
        with _Priors(path, wanted=self.pairs) as priors:
            for number, row in _lines(path, Record):
                prior = priors.of(row) if self.pairs else None
                yield self._checked(_of_record(row, prior), number)

    def _mapped(self) -> Iterator[SourceRow]:
        for number, text in _texts(self.path):
            yield self._checked(_of_fields(_object(text, self.path, number), self.fields), number)

    def _checked(self, data: Mapping[str, Any], number: int) -> SourceRow:
        stated = dict(data) | ({"kind": self.kind} if self.kind is not None else {})
        row, faults = jsonl.validate(SourceRow, stated, file=self.path, line=number)
        if row is None:
            raise DataError.of(faults[0])
        return row

    def _completed(self, row: SourceRow, card: DatasetCard) -> SourceRow:
        """The row with what the config and the card say, and images where they lie."""
        language = row.language
        if "language" not in row.model_fields_set:
            texts = "\n".join((row.text, *row.sections.values(), *row.labels))
            language = "zh" if _CHINESE.search(texts) else "en"
        return row.model_copy(
            update={
                "language": self.language or language,
                "licence": self.licence
                if self.licence is not None
                else row.licence or card.licence,
                "access": self.access if self.access is not None else row.access or card.access,
                "dataset": row.dataset or card.name,
                "modality": row.modality or self.modality,
                "anatomy": row.anatomy or self.anatomy,
                "domain": row.domain or self.domain,
                "images": tuple(_placed(ref, self._root()) for ref in row.images),
            }
        )

    def _root(self) -> Path:
        return self.path if self.path.is_dir() else self.images or self.path.parent


class _Priors:
    """Records by id, through their place in the file, which a temporary database keeps."""

    def __init__(self, path: Path, *, wanted: bool) -> None:
        self._path, self._wanted = path, wanted

    def __enter__(self) -> _Priors:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("CREATE TABLE places(id TEXT PRIMARY KEY, place INTEGER) WITHOUT ROWID")
        self._file = self._path.open("rb")
        place = 0
        while self._wanted and (line := self._file.readline()):
            if line.strip():
                row = _parsed(Record, line, self._path, None)
                self._db.execute("INSERT OR IGNORE INTO places VALUES (?, ?)", (row.id, place))
            place = self._file.tell()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._db.close()

    def of(self, row: Record) -> Record | None:
        """The record of the earlier study.

        Raises:
            DataError: the row names one that is not there.
        """
        if row.prior is None:
            return None
        found = self._db.execute("SELECT place FROM places WHERE id = ?", (row.prior,)).fetchone()
        if found is None:
            raise DataError(
                f"the earlier study {row.prior!r} is not among the records",
                file=str(self._path),
                row=row.id,
                field="prior",
            )
        self._file.seek(found[0])
        return _parsed(Record, self._file.readline(), self._path, None)


def _of_conversation(row: Conversation) -> dict[str, Any]:
    said = [message for message in row.messages if message.role == "assistant"]
    text = said[-1].text if said else ""
    boxes = [part for part in row.parts() if isinstance(part, Box)]
    return {
        "id": row.id,
        "kind": "report" if row.task == "report" else "caption",
        "text": text,
        "boxes": boxes,
        **({"language": row.language} if "language" in row.model_fields_set else {}),
        **_shared(row, row.images, row.attributes),
    }


def _of_record(row: Record, prior: Record | None) -> dict[str, Any]:
    sections = {name: text for name, text in row.report.items() if text.strip()}
    kind: Kind = "labels"
    if sections:
        kind = "caption" if set(sections) == {"caption"} else "report"
    images = row.images
    boxes = row.boxes
    if prior is not None and sections:
        kind = "pair"
        sections["prior"] = _joined(prior.report)
        images = prior.images + row.images
        shift = len(prior.images)
        boxes = tuple(box.model_copy(update={"image": box.image + shift}) for box in boxes)
    return {
        "id": row.id,
        "kind": kind,
        "text": _joined(row.report),
        "sections": sections if kind != "caption" else {},
        "labels": row.labels,
        "boxes": boxes,
        **_shared(row, images, row.attributes),
    }


def _shared(
    row: Conversation | Record, images: tuple[ImageRef, ...], attributes: Mapping[str, str]
) -> dict[str, Any]:
    modality = next((ref.modality for ref in images if ref.modality), "")
    return {
        "images": images,
        "modality": attributes.get("modality") or modality,
        "anatomy": attributes.get("anatomy") or attributes.get("body_part", ""),
        "domain": attributes.get("domain", ""),
        "patient_id": row.patient_id,
        "study_id": row.study_id,
        "dataset": row.dataset,
        "licence": row.licence,
        "split": row.split,
    }


def _of_fields(row: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a source row out of a JSON object; a single value stands for a list of one."""
    found: dict[str, Any] = {"kind": row["kind"]} if "kind" in row else {}
    for name in _MAPPED:
        value: Any = row
        for key in fields.get(name, name).split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None or value == "":
            continue
        if name in _LISTS and not isinstance(value, list):
            value = [value]
        if name == "images":
            value = [{"uri": v} if isinstance(v, str) else v for v in value]
        found[name] = str(value) if name == "id" and isinstance(value, int) else value
    return found


def _joined(report: Mapping[str, str]) -> str:
    return "\n".join(text.strip() for text in report.values() if text.strip())


def _placed(ref: ImageRef, root: Path) -> ImageRef:
    """The image under a name that holds from everywhere."""
    if "://" in ref.uri:
        return ref
    return ref.model_copy(update={"uri": image_path(root, ref.uri).resolve().as_posix()})


def _texts(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not empty."""
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield number, text
    except FileNotFoundError:
        raise DataError("no such file", file=str(path)) from None


def _lines(path: Path, kind: type[jsonl.Row]) -> Iterator[tuple[int, jsonl.Row]]:
    for number, text in _texts(path):
        yield number, _parsed(kind, text, path, number)


def _parsed(kind: type[jsonl.Row], line: bytes, path: Path, number: int | None) -> jsonl.Row:
    row, faults = jsonl.parse_row(kind, _decoded(line, path, number), file=path, line=number)
    if row is None:
        raise DataError.of(faults[0])
    return row


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """Any JSON object."""
    try:
        data = json.loads(_decoded(line, path, number))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"line {number} is not JSON: {error}",
            remedy="One JSON object a line; was the file cut off?",
            file=str(path),
        ) from None
    if not isinstance(data, dict):
        raise DataError(f"line {number} is not a JSON object", file=str(path))
    return data


def _decoded(line: bytes, path: Path, number: int | None) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"line {number} is" if number else "a line is"
        raise DataError(
            f"{where} not UTF-8 (byte {error.start})",
            file=str(path),
            remedy="Save the file as UTF-8",
        ) from None
