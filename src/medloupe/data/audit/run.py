"""An audit of one data set, or of several against each other."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medloupe.data.audit.findings import AuditConfig, AuditReport, Finding, Kind, Place
from medloupe.data.audit.look import Look, look_at
from medloupe.data.audit.near import near_pairs
from medloupe.data.audit.text import (
    Said,
    length_in_words,
    normalised,
    recurring_kinds,
    texts_of,
)
from medloupe.data.dataset import Dataset, Progress, read_card, read_rows
from medloupe.data.rows import Row, all_rows
from medloupe.errors import DataError, ImageError
from medloupe.imaging.workers import counted, in_workers
from medloupe.types import ImageRef, Split

_SHOWN = 60  # characters of a text in a finding


@dataclass(frozen=True)
class AuditSet:
    """Rows under audit. `benchmark`: rows without a split are held out, else they are trained on."""

    name: str
    root: Path
    rows: tuple[Row, ...]
    benchmark: bool = False

    @classmethod
    def of(cls, dataset: Dataset, *, benchmark: bool = False) -> AuditSet:
        """A data set that is loaded already."""
        rows = tuple(all_rows(dataset.conversations, dataset.records))
        return cls(dataset.card.name, dataset.root, rows, benchmark)


def read_set(root: Path, *, benchmark: bool = False) -> AuditSet:
    """A folder in the native form, leaks and all (`load_dataset` would refuse them).

    Raises:
        DataError: the first row that cannot be read or breaks a rule.
    """
    card, faults = read_card(root)
    conversations, records, row_faults = read_rows(root, card)
    faults += row_faults
    if faults:
        raise DataError.of(faults[0])
    assert card is not None  # a missing card is a fault
    return AuditSet(card.name, root, tuple(all_rows(conversations, records)), benchmark)


def audit(
    sets: Sequence[AuditSet],
    config: AuditConfig | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Everything that stands on two sides.

    Within a data set any two splits are two sides. Between data sets, what is trained on stands
    against what is held out: a benchmark's test rows against a training split, and the other way.

    Raises:
        ImageError: a worker process died.
    """
    return _Audit(sets, config or AuditConfig(), workers, progress).report()


@dataclass(frozen=True)
class _Held:
    """One thing (an image, a patient, a text) where it stands: a side and a row."""

    side: int
    place: Place


class _Audit:
    """The state of one audit: sides, images, and what was found so far."""

    def __init__(
        self,
        sets: Sequence[AuditSet],
        config: AuditConfig,
        workers: int | None,
        progress: Progress | None,
    ) -> None:
        self.sets, self.config = sets, config
        self.workers, self.progress = workers, progress
        self.sides: dict[tuple[int, Split | None], int] = {}
        for number, one in enumerate(sets):
            for row in one.rows:
                self.sides.setdefault((number, row.split), len(self.sides))
        self.leaking = self._opposed()
        # copies inside one side are looked for where asked, between sides of no leak never
        self.searched = self.leaking | (np.eye(len(self.sides), dtype=bool) & config.within)
        self.patients_of: dict[tuple[int, ImageRef], set[str]] = defaultdict(set)
        self.images = self._images()
        self.notes: list[str] = []
        self.unread = 0
        self.compared = {"rows": sum(len(one.rows) for one in sets), "images": len(self.images)}

    def report(self) -> AuditReport:
        found = [
            *self._patients(),
            *self._similar_patients(),
            *self._pictures(),
            *self._texts(),
        ]
        return AuditReport(
            findings=tuple(found),
            compared=self.compared,
            unread=self.unread,
            notes=tuple(self.notes),
        )

    def _opposed(self) -> NDArray[np.bool_]:
        keys = list(self.sides)
        return np.array([[self._leaks(a, b) for b in keys] for a in keys], dtype=bool).reshape(
            len(keys), len(keys)
        )

    def _leaks(self, one: tuple[int, Split | None], other: tuple[int, Split | None]) -> bool:
        if one[0] == other[0]:
            return None not in (one[1], other[1]) and one[1] != other[1]
        return self._trains(*one) != self._trains(*other)

    def _trains(self, number: int, split: Split | None) -> bool:
        return split == "train" or (split is None and not self.sets[number].benchmark)

    def _images(self) -> dict[tuple[int, ImageRef], dict[int, Place]]:
        """Every distinct image of every set, with the first row of each side that shows it.

        Masks are left out: outlines of one organ look alike in everybody.
        """
        images: dict[tuple[int, ImageRef], dict[int, Place]] = defaultdict(dict)
        for number, one, row, side in self._rows():
            for ref in row.images:
                images[number, ref].setdefault(side, _place(one, row, ref.uri))
                if row.patient_id is not None:
                    self.patients_of[number, ref].add(row.patient_id)
        return images

    def _rows(self) -> Iterator[tuple[int, AuditSet, Row, int]]:
        for number, one in enumerate(self.sets):
            for row in one.rows:
                yield number, one, row, self.sides[number, row.split]

    def _patients(self) -> Iterator[Finding]:
        held: dict[tuple[str, str], list[_Held]] = defaultdict(list)
        known: dict[str, set[str]] = defaultdict(set)
        for _, one, row, side in self._rows():
            if row.patient_id is None:
                continue
            system = "" if self.config.shared_ids else one.name
            held[system, row.patient_id].append(_Held(side, _place(one, row)))
            known[row.patient_id].add(one.name)
        alike = sum(len(names) > 1 for names in known.values())
        if alike and not self.config.shared_ids:
            self.notes.append(
                f"{alike:,} patient ids occur in several data sets; taken for different people "
                "(shared_ids says otherwise)"
            )
        self.compared["patients"] = len(held)
        for (_, name), where in held.items():
            yield from self._finding("patient", "the same patient", name, where)

    def _similar_patients(self) -> Iterator[Finding]:
        """Ids of two sides that differ in case, outer space or leading zeros alone."""
        held: dict[tuple[str, str], dict[str, list[_Held]]] = defaultdict(dict)
        for (system, name), where in self._named().items():
            held[system, _plain_id(name)][name] = where
        for names in held.values():
            if len(names) > 1:
                shown = ", ".join(map(repr, sorted(names)))
                everywhere = [one for where in names.values() for one in where]
                yield from self._finding(
                    "similar patient id", f"patient ids that are alike ({shown})", shown, everywhere
                )

    def _named(self) -> dict[tuple[str, str], list[_Held]]:
        """(system of ids, patient_id) -> where the rows name it."""
        named: dict[tuple[str, str], list[_Held]] = defaultdict(list)
        for _, one, row, side in self._rows():
            if row.patient_id is not None:
                named[self._system(one), row.patient_id].append(_Held(side, _place(one, row)))
        return named

    def _system(self, one: AuditSet) -> str:
        return "" if self.config.shared_ids else one.name

    def _headers(
        self, looks: Sequence[Look], keys: Sequence[tuple[int, ImageRef]]
    ) -> Iterator[Finding]:
        """What DICOM headers say, against each other and against the rows' patient_id."""
        patients: dict[tuple[str, str], list[int]] = defaultdict(list)
        series: dict[str, list[int]] = defaultdict(list)
        for number, (look, (which, _)) in enumerate(zip(looks, keys, strict=True)):
            if look.patient is not None:
                patients[self._system(self.sets[which]), look.patient].append(number)
            if look.series is not None:
                series[look.series].append(number)
        named = self._named()
        told: set[int] = set()
        for (system, name), members in patients.items():
            where = [*self._shown(members, keys), *named.get((system, name), ())]
            owners = self._owners(members, keys) | ({name} & {n for s, n in named if s == system})
            how = "the same DICOM Patient ID"
            if len(owners) == 1:
                continue  # one patient on two sides is a finding by its patient_id
            if self._leak_in(where):
                told.update(members)
                yield from self._finding("header", how, _secret(name), where)
            elif len(owners) > 1:
                yield self._contradiction(f"{how}, but {len(owners)} patient_ids", name, where)
        for uid, members in series.items():
            if len(self._owners(members, keys)) != 1 and not told.issuperset(members):
                where = self._shown(members, keys)
                yield from self._finding("header", "the same DICOM series", _secret(uid), where)
        yield from self._split_patients(patients, keys)

    def _split_patients(
        self,
        patients: dict[tuple[str, str], list[int]],
        keys: Sequence[tuple[int, ImageRef]],
    ) -> Iterator[Finding]:
        """A patient_id whose images bear the ids of several patients."""
        ids: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(dict)
        for (system, name), members in patients.items():
            for number in members:
                for owner in self.patients_of[keys[number]]:
                    ids[system, owner].setdefault(name, []).append(number)
        for (_, owner), names in ids.items():
            if len(names) > 1:
                firsts = [members[0] for members in names.values()]
                yield self._contradiction(
                    f"the same patient_id, but {len(names)} DICOM Patient IDs",
                    owner,
                    self._shown(firsts, keys),
                )

    def _contradiction(self, how: str, name: str, where: Sequence[_Held]) -> Finding:
        places = tuple(dict.fromkeys(held.place for held in where))
        return Finding(kind="header", leak=False, how=how, value=_secret(name), places=places)

    def _shown(self, members: Iterable[int], keys: Sequence[tuple[int, ImageRef]]) -> list[_Held]:
        return [_Held(s, p) for n in members for s, p in self.images[keys[n]].items()]

    def _owners(self, members: Iterable[int], keys: Sequence[tuple[int, ImageRef]]) -> set[str]:
        return {owner for number in members for owner in self.patients_of[keys[number]]}

    def _pictures(self) -> Iterator[Finding]:
        keys = list(self.images)
        looks = self._look()
        for look in looks:
            if look.fault is not None:
                self.unread += 1
                self.notes.append(f"not compared: {look.fault}")
        seen: set[tuple[int, int]] = set()
        files, pixels = [look.sha256 for look in looks], [look.pixels for look in looks]
        yield from self._equal("file", "identical file", files, keys, seen)
        yield from self._equal("pixels", "identical pixels", pixels, keys, seen)
        yield from self._headers(looks, keys)
        if self.config.images == "near":
            yield from self._near(looks, keys, seen)

    def _equal(
        self,
        kind: Kind,
        how: str,
        hashes: Sequence[str | None],
        keys: Sequence[tuple[int, ImageRef]],
        seen: set[tuple[int, int]],
    ) -> Iterator[Finding]:
        """Images of one hash; `seen` are pairs that a stronger kind has found, and is added to."""
        groups: dict[str, list[int]] = defaultdict(list)
        for number, value in enumerate(hashes):
            if value is not None:
                groups[value].append(number)
        for value, members in groups.items():
            pairs = {(members[0], other) for other in members[1:]}
            if len(members) > 1 and pairs <= seen:
                continue  # the same file under several names: said before
            seen |= {(a, b) for i, a in enumerate(members) for b in members[i + 1 :]}
            where = [_Held(s, p) for n in members for s, p in self.images[keys[n]].items()]
            yield from self._finding(kind, how, value, where, several=len(members) > 1)

    def _near(
        self,
        looks: Sequence[Look],
        keys: Sequence[tuple[int, ImageRef]],
        seen: set[tuple[int, int]],
    ) -> Iterator[Finding]:
        # an image that several sides show is in the findings already; one side stands for all
        sides = np.array([next(iter(self.images[key])) for key in keys], dtype=np.int64)
        pairs, compared = near_pairs(looks, sides, self.searched, self.config.similarity)
        self.compared["hash pairs"] = compared
        for pair in pairs:
            if (pair.first, pair.second) in seen:
                continue
            where = [
                _Held(side, place)
                for number in (pair.first, pair.second)
                for side, place in list(self.images[keys[number]].items())[:1]
            ]
            name = looks[pair.first].sha256 or ""
            yield from self._finding("near", pair.how, name, where, several=True, score=pair.score)

    def _texts(self) -> Iterator[Finding]:
        held: dict[str, list[_Held]] = defaultdict(list)
        texts = []
        for _, one, row, side in self._rows():
            shown = f"{one.name}/{row.images[0].uri if row.images else row.id}"
            for kind, text in texts_of(row):
                words = normalised(text)
                if length_in_words(words) >= self.config.min_words:
                    held[words].append(_Held(side, _place(one, row)))
                    texts.append(Said(words, shown, side, f"{one.name} {kind}"))
        self.compared["long texts"] = len(held)
        common = self._common(texts)
        skipped = 0
        for text, where in held.items():
            if text in common:
                skipped += self._leak_in(where)
                continue
            begin = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
            yield from self._finding("text", "the same text", begin, where)
        if skipped:
            self.notes.append(
                f"{skipped:,} long texts are on two sides, but are common wording: on more than "
                f"{self.config.common} pictures, or of a kind of row whose texts recur anyway"
            )

    def _common(self, texts: Sequence[Said]) -> set[str]:
        kinds = recurring_kinds(texts)
        pictures: dict[str, set[str]] = defaultdict(set)
        for said in texts:
            pictures[said.text].add(said.picture)
        many = {text for text, shown in pictures.items() if len(shown) > self.config.common}
        return many | {said.text for said in texts if said.kind in kinds}

    def _finding(
        self,
        kind: Kind,
        how: str,
        value: str,
        where: Sequence[_Held],
        *,
        several: bool = False,
        score: float | None = None,
    ) -> Iterator[Finding]:
        """The finding, if there is one: a leak, or (`several`) copies inside a side where asked."""
        leak = self._leak_in(where)
        if not leak and not (self.config.within and several):
            return
        first: dict[tuple[int, str | None], Place] = {}
        for held in where:
            first.setdefault((held.side, held.place.uri), held.place)
        places = tuple(first[key] for key in sorted(first, key=lambda key: key[0]))
        yield Finding(kind=kind, leak=leak, how=how, value=value, score=score, places=places)

    def _leak_in(self, where: Sequence[_Held]) -> bool:
        sides = sorted({held.side for held in where})
        return bool(self.leaking[np.ix_(sides, sides)].any())

    def _look(self) -> list[Look]:
        jobs = [(ref, self.sets[n].root, self.config.images) for n, ref in self.images]
        nothing_read = self.config.images == "hash" and all(ref.sha256 for ref, _, _ in jobs)
        died = ImageError(
            "a worker process died while looking at images",
            remedy="Run with workers=1 to see which image it is, or free memory",
        )
        looks = in_workers(look_at, jobs, 1 if nothing_read else self.workers, died=died)
        return list(counted(looks, "images", len(jobs), self.progress))


def _plain_id(name: str) -> str:
    """An id without what people and spreadsheets change: " P007" and "p7" are alike."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", name.strip().casefold())


def _secret(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def _place(one: AuditSet, row: Row, uri: str | None = None) -> Place:
    return Place(dataset=one.name, split=row.split, row=row.id, uri=uri)
