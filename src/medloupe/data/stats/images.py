"""What the images of a data set are: sizes, slices, spacing, units, formats, bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medloupe.config import Config
from medloupe.data.dataset import Dataset, Progress, image_path
from medloupe.data.rows import all_rows
from medloupe.errors import ImageError, MedLoupeError
from medloupe.imaging.files import folder_files
from medloupe.imaging.read import read_ref
from medloupe.imaging.workers import counted, in_workers
from medloupe.types import ImageRef

_POINTS = 2000


class ImageFacts(Config):
    """Of every distinct image: how many have which size (width, height, slices), pixel spacing
    (slice, row, column in mm), units and kind of file; `points` are (width, height) to draw."""

    n: int
    unreadable: tuple[str, ...]
    bytes: int
    sizes: dict[str, int]
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    slices: tuple[int, int, int]
    points: tuple[tuple[int, int, int], ...]
    spacings: dict[str, int]
    units: dict[str, int]
    formats: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class _Fact:
    size: tuple[int, int, int] | None = None
    bytes: int = 0
    spacing: tuple[float, float, float] | None = None
    units: str = ""
    format: str = ""
    fault: str = ""


def image_facts(
    dataset: Dataset, *, workers: int | None = None, progress: Progress | None = None
) -> ImageFacts:
    """Decode every image once and keep what it is.

    Raises:
        ImageError: a worker process died.
    """
    rows = all_rows(dataset.conversations, dataset.records)
    refs = list(dict.fromkeys(ref for row in rows for ref in row.images))
    died = ImageError(
        "a worker process died while reading images",
        remedy="Run with workers=1 to see which image it is, or free memory",
    )
    found = in_workers(_fact, [(ref, dataset.root) for ref in refs], workers, died=died)
    facts = list(counted(found, "images", len(refs), progress))
    sizes = [fact.size for fact in facts if fact.size is not None]
    spacings = Counter(
        " x ".join(f"{value:.3g}" for value in fact.spacing) if fact.spacing else "unknown"
        for fact in facts
        if fact.size is not None
    )
    return ImageFacts(
        n=len(facts),
        unreadable=tuple(fact.fault for fact in facts if fact.fault),
        bytes=sum(fact.bytes for fact in facts),
        sizes=dict(Counter(_size_text(size) for size in sizes).most_common()),
        widths=_range([size[0] for size in sizes]),
        heights=_range([size[1] for size in sizes]),
        slices=_range([size[2] for size in sizes]),
        points=_points(sizes),
        spacings=dict(spacings.most_common()),
        units=dict(Counter(fact.units for fact in facts if fact.units).most_common()),
        formats=dict(Counter(fact.format for fact in facts if fact.format).most_common()),
    )


def _points(sizes: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """(width, height, how many), the most frequent."""
    counted = Counter((width, height) for width, height, _ in sizes).most_common(_POINTS)
    return tuple((width, height, number) for (width, height), number in counted)


def _range(values: Sequence[int]) -> tuple[int, int, int]:
    """Lowest, median, highest; zeros for none."""
    if not values:
        return 0, 0, 0
    ordered = sorted(values)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]


def _size_text(size: tuple[int, int, int]) -> str:
    width, height, depth = size
    return f"{width} x {height}" + (f" x {depth}" if depth > 1 else "")


def _fact(job: tuple[ImageRef, Path]) -> _Fact:
    ref, root = job
    path = image_path(root, ref.uri)
    try:
        image = read_ref(ref, root)
    except MedLoupeError as error:
        return _Fact(fault=str(error.at(file=str(path))))
    files = folder_files(path) if path.is_dir() else [path]
    depth = 1 if image.units == "rgb" else int(image.array.shape[0])
    return _Fact(
        size=(*image.size, depth),
        bytes=sum(file.stat().st_size for file in files),
        spacing=image.spacing,
        units=image.units,
        format=image.attributes.get("format") or path.suffix.removeprefix(".").upper() or "unnamed",
    )
