"""The images of a user's folder, and which of them a cell means."""

from __future__ import annotations

import difflib
import unicodedata
from collections import defaultdict
from pathlib import Path, PurePosixPath

from medloupe.data.dataset import CARD_FILE
from medloupe.data.source import walk
from medloupe.errors import DataError

# Content decides how a file is read; names only decide what is counted as an image.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom"),
    *(".nii", ".nii.gz", ".nrrd", ".nhdr", ".npy"),
)
_NEAR = 0.75
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
        self._composed: dict[str, str] = {}
        self._by_tail: defaultdict[str, list[str]] = defaultdict(list)
        skipped = None if without is None else without.resolve()
        for place, paths in walk(
            root,
            enter=lambda folder: folder.resolve() != skipped and not (folder / CARD_FILE).exists(),
        ):
            self._add(place.relative_to(root).as_posix(), [path.name for path in paths])
        self.images = {name for name in self.files if name.lower().endswith(SUFFIXES)}

    def _add(self, folder: str, names: list[str]) -> None:
        paths = [name if folder == "." else f"{folder}/{name}" for name in names]
        self.files.update(paths)
        self._composed.update((_nfc(path), path) for path in (folder, *paths))
        self.folders[folder] = paths
        for path in paths:
            name = PurePosixPath(path).name
            for tail in {name, stem_of(name)}:
                self._by_tail[_nfc(tail)].append(path)

    def find(self, cell: str) -> str | None:
        """The file or folder (of a series) that a cell names, relative to the root; else None.

        In turn: the path below `first` and below the root, an absolute path, the one file whose
        path ends with the cell, with or without its extension. An accent may be a letter of its
        own or part of one: systems differ in how they write file names.

        Raises:
            DataError: several files fit.
        """
        name = cell.replace("\\", "/").removeprefix("./").rstrip("/")
        if Path(name).is_absolute():
            return name if Path(name).exists() else None
        for path in (f"{self.first}/{name}", name) if self.first else (name,):
            if path in self.files or path in self.folders:
                return path
            if _nfc(path) in self._composed:
                return self._composed[_nfc(path)]
        name = _nfc(name)
        fits = [
            path
            for path in self._by_tail.get(PurePosixPath(name).name, ())
            if path in self.images
            and f"/{_nfc(path)}".endswith((f"/{name}", *_with_suffixes(name)))
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
        paths: dict[str, str] = {}
        for path in sorted(self.images):
            paths.setdefault(_nfc(stem_of(PurePosixPath(path).name)), path)
        wanted = _nfc(stem_of(PurePosixPath(cell.replace("\\", "/")).name))
        # of the name alone: that both end with ".png" makes nothing alike
        near = difflib.get_close_matches(wanted, paths, n=1, cutoff=_NEAR)
        if near:
            return f"did you mean {paths[near[0]]!r}?"
        return f"{len(self.images):,} image files are here" if self.images else "no image is here"


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def stem_of(name: str) -> str:
    """A name without its extension, ".nii.gz" being one."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _with_suffixes(name: str) -> tuple[str, ...]:
    return tuple(f"/{name}{suffix}" for suffix in (*SUFFIXES, *(s.upper() for s in SUFFIXES)))
