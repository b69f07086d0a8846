"""Whoever watches a run: hears what happens in each stage and step, and writes it down.

The figures of a step are those of all processes together; only the first process watches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medloupe.train.log import TrainLog
from medloupe.train.objectives.base import Micro, Progress
from medloupe.train.state import StageState


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """One step. `norm` is that of the gradient before clipping, `rate` the schedule's factor; in `waited`
    of its `seconds` there was no batch yet."""

    loss: float
    norm: float
    rate: float
    tokens: int
    padding: int
    waited: float
    seconds: float


class Watch:
    """Hears of all that happens, in order, and does nothing: for every process but the first."""

    def begin(self, state: StageState) -> None:
        """A stage begins; not where one goes on."""

    def refused(self, state: StageState, loss: float, norm: float, rows: Sequence[str]) -> None:
        """The step under way has a non-finite loss or gradient and is not taken; `rows` are all of it."""

    def step(self, state: StageState, micros: Sequence[Micro], figures: StepFigures) -> None:
        """A step is over and counted in `state.step`; gradients are as they were applied. `micros` are
        those of this process."""

    def metrics(self, state: StageState, metrics: Mapping[str, float]) -> None:
        """The model was evaluated after `state.step`."""


class LogWatch(Watch):
    """Writes one JSON line of each, and moves the bar."""

    def __init__(self, log: TrainLog, progress: Progress) -> None:
        self.log, self.progress = log, progress

    def begin(self, state: StageState) -> None:
        counts = state.counts()
        self.log.write(
            {
                "event": "stage",
                "number": state.number,
                "stage": state.stage.name,
                "step": 0,
                "steps": state.total,
                "rows": len(state.objective.lengths),
                "trainable": {part: count for part, count in counts.items() if count},
                "frozen": [part for part, count in counts.items() if not count],
            }
        )

    def refused(self, state: StageState, loss: float, norm: float, rows: Sequence[str]) -> None:
        self.log.write(
            {
                "event": "refused",
                "number": state.number,
                "step": state.step + 1,
                "loss": str(loss),
                "grad_norm": str(norm),
                "rows": list(rows),
            }
        )

    def step(self, state: StageState, micros: Sequence[Micro], figures: StepFigures) -> None:
        del micros
        tokens, padding = figures.tokens, figures.padding
        row: dict[str, Any] = {
            "event": "step",
            "number": state.number,
            "stage": state.stage.name,
            "step": state.step,
            "loss": _plain(figures.loss),
            "grad_norm": _plain(figures.norm),
            "rate": figures.rate,
            "tokens": tokens,
            "tokens_per_second": round(tokens / figures.seconds, 1),
            "padding_share": round(padding / max(tokens + padding, 1), 4),
            "data_wait_share": round(figures.waited / figures.seconds, 4),
            "seconds": round(state.seconds, 3),
        }
        self.log.write(row)
        doing = f"train {state.stage.name} (loss {figures.loss:.3f})"
        self.progress(doing, state.step, state.total)

    def metrics(self, state: StageState, metrics: Mapping[str, float]) -> None:
        row = {"event": "metrics", "number": state.number, "stage": state.stage.name}
        self.log.write({**row, "step": state.step, **metrics})


def _plain(value: float) -> float | str:
    """JSON has no infinities."""
    return value if math.isfinite(value) else str(value)
