"""A narrow copy of a language model, to find out by trying what its family does.

It has every layer of the original, so each kind of layer in its place, the same head dimension, so that
settings of rotary positions stay valid, and random weights in float32. It is narrow: two heads, a few
experts of few units, a vocabulary of 64; and windows of attention are eight tokens, so that a short row
is longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from medloupe.models.language import architecture_from, empty_language, plain_architecture

HEADS = 2
EXPERTS = 4
HIDDEN = 128
WINDOW = 8
VOCABULARY = 64
# More than any family needs at this width: some field that is not known kept its size.
_MOST_PARAMETERS = 200_000_000


def narrow_copy(architecture: PretrainedConfig, attention: str) -> PreTrainedModel:
    """The copy, evaluating; to be made and tried inside of `undisturbed`.

    `attention` is the implementation it runs. Families raise what they will where they cannot be
    narrowed so.
    """
    narrow = architecture_from(narrow_fields(architecture))
    torch.default_generator.manual_seed(0)  # GPUs keep their own, which nobody would set back
    with torch.device("meta"):
        size = sum(p.numel() for p in empty_language(narrow, attention).parameters())
    if size > _MOST_PARAMETERS:
        raise ValueError(f"it has {size:,} parameters")
    model = empty_language(narrow, attention)
    model.float().eval()
    with torch.no_grad():  # at the usual starting scale attention hardly matters
        for parameter in model.parameters():
            spread = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.add_(spread * torch.randn_like(parameter))
    return model


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, copies are made and tried as if nothing were going on around: what is found out stays for
    the whole process, and the first to ask may stand in an evaluation, or under autocast."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.device("cpu"),
        torch.random.fork_rng(devices=[]),
    ):
        yield


def narrow_fields(architecture: PretrainedConfig) -> dict[str, Any]:
    """The plain data of the copy's config."""
    heads, hidden = architecture.num_attention_heads, architecture.hidden_size
    fields = plain_architecture(architecture)
    head_dim = fields.get("head_dim") or hidden // heads
    return {
        name: _narrow(name, value, heads, hidden, min(HEADS, heads) * head_dim)
        for name, value in fields.items()
        if name != "dtype"
    }


def _narrow(name: str, value: Any, heads: int, hidden: int, width: int) -> Any:
    if name.endswith("token_id"):
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if name == "vocab_size":
        return VOCABULARY
    if "position" in name or "layer" in name or "pattern" in name or name == "head_dim":
        return value
    if "window" in name or "chunk_size" in name:
        return min(value, WINDOW)
    if "experts" in name:
        return min(value, EXPERTS // 2 if "per_tok" in name else EXPERTS)
    if "heads" in name or name == "n_head":
        return max(1, value * min(HEADS, heads) // heads)
    if "intermediate" in name or "ffn" in name or name == "n_inner":
        return min(value, HIDDEN)
    return width if value == hidden else value
