"""Floating point operations of a step, and the share they are of what the machine can do.

Operations are counted, not estimated: torch's counter watches the first step of a stage, forward and
backward, and later steps are taken to cost as many a token. Matrix products alone count, attention in
full. What a frozen encoder did before the step (features are kept) is no part of it.

The peak is measured, too: the fastest of a few square matrix products in the stage's precision, in the
same process with the same threads. So a share of 1 means that nothing but matrix products was done, and
each as fast as a large one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    conv_flop_count,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

SIDE, TRIES = {"cpu": 1024, "cuda": 8192}, 5


class StepWork:
    """Operations a token, from the first step that is counted.

    >>> work = StepWork()
    >>> with work.counting(tokens=32):
    ...     _ = torch.ones(32, 8) @ torch.ones(8, 4)
    >>> work.per_token
    64.0
    """

    def __init__(self) -> None:
        self.per_token: float | None = None

    @contextmanager
    def counting(self, tokens: int) -> Iterator[None]:
        """Count what runs inside as the work of `tokens` tokens, the first time."""
        if self.per_token is not None or tokens == 0:
            yield
            return
        with FlopCounter() as counter:
            yield
        self.per_token = counter.total / tokens

    def share(self, tokens: int, seconds: float, peak: float) -> float | None:
        """Of `peak` operations a second; None before anything was counted."""
        return None if self.per_token is None else self.per_token * tokens / seconds / peak


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))


def _convolution_backward(
    gradient: Any, inputs: Any, weight: Any, *rest: Any, **kwargs: Any
) -> int:
    """As much as forward for each gradient that is asked for; torch's own formula takes the groups of a
    depthwise convolution for one."""
    del kwargs
    transposed, wanted = rest[4], rest[7]
    forward = conv_flop_count(inputs.shape, weight.shape, gradient.shape, transposed=transposed)
    return int(forward * sum(wanted[:2]))


_aten: Final = torch.ops.aten
_COUNTED: Final[dict[Any, Callable[..., int]]] = {
    **flop_registry,
    _aten.convolution_backward: _convolution_backward,
    # torch has no formula for the CPU's own kernel
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class FlopCounter(TorchDispatchMode):
    """Adds up the operations of what runs inside, by torch's formulas, in `total`.

    torch's own `FlopCounterMode` also keeps a tree of modules by hooks, which do not stand a gradient that is
    taken inside of a forward pass (`models.logits` does that).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = _COUNTED.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


@cache
def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Operations a second of the fastest of some products of square matrices; under a second."""
    kind = torch.device(device).type
    side = SIDE.get(kind, SIDE["cuda"])
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    torch.mm(left, right)  # the first allocates, and picks a kernel
    return 2 * side**3 / min(_seconds(left, right) for _ in range(TRIES))


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    _wait(left.device)
    begun = time.perf_counter()
    torch.mm(left, right)
    _wait(left.device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
