"""The loss over label tokens, whose logits never all exist at once.

Logits of a large vocabulary are the widest tensors of a step. They are made only for tokens that predict
a label, chunk by chunk, and of each chunk only the loss and its gradients stay: these are computed in
the forward pass, so that no chunk is made twice. Some families change what their output head gives
(Gemma 2 caps it, Cohere and Granite scale it); what a family does is read off a narrow copy of it.
Shapes: S label tokens, D width, V vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel

from medloupe.models.language import architecture_from, plain_architecture
from medloupe.models.narrow import VOCABULARY, narrow_copy, undisturbed

# The logits of one chunk, in float32.
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class HeadRule:
    """What becomes of the numbers that the output head gives: `scale` times them, or, with a `cap`,
    `cap * tanh(x / cap)`."""

    scale: float = 1.0
    cap: float | None = None

    def finish(self, raw: torch.Tensor) -> torch.Tensor:
        """Logits in float32."""
        raw = raw.float()
        if self.cap is not None:
            return self.cap * torch.tanh(raw / self.cap)
        return raw if self.scale == 1 else self.scale * raw


def head_rule(language_model: PreTrainedModel) -> HeadRule | None:
    """The rule of a language model, or None where its logits cannot be made from the last hidden state
    of its base. Tried once in a process for each config."""
    config = language_model.config.get_text_config()
    return _tried(json.dumps(plain_architecture(config), sort_keys=True, default=str))


def summed_cross_entropy(
    hidden_SD: torch.Tensor,
    targets_S: torch.Tensor,
    head: nn.Module,
    rule: HeadRule = HeadRule(),
    *,
    chunk: int,
) -> torch.Tensor:
    """The cross-entropy of `head`'s logits summed over tokens; those of at most `chunk` tokens exist at
    a time.

    Gradients reach `hidden_SD` and whatever trains in the head.
    """
    weights = [parameter for parameter in head.parameters() if parameter.requires_grad]
    loss: torch.Tensor = _ChunkedLoss.apply(hidden_SD, targets_S, head, rule, chunk, *weights)  # type: ignore[no-untyped-call]
    return loss


def chunk_of(vocabulary: int) -> int:
    """How many tokens' logits fit into `CHUNK_BYTES`."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


class _ChunkedLoss(torch.autograd.Function):
    """Computes its gradients forward; they are scaled in place, so it runs backward once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: torch.Tensor,
        targets_S: torch.Tensor,
        head: nn.Module,
        rule: HeadRule,
        chunk: int,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        reaches = hidden_SD.requires_grad
        gradients = [torch.zeros_like(hidden_SD)] if reaches else []
        total = torch.zeros((), device=hidden_SD.device)
        for start in range(0, max(len(targets_S), 1), chunk):
            part = slice(start, start + chunk)
            hidden_CD = hidden_SD[part].detach().requires_grad_(reaches)
            wanted = [*([hidden_CD] if reaches else []), *weights]
            with torch.set_grad_enabled(bool(wanted)):
                logits_CV = rule.finish(head(hidden_CD))
                loss = F.cross_entropy(logits_CV, targets_S[part], reduction="sum")
            total += loss.detach()
            if not wanted:
                continue
            found = list(torch.autograd.grad(loss, wanted))
            if reaches:
                gradients[0][part] = found.pop(0)
            if start == 0:
                gradients += found
                continue
            for sum_, gradient in zip(gradients[reaches:], found, strict=True):
                sum_ += gradient
        ctx.reaches, ctx.gradients = reaches, gradients
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        assert ctx.gradients is not None, "the chunked loss runs backward once"
        found = [gradient.mul_(upstream) for gradient in ctx.gradients]
        ctx.gradients = None
        hidden = found.pop(0) if ctx.reaches else None
        return hidden, None, None, None, None, *found


# Sizes of the numbers that the head of a narrow copy is made to give: caps show at the large ones, and
# their shape between.
_SIZES = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e6)


@cache
@undisturbed()
def _tried(fields: str) -> HeadRule | None:
    try:
        raw, logits = _given(narrow_copy(architecture_from(json.loads(fields)), "eager"))
    except Exception:  # whatever a family raises, its own logits will do
        return None
    if raw is None:
        return None
    largest = int(raw.abs().argmax())
    rules = (
        HeadRule(),
        HeadRule(scale=float(logits.flatten()[largest] / raw.flatten()[largest])),
        HeadRule(cap=float(logits.abs().max())),
    )
    for rule in rules:
        if torch.allclose(rule.finish(raw), logits, rtol=1e-5, atol=1e-6):
            return rule
    return None


@torch.no_grad()
def _given(model: PreTrainedModel) -> tuple[torch.Tensor | None, torch.Tensor]:
    """What the head gives for inputs of many sizes, None if these are not the base's last hidden
    states, and the logits that the model makes of it."""
    maker = torch.Generator().manual_seed(2)
    ids = torch.randint(VOCABULARY, (1, len(_SIZES)), generator=maker)
    inputs = {
        "inputs_embeds": model.get_input_embeddings()(ids),
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(len(_SIZES))[None],
        "use_cache": False,
    }
    head = model.get_output_embeddings()
    last = model.base_model(**inputs).last_hidden_state
    same, raw = [], []

    def before(_: nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        same.append(torch.equal(args[0], last))
        lengths: torch.Tensor = last[0].norm(dim=-1, keepdim=True)
        return args[0] * torch.tensor(_SIZES)[:, None] / lengths

    def after(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        raw.append(output)

    handles = [head.register_forward_pre_hook(before), head.register_forward_hook(after)]
    logits = model(**inputs).logits
    for handle in handles:
        handle.remove()
    return raw[0] if same == [True] else None, logits.float()
