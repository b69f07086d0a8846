"""Training state on disk: whole or absent, never half.

A checkpoint inside a stage holds the parameters that train, the optimizer and the random state; a
stage's last one ("end") holds what any stage so far has changed (of a part whose adapters are kept,
these alone) and which low-rank adapters the parts carry, and later stages start from it. "best" is one
inside a stage whose model scored best so far. Files are written beside their place, synced and renamed,
so a full disk or a kill leaves the previous one good. Where weights are sharded, a checkpoint inside a
stage is a folder (`train.sharded`); all others are files.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medloupe.train.files import read_file, write_atomically

FILE, FOLDER = ".pt", ".dcp"
_NAME = re.compile(r"^(\d\d)-([A-Za-z0-9_-]+)-(\d{7}|end)(\.best)?(\.pt|\.dcp)$")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A checkpoint: which stage, and after how many steps (None: the stage is complete)."""

    path: Path
    stage: int
    name: str
    step: int | None
    best: bool = False


class CheckpointFolder:
    """The checkpoints of one run. `keep` of those inside a stage stay, and the best one."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def found(self) -> list[Found]:
        """Oldest first, those that were kept as the best aside. Unfinished files and folders of an
        interrupted write are not checkpoints."""
        return [found for found in self._all() if not found.best]

    def best(self, stage: int) -> Found | None:
        """The best of a stage."""
        kept = [found for found in self._all() if found.best and found.stage == stage]
        return kept[-1] if kept else None

    def path(self, stage: int, name: str, step: int | None, suffix: str, *, best: bool) -> Path:
        """Where a checkpoint stands."""
        last = "end" if step is None else f"{step:07d}"
        return self.folder / f"{stage:02d}-{name}-{last}{'.best' if best else ''}{suffix}"

    def write(
        self,
        stage: int,
        name: str,
        step: int | None,
        state: Mapping[str, Any],
        *,
        best: bool = False,
    ) -> Path:
        """Write a file and drop what it makes superfluous.

        Raises:
            CheckpointError: it could not be written (disk full, no permission); older ones stay.
        """
        path = self.path(stage, name, step, FILE, best=best)
        write_atomically(path, state)
        self.prune(stage, finished=step is None)
        return path

    def prune(self, stage: int, *, finished: bool) -> None:
        """Drop the checkpoints of a stage beyond the newest `keep` and the newest best one, and where it
        is finished all inside it but that one. The best up to the newest ordinary one stays, too: a run
        that goes on from there may find no better."""
        here = [f for f in self._all() if f.stage == stage and f.step is not None]
        inside = [found for found in here if not found.best]
        best = [found for found in here if found.best]
        newest = inside[-1].step or 0 if inside else 0
        early = [found for found in best if (found.step or 0) <= newest]
        late = [found for found in best if (found.step or 0) > newest]
        spare = best[:-1] if finished else [*early[:-1], *late[:-1]]
        for old in (*(inside if finished else inside[: -self.keep]), *spare):
            _remove(old.path)

    def rewind(self, last: Found | None) -> None:
        """Drop what a run that goes on from `last` is going to write again: the best of later steps, and
        what an interrupted write left."""
        for found in self._all():
            if found.best and (last is None or _place(found) > _place(last)):
                _remove(found.path)
        for scratch in self.folder.glob("*.partial"):
            _remove(scratch)

    def read(self, found: Found, like: Mapping[str, torch.Tensor] | None = None) -> dict[str, Any]:
        """Load one; sharded weights come as those of `like` are sharded, by name.

        Raises:
            CheckpointError: it is damaged.
        """
        if found.path.suffix == FILE:
            return read_file(found.path)
        from medloupe.train.sharded import read_sharded  # half a second that most runs do not need

        return read_sharded(found.path, like or {})

    def _all(self) -> list[Found]:
        matches = [(path, _NAME.match(path.name)) for path in sorted(self.folder.glob("*"))]
        return sorted(
            (
                Found(
                    path=path,
                    stage=int(match.group(1)),
                    name=match.group(2),
                    step=None if match.group(3) == "end" else int(match.group(3)),
                    best=match.group(4) is not None,
                )
                for path, match in matches
                if match
            ),
            key=_place,
        )


def _place(found: Found) -> tuple[int, bool, int]:
    return found.stage, found.step is None, found.step or 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
