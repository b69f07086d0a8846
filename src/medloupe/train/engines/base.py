"""What an engine is: the processes of a run, and how they share the work of a stage.

The loop is the same for all engines. Every process takes its share of the rows of each batch, divides
its summed loss by the number of targets of all processes, and takes the step that all of them take. So
losses and updates are those of one process, but for the order in which numbers are added.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from medloupe.config import ComponentConfig
from medloupe.models.vlm import VisionLanguageModel
from medloupe.train.files import write_atomically
from medloupe.train.moments import load_state, state_by_name
from medloupe.train.objectives.base import Micro, Objective

MakeOptimizer = Callable[[], torch.optim.Optimizer]
Named = Sequence[tuple[str, nn.Parameter]]


class Losses(nn.Module):
    """The loss of a micro-batch as a module's forward, which is what engines wrap.

    `reaches` says of the last one whether it depends on anything that trains: text without an image
    does not where only the connector trains.
    """

    def __init__(self, model: VisionLanguageModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.reaches = False

    def forward(self, micro: Micro) -> torch.Tensor:
        """The loss summed over the targets of the micro-batch."""
        loss = self.objective.loss(micro)
        self.reaches = loss.requires_grad
        return loss


class Engine(abc.ABC):
    """`rank` of `world` processes, on `device`; what is not abstract suits one that is alone.

    The first process (`is_main`) writes all files but sharded checkpoints, and it alone speaks.
    `suffix` is that of checkpoints inside a stage.
    """

    rank = 0
    world = 1
    suffix = ".pt"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def model_for(self, model: VisionLanguageModel) -> VisionLanguageModel:
        """What a stage is to train, on the device: the very model, or a copy that `wrap` shards."""
        nn.Module.to(model, self.device)
        return model

    def losses(self, model: VisionLanguageModel, objective: Objective) -> Losses:
        """Model and objective, to be wrapped."""
        return Losses(model, objective)

    @abc.abstractmethod
    def wrap(self, losses: Losses, make: MakeOptimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """What is called in place of `losses`, and the optimizer of what trains, which `make` makes of the
        model as it is then; the model's parameters may be others from here on."""

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch, the last of its step or not."""
        del last
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a micro-batch."""
        loss.backward()

    @abc.abstractmethod
    def settle(self) -> None:
        """All gradients of the step are there; make them what one process has."""

    def norm(self, parameters: Iterable[nn.Parameter]) -> float:
        """Of the gradients of these; every process asks for the same."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return _number(nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        """Scale the gradients of the step down to `limit`; returns their norm before."""
        return _number(nn.utils.clip_grad_norm_(parameters, limit))

    def publish(self, trained: VisionLanguageModel, model: VisionLanguageModel) -> None:
        """Bring what was trained into the whole model, in every process."""
        assert trained is model, "an engine that copies the model brings it back"

    def finish(self, trained: VisionLanguageModel, model: VisionLanguageModel) -> None:
        """The stage is over: `publish`, and let go of what `wrap` put on the model."""
        self.publish(trained, model)

    def kept(self, parameter: nn.Parameter) -> torch.Tensor:
        """What a checkpoint inside the stage holds of a parameter."""
        return parameter.detach()

    def remembered(self, optimizer: torch.optim.Optimizer, named: Named) -> dict[str, Any]:
        """What a checkpoint inside the stage holds of the optimizer, by the names of parameters."""
        return state_by_name(optimizer, named)

    def like(self, parameter: nn.Parameter) -> torch.Tensor:
        """A tensor as `put` takes it: one of that shape, sharded alike."""
        return parameter

    def put(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Set a parameter to what `kept` gave, of this engine or of another."""
        with torch.no_grad():
            parameter.copy_(self.cut(value, parameter))

    def recall(
        self, optimizer: torch.optim.Optimizer, named: Named, saved: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Set the optimizer to what `remembered` gave, of this engine or of another."""
        like = dict(named)
        cut = {
            name: {
                key: self.cut(value, like[name]) if isinstance(value, torch.Tensor) else value
                for key, value in values.items()
            }
            for name, values in saved.items()
        }
        load_state(optimizer, named, cut)

    def cut(self, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """A whole tensor, of which each process keeps as much as it keeps of `like`."""
        del like
        return value

    def write(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write a checkpoint inside a stage: whole or absent.

        Raises:
            CheckpointError: it could not be written.
        """
        if self.is_main:
            write_atomically(path, state)
        self.wait()

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes."""
        return list(values)

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        return [value]

    def told(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        return value

    @abc.abstractmethod
    def wait(self) -> None:
        """Until all processes are here."""

    @abc.abstractmethod
    def close(self) -> None:
        """Leave the other processes."""


def _number(norm: torch.Tensor) -> float:
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


class EngineConfig(ComponentConfig):
    """Base of all engines; `shards` says whether a process holds only its share of optimizer states, and
    `compiles` whether layers may go through torch.compile."""

    family: ClassVar[str] = "engine"
    shards: ClassVar[bool] = False
    compiles: ClassVar[bool] = True
    table: ClassVar[Mapping[str, str]] = {
        "one": "medloupe.train.engines.one:OneConfig",
        "ddp": "medloupe.train.engines.ddp:DdpConfig",
        "fsdp2": "medloupe.train.engines.fsdp2:Fsdp2Config",
        "deepspeed": "medloupe.train.engines.deepspeed:DeepspeedConfig",
    }

    @abc.abstractmethod
    def open(self) -> Engine:
        """Join the other processes of the run, once a process.

        Raises:
            ConfigError: this process was not started as the engine needs it.
        """
