"""The files of a sharded data set, and how they are opened wherever they are.

OUT/index.json          the card, and every shard with its counts, size and SHA-256; written last
OUT/train-00000.tar     images, conversations.jsonl, records.jsonl, dataset.json
OUT/train-00000.json    where each of them lies in the tar: (first byte, length)
"""

from __future__ import annotations

import json
from typing import Any, Final

import fsspec
from fsspec import AbstractFileSystem
from pydantic import Field

from medloupe.config import Config
from medloupe.data.dataset import SHARDS_FILE, DatasetCard
from medloupe.errors import ConfigError, DataError
from medloupe.types import Split

FORMAT: Final = 1
INDEX_FILE: Final = SHARDS_FILE
_PART: Final = ".part"
Span = tuple[int, int]
"""First byte and length inside a tar."""


class ShardInfo(Config):
    """One shard: its name without suffix, its split, and what it holds."""

    name: str
    split: Split | None
    bytes: int
    sha256: str
    conversations: int
    records: int
    images: int


class ShardIndex(Config):
    """What lies where in one shard. `plan` is a hash of what it was made from. An image is one file,
    or all files of a series; `images` maps its uri to the files, `files` these to bytes."""

    format: int = Field(default=FORMAT, ge=1, le=FORMAT)
    plan: str
    info: ShardInfo
    conversations: tuple[Span, ...]
    records: tuple[Span, ...]
    images: dict[str, tuple[str, ...]]
    files: dict[str, Span]


class ShardSet(Config):
    """The whole: `rows` is the fingerprint of the data set that it was made from."""

    format: int = Field(default=FORMAT, ge=1, le=FORMAT)
    card: DatasetCard
    rows: str
    shards: tuple[ShardInfo, ...]


class Store:
    """A folder on any file system that fsspec knows: a path, `s3://...`, `memory://...`."""

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        self.url, self.options = url, options or {}
        try:
            self.fs, self.root = self._open()
        except ImportError as error:
            raise ConfigError(
                f"{url!r} needs a package that is not installed: {error}",
                remedy="Install the package that fsspec names",
            ) from None
        except ValueError as error:
            raise ConfigError(
                f"{url!r} cannot be opened: {error}",
                remedy="Write a path, or protocol://path with a protocol that fsspec knows",
            ) from None

    def _open(self) -> tuple[AbstractFileSystem, str]:
        fs, root = fsspec.core.url_to_fs(self.url, **self.options)
        return fs, str(root).rstrip("/")

    def path(self, name: str) -> str:
        """The full name of a file in the folder."""
        return f"{self.root}/{name}"

    def read(self, name: str, span: Span | None = None) -> bytes:
        """A file, or a part of it.

        Raises:
            DataError: missing, unreadable, or shorter than the part asked for.
        """
        first, length = span or (None, None)
        last = None if first is None or length is None else first + length
        try:
            data: bytes = self.fs.cat_file(self.path(name), start=first, end=last)
        except FileNotFoundError:
            raise self.fault(name, "is missing") from None
        except OSError as error:
            raise self.fault(name, f"cannot be read: {error}") from None
        if length is not None and len(data) != length:
            raise self.fault(name, f"is cut off: {len(data):,} of {length:,} bytes at {first:,}")
        return data

    def size(self, name: str) -> int | None:
        """The size of a file in bytes, None where there is none."""
        try:
            return int(self.fs.info(self.path(name))["size"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.fault(name, f"cannot be read: {error}") from None

    def write(self, name: str, data: bytes) -> None:
        """A whole file or none."""
        self.fs.makedirs(self.root, exist_ok=True)
        aside = self.aside(name)
        self.fs.pipe_file(aside, data)
        self.fs.mv(aside, self.path(name))

    def remove_parts(self) -> None:
        """What a killed process left of files that were never finished."""
        for name in self.names():
            if name.endswith(_PART):
                self.fs.rm_file(self.path(name))

    def aside(self, name: str) -> str:
        """Where a file is written before it takes its name."""
        return self.path(f".{name}{_PART}")

    def names(self) -> list[str]:
        """The files in the folder, sorted; none where there is no folder."""
        try:
            found = self.fs.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rsplit("/", 1)[-1] for path in found)

    def fault(self, name: str, rule: str) -> DataError:
        """An error about one file of the set."""
        return DataError(
            f"the file {rule}",
            remedy="Copy it again, or delete it and run 'medloupe convert' again: only what is "
            "missing is made",
            file=f"{self.url.rstrip('/')}/{name}",
        )


def parse(kind: type[Config], data: bytes, store: Store, name: str) -> Any:
    """A JSON file of the set as a `kind`.

    Raises:
        DataError: it is not.
    """
    try:
        return kind.parse(json.loads(data), file=store.path(name))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise store.fault(name, f"is not JSON: {error}") from None
