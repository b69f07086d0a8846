"""Data for a run: made once, and used again only for the very same config and the very same source.

Beside the data lie the config that made them and, for data read from files, a note of where these
were and what they were: their names, sizes and times, not their bytes, so that asking is cheap.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medloupe.config import Config
from medloupe.data.dataset import CARD_FILE, Dataset, Progress, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.data.source import read_json, walk
from medloupe.data.store import write_lines
from medloupe.errors import ConfigError, DataError

PREPARED_FILE = "prepared.yaml"
SOURCE_FILE = "prepared_from.json"
_OTHERWISE = (
    "Choose another folder or delete this one; to train on it as it is, name it with --data"
)


class SourceStamp(Config):
    """Where a source lay and what it was: a hash over the names, sizes and times of its files."""

    root: str
    files: int
    digest: str

    @classmethod
    def of(cls, root: Path) -> SourceStamp:
        """The stamp of a folder as it is now; hidden files do not count."""
        files = sorted(path for _, paths in walk(root) for path in paths)
        digest = hashlib.sha256()
        for path in files:
            try:
                found = path.stat()
            except OSError:  # a link to nowhere: its name alone counts
                digest.update(f"{path.relative_to(root)}\n".encode(errors="surrogateescape"))
                continue
            line = f"{path.relative_to(root)}\0{found.st_size}\0{found.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return cls(root=root.resolve().as_posix(), files=len(files), digest=digest.hexdigest()[:32])


def prepare(
    config: DatasetConfig,
    out: Path,
    *,
    root: Path | None,
    progress: Progress,
    tell: Callable[[str], Any] | None = None,
) -> Dataset:
    """Prepare a data set, or read it where the same config made it before from the same source.

    Where no root is named, what was prepared is taken as it is. `tell` hears that nothing was read.

    Raises:
        ConfigError: `out` and `root` lie inside each other.
        DataError: the folder holds another data set, or its source has changed since.
    """
    if root is not None:
        _refuse_nested(root, out)
    if (out / CARD_FILE).exists():
        _refuse_other(config, out, root)
        dataset = load_dataset(out)
        if tell is not None:
            tell(f"{out}: already prepared, nothing read again")
        return dataset
    # before reading: what is edited meanwhile must show
    stamp = None if root is None else SourceStamp.of(root)
    dataset = config.prepare(out, root=root, progress=progress)
    if stamp is not None:
        write_lines(out / SOURCE_FILE, [json.dumps(stamp.to_dict(), ensure_ascii=False)])
    (out / PREPARED_FILE).write_text(config.to_yaml(), encoding="utf-8")
    return dataset


def _refuse_nested(root: Path, out: Path) -> None:
    """What is written must not be read as a source again, nor lie among somebody's originals."""
    source, target = root.resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise ConfigError(
            f"the output folder and the source {root} lie inside each other",
            file=str(out),
            remedy="Name a folder elsewhere with --out",
        )


def _refuse_other(config: DatasetConfig, out: Path, root: Path | None) -> None:
    stamp = out / PREPARED_FILE
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != config.to_yaml():
        raise DataError(
            "the folder holds a data set that was prepared otherwise",
            file=str(out),
            remedy=_OTHERWISE,
        )
    if root is None:
        return
    if not (out / SOURCE_FILE).is_file():
        raise DataError(
            f"the folder holds a data set of which is not known whether {root} was its source",
            file=str(out),
            remedy=_OTHERWISE,
        )
    was = SourceStamp.parse(read_json(out / SOURCE_FILE))
    now = SourceStamp.of(root)
    if was == now:
        return
    if was.root != now.root:
        rule = f"the folder holds a data set that was prepared from {was.root}, not from {now.root}"
    elif not root.is_dir():
        rule = f"the folder holds a data set whose source {root} is no longer there"
    else:
        rule = (
            f"files in {root} were changed, added or removed since this data set was made of them "
            f"({was.files:,} files then, {now.files:,} now)"
        )
    raise DataError(
        rule,
        file=str(out),
        remedy="Choose another --out, or delete this folder to read the source again; without "
        "--root the data set is used as it was prepared",
    )
