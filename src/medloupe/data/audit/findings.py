"""What an audit is asked and what it finds, as values."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medloupe.config import Config
from medloupe.types import Split

Kind = Literal["patient", "file", "pixels", "header", "near", "similar patient id", "text"]
Level = Literal["hash", "pixels", "near"]


class AuditConfig(Config):
    """How far an audit looks.

    `images`: "hash" compares file hashes alone (the ones that the rows state; nothing is decoded),
    "pixels" decodes every image and finds the same pixels in another container, "near" also finds
    re-encoded, resized, brightened, slightly cropped and mirrored copies.
    `similarity` is the least correlation of two aligned, high-passed thumbnails that makes a near
    duplicate. On real chest radiographs copies reach 0.97 and more, two films of one patient 0.91.
    `shared_ids`: patient ids of different data sets are of one system; otherwise equal ids of two
    publishers are a note, since everybody counts from 1.
    `min_words` and `common`: a text is a finding if it is that long and no more than `common`
    different pictures carry it; shorter or more frequent ones are common wording.
    `within` also reports copies inside one split, which are no leak.
    """

    images: Level = "near"
    similarity: float = Field(default=0.94, gt=0, le=1)
    shared_ids: bool = False
    min_words: int = Field(default=15, ge=1)
    common: int = Field(default=3, ge=1)
    within: bool = False


class Place(Config):
    """One row that holds what was found."""

    dataset: str
    split: Split | None
    row: str
    uri: str | None = None


class Finding(Config):
    """One thing that stands in two places. `leak`: they are two sides of a split.

    `how` says in words what is the same ("identical file", "mirrored copy"); `value` is the patient,
    the hash (of what a DICOM header names too: findings are passed on) or the beginning of the text;
    `score` the correlation of a near duplicate. A "header" that is no leak contradicts the rows.
    """

    kind: Kind
    leak: bool
    how: str
    value: str
    score: float | None = None
    places: tuple[Place, ...]

    def __str__(self) -> str:
        where = " and ".join(
            f"{p.dataset}/{p.split or 'no split'} row {p.row!r}" + (f" ({p.uri})" if p.uri else "")
            for p in self.places[:2]
        )
        more = len(self.places) - 2
        return f"{self.how} in {where}" + (f" and {more:,} more places" if more > 0 else "")


class AuditReport(Config):
    """Findings, strongest kind first; `compared` counts what was looked at, `unread` the
    images among it that could not be read and hence not be compared."""

    findings: tuple[Finding, ...]
    compared: dict[str, int]
    unread: int = Field(default=0, ge=0)
    notes: tuple[str, ...] = ()

    @property
    def leaks(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.leak)

    def statement(self) -> str:
        """The leaks in words, by kind; empty where there is none."""
        counts = self.count()
        return ", ".join(f"{number:,} {_NAMES[kind]}" for kind, number in counts.items() if number)

    def count(self) -> dict[Kind, int]:
        """Leaks per kind."""
        return {kind: sum(f.kind == kind for f in self.leaks) for kind in _NAMES}


_NAMES: dict[Kind, str] = {
    "patient": "patients",
    "file": "identical files",
    "pixels": "images with identical pixels",
    "header": "DICOM patients or series",
    "near": "near-duplicate images",
    "similar patient id": "similar patient ids",
    "text": "identical texts",
}
