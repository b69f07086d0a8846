"""Published weights into an encoder, with every tensor of both sides accounted for.

A tensor that is missing or has another shape is an error, and so is one of the checkpoint that fits
nothing, unless it belongs to what is not read (`unread`: layers above the one that is read, text towers,
heads) or is allowed by name. `source` is a folder or a hub id throughout.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from medloupe.errors import CheckpointError, ConfigError

# What safetensors and torch raise for a file that is damaged or of another kind.
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError)


def source_of(source: str | None, name: str) -> str:
    """The source that a config names.

    Raises:
        CheckpointError: it names none.
    """
    if source is None:
        raise CheckpointError(f"encoder {name!r} names no source to load from")
    return source


def config_data(source: str) -> dict[str, Any]:
    """The plain data of a vision tower's config; of a pair of towers that of the vision half.

    Raises:
        CheckpointError: there is none.
    """
    try:
        data, _ = PretrainedConfig.get_config_dict(source)
    except OSError as error:
        raise CheckpointError(f"cannot read a vision tower from {source!r}: {error}") from None
    if not data:
        raise CheckpointError(f"cannot read a vision tower from {source!r}: it has no config.json")
    # The halves of a pair may leave out their type: then the pair's is the family's name.
    vision: dict[str, Any] = data.get("vision_config", data)
    return {"model_type": data.get("model_type")} | vision


def config_from(source: str, kind: type[PretrainedConfig], encoder: str) -> PretrainedConfig:
    """The config of the vision tower that `source` holds.

    Raises:
        CheckpointError: there is none, or it is of another family than `kind`.
    """
    found = config_data(source)["model_type"]
    family = kind.model_type.removesuffix("_vision_model")
    if found not in (kind.model_type, family):
        raise CheckpointError(
            f"{source!r} is a {found!r} checkpoint, and the encoder {encoder!r} reads {family!r}",
            remedy=f"One of {family!r}, or the encoder that reads {found!r}; hf_vision reads most",
        )
    return kind.from_pretrained(source)


def read_tower(
    tower: PreTrainedModel,
    source: str,
    *,
    unread: Collection[str] = (),
    allowed: Collection[str] = (),
) -> dict[str, torch.Tensor]:
    """The tensors of a transformers checkpoint for `tower`, among others.

    Args:
        unread: prefixes of tensors that are left out, as transformers names them.
        allowed: prefixes that the user allows to fit nothing.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
    """
    reader: Any = type(tower)
    try:
        with _silence():
            read, report = reader.from_pretrained(
                source,
                config=tower.config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, where they are read
            )
    except OSError as error:
        raise CheckpointError(f"cannot load a vision tower from {source!r}: {error}") from None
    wanted = tower.state_dict()
    for key, found, own in sorted(report["mismatched_keys"]):
        if key in wanted:
            raise CheckpointError(
                f"{key} of {source!r} is {list(found)}, the encoder's {list(own)}"
            )
    tensors: dict[str, torch.Tensor] = read.state_dict()
    # A model with a head on top names the tower's tensors below the tower's own name.
    passed, inside = (*unread, *allowed), f"{tower.base_model_prefix}."
    strange = {
        key if key.startswith(passed) else key.removeprefix(inside)
        for key in report["unexpected_keys"]
    }
    present = (tensors.keys() - report["missing_keys"]) | strange
    account(source, wanted, present, allowed=passed)
    return tensors


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without transformers' own table of what did not fit: `account` decides, and says it shorter."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def account(
    source: str,
    wanted: Iterable[str],
    found: Iterable[str],
    *,
    unread: Collection[str] = (),
    allowed: Collection[str] = (),
) -> None:
    """Refuse a checkpoint that lacks a wanted name or holds one that fits nothing.

    Raises:
        CheckpointError: with the number of such names and the first.
    """
    wanted, found = set(wanted), set(found)
    if missing := sorted(wanted - found):
        raise CheckpointError(f"{source!r} lacks {len(missing)} tensors, the first {missing[0]}")
    passed = (*unread, *allowed)
    if strange := sorted(key for key in found - wanted if not key.startswith(passed)):
        raise CheckpointError(
            f"{len(strange)} tensors of {source!r} fit nothing, the first {strange[0]}",
            remedy="If they may be left out, name them (or their prefix) in allow_unused",
        )


def fill(module: nn.Module, source: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy `tensors`, named as the module's own, into it; its dtype stays.

    Raises:
        CheckpointError: a shape differs.
    """
    own = module.state_dict()
    for key, tensor in own.items():
        if tensors[key].shape != tensor.shape:
            raise CheckpointError(
                f"{key} of {source!r} is {list(tensors[key].shape)}, "
                f"the encoder's {list(tensor.shape)}"
            )
    module.load_state_dict({key: tensors[key] for key in own})


def checkpoint_file(source: str, names: Sequence[str]) -> Path:
    """The first of the files `names` that `source` holds.

    Raises:
        CheckpointError: it holds none.
    """
    reason = ""
    for name in names:
        try:
            path = cached_file(source, name)
        except OSError as error:
            reason = str(error)
        else:
            if path is not None:  # what a folder without config.json gives
                return Path(str(path))
    raise CheckpointError(f"{source!r} holds none of {', '.join(names)}: {reason}")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` file, or of one that `torch.save` wrote.

    Raises:
        CheckpointError: it cannot be read as that.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        read = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"cannot be read as tensors: {error}", file=str(path)) from error
    if not isinstance(read, dict):
        raise CheckpointError("holds no named tensors", file=str(path))
    return {key: value for key, value in read.items() if isinstance(value, torch.Tensor)}


def read_json(path: Path) -> dict[str, Any]:
    """A config file.

    Raises:
        CheckpointError: it is not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"not valid JSON: {error}", file=str(path)) from None
    if not isinstance(data, dict):
        raise CheckpointError("not a JSON object", file=str(path))
    return data


def depth_of(layer: int, layers: int) -> int:
    """How many layers run so that `layer` (1 is the first, -1 the last) is the last of them.

    Raises:
        ConfigError: there is no such layer.
    """
    used = layers + 1 + layer if layer < 0 else layer
    if not 1 <= used <= layers:
        raise ConfigError(f"layer {layer} is not one of {layers} layers", field="layer")
    return used
