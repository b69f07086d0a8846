"""The training loop. One process; `Trainer.backward` and `Trainer.update` are the seam for engines.

Reading order: `fit` runs the stages, `_run` is the loop of one stage, `_step` is one update.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medloupe.errors import CheckpointError, TrainingError
from medloupe.models.low_rank import carried_adapters, noted_adapters
from medloupe.models.vlm import VisionLanguageModel
from medloupe.train.checkpoint import CheckpointFolder, Found
from medloupe.train.log import TrainLog
from medloupe.train.lora import (
    begin_adapters,
    carry,
    changed_weights,
    check_adapters,
    end_adapters,
    train_mode,
)
from medloupe.train.objectives.base import Micro, Objective, Progress, StageContext
from medloupe.train.optimizer import build_optimizer, set_rates, trained_parameters
from medloupe.train.order import BatchOrder, CurriculumOrder, MixedRows, Order
from medloupe.train.preflight import check_parts, check_stages
from medloupe.train.stages import StageConfig, TrainConfig

Hook = Callable[[int, VisionLanguageModel], dict[str, float]]
MakeContext = Callable[[StageConfig], StageContext]


@dataclass(kw_only=True)
class StageState:
    """What a stage needs to go on: the loop reads and writes only this."""

    number: int
    stage: StageConfig
    objective: Objective
    optimizer: torch.optim.AdamW
    order: Order
    total: int
    step: int = 0
    refused: int = 0
    seconds: float = 0.0
    reached: bool = False
    parameters: list[tuple[str, nn.Parameter]] = field(default_factory=list)


class Trainer:
    """Runs the stages of a `TrainConfig` on one model.

    `context(stage)` builds the objective's inputs; `hook(step, model)` may evaluate. Logs go
    to `folder/train.jsonl`, checkpoints to `folder/checkpoints`.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        config: TrainConfig,
        folder: Path,
        context: MakeContext,
        *,
        hook: Hook | None = None,
        progress: Progress,
    ) -> None:
        self.model, self.config, self.context = model, config, context
        self.hook, self.progress = hook, progress
        self.log = TrainLog(folder / "train.jsonl")
        self.checkpoints = CheckpointFolder(folder / "checkpoints", keep=config.keep)

    def fit(self, *, resume: bool = False) -> None:
        """Run every stage, or what is left of them.

        Raises:
            CheckpointError: the run has checkpoints already and `resume` is false.
            TrainingError: a stage has no rows (said before any trains), or too many non-finite steps.
        """
        found = self.checkpoints.found()
        if found and not resume:
            raise CheckpointError(
                "this run has checkpoints already",
                file=str(self.checkpoints.folder),
                remedy="Pass --resume to go on, or choose another --out",
            )
        self._check_names(found)
        check_parts(self.config.stages, self.model.parts)
        check_adapters(
            self.config.stages,
            carried_adapters(self.model),
            quantized=self.model.config.is_quantized,
        )
        check_stages(self.config.stages, self.context)
        self._rewind_log(found[-1] if found else None)
        for number, stage in enumerate(self.config.stages):
            here = [f for f in found if f.stage == number]
            if here and here[-1].step is None:
                continue
            ends = [f for f in found if f.stage < number and f.step is None]
            if ends:
                self._load_parts(ends[-1])
            self._stage(number, stage, here[-1] if here else None)
            found = self.checkpoints.found()
        if found and not self._is_loaded(found[-1]):
            self._load_parts(found[-1])
        self.model.train(False)

    def _stage(self, number: int, stage: StageConfig, found: Found | None) -> None:
        torch.manual_seed(self.config.seed + number)
        self._freeze(stage)
        objective = stage.objective.build(self.context(stage))
        begin_adapters(self.model, stage)
        self._check_types(stage)
        train_mode(self.model)
        state = self._state(number, stage, objective)
        if found is None:
            self._log_stage(state)
        else:
            self._restore(state, found)
        self._run(state)
        end_adapters(self.model, stage)
        self.model.requires_grad_(False)
        weights = changed_weights(self.model, self.config.stages[: number + 1])
        end = {"parts": weights, "low_rank": self.model.config.low_rank}
        self.checkpoints.write(number, stage.name, None, end)
        self._loaded = (number, None)

    def _run(self, state: StageState) -> None:
        stage, accumulate, begun = state.stage, state.stage.accumulate, state.step
        while state.step < state.total:
            started = time.perf_counter()
            factor = set_rates(state.optimizer, stage, state.step, state.total)
            first = state.step * accumulate
            micros = [
                state.objective.micro(state.order.batch(first + k)) for k in range(accumulate)
            ]
            waited = time.perf_counter() - started
            loss, norm = self._step(state, micros)
            state.step += 1
            state.seconds += time.perf_counter() - started
            self._log_step(state, micros, loss, norm, factor, waited, time.perf_counter() - started)
            if state.step % self.config.save_every == 0 and state.step < state.total:
                self._save(state)
            if self.hook and self.config.evaluate_every:
                self._evaluate(state)
        if state.total and not begun and not state.reached:
            raise TrainingError(
                f"no row reaches what the stage trains ({', '.join(stage.trainable)})",
                field=f"train.stages.{stage.name}.trainable",
                remedy="Text alone reaches the language model only, grounding the encoder and the "
                "connector only; choose other parts or other rows",
            )

    def _step(self, state: StageState, micros: Sequence[Micro]) -> tuple[float, float]:
        """One update from all micro-batches; refused before the update if it is not finite."""
        state.optimizer.zero_grad(set_to_none=True)
        count = sum(micro.count for micro in micros)
        total = 0.0
        for micro in micros:
            with torch.autocast("cpu", torch.bfloat16, enabled=state.stage.precision == "bf16"):
                loss = state.objective.loss(micro) / count
            if loss.requires_grad:  # text without an image reaches nothing that only images reach
                self.backward(loss)
                state.reached = True
            total += float(loss.detach())
        parameters = [parameter for _, parameter in state.parameters]
        norm = float(nn.utils.clip_grad_norm_(parameters, state.stage.clip))
        if math.isfinite(total) and math.isfinite(norm):
            self.update(state)
            state.refused = 0
        else:
            self._refuse(state, micros, total, norm)
        return total, norm

    def backward(self, loss: torch.Tensor) -> None:
        """Where an engine hooks in its own backward."""
        loss.backward()

    def update(self, state: StageState) -> None:
        """Where an engine hooks in its own update."""
        state.optimizer.step()

    def _refuse(self, state: StageState, micros: Sequence[Micro], loss: float, norm: float) -> None:
        rows = [name for micro in micros for name in micro.batch.ids]
        state.refused += 1
        self.log.write(
            {
                "event": "refused",
                "number": state.number,
                "step": state.step + 1,
                "loss": str(loss),
                "grad_norm": str(norm),
                "rows": rows,
            }
        )
        if state.refused >= self.config.max_refused:
            raise TrainingError(
                f"{state.refused} steps in a row had a non-finite loss ({loss}) or gradient ({norm})",
                row=", ".join(rows[:8]),
                field=f"stage {state.stage.name}, step {state.step + 1}",
                remedy="Lower the learning rate, or set precision to fp32; checkpoints are good",
            )

    def _freeze(self, stage: StageConfig) -> None:
        for part in self.model.parts:
            trains = part in stage.trainable and part not in stage.adapted
            self.model.get_submodule(part).requires_grad_(trains)

    def _check_types(self, stage: StageConfig) -> None:
        for part, named in trained_parameters(self.model).items():
            for name, parameter in named:
                if parameter.dtype != torch.float32:
                    raise TrainingError(
                        f"{name} trains in {parameter.dtype}: small updates would be lost",
                        field=f"stage {stage.name}",
                        remedy="Set model.language.dtype=float32, or train it with lora",
                    )
            if part in stage.trainable and not named:
                raise TrainingError(f"{part} has nothing to train", field=f"stage {stage.name}")

    def _state(self, number: int, stage: StageConfig, objective: Objective) -> StageState:
        order, total = build_order(stage, objective, self.config.seed + number)
        named = [item for part in trained_parameters(self.model).values() for item in part]
        return StageState(
            number=number,
            stage=stage,
            objective=objective,
            optimizer=build_optimizer(self.model, stage),
            order=order,
            total=total,
            parameters=named,
        )

    def _save(self, state: StageState) -> None:
        self.checkpoints.write(
            state.number,
            state.stage.name,
            state.step,
            {
                "parameters": {name: p.detach() for name, p in state.parameters},
                "optimizer": state.optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "step": state.step,
                "refused": state.refused,
                "seconds": state.seconds,
                "origin": self._origin(state),
            },
        )

    def _origin(self, state: StageState) -> dict[str, Any]:
        """What must be equal for the rest of a stage to be the same as without a break."""
        return {
            "stage": state.stage.to_dict(),
            "seed": self.config.seed,
            "rows": len(state.objective.lengths),
        }

    def _restore(self, state: StageState, found: Found) -> None:
        saved = self.checkpoints.read(found)
        differ = [
            name for name, value in self._origin(state).items() if saved["origin"][name] != value
        ]
        if differ:
            raise CheckpointError(
                f"the run that wrote the checkpoint had another {' and '.join(differ)}",
                file=str(found.path),
                field=f"stage {state.stage.name}",
                remedy="Resume with the run's own run.yaml and data",
            )
        with torch.no_grad():
            for name, parameter in state.parameters:
                parameter.copy_(saved["parameters"][name])
        state.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        state.step, state.refused = saved["step"], saved["refused"]
        state.seconds = saved["seconds"]

    def _load_parts(self, found: Found) -> None:
        if self._is_loaded(found):
            return
        state = self.checkpoints.read(found)
        carry(self.model, noted_adapters(state))
        for part, weights in state["parts"].items():
            self.model.get_submodule(part).load_state_dict(weights, strict=False)
        self._loaded = (found.stage, found.step)

    def _is_loaded(self, found: Found) -> bool:
        return self._loaded == (found.stage, found.step)

    _loaded: tuple[int, int | None] = (-1, None)

    def _check_names(self, found: Sequence[Found]) -> None:
        """Checkpoints of other stages would be taken for these."""
        names = [stage.name for stage in self.config.stages]
        for one in found:
            if one.name not in names[one.stage : one.stage + 1]:
                raise CheckpointError(
                    f"the checkpoint is of stage {one.stage} {one.name!r}, the stages are now {names}",
                    file=str(one.path),
                    remedy="Resume with the run's own run.yaml, or choose another --out",
                )

    def _rewind_log(self, last: Found | None) -> None:
        if last is None:
            self.log.rewind(0, -1)
        elif last.step is None:
            self.log.rewind(last.stage + 1, -1)
        else:
            self.log.rewind(last.stage, last.step)

    def _evaluate(self, state: StageState) -> None:
        assert self.hook is not None
        assert self.config.evaluate_every is not None
        if state.step % self.config.evaluate_every and state.step != state.total:
            return
        self.model.train(False)
        random = torch.get_rng_state()
        metrics = self.hook(state.step, self.model)
        torch.set_rng_state(random)
        train_mode(self.model)
        row = {"event": "metrics", "number": state.number, "stage": state.stage.name}
        self.log.write({**row, "step": state.step, **metrics})

    def _log_stage(self, state: StageState) -> None:
        counts = {
            part: sum(p.numel() for _, p in named)
            for part, named in trained_parameters(self.model).items()
        }
        self.log.write(
            {
                "event": "stage",
                "number": state.number,
                "stage": state.stage.name,
                "step": 0,
                "steps": state.total,
                "rows": len(state.objective.lengths),
                "trainable": {part: number for part, number in counts.items() if number},
                "frozen": [part for part, number in counts.items() if not number],
            }
        )

    def _log_step(
        self,
        state: StageState,
        micros: Sequence[Micro],
        loss: float,
        norm: float,
        factor: float,
        waited: float,
        seconds: float,
    ) -> None:
        tokens, padding = sum(m.tokens for m in micros), sum(m.padding for m in micros)
        row: dict[str, Any] = {
            "event": "step",
            "number": state.number,
            "stage": state.stage.name,
            "step": state.step,
            "loss": loss if math.isfinite(loss) else str(loss),
            "grad_norm": norm if math.isfinite(norm) else str(norm),
            "rate": factor,
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 1),
            "padding_share": round(padding / max(tokens + padding, 1), 4),
            "data_wait_share": round(waited / seconds, 4),
            "seconds": round(state.seconds, 3),
        }
        self.log.write(row)
        self.progress(f"train {state.stage.name} (loss {loss:.3f})", state.step, state.total)


def build_order(stage: StageConfig, objective: Objective, seed: int) -> tuple[Order, int]:
    """The order of a stage's batches and how many steps it has."""
    mixed = MixedRows(stage.mixture, objective.names) if stage.mixture else None
    order = BatchOrder(objective.lengths, stage.batch_size, seed, mixed)
    total = stage.steps or math.ceil(stage.epochs * order.per_epoch / stage.accumulate)
    if stage.curriculum is None:
        return order, total
    ramp = round(stage.curriculum.share * total) * stage.accumulate
    ease = objective.ease(stage.curriculum.attribute)
    return CurriculumOrder(order, ease, ramp, stage.curriculum), total
