"""MiniGPT-v2's parts into a composition that begins from them, as LiteGPT does.

A checkpoint of MiniGPT-4's repository holds what was trained: `llama_proj` (5632 -> 4096) and the LoRA
weights of `q_proj` and `v_proj`, in old peft's names (`lora_A.weight`) or new (`lora_A.default.weight`).
The projection becomes the connector's last layer: LiteGPT's first layer is new, MiniGPT-v2's own
connector (groups of four) has only this one. LoRA weights go into adapters where the language model has
them, and otherwise are added to the weights that they adapt.
Source: MiniGPT-4, `minigpt4/models/minigpt_v2.py`; LiteGPT section 3.1 and its code.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from medloupe.errors import CheckpointError
from medloupe.models.connectors import Connector
from medloupe.models.encoders.checkpoints import UNREADABLE
from medloupe.models.vlm import VisionLanguageModel
from medloupe.models.weights.naming import COMPUTED, LoadReport, Naming, either, load_named

LORA = re.compile(
    r"llama_model\.base_model\.model\.(?P<module>model\.layers\.\d+\.self_attn\.[qv]_proj)"
    r"\.lora_(?P<side>[AB])(?:\.default)?\.weight"
)
PROJECTION = "llama_proj."
ALPHA = 16.0  # MiniGPT-v2's, with rank 64


def load_minigpt(
    model: VisionLanguageModel,
    file: Path,
    *,
    parts: Collection[str] = ("connector", "language_model"),
    alpha: float = ALPHA,
    allow: Collection[str] = (),
) -> LoadReport:
    """Fill the connector's last layer and the language model's LoRA weights, in place.

    Args:
        parts: which of the two are taken.
        alpha: LoRA's, for weights that are added to those they adapt.

    Raises:
        CheckpointError: the file cannot be read, lacks a part that is asked for, or a tensor fits
            nothing, or has another shape; then nothing has been changed.
    """
    tensors = read_checkpoint(file)
    lora = {name: tensor for name, tensor in tensors.items() if LORA.fullmatch(name)}
    rest = {name: tensor for name, tensor in tensors.items() if name not in lora}
    wanted = (("connector", PROJECTION, "projection"), ("language_model", "llama_model.", "LoRA"))
    for part, prefix, what in wanted:
        if part in parts and not any(n.startswith(prefix) for n in (*lora, *rest)):
            raise CheckpointError(f"holds no {what} weights ({prefix}...)", file=str(file))
    skipped = [PROJECTION.replace(".", r"\.") + ".*"] if "connector" not in parts else []
    taken = lora if "language_model" in parts else {}
    adapters, merged = _places(model, taken, file)
    names = Naming(
        prefixes=(
            (PROJECTION, last_layer(model.connector)),
            *((name, ours) for name, ours in adapters.items()),
        ),
        unread=either(COMPUTED, *skipped),
    )
    given = {name: tensor for name, tensor in tensors.items() if name in rest or name in adapters}
    if "connector" not in parts:
        names = Naming(prefixes=names.prefixes[1:], unread=names.unread)
    report = load_named(model, [given], names, source=file, allow=allow, partial=True)
    _merge(model, lora, merged, alpha)
    changed = {f"{ours}.weight" for ours in merged}
    unused = () if "language_model" in parts else tuple(sorted(lora))
    return report.model_copy(
        update={
            "loaded": tuple(sorted({*report.loaded, *changed})),
            "kept": tuple(name for name in report.kept if name not in changed),
            "unread": tuple(sorted({*report.unread, *unused})),
            "elsewhere": _said(merged),
            "parameters": report.parameters
            + sum(model.get_parameter(name).numel() for name in changed),
        }
    )


def read_checkpoint(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of `checkpoint_stage3.pth` and its like: they stand under "model".

    Raises:
        CheckpointError: it cannot be read, or holds no such thing.
    """
    try:
        read = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"cannot be read as tensors: {error}", file=str(file)) from error
    tensors = read.get("model") if isinstance(read, dict) else None
    if not isinstance(tensors, dict):
        raise CheckpointError("is no checkpoint of MiniGPT-4: it has no 'model'", file=str(file))
    return tensors


def last_layer(connector: Connector) -> str:
    """The prefix of the names of the connector's last linear layer.

    Raises:
        CheckpointError: it ends in none.
    """
    names = [name for name, module in connector.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise CheckpointError("the connector ends in no linear layer, so no projection fits it")
    return f"connector.{names[-1]}."


def _places(
    model: VisionLanguageModel, lora: dict[str, torch.Tensor], file: Path
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """(their name -> our adapter's tensor), (our module -> their A and B), one of the two empty."""
    own = model.state_dict().keys()
    adapters: dict[str, str] = {}
    pairs: dict[str, dict[str, str]] = {}
    for name in lora:
        found = LORA.fullmatch(name)
        assert found is not None
        module, side = found["module"], found["side"]
        adapted = f"language_model.base_model.model.{module}.lora_{side}.default.weight"
        if adapted in own:
            adapters[name] = adapted
        elif f"language_model.{module}.weight" in own:
            pairs.setdefault(f"language_model.{module}", {})[side] = name
        else:
            raise CheckpointError(f"tensor {name!r} fits nothing in the model", file=str(file))
    for module, sides in pairs.items():
        _refuse_pair(model, module, sides, lora, file)
    return adapters, {module: (sides["A"], sides["B"]) for module, sides in pairs.items()}


def _refuse_pair(
    model: VisionLanguageModel,
    module: str,
    sides: dict[str, str],
    lora: dict[str, torch.Tensor],
    file: Path,
) -> None:
    if set(sides) != {"A", "B"}:
        raise CheckpointError(f"holds one half of the LoRA of {module!r}", file=str(file))
    given = len(lora[sides["B"]]), lora[sides["A"]].shape[1]
    wanted = tuple(model.get_parameter(f"{module}.weight").shape)
    if given != wanted:
        raise CheckpointError(
            f"the LoRA of {module!r} is for {given}, the model's weight is {wanted}", file=str(file)
        )


@torch.no_grad()
def _merge(
    model: VisionLanguageModel,
    lora: dict[str, torch.Tensor],
    merged: dict[str, tuple[str, str]],
    alpha: float,
) -> None:
    """W + (alpha / rank) B A, in float32 (Hu et al. 2021, section 4.1)."""
    for module, (first, second) in merged.items():
        weight = model.get_parameter(f"{module}.weight")
        a, b = lora[first].float(), lora[second].float()
        weight.copy_((weight.float() + alpha / len(a) * (b @ a)).to(weight.dtype))


def _said(merged: dict[str, tuple[str, str]]) -> tuple[str, ...]:
    return (f"LoRA added to the weights of {len(merged):,} layers",) if merged else ()
