"""Rows and images out of shards, one at a time, from wherever they lie.

Index files and row texts of a few shards are kept; images never are. A row of shard `train-00003` names
its images `train-00003/...`, so that equal names in two shards stay apart.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from medloupe.data.dataset import Progress
from medloupe.data.rows import with_images
from medloupe.data.shards.form import (
    INDEX_FILE,
    ShardIndex,
    ShardInfo,
    ShardSet,
    Span,
    Store,
    parse,
)
from medloupe.data.shards.order import ShardOrder
from medloupe.errors import DataError, Fault, MedLoupeError
from medloupe.imaging.read import read_ref
from medloupe.types import Conversation, ImageRef, MedicalImage, Record, Split

_OPEN_SHARDS = 8
_PIECE = 1 << 22  # bytes read at once to verify a shard


@dataclass(frozen=True)
class _Shard:
    """What is kept of an open shard: its index and the text of its conversations."""

    index: ShardIndex
    text: bytes
    first: int  # where the text begins in the tar

    def line(self, span: Span) -> bytes:
        return self.text[span[0] - self.first : span[0] - self.first + span[1]]


class ShardedDataset(Sequence[Conversation]):
    """A sharded data set; `split` takes the rows of one split only.

    Raises:
        DataError: there is none, or its index is damaged. Reading a row or an image raises one that
            names the shard.
    """

    def __init__(
        self, url: str | Path, *, split: Split | None = None, options: dict[str, Any] | None = None
    ) -> None:
        self.store = Store(str(url), options)
        found: ShardSet = parse(ShardSet, self._index(), self.store, INDEX_FILE)
        self.card, self.fingerprint = found.card, found.rows
        self.shards = tuple(s for s in found.shards if split is None or s.split == split)
        self._ends = list(itertools.accumulate(shard.conversations for shard in self.shards))
        self._named = {shard.name: shard for shard in self.shards}
        self._open: OrderedDict[str, _Shard] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: Any) -> Any:
        """The conversation of that number (or a list, for a slice)."""
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        number = row + len(self) if row < 0 else row
        if not 0 <= number < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        place = bisect.bisect_right(self._ends, number)
        info = self.shards[place]
        shard = self._shard(info)
        within = number - (self._ends[place] - info.conversations)
        return self._parsed(Conversation, shard.line(shard.index.conversations[within]), info)

    def records(self) -> Iterator[Record]:
        """Every record, shard by shard."""
        for info in self.shards:
            for span in self._shard(info).index.records:
                yield self._parsed(Record, self.store.read(f"{info.name}.tar", span), info)

    def order(self, seed: int, *, group: int = 4) -> ShardOrder:
        """A shuffled order in which sample k is known without what came before it."""
        return ShardOrder([shard.conversations for shard in self.shards], seed, group=group)

    def stream(self, seed: int, start: int = 0) -> Iterator[tuple[int, Conversation]]:
        """(sample number, row) without end, from sample `start` on."""
        order = self.order(seed)
        for sample in itertools.count(start):
            yield sample, self[order[sample]]

    def files(self, ref: ImageRef) -> dict[str, bytes]:
        """The files of an image by their names inside its shard.

        Raises:
            DataError: no such image, or the shard is damaged.
        """
        info, uri = self._place(ref)
        index = self._shard(info).index
        if uri not in index.images:
            raise self.store.fault(f"{info.name}.tar", f"holds no image {uri!r}")
        return {
            name: self.store.read(f"{info.name}.tar", index.files[name])
            for name in index.images[uri]
        }

    def image(self, ref: ImageRef) -> MedicalImage:
        """The decoded image of a row.

        Raises:
            DataError: the shard is damaged.
            ImageError: the file in it cannot be decoded.
        """
        info, uri = self._place(ref)
        # decoders read folders, sidecars and memory maps, which takes real files
        with tempfile.TemporaryDirectory(prefix="medloupe-") as folder:
            save(self.files(ref), Path(folder))
            try:
                found = read_ref(ref.model_copy(update={"uri": uri}), Path(folder))
            except MedLoupeError as error:
                place = f"{self.store.url}/{info.name}.tar/{uri}"
                raise self._damaged(error, info, place) from None
        return found

    def verify(self, progress: Progress | None = None) -> list[Fault]:
        """Read every byte: a fault for every shard whose size or SHA-256 is not that of the index."""
        faults = []
        for done, info in enumerate(self.shards, start=1):
            try:
                self._shard(info)
                self._verify(info)
            except DataError as error:
                faults.append(error.fault)
            if progress is not None:
                progress("shards", done, len(self.shards))
        return faults

    def _verify(self, info: ShardInfo) -> None:
        digest = hashlib.sha256()
        for first in range(0, info.bytes, _PIECE):
            length = min(_PIECE, info.bytes - first)
            digest.update(self.store.read(f"{info.name}.tar", (first, length)))
        if digest.hexdigest() != info.sha256:
            rule = f"was changed: its SHA-256 is not {info.sha256[:12]}..."
            raise self.store.fault(f"{info.name}.tar", rule)

    def _index(self) -> bytes:
        if self.store.size(INDEX_FILE) is None:
            raise DataError(
                "no sharded data set here: the index is missing",
                file=self.store.path(INDEX_FILE),
                remedy="Name the folder that 'medloupe convert' wrote; one that was interrupted "
                "goes on with the same command",
            )
        return self.store.read(INDEX_FILE)

    def _shard(self, info: ShardInfo) -> _Shard:
        if info.name in self._open:
            self._open.move_to_end(info.name)
            return self._open[info.name]
        name = f"{info.name}.tar"
        size = self.store.size(name)
        if size is None:
            raise self.store.fault(name, "is missing")
        if size != info.bytes:
            raise self.store.fault(name, f"has {size:,} bytes, the index says {info.bytes:,}")
        sidecar = f"{info.name}.json"
        index: ShardIndex = parse(ShardIndex, self.store.read(sidecar), self.store, sidecar)
        if index.info != info:
            raise self.store.fault(sidecar, "is of another conversion than the index")
        shard = _Shard(index, *self._text(name, index.conversations))
        self._open[info.name] = shard
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return shard

    def _text(self, name: str, spans: Sequence[Span]) -> tuple[bytes, int]:
        if not spans:
            return b"", 0
        first, end = spans[0][0], sum(spans[-1])
        return self.store.read(name, (first, end - first)), first

    def _parsed(self, kind: type[Any], line: bytes, info: ShardInfo) -> Any:
        try:
            row = kind.model_validate_json(line)
        except ValidationError as error:
            rule = f"holds a row that cannot be read: {error.errors()[0]['msg']}"
            raise self.store.fault(f"{info.name}.tar", rule) from None

        def inside(ref: ImageRef) -> ImageRef:
            return ref.model_copy(update={"uri": f"{info.name}/{ref.uri}"})

        return with_images(row, inside)

    def _place(self, ref: ImageRef) -> tuple[ShardInfo, str]:
        name, _, uri = ref.uri.partition("/")
        if name not in self._named:
            raise DataError(
                f"the image {ref.uri!r} is in no shard of this set",
                file=self.store.url,
                remedy="Use an image of a row that was read from this set",
            )
        return self._named[name], uri

    def _damaged(self, error: MedLoupeError, info: ShardInfo, place: str) -> MedLoupeError:
        if error.fault.field == "sha256":
            return self.store.fault(f"{info.name}.tar", f"is damaged: {error.fault.rule}")
        fault = error.fault
        return type(error)(fault.rule, remedy=fault.remedy, file=place, row=fault.row)


def save(files: dict[str, bytes], folder: Path) -> None:
    """Write the files of an image below a folder.

    Raises:
        DataError: a name that leads out of it.
    """
    for name, data in files.items():
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise DataError(f"the shard names a file outside itself: {name!r}")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
