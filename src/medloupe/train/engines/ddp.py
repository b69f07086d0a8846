"""Data parallel: every process holds the whole model, gradients are summed (torch's DDP).

DDP looks for what a loss does not reach: that takes part as zero where another process reaches it, and is
left without a gradient where none does, as in one process.
"""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from medloupe.train.engines.base import Losses, MakeOptimizer
from medloupe.train.engines.group import GroupConfig, GroupEngine


class DdpConfig(GroupConfig):
    """Each process holds all weights, gradients and optimizer states."""

    def open(self) -> DdpEngine:
        return DdpEngine(self.joined())


class DdpEngine(GroupEngine):
    """See the module's docstring."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._reducing: DistributedDataParallel | None = None

    def wrap(self, losses: Losses, make: MakeOptimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        self._free()  # that of a stage before, with its buckets of gradients and its hooks
        self._reducing = DistributedDataParallel(losses, find_unused_parameters=True)
        return self._reducing, make()

    def settle(self) -> None:
        """DDP's reducer has left them so."""

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        assert self._reducing is not None, "the stage is wrapped"
        return nullcontext() if last else self._reducing.no_sync()

    def close(self) -> None:
        # a reducer that outlives the group would end its threads while it holds Python's lock, which
        # they may be waiting for
        self._free()
        super().close()

    def _free(self) -> None:
        """What holds the reducer but this engine has let go of it by now."""
        self._reducing = None
        gc.collect()
