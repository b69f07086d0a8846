"""Every row and every image read before any training, and every fault reported at once.

Images are read in worker processes; faults come in the order of the files, whatever the workers do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medloupe.data import rows as rules
from medloupe.data import splits
from medloupe.data.dataset import (
    CONVERSATIONS_FILE,
    RECORDS_FILE,
    Progress,
    image_path,
    read_card,
    read_rows,
)
from medloupe.errors import Fault, ImageError, MedLoupeError
from medloupe.imaging.hounsfield import looks_rescaled_twice
from medloupe.imaging.read import WITHOUT_MODALITY, read_ref, sha256_path
from medloupe.imaging.workers import counted, in_workers
from medloupe.types import Conversation, ImageRef, Record

# Annotation tools round: an edge may stand this far (pixels) outside its image.
_SLACK = 1e-3

Place = tuple[Conversation | Record, str]
"""A row and the path of a field in it."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What was read and what is wrong. `notes` are worth knowing but no faults."""

    rows: int
    images: int
    faults: tuple[Fault, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """One image as it is: its hash and its size (width, height, depth) as far as it was read.

    `unmeasured` is the share of its values that are NaN or infinite; `doubtful`: nobody says that it
    is a CT, and its values look like those of one that was rescaled twice.
    """

    sha256: str | None = None
    size: tuple[int, int, int] | None = None
    faults: tuple[Fault, ...] = ()
    unmeasured: float = 0.0
    unoriented: bool = False
    doubtful: bool = False


def check_dataset(
    root: Path, *, workers: int | None = None, progress: Progress | None = None
) -> CheckReport:
    """Read a whole data set and report every fault.

    `workers` processes read images (default: one per core, at most 8; 1 reads in this process).

    Raises:
        ImageError: a worker process died, e.g. because it ran out of memory.
    """
    card, faults = read_card(root)
    conversations, records, row_faults = read_rows(root, card)
    faults += row_faults
    rows = rules.all_rows(conversations, records)
    places = _places(rows)
    seen = dict(zip(places, _look_at(list(places), root, workers, progress), strict=True))
    for ref, found in seen.items():
        faults += _placed(found.faults, places[ref])
    faults += [fault for row in rows for fault in _boxes_outside(row, seen, root)]
    notes = [*_notes(conversations), *_image_notes(seen)]
    hashes = {ref.uri: found.sha256 for ref, found in seen.items() if found.sha256}
    leaks = splits.leak_faults(rows, hashes)
    if card is not None and card.leak:
        notes.append(f"allowed by the card: {card.leak}")
    else:
        faults += leaks
    return CheckReport(
        rows=len(rows),
        images=len({ref.uri for ref in places}),
        faults=tuple(faults),
        notes=tuple(notes),
    )


def _places(rows: Iterable[Conversation | Record]) -> dict[ImageRef, list[Place]]:
    """Every distinct image with all the places that use it, in file order."""
    places: dict[ImageRef, list[Place]] = {}
    for row in rows:
        for field, ref in rules.images_of(row):
            places.setdefault(ref, []).append((row, field))
    return places


def _look_at(
    refs: Sequence[ImageRef], root: Path, workers: int | None, progress: Progress | None
) -> Iterator[_Seen]:
    """Read every image, in order."""
    died = ImageError(
        "a worker process died while reading images",
        remedy="Run with workers=1 to see which image it is, or free memory",
        file=str(root),
    )
    seen = in_workers(_look, [(ref, root) for ref in refs], workers, died=died)
    return counted(seen, "images", len(refs), progress)


def _look(job: tuple[ImageRef, Path]) -> _Seen:
    ref, root = job
    path = image_path(root, ref.uri)
    sha256, faults = None, []
    try:
        sha256 = sha256_path(path)
        if ref.sha256 is not None and sha256 != ref.sha256.lower():
            faults.append(_changed(path, ref.sha256, sha256))
        image = read_ref(ref.model_copy(update={"sha256": None}), root)
    except MedLoupeError as error:
        return _Seen(sha256=sha256, faults=(*faults, error.at(file=str(path)).fault))
    if image.units == "rgb":
        return _Seen(sha256=sha256, size=(*image.size, 1), faults=tuple(faults))
    unmeasured = 1.0 - np.count_nonzero(np.isfinite(image.array)) / image.array.size
    if unmeasured == 1.0:
        faults.append(_without_values(path))
    return _Seen(
        sha256=sha256,
        size=(*image.size, image.array.shape[0]),
        faults=tuple(faults),
        unmeasured=unmeasured,
        unoriented=image.attributes.get("orientation") == "unknown",
        doubtful=image.units == "stored"
        and image.attributes.get("format") in WITHOUT_MODALITY
        and ref.modality is None
        and looks_rescaled_twice(image),
    )


def _without_values(path: Path) -> Fault:
    return Fault(
        rule="the image holds no values: every one is NaN or infinite",
        remedy="Export it again, or leave its rows out",
        file=str(path),
    )


def _changed(path: Path, stated: str, found: str) -> Fault:
    return Fault(
        rule=f"the file is not the one the row means: sha256 {found[:12]}..., not {stated[:12]}...",
        remedy="Restore the file, or prepare the data set again",
        file=str(path),
    )


def _placed(faults: Iterable[Fault], places: Sequence[Place]) -> list[Fault]:
    """The faults of an image with the first row that uses it, and how many others do."""
    (row, field), others = places[0], len({id(row) for row, _ in places}) - 1
    also = f" (used by {others:,} more rows)" if others > 1 else " (used by 1 more row)"
    return [
        Fault(
            rule=fault.rule + (also if others else ""),
            remedy=fault.remedy,
            file=fault.file,
            row=row.id,
            field=fault.field or field,
        )
        for fault in faults
    ]


def _boxes_outside(
    row: Conversation | Record, seen: Mapping[ImageRef, _Seen], root: Path
) -> Iterator[Fault]:
    file = root / (RECORDS_FILE if isinstance(row, Record) else CONVERSATIONS_FILE)
    for field, box in rules.boxes_of(row):
        size = seen[row.images[box.image]].size if box.image < len(row.images) else None
        if size is None:
            continue  # another fault says why
        edges = [("x", box.x1, box.x2, size[0]), ("y", box.y1, box.y2, size[1])]
        if box.z1 is not None and box.z2 is not None:
            edges.append(("z", box.z1, box.z2, size[2]))
        for axis, low, high, length in edges:
            if low < -_SLACK or high > length + _SLACK:
                yield Fault(
                    rule=f"box {box.label!r} spans {axis} {low:g} to {high:g}, "
                    f"but its image {row.images[box.image].uri!r} only 0 to {length}",
                    remedy="Boxes are in the original pixels of their image",
                    file=str(file),
                    row=row.id,
                    field=field,
                )


def _image_notes(seen: Mapping[ImageRef, _Seen]) -> Iterator[str]:
    """What images lack that no rule forbids; each note names one of them."""
    some = {ref: found.unmeasured for ref, found in seen.items() if 0 < found.unmeasured < 1}
    if some:
        worst = max(some, key=lambda ref: some[ref])
        yield (
            f"{len(some):,} images hold NaN or infinite values, up to {some[worst]:.2%} of one "
            f"({worst.uri}): read as no value; windows leave them out and show them black"
        )
    turned = [ref for ref, found in seen.items() if found.unoriented]
    if turned:
        yield (
            f"{len(turned):,} volumes have no orientation (first: {turned[0].uri}): left and right, "
            "and which way the slices run, are not known; they are read in the order of the file"
        )
    doubtful = [ref for ref, found in seen.items() if found.doubtful]
    if doubtful:
        yield (
            f"{len(doubtful):,} images have no modality, so HU was not checked, and look like CT "
            f"rescaled twice (first: {doubtful[0].uri}): say modality CT to have them checked"
        )


def _notes(conversations: Sequence[Conversation]) -> list[str]:
    unknown = sum(row.patient_id is None for row in conversations)
    undecided = sum(row.split is None for row in conversations)
    notes = []
    if unknown:
        notes.append(f"{unknown:,} rows have no patient_id: leaks are looked for by image only")
    if undecided:
        notes.append(f"{undecided:,} rows are in no split: nothing trains on or scores them")
    return notes
