"""Whoever watches a run: hears what happens in each stage and step, and writes it down.

The figures of a step are those of all processes together; only the first process watches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from medloupe.train.engines.base import Engine
from medloupe.train.log import TrainLog
from medloupe.train.meters.memory import peak_bytes
from medloupe.train.meters.work import StepWork, matmul_peak
from medloupe.train.objectives.base import Progress
from medloupe.train.stages import TrainConfig
from medloupe.train.state import StageState
from medloupe.train.trackers import Tracked


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """One step. `norm` is that of the gradient before clipping, `norms` that of each part where several
    train, `rate` the schedule's factor; in `waited` of its `seconds` there was no batch yet."""

    loss: float
    norm: float
    norms: Mapping[str, float]
    rate: float
    tokens: int
    padding: int
    waited: float
    seconds: float


class Watch:
    """Hears of all that happens, in order, and does nothing: for every process but the first."""

    def begin(self, state: StageState) -> None:
        """A stage begins."""

    def resumed(self, state: StageState) -> None:
        """A stage goes on after `state.step`."""

    def counting(self, state: StageState, tokens: int) -> AbstractContextManager[None]:
        """Around forward and backward of this process's `tokens` of a step."""
        del state, tokens
        return nullcontext()

    def refused(self, state: StageState, loss: float, norm: float, rows: Sequence[str]) -> None:
        """The step under way has a non-finite loss or gradient and is not taken; `rows` are all of it."""

    def step(self, state: StageState, figures: StepFigures) -> None:
        """A step is over and counted in `state.step`."""

    def spiked(self, state: StageState, loss: float, rows: Sequence[str]) -> None:
        """The loss of the step stands out from those before; `rows` are all of it."""

    def metrics(self, state: StageState, metrics: Mapping[str, float]) -> None:
        """The model was evaluated after `state.step`."""

    def close(self) -> None:
        """Training is over, or breaks off."""


class LogWatch(Watch):
    """Writes one JSON line of each, moves the bar, and tells the trackers."""

    def __init__(
        self, log: TrainLog, progress: Progress, engine: Engine, config: TrainConfig
    ) -> None:
        self.log, self.progress, self.engine, self.config = log, progress, engine, config
        self.tracked = Tracked(config.trackers or (), config.to_dict(), log)
        self._work, self._peak = StepWork(), 1.0

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
        self.resumed(state)

    def resumed(self, state: StageState) -> None:
        dtype = torch.bfloat16 if state.stage.precision == "bf16" else torch.float32
        self._work, self._peak = StepWork(), matmul_peak(str(self.engine.device), dtype)
        self.tracked.begin(state.number, state.step)

    def counting(self, state: StageState, tokens: int) -> AbstractContextManager[None]:
        # the counter sees neither into compiled layers nor into FlexAttention
        if self.config.compile or state.model.joins_rows:
            return nullcontext()
        return self._work.counting(tokens)

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

    def step(self, state: StageState, figures: StepFigures) -> None:
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
            "peak_memory_bytes": peak_bytes(self.engine.device),
        }
        if figures.norms:
            row["grad_norms"] = {part: _plain(norm) for part, norm in figures.norms.items()}
        used = self._work.share(tokens, figures.seconds, self._peak * self.engine.world)
        if used is not None:
            row["mfu"] = round(used, 4)
        self.log.write(row)
        self.tracked.log(row)
        doing = f"train {state.stage.name} (loss {figures.loss:.3f})"
        self.progress(doing, state.step, state.total)

    def metrics(self, state: StageState, metrics: Mapping[str, float]) -> None:
        row: dict[str, Any] = {"event": "metrics", "number": state.number}
        row |= {"stage": state.stage.name, "step": state.step, **metrics}
        self.log.write(row)
        self.tracked.log(row)

    def spiked(self, state: StageState, loss: float, rows: Sequence[str]) -> None:
        row = {"event": "spike", "number": state.number, "stage": state.stage.name}
        self.log.write({**row, "step": state.step, "loss": loss, "rows": list(rows)})

    def close(self) -> None:
        self.tracked.close()


def _plain(value: float) -> float | str:
    """JSON has no infinities."""
    return value if math.isfinite(value) else str(value)
