"""What depends on the machine: where tensors lie, its random state, and whether it can compile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.util import find_spec

import torch

from medloupe.models.adapters import decoder_layers
from medloupe.models.vlm import VisionLanguageModel, with_tensors
from medloupe.train.objectives.base import Micro
from medloupe.types import Batch

Move = Callable[[torch.Tensor], torch.Tensor]


def pinned(micro: Micro, device: torch.device) -> Micro:
    """In memory from which a GPU copies by itself; as it is where there is none."""
    return micro if device.type == "cpu" else _each(micro, torch.Tensor.pin_memory)


def moved(micro: Micro, device: torch.device) -> Micro:
    """On the device; the copy may go on while the next lines run."""
    if device.type == "cpu":
        return micro
    return _each(micro, lambda tensor: tensor.to(device, non_blocking=True))


def _each(micro: Micro, move: Move) -> Micro:
    targets = None if micro.targets is None else move(micro.targets)
    images = tuple(with_tensors(image, move) for image in micro.batch.images)
    return replace(
        micro, targets=targets, batch=replace(_tensors(micro.batch, move), images=images)
    )


def _tensors(batch: Batch, move: Move) -> Batch:
    found = {field.name: vars(batch)[field.name] for field in fields(batch)}
    tensors = {name: move(v) for name, v in found.items() if isinstance(v, torch.Tensor)}
    return replace(batch, **tensors)  # type: ignore[arg-type]


def random_state() -> dict[str, torch.Tensor]:
    """Torch's, on every kind of device that is in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Go on from `random_state`; another kind of device goes on as it is."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def reseed(seed: int, step: int, rank: int) -> None:
    """Numbers of its own for a process that has none from before; not for the first."""
    mixed = torch.tensor([seed, step, rank], dtype=torch.int64)
    torch.manual_seed(int((mixed * torch.tensor([1, 1_000_003, 7_368_787])).sum()))


def compile_layers(model: VisionLanguageModel, device: torch.device) -> bool:
    """Let the decoder layers of the language model be compiled as they are first used; whether there is
    a compiler for it here."""
    compiler = os.environ.get("CXX", "g++")
    found = find_spec("triton") if device.type == "cuda" else shutil.which(compiler)
    if found is None:
        return False
    for layer in decoder_layers(model.language_model):
        layer.compile(dynamic=True)
    return True
