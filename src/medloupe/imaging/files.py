"""Files and folders of images: what belongs to one, and the hash of its content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from medloupe.errors import ImageError


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits.

    Raises:
        ImageError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None


def sha256_path(path: Path) -> str:
    """The SHA-256 of a file, or of a folder: of the sorted hashes of its files, one a line.

    Hidden files do not count, and names and places neither: a series keeps its hash when its files
    are renamed.

    Raises:
        ImageError: a file cannot be read.
    """
    if not path.is_dir():
        return sha256_file(path)
    return sha256_folder(sha256_file(file) for file in folder_files(path))


def sha256_folder(hashes: Iterable[str]) -> str:
    """The SHA-256 of a folder whose files have these hashes, in any order."""
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(hashes)).encode()).hexdigest()


def folder_files(folder: Path) -> list[Path]:
    """Every file below a folder, sorted by relative path, without hidden files and folders."""
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root) / name for name in names if not name.startswith(".")]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def unreadable(path: Path, error: OSError) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError("no such image file", remedy="Check path and root", file=str(path))
    return ImageError(f"cannot be read: {error.strerror}", file=str(path))
