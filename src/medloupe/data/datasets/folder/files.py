"""The images of a user's folder, and which of them a cell means."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath

from medloupe.data.dataset import CARD_FILE
from medloupe.errors import DataError, did_you_mean

# Content decides how a file is read; names only decide what is counted as an image.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom"),
    *(".nii", ".nii.gz", ".nrrd", ".nhdr", ".npy"),
)
VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr")


class ImageFiles:
    """Every file below `root`. Left out are hidden ones, those below `without`, and folders that hold
    a prepared data set.

    `first` is a folder below `root` in which names are looked for first.
    """

    def __init__(self, root: Path, *, first: str = "", without: Path | None = None) -> None:
        self.root, self.first = root, first
        self.files: set[str] = set()
        self.folders: dict[str, list[str]] = {}
        self._by_tail: defaultdict[str, list[str]] = defaultdict(list)
        skipped = None if without is None else without.resolve()
        for folder, below, names in os.walk(root, followlinks=True):
            place = Path(folder)
            below[:] = sorted(
                name
                for name in below
                if not name.startswith(".")
                and (place / name).resolve() != skipped
                and not (place / name / CARD_FILE).exists()
            )
            self._add(place.relative_to(root).as_posix(), sorted(names))
        self.images = {name for name in self.files if name.lower().endswith(SUFFIXES)}

    def _add(self, folder: str, names: list[str]) -> None:
        paths = [
            name if folder == "." else f"{folder}/{name}"
            for name in names
            if not name.startswith(".")
        ]
        self.files.update(paths)
        self.folders[folder] = paths
        for path in paths:
            name = PurePosixPath(path).name
            for tail in {name, stem_of(name)}:
                self._by_tail[tail].append(path)

    def find(self, cell: str) -> str | None:
        """The file or folder (of a series) that a cell names, relative to the root; else None.

        In turn: the path below `first` and below the root, an absolute path, the one file whose
        path ends with the cell, with or without its extension.

        Raises:
            DataError: several files fit.
        """
        name = cell.replace("\\", "/").removeprefix("./").rstrip("/")
        if Path(name).is_absolute():
            return name if Path(name).exists() else None
        for path in (f"{self.first}/{name}", name) if self.first else (name,):
            if path in self.files or path in self.folders:
                return path
        fits = [
            path
            for path in self._by_tail.get(PurePosixPath(name).name, ())
            if path in self.images and f"/{path}".endswith((f"/{name}", *_with_suffixes(name)))
        ]
        if self.first:
            fits = [path for path in fits if path.startswith(f"{self.first}/")] or fits
        if len(fits) > 1:
            raise DataError(
                f"{cell!r} is the name of {len(fits)} files: {', '.join(fits[:3])}",
                remedy="Write the path below the folder",
            )
        return fits[0] if fits else None

    def below(self, found: str) -> set[str]:
        """The files that something found stands for: itself, or everything in a folder."""
        if found in self.files or found not in self.folders:
            return {found}
        return {path for path in self.files if path.startswith(f"{found}/")}

    def near(self, cell: str) -> str:
        """What the user may have meant."""
        names = {PurePosixPath(path).name: path for path in self.images}
        near = did_you_mean(PurePosixPath(cell.replace("\\", "/")).name, names)
        if near.startswith("did"):
            return near
        return f"{len(self.images):,} image files are here" if self.images else "no image is here"


def stem_of(name: str) -> str:
    """A name without its extension, ".nii.gz" being one."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _with_suffixes(name: str) -> tuple[str, ...]:
    return tuple(f"/{name}{suffix}" for suffix in (*SUFFIXES, *(s.upper() for s in SUFFIXES)))
