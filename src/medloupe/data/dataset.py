"""The native form: a folder with `dataset.json` (the card), `conversations.jsonl`, and, where the
source describes cases, `records.jsonl`; images lie anywhere below it or at absolute paths.

Reading is strict: `load_dataset` applies every rule of `rows` and raises on the first fault, so
that training never starts on a row that `check` would refuse. Only images are left to `check`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import Field

from medloupe.config import Config
from medloupe.data import jsonl, rows, splits
from medloupe.data.store import aside, write_lines
from medloupe.errors import DataError, Fault, LeakError, did_you_mean
from medloupe.types import Conversation, Language, Record, Split

CARD_FILE = "dataset.json"
CONVERSATIONS_FILE = "conversations.jsonl"
RECORDS_FILE = "records.jsonl"
SHARDS_FILE = "index.json"
"""What a folder of shards has instead of a card."""

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


class DatasetCard(Config):
    """What a data set is, where it comes from and how much of it is here.

    `tasks` are the kinds of question it asks, `splits` says who made the split and by what.
    `published` are the counts its publisher states, `counts` those of this copy. `partial` says
    what is missing ("255 of 315 images, ..."), `leak` which patients or images stand in two splits;
    both are empty where there is nothing to say and go into every score otherwise. `notes` say how
    the source was understood.
    """

    name: str = Field(min_length=1)
    version: str = "1"
    description: str = ""
    licence: str = ""
    citation: str = ""
    access: str = ""
    tasks: tuple[str, ...] = ()
    splits: str = ""
    languages: tuple[Language, ...] = ("en",)
    published: dict[str, int] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)
    partial: str = ""
    leak: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A data set in memory: its rows and its card; images stay on disk below `root`."""

    root: Path
    card: DatasetCard
    conversations: tuple[Conversation, ...]
    records: tuple[Record, ...] = ()

    def split(self, name: Split) -> tuple[Conversation, ...]:
        """The conversations of one split, in file order.

        Raises:
            DataError: a name that is no split.
        """
        known = get_args(Split)
        if name not in known:
            raise DataError(
                f"unknown split {name!r}; {did_you_mean(name, known)}", file=str(self.root)
            )
        return tuple(row for row in self.conversations if row.split == name)

    def fingerprint(self) -> str:
        """The first 16 hex digits of the SHA-256 over all rows in order, for manifests."""
        digest = hashlib.sha256()
        for row in (*self.conversations, *self.records):
            digest.update(jsonl.dump_row(row).encode())
            digest.update(b"\n")
        return digest.hexdigest()[:16]


def load_dataset(root: Path) -> Dataset:
    """Read a folder in the native form.

    Raises:
        DataError: the first fault found, and how many more there are. A `LeakError` where patients
            or images stand in two splits and the card does not state it.
    """
    card, faults = read_card(root)
    conversations, records, row_faults = read_rows(root, card)
    faults += row_faults
    if faults:
        raise _first(DataError, faults, root)
    assert card is not None  # a missing card is a fault
    leaks = splits.leak_faults(rows.all_rows(conversations, records))
    if leaks and not card.leak:
        raise _first(LeakError, leaks, root)
    return Dataset(root, card, tuple(conversations), tuple(records))


def read_card(root: Path) -> tuple[DatasetCard | None, list[Fault]]:
    """The card of a data set, or None with the reasons."""
    path = root / CARD_FILE
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        if (root / SHARDS_FILE).is_file():
            return None, [
                Fault(
                    rule="these are shards, not a data set in the native form",
                    file=str(root),
                    remedy=f"Unpack them: medloupe convert {root} FOLDER --unpack",
                )
            ]
        remedy = 'Name a folder made by \'medloupe prepare\', or write a card: {"name": "my_data"}'
        return None, [
            Fault(rule="no data set here: the card is missing", file=str(path), remedy=remedy)
        ]
    except (OSError, UnicodeDecodeError) as error:
        return None, [Fault(rule=f"cannot be read: {error}", file=str(path))]
    return jsonl.parse_row(DatasetCard, text, file=path)


def read_rows(
    root: Path, card: DatasetCard | None
) -> tuple[list[Conversation], list[Record], list[Fault]]:
    """Every readable row, and every fault in or between rows (images and leaks are not looked at).

    The card's counts are compared only where every line could be read: a broken line is fault
    enough.
    """
    conversations, faults = jsonl.read_jsonl(root / CONVERSATIONS_FILE, Conversation)
    records: list[Record] = []
    if (root / RECORDS_FILE).exists():
        records, record_faults = jsonl.read_jsonl(root / RECORDS_FILE, Record)
        faults += record_faults
    if not faults and not conversations:
        faults.append(_empty(root / CONVERSATIONS_FILE))
    if not faults and card is not None:
        faults += rows.count_faults(card.counts, count(conversations, records), root / CARD_FILE)
    faults += rows.conversation_faults(conversations, root / CONVERSATIONS_FILE)
    faults += rows.record_faults(records, root / RECORDS_FILE)
    return conversations, records, faults


def write_dataset(
    root: Path,
    card: DatasetCard,
    conversations: Iterable[Conversation],
    records: Iterable[Record] = (),
) -> Dataset:
    """Write the native form; equal input gives equal bytes.

    Every file is complete under a temporary name before the first is renamed, and the card, without
    which a folder is no data set, is renamed last. `card.counts` is filled in.

    Raises:
        DataError: a row breaks a rule; nothing is written. A `LeakError` where patients or images
            stand in two splits and `card.leak` does not state it.
    """
    conversations, records = tuple(conversations), tuple(records)
    _refuse_faulty(root, card, conversations, records)
    card = card.model_copy(update={"counts": card.counts | count(conversations, records)})
    root.mkdir(parents=True, exist_ok=True)
    files: dict[str, Iterator[str]] = {CONVERSATIONS_FILE: map(jsonl.dump_row, conversations)}
    if records:
        files[RECORDS_FILE] = map(jsonl.dump_row, records)
    files[CARD_FILE] = iter(
        [json.dumps(card.to_dict(), indent=2, ensure_ascii=False, sort_keys=True)]
    )
    temporary = {name: aside(root / name) for name in files}
    try:
        for name, lines in files.items():
            write_lines(temporary[name], lines)
        (root / CARD_FILE).unlink(missing_ok=True)
        if not records:
            (root / RECORDS_FILE).unlink(missing_ok=True)
        for name, path in temporary.items():
            path.replace(root / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return Dataset(root, card, conversations, records)


def count(conversations: Iterable[Conversation], records: Iterable[Record]) -> dict[str, int]:
    """How many conversations, records, distinct images and distinct patients there are."""
    conversations, records = list(conversations), list(records)
    both = rows.all_rows(conversations, records)
    refs = [ref for row in both for ref in row.images]
    patients = {row.patient_id for row in both if row.patient_id is not None}
    return {
        "conversations": len(conversations),
        "records": len(records),
        "images": len({ref.uri for ref in refs}),
        "patients": len(patients),
    }


def image_path(root: Path, uri: str) -> Path:
    """Where the file of an `ImageRef.uri` lies (an absolute uri stays as it is)."""
    return root / uri


def _refuse_faulty(
    root: Path,
    card: DatasetCard,
    conversations: tuple[Conversation, ...],
    records: tuple[Record, ...],
) -> None:
    faults = rows.conversation_faults(conversations, root / CONVERSATIONS_FILE)
    faults += rows.record_faults(records, root / RECORDS_FILE)
    if not conversations:
        faults.append(_empty(root))
    if faults:
        raise _first(DataError, faults, root)
    leaks = splits.leak_faults(rows.all_rows(conversations, records))
    if leaks and not card.leak:
        raise _first(LeakError, leaks, root)


def _empty(file: Path) -> Fault:
    return Fault(
        rule="the data set is empty: it has no conversation",
        file=str(file),
        remedy="Check the source and the filters it was prepared with",
    )


def _first(kind: type[DataError], faults: list[Fault], root: Path) -> DataError:
    """The first fault as an error that says how many more there are."""
    fault, more = faults[0], len(faults) - 1
    remedy = fault.remedy
    if more:
        remedy = f"{remedy} ({more:,} more: medloupe check {root})".strip()
    return kind(fault.rule, remedy=remedy, file=fault.file, row=fault.row, field=fault.field)
