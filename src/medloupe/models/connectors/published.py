"""The tensors of one part of a large published checkpoint, without reading the rest."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from medloupe.errors import CheckpointError
from medloupe.models.encoders.checkpoints import checkpoint_file, read_json, read_tensors

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_under(source: str, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors of `source` (a folder or hub id of transformers) whose names begin with a prefix.

    Raises:
        CheckpointError: it cannot be read, or holds none.
    """
    path = checkpoint_file(source, WEIGHT_FILES)
    files = [path]
    if path.suffix == ".json":
        names = read_json(path).get("weight_map", {})
        shards = sorted({file for name, file in names.items() if name.startswith(prefixes)})
        files = [checkpoint_file(source, (shard,)) for shard in shards]
    tensors = {name: tensor for file in files for name, tensor in _read(file, prefixes).items()}
    if not tensors:
        raise CheckpointError(f"{source!r} holds no tensor named {' or '.join(prefixes)}...")
    return tensors


def _read(file: Path, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    if file.suffix != ".safetensors":
        return {k: tensor for k, tensor in read_tensors(file).items() if k.startswith(prefixes)}
    try:
        with safe_open(file, framework="pt") as opened:
            return {k: opened.get_tensor(k) for k in opened.keys() if k.startswith(prefixes)}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"cannot be read as tensors: {error}", file=str(file)) from error
