"""A folder of named blobs that many processes fill and map: append-only shards, no separate index.

A blob describes itself (key, lengths, checksums), so the index is what a scan of the shards finds,
and a process that was killed while it wrote leaves at most a tail that is no blob. Writers take
turns under one file lock; readers take none. A writer appends to the newest shard, unless that has
a broken tail or is full.

The size limit holds for all shards together. Whole shards are dropped, the longest unused first,
but never one that was used since this log was opened: when the blobs of one run do not fit, the
first ones stay and the rest are not kept. An epoch that reads everything once in random order gets
most out of a cache that way (Mohan et al., VLDB 2021, "MinIO"); evicting would only lose blobs just
before they are read again.

The folder must be on a file system with locks (`flock`) and memory maps; a local disk is meant.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from filelock import FileLock

from medloupe.errors import ConfigError
from medloupe.imaging.inflate import checksum

# magic, key, bytes of meta, bytes of payload, CRC-32 of (key, meta, payload), CRC-32 of all before
_HEADER: Final = struct.Struct("<8s32sQQII")
_MAGIC: Final = b"MLBLOB1\n"
_ALIGN: Final = 64
# Every shard is an open file; 1/64 keeps their number far below the usual limit of 1,024.
_SHARDS: Final = 64
_SMALLEST_SHARD: Final = 2**20
_TOUCH_NS: Final = 60 * 10**9  # how often a used shard is marked as used


class Blob(NamedTuple):
    """What was put: `payload` is a read-only map of the shard, not a copy."""

    meta: dict[str, Any]
    payload: memoryview


class _Place(NamedTuple):
    shard: str
    start: int
    meta: int
    payload: int

    @property
    def body(self) -> int:
        return self.start + _HEADER.size

    @property
    def pixels(self) -> int:
        return self.body + _padded(self.meta)

    @property
    def end(self) -> int:
        return self.pixels + _padded(self.payload)


@dataclass(frozen=True)
class _Shard:
    name: str
    size: int
    used_ns: int


class BlobLog:
    """Blobs by 32-byte key below `folder`, in at most `limit_bytes`.

    Safe under threads, forks and unrelated processes. A copy made by pickling counts as opened when
    the original was.

    Raises:
        ConfigError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, limit_bytes: int, *, opened_ns: int | None = None) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.opened_ns = time.time_ns() if opened_ns is None else opened_ns
        self._shard_bytes = max(limit_bytes // _SHARDS, _SMALLEST_SHARD)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refused(str(error.strerror)) from None
        if not os.access(folder, os.W_OK):
            raise self._refused("it is read-only")
        self._begin()

    def __getstate__(self) -> tuple[Path, int, int]:
        return self.folder, self.limit_bytes, self.opened_ns

    def __setstate__(self, state: tuple[Path, int, int]) -> None:
        folder, limit_bytes, opened_ns = state
        self.__init__(folder, limit_bytes, opened_ns=opened_ns)  # type: ignore[misc]

    def get(self, key: bytes) -> Blob | None:
        """The blob, or None where there is none or its bytes are damaged."""
        with self._alone():
            place = self._places.get(key)
            if place is None:
                self._refresh()
                place = self._places.get(key)
            return None if place is None else self._read(key, place)

    def put(self, key: bytes, meta: Mapping[str, Any], payload: memoryview) -> bool:
        """Append a blob unless it is there already; False where there was no room for it."""
        text = json.dumps(meta, separators=(",", ":")).encode()
        need = _Place("", 0, len(text), payload.nbytes).end
        if need > self.limit_bytes or self._disk_full:
            return False
        with self._alone(), FileLock(self.folder / "lock"):
            shards = self._refresh()
            if key in self._places:
                return True
            if not self._make_room(shards, need):
                return False
            return self._append(key, text, payload.cast("B"), need)

    def bytes_used(self) -> int:
        """Bytes of all shards, while no writer is at work: else shards could be counted that are
        dropped for others that are counted as well."""
        with FileLock(self.folder / "lock"):
            return sum(shard.size for shard in self._shards())

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(
            f"the cache folder cannot be used: {why}",
            remedy="Choose a folder on a local disk that can be written",
            file=str(self.folder),
        )

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._mutex = threading.RLock()
        self._places: dict[bytes, _Place] = {}
        self._scanned: dict[str, int] = {}  # how far each shard is understood
        self._maps: dict[str, mmap.mmap] = {}
        self._sound: set[tuple[str, int]] = set()  # blobs whose checksum was compared here
        self._touched: dict[str, int] = {}
        self._disk_full = False

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if self._pid != os.getpid():  # a fork may have copied a mutex that is held
            self._begin()
        with self._mutex:
            yield

    def _shards(self) -> list[_Shard]:
        """All shards, oldest first: their names start with the time they were made."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(".shard"):
                    with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
                        stat = entry.stat()
                        found.append(_Shard(entry.name, stat.st_size, stat.st_mtime_ns))
        return sorted(found, key=lambda shard: shard.name)

    def _refresh(self) -> list[_Shard]:
        """Take note of what other processes wrote and dropped."""
        shards = self._shards()
        gone = self._scanned.keys() - {shard.name for shard in shards}
        if gone:
            self._forget(gone)
        for shard in shards:
            if shard.size > self._scanned.setdefault(shard.name, 0):
                self._scan(shard)
        return shards

    def _forget(self, gone: set[str]) -> None:
        """Drop shards from the index. Their maps live as long as the arrays that use them."""
        self._places = {k: place for k, place in self._places.items() if place.shard not in gone}
        self._sound = {spot for spot in self._sound if spot[0] not in gone}
        for name in gone:
            self._scanned.pop(name, None)
            self._maps.pop(name, None)
            self._touched.pop(name, None)

    def _scan(self, shard: _Shard) -> None:
        """Index the blobs behind what is understood already; stop where one is not whole."""
        mapped = self._map(shard.name, shard.size)
        if mapped is None:
            return
        start = self._scanned[shard.name]
        while (header := _parse(mapped, start)) is not None:
            key, meta, payload = header
            place = _Place(shard.name, start, meta, payload)
            if place.end > len(mapped):
                break
            self._places[key] = place
            start = place.end
        self._scanned[shard.name] = start

    def _map(self, name: str, size: int) -> mmap.mmap | None:
        """A map of at least `size` bytes; None where the shard is gone."""
        mapped = self._maps.get(name)
        if mapped is not None and len(mapped) >= size:
            return mapped
        try:
            with (self.folder / name).open("rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            return None
        if len(mapped) < size:
            return None
        self._maps[name] = mapped
        return mapped

    def _read(self, key: bytes, place: _Place) -> Blob | None:
        mapped = self._map(place.shard, place.end)
        if mapped is None:
            self._forget({place.shard})
            return None
        view = memoryview(mapped)
        meta = view[place.body : place.body + place.meta]
        payload = view[place.pixels : place.pixels + place.payload]
        spot = (place.shard, place.start)
        if spot not in self._sound:
            if _header(key, meta, payload) != view[place.start : place.body]:
                del self._places[key]  # damaged: the next `put` writes it again
                return None
            self._sound.add(spot)
        self._touch(place.shard)
        return Blob(json.loads(bytes(meta)), payload)

    def _touch(self, name: str) -> None:
        now = time.time_ns()
        if now - self._touched.get(name, 0) > _TOUCH_NS:
            self._touched[name] = now
            with contextlib.suppress(OSError):  # evicted, or another user's file
                os.utime(self.folder / name, ns=(now, now))

    def _make_room(self, shards: list[_Shard], need: int) -> bool:
        """Drop shards that this run has not used, the longest unused first, if that is enough."""
        excess = sum(shard.size for shard in shards) + need - self.limit_bytes
        if excess <= 0:
            return True
        idle = sorted(
            (shard for shard in shards if shard.used_ns < self.opened_ns), key=lambda s: s.used_ns
        )
        if sum(shard.size for shard in idle) < excess:
            return False
        for shard in idle:
            (self.folder / shard.name).unlink(missing_ok=True)
            self._forget({shard.name})
            excess -= shard.size
            if excess <= 0:
                break
        return True

    def _append(self, key: bytes, meta: bytes, payload: memoryview, need: int) -> bool:
        name = self._shard_with_room(need)
        start = self._scanned.get(name, 0)
        header = _header(key, memoryview(meta), payload)
        try:
            with (self.folder / name).open("ab") as stream:
                stream.write(header + meta + _padding(len(meta)))
                stream.write(payload)
                stream.write(_padding(len(payload)))
        except OSError as error:  # a full disk: the tail is no blob, and the next goes elsewhere
            warnings.warn(f"the cache {self.folder} keeps no more: {error}", stacklevel=4)
            self._disk_full = True
            return False
        place = _Place(name, start, len(meta), len(payload))
        self._places[key], self._scanned[name] = place, place.end
        return True

    def _shard_with_room(self, need: int) -> str:
        """The newest shard if it is whole and has room, else the name of a new one."""
        newest = self._shards()[-1:]
        for shard in newest:
            whole = self._scanned.get(shard.name) == shard.size
            if whole and shard.size + need <= self._shard_bytes:
                return shard.name
        return f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.shard"


def _padded(length: int) -> int:
    return -(-length // _ALIGN) * _ALIGN


def _padding(length: int) -> bytes:
    return bytes(_padded(length) - length)


def _header(key: bytes, meta: memoryview, payload: memoryview) -> bytes:
    assert len(key) == 32, "keys are SHA-256 digests"
    body = checksum(key, meta, payload)
    start = _HEADER.pack(_MAGIC, key, len(meta), len(payload), body, 0)[:-4]
    return start + struct.pack("<I", checksum(start))


def _parse(mapped: mmap.mmap, start: int) -> tuple[bytes, int, int] | None:
    """(key, bytes of meta, bytes of payload) of the header at `start`, None where there is none."""
    header = mapped[start : start + _HEADER.size]
    if len(header) < _HEADER.size:
        return None
    magic, key, meta, payload, _, check = _HEADER.unpack(header)
    if magic != _MAGIC or check != checksum(header[:-4]):
        return None
    return key, meta, payload
