"""FLOPs and activations of one training row, counted while torch runs it on the meta device.

Nothing is estimated from a formula of an architecture: the forward and backward of the model itself
run on shapes, matrix multiplications are counted by torch's formulas, and what autograd keeps for
the backward is added up. So a frozen part costs no weight gradient, and below the first trainable
part there is no backward at all, because autograd does not go there either.

Attention is counted as a fused kernel does it: in full (no causal half), five products backward, and
only its inputs, its output and one number a row and head are kept. Work and memory are those of bfloat16.
Shapes: U image tokens, L tokens of a row, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.modeling_layers import GradientCheckpointingLayer

from medloupe.models.adapters import Adapter, Span
from medloupe.models.vlm import VisionLanguageModel
from medloupe.train.meters.work import FlopCounter
from medloupe.types import ImageInput

OUTSIDE, ADAPTER = "", "adapter"


@dataclass(frozen=True, kw_only=True)
class Work:
    """One row: FLOPs, and bytes that are kept for the backward.

    `forward` is by part. `recomputed` are the FLOPs that checkpointing the blocks of a transformer
    adds, `checkpointed` what is then kept: each block's input, and once the insides of the largest.
    """

    encoder_tokens: int
    image_tokens: int
    tokens: int
    forward: dict[str, int]
    backward: int
    recomputed: int
    kept: int
    checkpointed: int

    @property
    def flops(self) -> int:
        return sum(self.forward.values()) + self.backward


def count(model: VisionLanguageModel, image: ImageInput, text_tokens: int) -> Work:
    """A row of one image and `text_tokens` tokens, all of which are learned; `model` in bfloat16.

    Without text the language model does not run, as in an objective on image tokens alone.
    """
    ledger = _Ledger(model)
    counter = FlopCounter()
    hooks = saved_tensors_hooks(ledger.keep, lambda tensor: tensor)
    forward: dict[str, int] = {}
    with counter, _FusedAttention(), hooks, ledger.watching(lambda: counter.total):
        begun = 0

        def spent() -> int:
            nonlocal begun
            part, begun = counter.total - begun, counter.total
            return part

        encoded = model.encode([image])
        forward["encoder"] = spent()
        (tokens_UD,) = model.image_tokens(encoded)
        forward["connector"] = spent()
        details = model.details([image])
        detailed = spent()
        loss = (
            _loss(model, tokens_UD, details, text_tokens)
            if text_tokens
            else tokens_UD.float().sum()
        )
        if model.adapter is None:
            forward["language_model"] = spent()
        else:
            between = ledger.blocks[ADAPTER].flops if text_tokens else 0
            forward["language_model"] = spent() - between
            forward["adapter"] = detailed + between
        loss.backward()
        backward = spent()
    grid = encoded[0].grid
    assert grid is not None
    return Work(
        encoder_tokens=grid.tokens,
        image_tokens=len(tokens_UD),
        tokens=len(tokens_UD) + text_tokens,
        forward=forward,
        backward=backward,
        recomputed=sum(block.flops for block in ledger.blocks.values() if block.bytes),
        kept=sum(block.bytes for block in ledger.blocks.values()),
        checkpointed=ledger.checkpointed(),
    )


def _loss(
    model: VisionLanguageModel,
    tokens_UD: torch.Tensor,
    details: Sequence[torch.Tensor],
    text: int,
) -> torch.Tensor:
    """As `VisionLanguageModel.label_loss`: logits only where there is a label. An adapter finds the end of
    the question at the last token, which costs what any other place does."""
    device = tokens_UD.device
    ids = torch.zeros(text, dtype=torch.long, device=device)
    embeddings = torch.cat([tokens_UD, model.get_input_embeddings()(ids)])[None]
    length = embeddings.shape[1]
    span = Span(row=0, start=0, stop=len(tokens_UD), anchor=length - 1)
    with model.acting([span], details):
        output = model.language_model(
            inputs_embeds=embeddings,
            # a 2D mask would be read for its numbers, and there are none
            attention_mask=torch.zeros(1, 1, length, length, dtype=embeddings.dtype, device=device),
            position_ids=torch.arange(length, device=device)[None],
            logits_to_keep=text,
            use_cache=False,
        )
    return F.cross_entropy(output.logits[0].float(), ids, reduction="sum")


@dataclass
class _Block:
    """What autograd keeps of one block of a transformer, or of everything outside of blocks."""

    bytes: int = 0
    input_bytes: int = 0
    flops: int = 0


class _Ledger:
    """Adds up distinct storages that are kept for the backward; parameters and buffers are none."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.blocks: dict[str, _Block] = {OUTSIDE: _Block()}
        self.current = OUTSIDE
        owned = [*model.parameters(), *model.buffers()]
        self.owned = {tensor.untyped_storage()._cdata for tensor in owned}
        self.alive: dict[int, torch.Tensor] = {}  # held, so that no address is used twice

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.owned and storage._cdata not in self.alive:
            self.alive[storage._cdata] = tensor
            self.blocks[self.current].bytes += storage.nbytes()
        return tensor

    def checkpointed(self) -> int:
        inside = [block for name, block in self.blocks.items() if name != OUTSIDE and block.bytes]
        largest = max((block.bytes for block in inside), default=0)
        inputs = sum(block.input_bytes for block in inside)
        return self.blocks[OUTSIDE].bytes + inputs + largest

    @contextmanager
    def watching(self, flops: Callable[[], int]) -> Iterator[None]:
        """Notes which block runs, its input and its FLOPs."""
        handles = []
        for name, module in self.model.named_modules():
            if isinstance(module, GradientCheckpointingLayer | Adapter):
                handles += self._watch(name, module, flops)
        yield
        for handle in handles:
            handle.remove()

    def _watch(self, name: str, module: nn.Module, flops: Callable[[], int]) -> list[Any]:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            block = self.blocks.setdefault(name, _Block())
            hidden = next((a for a in args if isinstance(a, torch.Tensor)), None)
            if hidden is None:
                hidden = kwargs["hidden_states"]
            block.input_bytes += hidden.untyped_storage().nbytes()
            block.flops -= flops()
            self.current = name

        def leave(*_: Any) -> None:
            self.blocks[name].flops += flops()
            self.current = OUTSIDE

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            # first of all: an adapter hangs on the same hooks of decoder layers
            module.register_forward_hook(leave, prepend=True),
        ]


class _FusedAttention(TorchFunctionMode):
    """Runs every attention of torch as `_Attention`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        repeat = query.shape[-3] // key.shape[-3]
        key, value = (one.repeat_interleave(repeat, -3) for one in (key, value))
        return _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    """The products of a fused kernel, without its numbers. Shapes: `[N, H, L, C]`."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        out = (query @ key.transpose(-2, -1)) @ value
        row_sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, row_sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        (out,) = gradients
        scores = query @ key.transpose(-2, -1)
        d_scores = out @ value.transpose(-2, -1)
        d_query, d_key = d_scores @ key, d_scores.transpose(-2, -1) @ query
        return d_query, d_key, scores.transpose(-2, -1) @ out


def trained(model: VisionLanguageModel) -> dict[str, int]:
    """Trainable parameters by part."""
    return {
        part: sum(p.numel() for p in model.get_submodule(part).parameters() if p.requires_grad)
        for part in model.parts
    }
