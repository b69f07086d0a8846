"""The best checkpoint of a stage by a metric, early stopping, and both over a break."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from medloupe.errors import CheckpointError, ConfigError, TrainingError
from medloupe.train.log import read_log
from medloupe.train.stages import BestConfig, TrainConfig

# By the number of steps: the best is that of step 4, the first of two.
SCORES = {1: 0.1, 2: 0.5, 3: 0.3, 4: 0.9, 5: 0.9, 6: 0.2, 7: 0.1, 8: 0.0, 9: 1.0}


class Scores:
    """A hook that gives scores from a table and keeps the connector it was shown."""

    def __init__(self, sign: float = 1.0) -> None:
        self.sign, self.seen = sign, {}

    def __call__(self, step: int, model: Any) -> dict[str, float]:
        self.seen[step] = {n: t.clone() for n, t in model.connector.state_dict().items()}
        return {"accuracy": self.sign * SCORES[step], "other": 0.0}


def config(tiny: ModuleType, **best: Any) -> TrainConfig:
    rule = {"metric": "accuracy"} | best
    stage = tiny.language_stage(steps=9, best=rule)
    return TrainConfig(stages=(stage,), evaluate_every=1, save_every=3)


def steps(out: Path) -> list[float]:
    return [row["loss"] for row in read_log(out / "train.jsonl") if row["event"] == "step"]


def connector(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    named = state["parameters"]
    return {name.removeprefix("connector."): tensor for name, tensor in named.items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


@pytest.mark.parametrize(("mode", "sign"), [("max", 1.0), ("min", -1.0)])
@pytest.mark.parametrize("restore", [False, True])
def test_patience_ends_the_stage_and_the_best_is_kept(
    tiny: ModuleType, lab: Any, tmp_path: Path, mode: str, sign: float, restore: bool
) -> None:
    run, hook = config(tiny, mode=mode, patience=3, restore=restore), Scores(sign)
    trainer = lab.trainer(tmp_path, run, hook=hook)
    trainer.fit()
    assert len(steps(tmp_path)) == 7  # 5, 6 and 7 are no better than 4
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["00-tune-0000004.best.pt", "00-tune-end.pt"]
    best = trainer.checkpoints.best(0)
    state = trainer.checkpoints.read(best)
    assert state["best"] == (sign * 0.9, 4)
    assert equal(connector(state), hook.seen[4])
    ended = dict(trainer.model.connector.state_dict())
    assert equal(ended, hook.seen[4 if restore else 7])
    end = trainer.checkpoints.read(trainer.checkpoints.found()[-1])
    assert equal(end["parts"]["connector"], ended)


def test_without_patience_all_steps_are_done(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    lab.trainer(tmp_path, config(tiny), hook=Scores()).fit()
    assert len(steps(tmp_path)) == 9
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["00-tune-0000009.best.pt", "00-tune-end.pt"]


class StopError(Exception):
    """Leaves the loop as an interrupt does."""


@pytest.mark.parametrize("at", [4, 5, 7])
def test_a_broken_run_knows_the_best_and_how_long_ago_it_was(
    tiny: ModuleType, lab: Any, tmp_path: Path, at: int
) -> None:
    """Broken in the evaluation of a step: the checkpoint of that step is not there yet."""
    run = config(tiny, patience=3, restore=True)
    whole = lab.trainer(tmp_path / "whole", run, hook=Scores())
    whole.fit()

    class Broken(Scores):
        def __call__(self, step: int, model: Any) -> dict[str, float]:
            if step == at:
                raise StopError
            return super().__call__(step, model)

    with pytest.raises(StopError):
        lab.trainer(tmp_path / "cut", run, hook=Broken()).fit()
    again = lab.trainer(tmp_path / "cut", run, hook=Scores())
    again.fit(resume=True)
    assert steps(tmp_path / "cut") == steps(tmp_path / "whole")
    assert equal(dict(again.model.state_dict()), dict(whole.model.state_dict()))
    names = [
        sorted(p.name for p in (tmp_path / n / "checkpoints").iterdir()) for n in ("whole", "cut")
    ]
    assert names[0] == names[1]


def test_a_best_from_the_future_is_dropped(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    """A run that goes on from step 3 has not yet seen how good step 4 was."""
    trainer = lab.trainer(tmp_path, config(tiny), hook=Scores())
    folder = trainer.checkpoints
    folder.write(0, "tune", 2, {}, best=True)
    folder.write(0, "tune", 3, {})
    folder.write(0, "tune", 4, {}, best=True)
    assert [path.name for path in sorted(folder.folder.iterdir())] == [
        "00-tune-0000002.best.pt",  # a run that goes on from step 3 may find no better
        "00-tune-0000003.pt",
        "00-tune-0000004.best.pt",
    ]
    assert folder.best(0).step == 4
    folder.rewind(folder.found()[-1])
    assert folder.best(0).step == 2
    assert folder.found()[-1].step == 3


def test_what_cannot_be_chosen_by_is_said(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    run = config(tiny, metric="acuracy")
    with pytest.raises(TrainingError, match=r"best\.metric.*'acuracy'.*accuracy, other"):
        lab.trainer(tmp_path / "a", run, hook=Scores()).fit()
    with pytest.raises(ConfigError, match="nothing evaluates"):
        lab.trainer(tmp_path / "b", run).fit()
    assert not (tmp_path / "b").exists()
    with pytest.raises(ValueError, match="set evaluate_every"):
        TrainConfig(stages=run.stages)
    assert BestConfig(metric="a").beats(2.0, 1.0)
    assert not BestConfig(metric="a", mode="min").beats(2.0, 1.0)


def test_a_break_after_a_later_best_goes_on_with_the_earlier_one(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    """The later best is trained again after a break, and need not come out as good."""
    stage = tiny.language_stage(steps=8, best={"metric": "accuracy", "restore": True})
    run = TrainConfig(stages=(stage,), evaluate_every=2, save_every=4)

    def first(step: int, _: Any) -> dict[str, float]:
        if step == 8:
            raise KeyboardInterrupt
        return {"accuracy": {2: 0.5, 4: 0.4, 6: 0.9}[step]}

    with pytest.raises(KeyboardInterrupt):
        lab.trainer(tmp_path, run, hook=first).fit()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [
        "00-tune-0000002.best.pt",
        "00-tune-0000004.pt",
        "00-tune-0000006.best.pt",
    ]
    shown: dict[int, dict[str, torch.Tensor]] = {}

    def second(step: int, model: Any) -> dict[str, float]:
        shown[step] = {n: t.clone() for n, t in model.connector.state_dict().items()}
        return {"accuracy": 0.1}

    trainer = lab.trainer(tmp_path, run, hook=second)
    trainer.fit(resume=True)
    ended = dict(trainer.model.connector.state_dict())
    assert not equal(ended, shown[8])
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "00-tune-0000002.best.pt",
        "00-tune-end.pt",
    ]


def test_a_best_checkpoint_that_is_gone_is_named(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    def hook(step: int, _: Any) -> dict[str, float]:
        if step == 9:
            (tmp_path / "checkpoints/00-tune-0000004.best.pt").unlink()
        return {"accuracy": SCORES[step] if step < 9 else 0.0}

    with pytest.raises(CheckpointError, match="after step 4, is gone"):
        lab.trainer(tmp_path, config(tiny, restore=True), hook=hook).fit()


def test_nothing_of_a_finished_stage_stays_in_memory(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    trainer = lab.trainer(tmp_path, TrainConfig(stages=(tiny.language_stage(steps=2),)))
    trainer.fit()
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
