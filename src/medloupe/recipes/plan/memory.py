"""Memory of one GPU under four ways to train on several, by the engines' own arithmetic.

AdamW with bfloat16 work: T trained parameters, F bytes of frozen ones as they are kept, H bytes of them
with float32 cut to bfloat16, g GPUs.

            weights       gradients  optimizer  working
    DDP     4T + F        4T         8T         2T: autocast's bfloat16 copies of what trains
    FSDP2   (4T + F) / g  4T / g     8T / g     2 bytes for all outside of blocks and two blocks
    ZeRO-2  2T + H        2T / g     12T / g    2 bytes for a bucket of at most 5e8 gradients
    ZeRO-3  (2T + H) / g  2T / g     12T / g    2 bytes for at most 1e9 gathered parameters

The rows of ZeRO are DeepSpeed's own with bfloat16 weights, as the papers' scripts run it; its float32 weights
stand with the optimizer (Rajbhandari et al. 2020, section 3.1: 2 + 2 + 12 bytes), bucket and gathered
parameters are its defaults. The engine `deepspeed` has float32 throughout: 4T + F or (4T + F) / g, 4T / g,
12T / g. FSDP2 gathers a block while the one before is used. A quantised base is not sharded, so it has DDP
and ZeRO-2 only. RESERVE is for the driver and for what the allocator loses; it is a guess.
"""

from __future__ import annotations

from typing import Final, Literal

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from medloupe.config import Config
from medloupe.models.language import Quantization
from medloupe.models.vlm import VisionLanguageModel
from medloupe.recipes.plan.work import Work

GIB: Final = 1 << 30
RESERVE: Final = 2 * GIB
BUCKET: Final = 500_000_000
LIVE: Final = 1_000_000_000
# Bytes a weight: int8 with one float32 a row (left out), nf4 with one float32 for each 64.
QUANTIZED: Final[dict[Quantization, float]] = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
WHOLE: Final = ("DDP", "ZeRO-2")  # every GPU holds all weights
EngineName = Literal["DDP", "FSDP2", "ZeRO-2", "ZeRO-3"]


class Sizes(Config):
    """What the formulas need of a model: trained and all parameters, bytes of frozen ones (as they are
    kept, and with float32 cut to bfloat16), the parameters of the largest block and outside of blocks."""

    trained: int
    total: int
    frozen: int
    frozen_half: int
    block: int
    outside: int
    quantized: bool


class Memory(Config):
    """Bytes on one GPU. `rows` is how many rows fit at once, with and without checkpointing; 0 where
    the model itself does not fit."""

    engine: EngineName
    weights: int
    gradients: int
    optimizer: int
    working: int
    rows: int
    rows_checkpointed: int

    @property
    def states(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.working


def sizes(model: VisionLanguageModel, quantization: Quantization) -> Sizes:
    """Of a model whose parameters have the types that they are kept in, and know whether they train."""
    quantized = _quantized(model, quantization)
    frozen = [
        (parameter.numel(), quantized.get(id(parameter), float(parameter.element_size())))
        for parameter in model.parameters()
        if not parameter.requires_grad
    ]
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    inside = [sum(p.numel() for p in block.parameters()) for block in blocks]
    total = sum(p.numel() for p in model.parameters())
    return Sizes(
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total=total,
        frozen=round(sum(number * size for number, size in frozen)),
        frozen_half=round(sum(number * min(size, 2) for number, size in frozen)),
        block=max(inside, default=0),
        outside=total - sum(inside),
        quantized=bool(quantized),
    )


def memory(sizes: Sizes, work: Work, *, gpus: int, limit: int) -> tuple[Memory, ...]:
    """One for each engine, for GPUs of `limit` bytes."""
    t, frozen, half = sizes.trained, sizes.frozen, sizes.frozen_half
    table: dict[EngineName, tuple[float, float, float, float]] = {
        "DDP": (4 * t + frozen, 4 * t, 8 * t, 2 * t),
        "FSDP2": (
            (4 * t + frozen) / gpus,
            4 * t / gpus,
            8 * t / gpus,
            2 * min(sizes.outside + 2 * sizes.block, sizes.total),
        ),
        "ZeRO-2": (2 * t + half, 2 * t / gpus, 12 * t / gpus, 2 * min(t, BUCKET)),
        "ZeRO-3": (
            (2 * t + half) / gpus,
            2 * t / gpus,
            12 * t / gpus,
            2 * min(sizes.total, LIVE),
        ),
    }
    rows = []
    for engine, parts in table.items():
        if sizes.quantized and engine not in WHOLE:
            continue
        weights, gradients, optimizer, working = (round(part) for part in parts)
        left = limit - RESERVE - (weights + gradients + optimizer + working)
        rows.append(
            Memory(
                engine=engine,
                weights=weights,
                gradients=gradients,
                optimizer=optimizer,
                working=working,
                rows=max(left // work.kept, 0),
                rows_checkpointed=max(left // work.checkpointed, 0),
            )
        )
    return tuple(rows)


def _quantized(model: VisionLanguageModel, quantization: Quantization) -> dict[int, float]:
    """Bytes a number of the weights that are quantised: linear layers but the output head."""
    if quantization == "none":
        return {}
    head = model.get_output_embeddings()
    return {
        id(module.weight): QUANTIZED[quantization]
        for module in model.language_model.modules()
        if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad
    }
