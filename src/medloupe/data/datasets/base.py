"""The family of data sets: a value that knows how to turn a source into the native form."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from medloupe.config import ComponentConfig
from medloupe.data.dataset import Dataset, Progress
from medloupe.errors import ConfigError


class DatasetConfig(ComponentConfig, abc.ABC):
    """How one data set is prepared."""

    family: ClassVar[str] = "data set"
    table: ClassVar[Mapping[str, str]] = {
        "starter": "medloupe.data.datasets.starter:StarterConfig",
        "vqa_rad": "medloupe.data.datasets.vqa_rad:VqaRadConfig",
        "llava": "medloupe.data.datasets.llava:LlavaConfig",
        "native": "medloupe.data.datasets.native:NativeConfig",
    }

    @abc.abstractmethod
    def prepare(self, out: Path, *, root: Path | None, progress: Progress) -> Dataset:
        """Write the native form into the folder `out` and return it.

        `root` is where the source lies; None for data sets that are made rather than read.
        `progress(what, done, total)` is called often enough to draw a bar.
        """


def source_folder(config: DatasetConfig, root: Path | None) -> Path:
    """`root`, for data sets that are read from files.

    Raises:
        ConfigError: no root, or not a folder.
    """
    if root is None:
        raise ConfigError(
            f"the data set {config.name!r} is read from files and no folder was named",
            remedy="Pass the folder of your copy with --root",
        )
    if not root.is_dir():
        raise ConfigError("no such folder", file=str(root), remedy="Check the path after --root")
    return root
