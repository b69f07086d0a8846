"""Files taken into a data set, and files written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from medloupe.errors import DataError, ImageError
from medloupe.imaging.read import folder_files, sha256_path


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


def take_path(source: Path, target: Path, *, row: str | None = None) -> str:
    """`take_file`, or a copy of a folder of files (a DICOM series); returns its `sha256_path`.

    The folder is complete under a temporary name before it is renamed. One that is there already
    with other content is replaced.

    Raises:
        DataError: as `take_file`.
    """
    if not source.is_dir():
        return take_file(source, target, row=row)
    try:
        found = sha256_path(source)
        if not (target.is_dir() and sha256_path(target) == found):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = aside(target)
            for file in folder_files(source):
                take_file(file, temporary / file.relative_to(source), row=row)
            if target.is_dir():
                shutil.rmtree(target)
            temporary.replace(target)
    except ImageError as error:
        raise DataError.of(error.at(row=row).fault) from None
    return found


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
