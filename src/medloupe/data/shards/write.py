"""One shard from rows and the files they show, in memory that does not grow with the images."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from medloupe.data import jsonl
from medloupe.data.adopt import name_inside
from medloupe.data.dataset import (
    CARD_FILE,
    CONVERSATIONS_FILE,
    RECORDS_FILE,
    DatasetCard,
    count,
    image_path,
)
from medloupe.data.rows import Row, images_of, with_images
from medloupe.data.shards.form import ShardIndex, ShardInfo, Span, Store
from medloupe.errors import DataError, Fault, MedLoupeError
from medloupe.imaging.files import folder_files, sha256_path
from medloupe.types import Conversation, ImageRef, Record, Split

_SIDECAR = ".json"  # beside an NPY file: its spacing and units


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All that is needed to make one shard, on this machine or another that sees the same files.

    Rows are JSON lines, so that what travels is small and the same everywhere.
    """

    name: str
    split: Split | None
    conversations: tuple[str, ...]
    records: tuple[str, ...]
    card: str
    plan: str
    root: str
    out: str
    options: dict[str, Any] = field(default_factory=dict)


def make_shard(job: ShardJob) -> Fault | None:
    """Write a shard, whole or not at all; what is wrong with its files comes back as a fault.

    An error object would lose its place on the way out of a worker process.
    """
    try:
        _write(job, Store(job.out, job.options))
    except MedLoupeError as error:
        return error.fault
    return None


def _write(job: ShardJob, store: Store) -> None:
    conversations = [Conversation.model_validate_json(line) for line in job.conversations]
    records = [Record.model_validate_json(line) for line in job.records]
    store.fs.makedirs(store.root, exist_ok=True)
    aside = store.aside(f"{job.name}.tar")
    with store.fs.open(aside, "wb") as stream, closing(_Tar(stream)) as tar:
        names = _Images(tar, Path(job.root))
        renamed = [with_images(row, names.adopt(row)) for row in conversations]
        renamed_records = [with_images(row, names.adopt(row)) for row in records]
        spans = tar.add_rows(CONVERSATIONS_FILE, renamed)
        record_spans = tar.add_rows(RECORDS_FILE, renamed_records) if records else ()
        tar.add(CARD_FILE, _card(job.card, renamed, renamed_records))
    store.fs.mv(aside, store.path(f"{job.name}.tar"))
    info = ShardInfo(
        name=job.name,
        split=job.split,
        bytes=tar.length,
        sha256=tar.sha256,
        conversations=len(conversations),
        records=len(records),
        images=len(names.files),
    )
    index = ShardIndex(
        plan=job.plan,
        info=info,
        conversations=spans,
        records=record_spans,
        images=names.files,
        files=tar.spans,
    )
    # last, because a shard counts as made when this is there
    store.write(f"{job.name}.json", index.to_json().encode())


def _card(text: str, conversations: Sequence[Conversation], records: Sequence[Record]) -> bytes:
    """The card of the whole, with the counts of this shard."""
    card = DatasetCard.model_validate_json(text)
    counts = {"counts": count(conversations, records)}
    made = json.dumps(card.model_copy(update=counts).to_dict(), ensure_ascii=False, sort_keys=True)
    return made.encode()


class _Images:
    """The images of one shard, each stored once; `files` are their files by uri in the shard."""

    def __init__(self, tar: _Tar, root: Path) -> None:
        self.tar, self.root = tar, root
        self.files: dict[str, tuple[str, ...]] = {}
        self._known: dict[str, tuple[str, str]] = {}

    def adopt(self, row: Row) -> _Renew:
        """Stores the images of a row; what it returns names them anew."""
        for _, ref in images_of(row):
            if ref.uri not in self._known:
                self._known[ref.uri] = self._store(ref, row.id)
        return _Renew(self._known)

    def _store(self, ref: ImageRef, row: str) -> tuple[str, str]:
        """The uri in the shard and the SHA-256 of an image."""
        path = image_path(self.root, ref.uri)
        try:
            found = sha256_path(path)
        except MedLoupeError as error:
            raise DataError.of(error.at(row=row).fault) from None
        if ref.sha256 is not None and ref.sha256.lower() != found:
            raise DataError(
                f"the file is not the one the row means (sha256 {found[:12]}...)",
                remedy="Restore the file, or prepare the data set again",
                file=str(path),
                row=row,
            )
        uri = name_inside(ref.uri, "")
        members = []
        for member, file in _files_of(path, uri):
            self.tar.add_file(member, file)
            members.append(member)
        self.files[uri] = tuple(members)
        return uri, found


@dataclass(frozen=True)
class _Renew:
    known: dict[str, tuple[str, str]]

    def __call__(self, ref: ImageRef) -> ImageRef:
        uri, sha256 = self.known[ref.uri]
        return ref.model_copy(update={"uri": uri, "sha256": sha256})


def _files_of(path: Path, uri: str) -> Iterator[tuple[str, Path]]:
    """The files of an image: itself, the files of a series, what lies beside an NPY file."""
    if path.is_dir():
        for file in folder_files(path):
            yield f"{uri}/{file.relative_to(path).as_posix()}", file
        return
    yield uri, path
    beside = path.with_suffix(_SIDECAR)
    if path.suffix == ".npy" and beside.is_file():
        yield str(PurePosixPath(uri).with_suffix(_SIDECAR)), beside


class _Tar:
    """A tar file written once from its beginning to its end: equal input gives equal bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.spans: dict[str, Span] = {}
        self._out = _Hashed(stream)
        self._tar = tarfile.open(fileobj=self._out, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, name: str, data: bytes) -> Span:
        """A member from memory."""
        return self._add(name, io.BytesIO(data), len(data))

    def add_file(self, name: str, file: Path) -> Span:
        """A member from a file, read piece by piece."""
        with file.open("rb") as stream:
            return self._add(name, stream, file.stat().st_size)

    def add_rows(self, name: str, rows: Sequence[Row]) -> tuple[Span, ...]:
        """A member of JSON lines; the span of each line."""
        lines = [f"{jsonl.dump_row(row)}\n".encode() for row in rows]
        first, _ = self.add(name, b"".join(lines))
        spans = []
        for line in lines:
            spans.append((first, len(line)))
            first += len(line)
        return tuple(spans)

    def close(self) -> None:
        self._tar.close()

    @property
    def length(self) -> int:
        return self._out.length

    @property
    def sha256(self) -> str:
        return self._out.digest.hexdigest()

    def _add(self, name: str, stream: IO[bytes], size: int) -> Span:
        if name not in self.spans:
            member = tarfile.TarInfo(name)  # times and owners at their zeros
            member.size = size
            self._tar.addfile(member, stream)
            padded = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            self.spans[name] = (self._tar.offset - padded, size)
        return self.spans[name]


class _Hashed(io.RawIOBase):
    """Passes bytes on and keeps their number and their SHA-256."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.length, self.digest = stream, 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        self._stream.write(data)
        self.digest.update(data)
        self.length += len(data)
        return len(data)
