"""One process: the first GPU where there is one, else the CPU."""

from __future__ import annotations

import os

import torch
from torch import nn

from medloupe.errors import ConfigError
from medloupe.train.engines.base import Engine, EngineConfig, Losses, MakeOptimizer


class OneConfig(EngineConfig):
    """A single process."""

    def open(self) -> OneEngine:
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1:
            raise ConfigError(
                f"{started} processes were started, and each would train the whole run by itself",
                field="train.engine",
                remedy="Choose how they share it: --set train.engine=ddp (or fsdp2, deepspeed)",
            )
        return OneEngine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


class OneEngine(Engine):
    """See `Engine`."""

    def wrap(self, losses: Losses, make: MakeOptimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        return losses, make()

    def settle(self) -> None:
        """They are."""

    def wait(self) -> None:
        """There is nobody to wait for."""

    def close(self) -> None:
        """There is nobody to leave."""
