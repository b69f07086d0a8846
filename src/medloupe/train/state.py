"""Where a stage stands: what the loop reads and writes, and what of it a checkpoint holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from medloupe.errors import TrainingError
from medloupe.models.vlm import VisionLanguageModel
from medloupe.processing.packing import Cost
from medloupe.train.engines.base import Engine, Losses
from medloupe.train.meters.spikes import Spikes
from medloupe.train.objectives.base import Objective
from medloupe.train.optimizer import trained_parameters
from medloupe.train.order import Order
from medloupe.train.stages import StageConfig


@dataclass(kw_only=True)
class StageState:
    """What a stage needs to go on. `model` is what trains, perhaps sharded; `losses` holds it, and `call`
    is what the engine made of that. `best` is the best value of the stage's metric and its step, `worse`
    the number of evaluations since. `origin` must be equal for the rest of the stage to be the same as
    without a break."""

    number: int
    stage: StageConfig
    origin: dict[str, Any]
    model: VisionLanguageModel
    objective: Objective
    lengths: list[int]
    costs: Sequence[Cost]
    losses: Losses
    call: nn.Module
    optimizer: torch.optim.Optimizer
    order: Order
    total: int
    step: int = 0
    refused: int = 0
    seconds: float = 0.0
    reached: bool = False
    best: tuple[float, int] | None = None
    worse: int = 0
    spikes: Spikes = field(default_factory=Spikes)
    parameters: list[tuple[str, nn.Parameter]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or more would not help."""
        patience = self.stage.best.patience if self.stage.best else None
        return self.step >= self.total or (patience is not None and self.worse >= patience)

    def by_part(self) -> dict[str, list[nn.Parameter]]:
        """What trains, by the part of the model it belongs to."""
        parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.parameters:
            parts.setdefault(name.split(".", 1)[0], []).append(parameter)
        return parts

    def counts(self) -> dict[str, int]:
        """By part, how many numbers train."""
        return {
            part: sum(parameter.numel() for _, parameter in named)
            for part, named in trained_parameters(self.model).items()
        }

    def judge(self, metrics: dict[str, float]) -> bool:
        """Whether the model as it is now is the best of the stage so far, which is noted.

        Raises:
            TrainingError: the metric is not among those that were measured.
        """
        rule = self.stage.best
        if rule is None:
            return False
        if rule.metric not in metrics:
            raise TrainingError(
                f"no evaluation gives the metric {rule.metric!r}",
                field=f"train.stages.{self.stage.name}.best.metric",
                remedy=f"Choose one of: {', '.join(sorted(metrics))}",
            )
        value = metrics[rule.metric]
        if self.best is not None and not rule.beats(value, self.best[0]):
            self.worse += 1
            return False
        self.best, self.worse = (value, self.step), 0
        return True

    def saved(self, engine: Engine, random: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
        """What a checkpoint inside the stage holds; `random` are the states of all processes, which all
        take part."""
        return {
            "parameters": {name: engine.kept(parameter) for name, parameter in self.parameters},
            "optimizer": engine.remembered(self.optimizer, self.parameters),
            "random": random,
            "step": self.step,
            "refused": self.refused,
            "seconds": self.seconds,
            "best": self.best,
            "worse": self.worse,
            "origin": self.origin,
        }

    def like(self, engine: Engine) -> dict[str, torch.Tensor]:
        """What trains, as `restore` takes it of a checkpoint."""
        return {name: engine.like(parameter) for name, parameter in self.parameters}

    def restore(self, saved: dict[str, Any], engine: Engine) -> None:
        """Go on from `saved`, the random state aside."""
        self.restore_parameters(saved, engine)
        engine.recall(self.optimizer, self.parameters, saved["optimizer"])
        self.step, self.refused = saved["step"], saved["refused"]
        self.seconds, self.best, self.worse = saved["seconds"], saved["best"], saved["worse"]

    def restore_parameters(self, saved: dict[str, Any], engine: Engine) -> None:
        """Take the weights of `saved`, and nothing else."""
        for name, parameter in self.parameters:
            engine.put(parameter, saved["parameters"][name])
