"""Training state on disk: whole or absent, never half.

A checkpoint inside a stage holds the parameters that train, the optimizer and the random state; a
stage's last one ("end") holds what any stage so far has changed (of a part whose adapters are kept,
these alone) and which low-rank adapters the parts carry, and later stages start from it. Files are
written beside their place, synced and renamed, so a full disk or a kill leaves the previous one good.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from medloupe.errors import CheckpointError

_NAME = re.compile(r"^(\d\d)-([A-Za-z0-9_-]+)-(\d{7}|end)\.pt$")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A checkpoint file: which stage, and after how many steps (None: the stage is complete)."""

    path: Path
    stage: int
    name: str
    step: int | None


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def found(self) -> list[Found]:
        """Oldest first. Unfinished files of an interrupted write are not checkpoints."""
        matches = [(path, _NAME.match(path.name)) for path in sorted(self.folder.glob("*.pt"))]
        return sorted(
            (
                Found(
                    path=path,
                    stage=int(match.group(1)),
                    name=match.group(2),
                    step=None if match.group(3) == "end" else int(match.group(3)),
                )
                for path, match in matches
                if match
            ),
            key=lambda f: (f.stage, f.step is None, f.step or 0),
        )

    def write(self, stage: int, name: str, step: int | None, state: Mapping[str, Any]) -> Path:
        """Write one and drop those beyond `keep` inside the stage.

        Raises:
            CheckpointError: it could not be written (disk full, no permission); older ones stay.
        """
        last = "end" if step is None else f"{step:07d}"
        path = self.folder / f"{stage:02d}-{name}-{last}.pt"
        write_atomically(path, state)
        inside = [f for f in self.found() if f.stage == stage and f.step is not None]
        stale = inside if step is None else inside[: -self.keep]
        for old in stale:
            old.path.unlink()
        return path

    def read(self, found: Found) -> dict[str, Any]:
        """Load one.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            state: dict[str, Any] = torch.load(found.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
            raise CheckpointError(
                "the checkpoint is damaged and cannot be read",
                file=str(found.path),
                remedy="Delete it; the run then resumes from the one before",
            ) from error
        return state


def write_atomically(path: Path, state: Mapping[str, Any]) -> None:
    """`torch.save` beside the place, sync, rename.

    Raises:
        CheckpointError: the write failed; nothing stands at a half-written path.
    """
    scratch = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except (OSError, RuntimeError) as error:
        scratch.unlink(missing_ok=True)
        raise CheckpointError(
            f"the checkpoint could not be written: {error}",
            file=str(path),
            remedy="Free disk space and run again with --resume; earlier checkpoints are good",
        ) from error
