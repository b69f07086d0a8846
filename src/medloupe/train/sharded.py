"""Checkpoints of sharded training: a folder that all processes write, through torch's distributed
checkpoint, whole or absent.

`notes.pt` holds what is not sharded. Any number of processes reads the folder again, each its own share,
and so does one process alone.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from medloupe.train.files import could_not_write, damaged, read_file, save_synced

NOTES = "notes.pt"


def write_sharded(path: Path, state: Mapping[str, Any], *, is_main: bool) -> None:
    """Write `state` beside its place and rename it, by all processes together. Its "parameters" are
    sharded tensors by name, its "optimizer" holds what there is for each of these names.

    Raises:
        CheckpointError: some process could not write; nothing stands at a half-written path.
    """
    scratch = path.with_suffix(".partial")
    if is_main:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    dist.barrier()
    tensors = {f"parameters/{name}": value for name, value in state["parameters"].items()}
    whole: dict[str, dict[str, Any]] = {}
    for name, values in state["optimizer"].items():
        for key, value in values.items():
            if isinstance(value, DTensor):
                tensors[f"optimizer/{name}/{key}"] = value
            else:
                whole.setdefault(name, {})[key] = value
    try:
        save(tensors, checkpoint_id=scratch)
        if is_main:
            notes = {**state, "parameters": {}, "optimizer": whole, "sharded": sorted(tensors)}
            save_synced(scratch / NOTES, notes)
            shutil.rmtree(path, ignore_errors=True)
            scratch.rename(path)
    except (OSError, RuntimeError, CheckpointException) as error:
        raise could_not_write(path, error) from error
    dist.barrier()


def read_sharded(path: Path, like: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The state in a folder; its sharded tensors come as those of `like` are sharded, by name. What
    `like` does not name is left out.

    Raises:
        CheckpointError: the folder is damaged.
    """
    state = read_file(path / NOTES)
    names = [key for key in state.pop("sharded") if key.split("/")[1] in like]
    tensors = {key: torch.zeros_like(like[key.split("/")[1]]) for key in names}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(tensors, checkpoint_id=path, no_dist=not dist.is_initialized())
    except (OSError, RuntimeError, CheckpointException) as error:
        raise damaged(path) from error
    for key, value in tensors.items():
        kind, name, *rest = key.split("/")
        if kind == "parameters":
            state["parameters"][name] = value
        else:
            state["optimizer"].setdefault(name, {})[rest[0]] = value
    return state
