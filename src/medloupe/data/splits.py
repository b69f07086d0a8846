"""Which patients train and which are held out, and the proof that none does both.

Where a patient goes depends on a hash of the seed and the patient's id alone, so that adding or
removing patients moves nobody else. Split sizes therefore only come close to the fractions asked. Of
a few patients none might train: then, and only then, one who would not is moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from medloupe.data.rows import AnyRow, Row, all_rows
from medloupe.errors import ConfigError, Fault, LeakError
from medloupe.types import Conversation, ImageRef, Record, Split

Hashes = Mapping[str, str]
"""uri -> SHA-256 of the file as it is; where absent, the `sha256` of the ref, else the uri."""

DEFAULT_FRACTIONS: Mapping[Split, float] = {"train": 0.7, "validation": 0.1, "test": 0.2}

_FEW = 20


def split_by_patient(
    ids: Iterable[str], fractions: Mapping[Split, float] = DEFAULT_FRACTIONS, seed: int = 0
) -> dict[str, Split]:
    """A split for every id.

    Raises:
        ConfigError: fractions that are negative or do not add up to 1.
    """
    if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-9:
        raise ConfigError(
            f"split fractions {dict(fractions)} do not add up to 1",
            remedy="Give shares such as train 0.7, validation 0.1, test 0.2",
        )
    return {name: _split_at(_uniform(name, seed), fractions) for name in ids}


def assign_splits(
    conversations: Sequence[Conversation],
    records: Sequence[Record] = (),
    fractions: Mapping[Split, float] = DEFAULT_FRACTIONS,
    seed: int = 0,
) -> tuple[tuple[Conversation, ...], tuple[Record, ...]]:
    """The rows with a split wherever they had none.

    Rows that share a patient or an image stay together; where one of them has a split already, the
    others follow it. Among fewer than `_FEW` groups of which none trains, the free one whose hash is
    lowest does.
    """
    rows = all_rows(conversations, records)
    groups = _groups(rows)
    given: dict[str, Split] = {}
    for row, group in zip(rows, groups, strict=True):
        if row.split is not None:
            given.setdefault(group, row.split)
    split_of = split_by_patient(groups, fractions, seed) | given
    if len(split_of) < _FEW and fractions.get("train", 0) > 0 and "train" not in split_of.values():
        free = split_of.keys() - given.keys()
        if free:
            split_of[min(free, key=lambda name: (_uniform(name, seed), name))] = "train"
    cut = len(conversations)
    return _filled(conversations, groups[:cut], split_of), _filled(records, groups[cut:], split_of)


def carve(
    conversations: Sequence[Conversation],
    fraction: float,
    *,
    source: Split = "train",
    target: Split = "validation",
    seed: int = 0,
) -> tuple[Conversation, ...]:
    """Move about `fraction` of the patients of `source` to `target`, all their rows together."""
    groups = _groups(conversations)
    elsewhere = {
        group for row, group in zip(conversations, groups, strict=True) if row.split != source
    }
    return tuple(
        row.model_copy(update={"split": target})
        if group not in elsewhere and _uniform(group, seed) < fraction
        else row
        for row, group in zip(conversations, groups, strict=True)
    )


def refuse_leaks(
    conversations: Iterable[Conversation],
    records: Iterable[Record] = (),
    *,
    hashes: Hashes | None = None,
    allow_leak: bool = False,
) -> str:
    """What the splits share, in words for `DatasetCard.leak`; empty where they share nothing.

    Raises:
        LeakError: patients or images stand in two splits and `allow_leak` is not set.
    """
    rows = all_rows(conversations, records)
    faults = leak_faults(rows, hashes)
    if faults and not allow_leak:
        first, more = faults[0], len(faults) - 1
        rule = f"{first.rule} ({more:,} more leaks)" if more else first.rule
        remedy = f"{first.remedy}, or allow it by name (allow_leak); every score will then say so"
        raise LeakError(rule, remedy=remedy, row=first.row, field=first.field)
    return leak_statement(rows, hashes)


def leak_faults(rows: Sequence[Row], hashes: Hashes | None = None) -> list[Fault]:
    """One fault for every patient and every image that stands in two splits."""
    remedy = "Split by patient (medloupe.data.splits)"
    faults = []
    for what, (field, shared) in _shared(rows, hashes or {}).items():
        for name, splits in shared.items():
            places = " and ".join(f"{split} (row {row!r})" for split, row in splits.items())
            second = list(splits.values())[1]
            rule = f"{what} {name!r} is in {places}"
            faults.append(Fault(rule=rule, remedy=remedy, field=field, row=second))
    return faults


def leak_statement(rows: Sequence[Row], hashes: Hashes | None = None) -> str:
    """How many patients and images stand in two splits, in words; empty where none does."""
    counts = [
        f"{len(shared):,} {what}s"
        for what, (_, shared) in _shared(rows, hashes or {}).items()
        if shared
    ]
    return f"{' and '.join(counts)} are in more than one split" if counts else ""


Shared = dict[str, dict[Split, str]]
"""name -> {split: the first row that bears the name in it}, for names in two splits or more."""


def _shared(rows: Sequence[Row], hashes: Hashes) -> dict[str, tuple[str, Shared]]:
    patients: Shared = {}
    images: Shared = {}
    name_of: dict[str, str] = {}
    for row in rows:
        if row.split is None:
            continue
        if row.patient_id is not None:
            patients.setdefault(row.patient_id, {}).setdefault(row.split, row.id)
        for ref in row.images:
            name = name_of.setdefault(_image_key(ref, hashes), ref.uri)
            images.setdefault(name, {}).setdefault(row.split, row.id)
    return {
        "patient": ("patient_id", {k: v for k, v in patients.items() if len(v) > 1}),
        "image": ("images", {k: v for k, v in images.items() if len(v) > 1}),
    }


def _image_key(ref: ImageRef, hashes: Hashes) -> str:
    """What makes two refs the same picture. Frames of one file belong to one examination."""
    return hashes.get(ref.uri) or ref.sha256 or ref.uri


def _groups(rows: Sequence[Row]) -> list[str]:
    """For each row the name of its group: rows that share patients or images, however remotely.

    A group is named after its first patient in alphabetical order, else its first image, else the
    row, so that its name and with it its split do not hang on the order of rows.
    """
    parent: dict[str, str] = {}

    def top(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    firsts = []
    for row in rows:
        keys = [] if row.patient_id is None else [f"0:{row.patient_id}"]
        keys += [f"1:{_image_key(ref, {})}" for ref in row.images] or [f"2:{row.id}"]
        firsts.append(keys[0])
        for key in keys[1:]:
            low, high = sorted((top(keys[0]), top(key)))
            parent[high] = low  # the smaller name stays on top: patients before images
    return [top(key).partition(":")[2] for key in firsts]


def _filled(
    rows: Sequence[AnyRow], groups: Sequence[str], split_of: Mapping[str, Split]
) -> tuple[AnyRow, ...]:
    return tuple(
        row if row.split is not None else row.model_copy(update={"split": split_of[group]})
        for row, group in zip(rows, groups, strict=True)
    )


def _uniform(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on the name and the seed only."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_at(at: float, fractions: Mapping[Split, float]) -> Split:
    reached = 0.0
    names = [name for name, share in fractions.items() if share > 0]
    for name in names:
        reached += fractions[name]
        if at < reached:
            return name
    return names[-1]  # the shares add up to a hair less than 1
