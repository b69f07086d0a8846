"""Rows that point into somebody's folder made rows of a data set of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from medloupe.data.dataset import Progress, image_path
from medloupe.data.rows import all_rows, images_of, with_images
from medloupe.data.store import take_path
from medloupe.errors import DataError, MedLoupeError
from medloupe.imaging.read import sha256_path
from medloupe.types import Conversation, ImageRef, Record

Images = Literal["copy", "reference"]
"""Copy the files into the data set, or name them by their absolute path where they lie."""

Rows = tuple[tuple[Conversation, ...], tuple[Record, ...]]


def adopt_rows(
    conversations: Sequence[Conversation],
    records: Sequence[Record],
    *,
    source: Path,
    out: Path,
    images: Images,
    progress: Progress,
    folder: str = "",
) -> Rows:
    """The rows with images below `out / folder` (or absolute) and the SHA-256 of every file.

    Raises:
        DataError: an image is missing, or is not the one whose hash the row states.
    """
    users: dict[str, tuple[str, ImageRef]] = {}
    for row in all_rows(conversations, records):
        for _, ref in images_of(row):
            users.setdefault(ref.uri, (row.id, ref))
    files: dict[str, tuple[str, str]] = {}
    for done, (uri, (row_id, ref)) in enumerate(users.items(), start=1):
        files[uri] = _adopt_file(ref, row_id, source, out, images, folder)
        progress("images", done, len(users))

    def renew(ref: ImageRef) -> ImageRef:
        uri, sha256 = files[ref.uri]
        return ref.model_copy(update={"uri": uri, "sha256": sha256})

    return (
        tuple(with_images(row, renew) for row in conversations),
        tuple(with_images(row, renew) for row in records),
    )


def _adopt_file(
    ref: ImageRef, row: str, source: Path, out: Path, images: Images, folder: str
) -> tuple[str, str]:
    """The uri and the SHA-256 of one file or series folder, once it is where it belongs."""
    path = image_path(source, ref.uri)
    if images == "reference":
        try:
            uri, sha256 = path.resolve().as_posix(), sha256_path(path)
        except MedLoupeError as error:
            raise DataError.of(error.at(row=row).fault) from None
    else:
        uri = name_inside(ref.uri, folder)
        sha256 = take_path(path, image_path(out, uri), row=row)
    if ref.sha256 is not None and ref.sha256.lower() != sha256:
        raise DataError(
            f"the file is not the one the row means (sha256 {sha256[:12]}...)",
            remedy="Restore the file, or remove sha256 from the rows if the change is meant",
            file=str(path),
            row=row,
        )
    return uri, sha256


def name_inside(uri: str, folder: str) -> str:
    """A relative name that cannot leave the data set."""
    name = PurePosixPath(uri)
    if name.is_absolute() or ".." in name.parts:
        return f"images/{hashlib.sha256(uri.encode()).hexdigest()[:12]}-{name.name}"
    return str(PurePosixPath(folder) / name)
