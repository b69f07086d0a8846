"""Files of tensors: whole or absent, and what to say where they are not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from medloupe.errors import CheckpointError


def read_file(path: Path) -> dict[str, Any]:
    """Load a file.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise damaged(path) from error
    return state


def write_atomically(path: Path, state: Mapping[str, Any]) -> None:
    """`torch.save` beside the place, sync, rename.

    Raises:
        CheckpointError: the write failed; nothing stands at a half-written path.
    """
    scratch = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_synced(scratch, state)
        scratch.replace(path)
    except (OSError, RuntimeError) as error:
        scratch.unlink(missing_ok=True)
        raise could_not_write(path, error) from error


def save_synced(path: Path, state: Mapping[str, Any]) -> None:
    """`torch.save`, and wait for the disk."""
    with path.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())


def could_not_write(path: Path, error: BaseException) -> CheckpointError:
    """What to say of a write that failed."""
    return CheckpointError(
        f"the checkpoint could not be written: {error}",
        file=str(path),
        remedy="Free disk space and run again with --resume; earlier checkpoints are good",
    )


def damaged(path: Path) -> CheckpointError:
    """What to say of a checkpoint that cannot be read."""
    return CheckpointError(
        "the checkpoint is damaged and cannot be read",
        file=str(path),
        remedy="Delete it; the run then resumes from the one before",
    )
