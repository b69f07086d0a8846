"""The processes that torchrun (or Slurm, with the same variables) started, as one group of torch's.

Tensors on GPUs travel through NCCL, everything else through gloo. All processes see the same files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import nn

from medloupe.errors import ConfigError
from medloupe.models.vlm import VisionLanguageModel
from medloupe.train.engines.base import Engine, EngineConfig, Losses
from medloupe.train.objectives.base import Micro, Objective

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class GroupConfig(EngineConfig):
    """Several processes. `timeout_minutes` is how long one waits for another before it gives up: the
    first may read, check and evaluate alone meanwhile."""

    timeout_minutes: float = Field(default=240.0, gt=0)

    def joined(self) -> torch.device:
        """Join the group; the device of this process.

        Raises:
            ConfigError: the variables that say who is who are missing.
        """
        missing = [name for name in _VARIABLES if name not in os.environ]
        if missing:
            raise ConfigError(
                f"the engine {self.name} needs several processes, and {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not set",
                field="train.engine",
                remedy="Start it with: torchrun --nproc-per-node N -m medloupe.cli train ...",
            )
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(self._gpu())
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            timeout=timedelta(minutes=self.timeout_minutes),
        )
        return torch.device("cuda", self._gpu()) if on_gpu else torch.device("cpu")

    def _gpu(self) -> int:
        place, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= count:
            raise ConfigError(
                f"process {place} of this machine has no GPU of its own, there are {count}",
                field="train.engine",
                remedy=f"Start at most {count} with --nproc-per-node",
            )
        return place


class GroupEngine(Engine):
    """What every engine of several processes does alike."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def losses(self, model: VisionLanguageModel, objective: Objective) -> Losses:
        return AnchoredLosses(model, objective)

    def sums(self, values: Sequence[float]) -> list[float]:
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        return [float(value) for value in summed]

    def gathered(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def told(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        dist.barrier()

    def close(self) -> None:
        dist.destroy_process_group()


class AnchoredLosses(Losses):
    """A loss that always depends on something which trains: `anchor`, whose gradient is zero.

    Processes meet in the backward pass, so each must run one, whatever its rows reach.
    """

    def __init__(self, model: VisionLanguageModel, objective: Objective) -> None:
        super().__init__(model, objective)
        self.anchor = nn.Parameter(torch.zeros(1, device=model.device))

    def forward(self, micro: Micro) -> torch.Tensor:
        return super().forward(micro) + 0.0 * self.anchor.sum()


class ThroughLosses(AnchoredLosses):
    """One whose backward pass also goes through all layers of the language model, which each process
    gathers again there: the text's embeddings depend on the anchor. `hook` sees to that."""

    def __init__(self, model: VisionLanguageModel, objective: Objective) -> None:
        super().__init__(model, objective)
        self.hook = model.get_input_embeddings().register_forward_hook(self._anchored)

    def _anchored(self, module: nn.Module, args: Any, embeddings: torch.Tensor) -> torch.Tensor:
        del module, args
        return embeddings + 0.0 * self.anchor.to(embeddings.dtype)


def refuse_quantized(model: VisionLanguageModel) -> None:
    """Raises:
    ConfigError: the weights are quantised.
    """
    if model.config.is_quantized:
        raise ConfigError(
            "quantised weights cannot be sharded",
            field="train.engine",
            remedy="Use the engine ddp, or set model.language.quantization to none",
        )
