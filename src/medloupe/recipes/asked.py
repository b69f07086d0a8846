"""What `predict` is pointed at: images, a DICOM tree, or questions in JSON lines -> rows to ask.

Every file and every line is accounted for: it becomes a row, a row with an error, or is counted among the
files that are no images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import Field, model_validator

from medloupe.config import Config
from medloupe.data.datasets.folder.files import SUFFIXES, VOLUMES
from medloupe.data.jsonl import parse_row
from medloupe.errors import DataError, Fault
from medloupe.imaging.dicom.series import SeriesSummary, scan_series
from medloupe.types import Conversation, ImageRef, Message, Text

_LINES: Final = (".jsonl", ".ndjson")
_NO_IMAGE: Final = ("not DICOM", "DICOM without image")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row to ask, or why it cannot be."""

    id: str
    asked: Conversation | None = None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Input:
    """The rows, in order; relative image uris are below `root`. `skipped` files are no images."""

    root: Path
    items: tuple[Item, ...]
    skipped: int = 0

    @property
    def asked(self) -> list[Conversation]:
        return [item.asked for item in self.items if item.asked is not None]


class AskRow(Config):
    """A line of the short form. Several images go into `images`; `volume` is one, or a DICOM folder."""

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    image: str | None = None
    images: tuple[str, ...] = ()
    volume: str | None = None
    frame: int | None = Field(default=None, ge=0)
    modality: str | None = None
    options: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> AskRow:
        if self.image is not None and self.images:
            raise ValueError("give image or images, not both")
        return self

    def conversation(self) -> Conversation:
        """The row as everything else here is."""
        flat = (self.image,) if self.image is not None else self.images
        refs = [ImageRef(uri=uri, frame=self.frame, modality=self.modality) for uri in flat if uri]
        if self.volume is not None:
            refs.append(ImageRef(uri=self.volume, kind="volume", modality=self.modality))
        return _question(self.id, refs, self.question, self.options)


def read_input(
    source: Path,
    questions: Sequence[str] = (),
    *,
    options: Sequence[str] = (),
    volumes: bool = False,
) -> Input:
    """The rows of a file of questions, of an image, or of everything below a folder.

    `questions` are asked about every image, each with the same `options`. With `volumes` a DICOM series of
    several slices, and a NIfTI or NRRD file, is one volume; else every frame is a row of its own.

    Raises:
        DataError: there is no such file or folder, no question for its images, nothing in it, or
            questions or options for a file that brings its own.
    """
    if not source.exists():
        raise DataError("no such file or folder", file=str(source))
    if has_questions(source):
        for given, what in ((questions, "question"), (options, "option")):
            if given:
                raise DataError(
                    f"the lines of this file bring their {what}s",
                    remedy=f"Leave out --{what}",
                    file=str(source),
                )
        found = Input(root=source.parent, items=tuple(_unique(_lines(source))))
    elif not questions:
        raise DataError("images need a question", remedy="Pass --question", file=str(source))
    else:
        found = _images(source, questions, options, volumes=volumes)
    if not found.items:
        raise DataError(
            f"nothing to ask here ({found.skipped:,} files that are no images)", file=str(source)
        )
    return found


def has_questions(source: Path) -> bool:
    """Whether it is a file of questions, by its name."""
    return source.is_file() and source.suffix.lower() in _LINES


def _lines(source: Path) -> Iterator[Item]:
    """A row of each line that is not empty; what is wrong with one is its error."""
    content = source.read_bytes().removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield _decoded(line, number, source)


def _decoded(line: bytes, number: int, source: Path) -> Item:
    try:
        return _item(line.decode(), number, source)
    except UnicodeDecodeError as error:  # never asked with other letters than its author's
        fault = Fault(
            rule=f"line {number} is not UTF-8 (byte {error.start})",
            remedy="Save the file as UTF-8",
            file=str(source),
        )
        return Item(id=f"line {number}", error=str(fault))


def _item(text: str, number: int, source: Path) -> Item:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    is_native = isinstance(data, dict) and "messages" in data
    asked: Conversation | None
    if is_native:
        asked, faults = parse_row(Conversation, text, file=source, line=number)
    else:
        row, faults = parse_row(AskRow, text, file=source, line=number)
        asked = None if row is None else row.conversation()
    if asked is None:
        named = data.get("id") if isinstance(data, dict) else None
        name = named if isinstance(named, str) and named else f"line {number}"
        return Item(id=name, error="; ".join(map(str, faults)))
    return Item(id=asked.id, asked=asked)


def _unique(items: Iterator[Item]) -> Iterator[Item]:
    """The first row of an id is asked; others have an error."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen and item.asked is not None:
            yield Item(id=item.id, error="a row before this one has the same id")
        else:
            yield item
        seen.add(item.id)


def _images(
    source: Path, questions: Sequence[str], options: Sequence[str], *, volumes: bool
) -> Input:
    root = source if source.is_dir() else source.parent
    scan = scan_series(source)
    refs: list[ImageRef] = []
    for series in scan.series:
        refs += _of_series(series, root, volumes=volumes)
    in_series = {file for series in scan.series for file in series.files}
    skipped = 0
    for path, why in scan.others:
        if why.startswith(_NO_IMAGE) and not path.name.lower().endswith(SUFFIXES):
            skipped += 1
        elif path not in in_series:
            refs.append(_of_file(path, root, volumes=volumes))
    refs.sort(key=lambda ref: (ref.uri, ref.frame or 0))
    items = [
        Item(id=name, asked=_question(name, [ref], question, options))
        for ref in refs
        for number, question in enumerate(questions, start=1)
        for name in [_name(ref) + (f" question {number}" if len(questions) > 1 else "")]
    ]
    return Input(root=root, items=tuple(items), skipped=skipped)


def _of_series(series: SeriesSummary, root: Path, *, volumes: bool) -> list[ImageRef]:
    """One volume, or every frame of every file."""
    if volumes and series.frames > 1:
        place = series.files[0] if len(series.files) == 1 else _shared(series.files)
        uri = place.relative_to(root).as_posix()
        uid = series.uid if place.is_dir() else None
        return [ImageRef(uri=uri, kind="volume", series=uid, modality=series.modality)]
    refs = []
    for file in series.files:
        frames = 1
        if series.frames > len(series.files):
            frames = sum(part.frames for part in scan_series([file]).series)
        uri = file.relative_to(root).as_posix()
        refs += [
            ImageRef(uri=uri, frame=frame if frames > 1 else None, modality=series.modality)
            for frame in range(frames)
        ]
    return refs


def _of_file(path: Path, root: Path, *, volumes: bool) -> ImageRef:
    uri = path.relative_to(root).as_posix()
    is_volume = volumes and path.name.lower().endswith(VOLUMES)
    return ImageRef(uri=uri, kind="volume" if is_volume else "image")


def _shared(files: Sequence[Path]) -> Path:
    """The folder that holds them all."""
    folder = files[0].parent
    while not all(file.is_relative_to(folder) for file in files):
        folder = folder.parent
    return folder


def _name(ref: ImageRef) -> str:
    frame = "" if ref.frame is None else f"#{ref.frame}"
    return ref.uri + (f"#{ref.series}" if ref.series else "") + frame


def _question(
    name: str, refs: Sequence[ImageRef], question: str, options: Sequence[str]
) -> Conversation:
    message = Message(role="user", content=(*refs, Text(text=question)))
    return Conversation(id=name, messages=(message,), options=tuple(options))
