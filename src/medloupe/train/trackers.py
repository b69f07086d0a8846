"""Where a run's figures go beside its own log: TensorBoard files, Weights & Biases, Trackio.

The log (`train.jsonl`) is always written and holds everything; a tracker gets the numbers of it. One that
cannot be opened ends the run before it begins. One that fails later is left alone for the rest of the run,
which the log says: no training is lost for a chart.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from medloupe.config import ComponentConfig
from medloupe.errors import TrainingError, import_extra
from medloupe.train.log import TrainLog, read_log

EXTRA = "track"


class Tracker(abc.ABC):
    """An open run somewhere."""

    @abc.abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The figures after `step` steps, counted over all stages."""

    @abc.abstractmethod
    def close(self) -> None:
        """Write what is still under way."""


class TrackerConfig(ComponentConfig):
    """Base of all trackers."""

    family: ClassVar[str] = "tracker"
    table: ClassVar[Mapping[str, str]] = {
        "tensorboard": "medloupe.train.trackers:TensorBoardConfig",
        "wandb": "medloupe.train.trackers:WandbConfig",
        "trackio": "medloupe.train.trackers:TrackioConfig",
    }

    @abc.abstractmethod
    def open(self, folder: Path, config: Mapping[str, Any], *, step: int) -> Tracker:
        """Begin, or go on after `step` steps. `config` is the training's; `folder` is the run's.

        Raises:
            MissingExtraError: its package is not installed.
            TrainingError: it cannot be opened (no login, no permission).
        """


class TensorBoardConfig(TrackerConfig):
    """Event files in the run's folder: `tensorboard --logdir RUN`."""

    def open(self, folder: Path, config: Mapping[str, Any], *, step: int) -> Tracker:
        import_extra("tensorboard", extra=EXTRA)
        from torch.utils.tensorboard import SummaryWriter  # imports tensorboard at once

        try:
            # figures after `step` of a run that was cut off are hidden
            writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
            writer.add_text("config", f"```json\n{json.dumps(config, indent=1)}\n```", step)
        except OSError as error:
            raise _unopened(self, error) from error
        return _TensorBoard(writer)


class WandbConfig(TrackerConfig):
    """Weights & Biases. Without a login, `mode` "offline" writes files that `wandb sync` sends later. A
    run that was stopped goes on as another run of the same group."""

    project: str = "medloupe"
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"

    def open(self, folder: Path, config: Mapping[str, Any], *, step: int) -> Tracker:
        wandb = import_extra("wandb", extra=EXTRA)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self.mode,
                name=folder.name,
                group=folder.name,
                dir=str(folder),
                config={**config, "after_step": step},
            )
        except (wandb.Error, OSError) as error:
            raise _unopened(self, error) from error
        return _Run(run, run.finish)


class TrackioConfig(TrackerConfig):
    """Trackio, whose database lies on this machine: `trackio show`."""

    project: str = "medloupe"

    def open(self, folder: Path, config: Mapping[str, Any], *, step: int) -> Tracker:
        trackio = import_extra("trackio", extra=EXTRA)
        try:
            run = trackio.init(
                project=self.project,
                name=folder.name,
                config={**config, "after_step": step},
                resume="allow",
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _unopened(self, error) from error
        return _Run(run, trackio.finish)


class _TensorBoard(Tracker):
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Run(Tracker):
    """Runs of Weights & Biases and of Trackio, which took over its interface."""

    def __init__(self, run: Any, finish: Callable[[], object]) -> None:
        self.run, self.finish = run, finish

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.finish()


class Tracked:
    """The trackers of a run, which open with its first stage, or the one that it goes on with. They get
    the numbers of the log's rows, by stage, and the number of steps over all stages."""

    def __init__(
        self, trackers: Sequence[TrackerConfig], config: Mapping[str, Any], log: TrainLog
    ) -> None:
        self.trackers, self.config, self.training_log = trackers, config, log
        self._open: dict[str, Tracker] | None = None
        self._before = 0
        self._at: dict[str, int] = {}

    def begin(self, number: int, step: int) -> None:
        """A stage goes on after `step` of its own steps.

        Raises:
            MissingExtraError, TrainingError: a tracker cannot be opened.
        """
        if not self.trackers:
            return
        rows = read_log(self.training_log.path)
        stages = {row["number"]: row["steps"] for row in rows if row["event"] == "stage"}
        self._before = sum(steps for before, steps in stages.items() if before < number)
        self._at = {"number": number, "step": step}
        if self._open is None:
            folder, after = self.training_log.path.parent, self._before + step
            self._open = {
                f"{place} {tracker.name}": tracker.open(folder, self.config, step=after)
                for place, tracker in enumerate(self.trackers, start=1)
            }

    def log(self, row: Mapping[str, Any]) -> None:
        """Pass the numbers of a row on."""
        self._at = {"number": row["number"], "step": row["step"]}
        values = dict(_numbers(row, f"{row['stage']}/"))
        self._each(lambda tracker: tracker.log(self._before + row["step"], values))

    def close(self) -> None:
        """Close those that are open."""
        self._each(lambda tracker: tracker.close())
        self._open = None

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list((self._open or {}).items()):
            try:
                do(tracker)
            # whatever somebody's client raises: the training goes on without it
            except Exception as error:
                assert self._open is not None
                del self._open[name]
                said = {"event": "tracker", **self._at, "name": name, "error": str(error)}
                self.training_log.write(said)


def _numbers(row: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name not in ("number", "step"):
            yield prefix + name, value


def _unopened(config: TrackerConfig, error: Exception) -> TrainingError:
    return TrainingError(
        f"the tracker {config.name} cannot be opened: {error}",
        field="train.trackers",
        remedy="Log in, set its mode to offline where it has one, or leave it out: train.jsonl holds all",
    )
