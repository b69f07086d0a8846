"""Data for a run: made once, and used again only for the very same config."""

from __future__ import annotations

from pathlib import Path

from medloupe.data.dataset import CARD_FILE, Dataset, Progress, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import DataError

PREPARED_FILE = "prepared.yaml"


def prepare(config: DatasetConfig, out: Path, *, root: Path | None, progress: Progress) -> Dataset:
    """Prepare a data set, or read it where the same config made it before.

    Raises:
        DataError: the folder holds another data set.
    """
    stamp = out / PREPARED_FILE
    if (out / CARD_FILE).exists():
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == config.to_yaml():
            return load_dataset(out)
        raise DataError(
            "the folder holds a data set that was prepared otherwise",
            file=str(out),
            remedy="Choose another folder or delete this one; to train on it as it is, "
            "name it with --data",
        )
    dataset = config.prepare(out, root=root, progress=progress)
    stamp.write_text(config.to_yaml(), encoding="utf-8")
    return dataset
