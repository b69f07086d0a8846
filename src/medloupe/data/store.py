"""Files taken into a data set, and files written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from medloupe.errors import DataError


def take_file(source: Path, target: Path, *, row: str | None = None) -> str:
    """Copy a file unless the same bytes are there already; returns their SHA-256.

    Raises:
        DataError: the file is missing or cannot be read; names `row`, which asked for it.
    """
    try:
        data = source.read_bytes()
    except OSError as error:
        raise DataError(
            f"the image cannot be read: {error.strerror}",
            remedy="Check the image folder, or leave out the rows that use it",
            file=str(source),
            row=row,
        ) from None
    if not (target.is_file() and target.read_bytes() == data):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = aside(target)
        temporary.write_bytes(data)
        temporary.replace(target)
    return hashlib.sha256(data).hexdigest()


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a UTF-8 text file, one item a line, and flush it to the disk."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for line in lines:
            stream.write(line + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def aside(path: Path) -> Path:
    """A name beside `path` for a file that is renamed to it when it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
