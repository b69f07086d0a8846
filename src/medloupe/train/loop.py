"""The training loop. What differs with the number of processes lies in `train.engines`.

Reading order: `fit` runs the stages, `_run` is the loop of one stage, `_step` is one update.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from medloupe.errors import CheckpointError, TrainingError
from medloupe.models.low_rank import carried_adapters, noted_adapters
from medloupe.models.vlm import VisionLanguageModel
from medloupe.train.checkpoint import CheckpointFolder, Found
from medloupe.train.engines.base import Engine
from medloupe.train.log import TrainLog
from medloupe.train.lora import (
    begin_adapters,
    carry,
    changed_weights,
    check_adapters,
    end_adapters,
    train_mode,
)
from medloupe.train.machine import (
    compile_layers,
    moved,
    pinned,
    random_state,
    reseed,
    set_random_state,
)
from medloupe.train.objectives.base import Micro, Objective, Progress, StageContext
from medloupe.train.optimizer import build_optimizer, set_rates, trained_parameters
from medloupe.train.order import BatchOrder, CurriculumOrder, MixedRows, Order, portions, share
from medloupe.train.prefetch import Prefetch
from medloupe.train.preflight import check_best, check_parts, check_stages, check_trained
from medloupe.train.signals import Asked, StoppedError, listening
from medloupe.train.stages import StageConfig, TrainConfig
from medloupe.train.state import StageState
from medloupe.train.watch import LogWatch, StepFigures, Watch

Hook = Callable[[int, VisionLanguageModel], dict[str, float]]
MakeContext = Callable[[StageConfig], StageContext]
AHEAD = 2


class Trainer:
    """Runs the stages of a `TrainConfig` on one model.

    `context(stage)` builds the objective's inputs; `hook(step, model)` may evaluate: every process has
    one, and the first calls it. Logs go to `folder/train.jsonl`, checkpoints to `folder/checkpoints`.
    `engine` is what `config.open_engine()` gave; without one the trainer opens it, and a script of
    several processes closes it when all is done.
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
        engine: Engine | None = None,
    ) -> None:
        self.model, self.config, self.context, self.hook = model, config, context, hook
        self.progress = progress
        self.engine = engine or config.open_engine()
        self.log = TrainLog(folder / "train.jsonl")
        self.watch = (
            LogWatch(self.log, progress, self.engine, config) if self.engine.is_main else Watch()
        )
        self.checkpoints = CheckpointFolder(folder / "checkpoints", keep=config.keep)
        self.asked = Asked()

    def fit(self, *, resume: bool = False) -> None:
        """Run every stage, or what is left of them. SIGTERM or SIGINT end it after the step under way,
        with a checkpoint.

        Raises:
            CheckpointError: the run has checkpoints already and `resume` is false.
            TrainingError: a stage has no rows (said before any trains), or too many non-finite steps.
            StoppedError: a signal asked for it.
        """
        found = self.engine.told(self.checkpoints.found())
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
        check_best(self.config.stages, evaluates=self.hook is not None)
        self._rewind(found[-1] if found else None)
        with listening() as self.asked, closing(self.watch):
            self._fit(found)
        self.model.train(False)

    def _fit(self, found: Sequence[Found]) -> None:
        for number, stage in enumerate(self.config.stages):
            here = [f for f in found if f.stage == number]
            if here and here[-1].step is None:
                continue
            ends = [f for f in found if f.stage < number and f.step is None]
            if ends:
                self._load_parts(ends[-1])
            self._stage(number, stage, here[-1] if here else None)
            found = self.engine.told(self.checkpoints.found())
            if number + 1 < len(self.config.stages) and self._is_asked():
                raise self._stopped()
        if found and not self._is_loaded(found[-1]):
            self._load_parts(found[-1])

    def _stage(self, number: int, stage: StageConfig, found: Found | None) -> None:
        state = self._begin(number, stage)
        if found is None:
            self.watch.begin(state)
        else:
            self._restore(state, found)
            self.watch.resumed(state)
        self._run(state)
        self._end(state)

    def _run(self, state: StageState) -> None:
        begun, steps = state.step, range(state.step, state.total)
        ahead = self.config.prefetch
        if ahead is None:  # on a CPU a second thread takes its cores from the step itself
            ahead = AHEAD if self.engine.device.type == "cuda" else 0
        with Prefetch(lambda step: self._micros(state, step), steps, ahead=ahead) as batches:
            while not state.is_over:
                started = time.perf_counter()
                rate = set_rates(state.optimizer, state.stage, state.step, state.total)
                micros = [moved(micro, self.engine.device) for micro in batches.next()]
                waited = time.perf_counter() - started
                figures, stop = self._step(state, micros, rate)
                seconds = time.perf_counter() - started
                state.step, state.seconds = state.step + 1, state.seconds + seconds
                self.watch.step(state, replace(figures, waited=waited, seconds=seconds))
                if state.spikes.is_spike(figures.loss):
                    self.watch.spiked(state, figures.loss, self._rows(micros))
                if self._is_due(self.config.evaluate_every, state) and self.hook:
                    with batches.paused():
                        self._evaluate(state)
                stop = stop and not state.is_over
                if stop or (state.step % self.config.save_every == 0 and not state.is_over):
                    self._save(state)
                if stop:
                    raise self._stopped()
        if state.total and not begun and not state.reached:
            raise TrainingError(
                f"no row reaches what the stage trains ({', '.join(state.stage.trainable)})",
                field=f"train.stages.{state.stage.name}.trainable",
                remedy="Text alone reaches the language model only, grounding the encoder and the "
                "connector only; choose other parts or other rows",
            )

    def _step(
        self, state: StageState, micros: Sequence[Micro], rate: float
    ) -> tuple[StepFigures, bool]:
        """One update from all micro-batches of all processes; refused before the update if it is not
        finite. Also whether any process was asked to stop."""
        state.optimizer.zero_grad(set_to_none=True)
        (count,) = self.engine.sums([sum(micro.count for micro in micros)])
        total = 0.0
        mine = [sum(micro.tokens for micro in micros), sum(micro.padding for micro in micros)]
        with self.watch.counting(state, mine[0]):
            for number, micro in enumerate(micros, 1):
                with self.engine.accumulating(last=number == len(micros)):
                    loss = self._loss(state, micro, count)
                    self.backward(loss)
                state.reached |= state.losses.reaches
                total += float(loss.detach())
        norm, norms = self._clip(state)
        total, tokens, padding, reached, stop = self.engine.sums(
            [total / self.engine.world, *mine, state.reached, self.asked.by is not None]
        )
        state.reached = reached > 0
        if math.isfinite(total) and math.isfinite(norm):
            self.update(state)
            state.refused = 0
        else:
            self._refuse(state, micros, total, norm)
        figures = StepFigures(
            loss=total,
            norm=norm,
            norms=norms,
            rate=rate,
            tokens=int(tokens),
            padding=int(padding),
            waited=0.0,
            seconds=0.0,
        )
        return figures, stop > 0

    def _clip(self, state: StageState) -> tuple[float, dict[str, float]]:
        """The norm of the gradient before it is clipped, and that of each part where several train."""
        self.engine.settle()
        parts = state.by_part()
        several = parts if len(parts) > 1 else {}
        norms = {part: self.engine.norm(own) for part, own in several.items()}
        every = [parameter for _, parameter in state.parameters]
        return self.engine.clip(every, state.stage.clip), norms

    def _loss(self, state: StageState, micro: Micro, count: float) -> torch.Tensor:
        """The share that a micro-batch has in the loss of the step; engines then take the mean over
        processes, so it is as many times too large. Without a target it only keeps step with others."""
        bf16 = state.stage.precision == "bf16"
        with torch.autocast(self.engine.device.type, torch.bfloat16, enabled=bf16):
            loss: torch.Tensor = state.call(micro)
            return loss / (count / self.engine.world) if micro.count else loss * 0.0

    def backward(self, loss: torch.Tensor) -> None:
        """The gradients of one micro-batch, if it reaches anything that trains."""
        if loss.requires_grad:
            self.engine.backward(loss)

    def update(self, state: StageState) -> None:
        """Take the step."""
        state.optimizer.step()

    def _refuse(self, state: StageState, micros: Sequence[Micro], loss: float, norm: float) -> None:
        rows = self._rows(micros)
        state.refused += 1
        self.watch.refused(state, loss, norm, rows)
        if state.refused >= self.config.max_refused:
            raise TrainingError(
                f"{state.refused} steps in a row had a non-finite loss ({loss}) or gradient ({norm})",
                row=", ".join(rows[:8]),
                field=f"stage {state.stage.name}, step {state.step + 1}",
                remedy="Lower the learning rate, or set precision to fp32; checkpoints are good",
            )

    def _rows(self, micros: Sequence[Micro]) -> list[str]:
        """The names of the rows of a step, those of other processes too."""
        mine = [name for micro in micros if micro.count for name in micro.batch.ids]
        return [name for names in self.engine.gathered(mine) for name in names]

    def _micros(self, state: StageState, step: int) -> list[Micro]:
        """What this process does in a step; runs ahead, in a thread."""
        accumulate = state.stage.accumulate
        batches = [state.order.batch(step * accumulate + k) for k in range(accumulate)]
        return [
            pinned(self._micro(state, part, rows), self.engine.device)
            for rows in batches
            for part in self._parts(state, rows)
        ]

    def _parts(self, state: StageState, rows: Sequence[int]) -> list[list[int]]:
        """The rows of a batch that this process reads, part after part; every process has as many parts,
        some of them empty."""
        world, budget = self.engine.world, state.stage.micro_budget
        shares = [share(rows, state.lengths, rank, world) for rank in range(world)]
        if budget is None:
            return [shares[self.engine.rank]]
        parts = [portions(mine, state.costs, budget) for mine in shares]
        most, mine = max(map(len, parts)), parts[self.engine.rank]
        return mine + [[] for _ in range(most - len(mine))]

    def _micro(self, state: StageState, mine: Sequence[int], rows: Sequence[int]) -> Micro:
        if mine:
            return state.objective.micro(mine)
        # the others have the rows: one of them keeps this process in step, and counts nothing
        return replace(state.objective.micro(rows[:1]), count=0, tokens=0, padding=0)

    def _begin(self, number: int, stage: StageConfig) -> StageState:
        seed = self.config.seed + number
        torch.manual_seed(seed)
        self._freeze(stage)
        begin_adapters(self.model, stage)
        check_trained(self.model, stage)
        model = self.engine.model_for(self.model)
        objective = stage.objective.build(replace(self.context(stage), model=model))
        if stage.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        train_mode(model)
        losses = self.engine.losses(model, objective)
        call, optimizer = self.engine.wrap(losses, partial(build_optimizer, model, stage))
        if self.config.compile and not compile_layers(model, self.engine.device):
            self.progress("not compiled: there is no compiler here", 1, 1)
        if not self.engine.is_main:
            reseed(seed, 0, self.engine.rank)
        order, total = build_order(stage, objective, seed)
        lengths = list(objective.lengths)
        return StageState(
            number=number,
            stage=stage,
            origin={"stage": stage.to_dict(), "seed": self.config.seed, "rows": len(lengths)},
            model=model,
            objective=objective,
            lengths=lengths,
            costs=[] if stage.micro_budget is None else objective.costs(),
            losses=losses,
            call=call,
            optimizer=optimizer,
            order=order,
            total=total,
            parameters=[item for part in trained_parameters(model).values() for item in part],
        )

    def _end(self, state: StageState) -> None:
        stage = state.stage
        best = self.engine.told(self.checkpoints.best(state.number))
        if stage.best is not None and stage.best.restore and state.best is not None:
            if best is None:
                raise CheckpointError(
                    f"the best checkpoint of stage {stage.name}, after step {state.best[1]}, is gone",
                    file=str(self.checkpoints.folder),
                    remedy="Train the stage again in another --out, or set its best.restore to false",
                )
            saved = self.checkpoints.read(best, state.like(self.engine))
            state.restore_parameters(saved, self.engine)
        state.optimizer.zero_grad(set_to_none=True)
        self.engine.finish(state.model, self.model)
        if stage.checkpointing:
            self.model.activation_checkpointing_disable()  # type: ignore[no-untyped-call]
        end_adapters(self.model, stage)
        self.model.requires_grad_(False)
        if self.engine.is_main:
            weights = changed_weights(self.model, self.config.stages[: state.number + 1])
            end = {"parts": weights, "low_rank": self.model.config.low_rank}
            self.checkpoints.write(state.number, stage.name, None, end)
        self.engine.wait()
        self._loaded = (state.number, None)

    def _freeze(self, stage: StageConfig) -> None:
        for part in self.model.parts:
            trains = part in stage.trainable and part not in stage.adapted
            self.model.get_submodule(part).requires_grad_(trains)

    def _evaluate(self, state: StageState) -> None:
        assert self.hook is not None
        self.engine.publish(state.model, self.model)
        self.model.train(False)
        random = random_state()
        found = self.hook(state.step, self.model) if self.engine.is_main else None
        metrics: dict[str, float] = self.engine.told(found)
        set_random_state(random)
        train_mode(state.model)
        self.watch.metrics(state, metrics)
        if state.judge(metrics):
            self._save(state, best=True)

    @staticmethod
    def _is_due(every: int | None, state: StageState) -> bool:
        return every is not None and (state.step % every == 0 or state.step == state.total)

    def _save(self, state: StageState, *, best: bool = False) -> None:
        number, name, suffix = state.number, state.stage.name, self.engine.suffix
        path = self.checkpoints.path(number, name, state.step, suffix, best=best)
        self.engine.write(path, state.saved(self.engine, self.engine.gathered(random_state())))
        if self.engine.is_main:
            self.checkpoints.prune(number, finished=False)

    def _restore(self, state: StageState, found: Found) -> None:
        saved = self.checkpoints.read(found, state.like(self.engine))
        differ = [name for name, value in state.origin.items() if saved["origin"][name] != value]
        if differ:
            raise CheckpointError(
                f"the run that wrote the checkpoint had another {' and another '.join(differ)}",
                file=str(found.path),
                field=f"stage {state.stage.name}",
                remedy="Resume with the run's own run.yaml and data",
            )
        state.restore(saved, self.engine)
        if self.engine.rank < len(saved["random"]):
            set_random_state(saved["random"][self.engine.rank])
        else:
            reseed(self.config.seed + state.number, state.step, self.engine.rank)

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

    def _rewind(self, last: Found | None) -> None:
        if self.engine.is_main:
            self.checkpoints.rewind(last)
            if last is None:
                self.log.rewind(0, -1)
            elif last.step is None:
                self.log.rewind(last.stage + 1, -1)
            else:
                self.log.rewind(last.stage, last.step)
        self.engine.wait()

    def _is_asked(self) -> bool:
        """Whether any process was asked to stop."""
        return self.engine.sums([self.asked.by is not None])[0] > 0

    def _stopped(self) -> StoppedError:
        return StoppedError(
            f"stopped by {self.asked.by or 'a signal to another process'}; a checkpoint is written",
            file=str(self.checkpoints.folder),
            remedy="Go on with --resume",
        )


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
