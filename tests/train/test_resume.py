from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from medloupe.errors import CheckpointError
from medloupe.train.log import read_log


def losses(out: Path) -> list[tuple[str, int, float, float]]:
    return [
        (row["stage"], row["step"], row["loss"], row["grad_norm"])
        for row in read_log(out / "train.jsonl")
        if row["event"] == "step"
    ]


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_equal_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The killed process has one thread: the order of a sum, and so its bits, depend on how many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tiny: ModuleType, lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run without a break: its folder and its trainer."""
    out = tmp_path_factory.mktemp("whole")
    trainer = lab.trainer(out, tiny.two_stages())
    trainer.fit()
    assert len(losses(out)) == 24
    return out, trainer


def run_and_kill(tiny: ModuleType, lab: Any, out: Path, after: str) -> None:
    """Start (or resume) the run in a process and kill it once it says that step."""
    command = [sys.executable, tiny.__file__, str(lab.folder), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip() == after:
                child.kill()
                break
    assert child.returncode == -signal.SIGKILL, "the run ended before it was killed"


def test_killed_in_both_stages_and_resumed(
    tiny: ModuleType, lab: Any, whole: Any, tmp_path: Path
) -> None:
    config = tiny.two_stages()
    (tmp_path / "run.yaml").write_text(config.to_yaml(), encoding="utf-8")
    first, second = random.randint(2, 7), random.randint(1, 7)
    run_and_kill(tiny, lab, tmp_path, f"train align {first}")
    run_and_kill(tiny, lab, tmp_path, f"train tune {second}")
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pt"))
    assert names[0] == "00-align-end.pt"
    trainer = lab.trainer(tmp_path, config)
    trainer.fit(resume=True)
    out, unbroken = whole
    assert losses(tmp_path) == losses(out), f"killed after {first} and {second}"
    assert_equal_bits(weights(trainer), weights(unbroken))
    events = [(r["event"], r["number"]) for r in read_log(tmp_path / "train.jsonl")]
    assert events == [("stage", 0), *[("step", 0)] * 12, ("stage", 1), *[("step", 1)] * 12]


class StopError(Exception):
    """Leaves the loop as an interrupt does."""


def stop_at(stage: str, step: int) -> Any:
    def progress(what: str, done: int, total: int) -> None:
        if what.startswith(f"train {stage}") and done == step:
            raise StopError

    return progress


@pytest.mark.parametrize(
    ("stage", "step", "kept"),
    [
        ("align", 2, []),
        ("align", 10, ["00-align-0000006.pt", "00-align-0000009.pt"]),
        ("tune", 1, ["00-align-end.pt"]),
        ("tune", 7, ["00-align-end.pt", "01-tune-0000003.pt", "01-tune-0000006.pt"]),
    ],
)
def test_stopped_anywhere_and_resumed(
    tiny: ModuleType, lab: Any, whole: Any, tmp_path: Path, stage: str, step: int, kept: list[str]
) -> None:
    with pytest.raises(StopError):
        lab.trainer(tmp_path, tiny.two_stages(), progress=stop_at(stage, step)).fit()
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.glob("*.pt")) == kept
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"event": "st')  # the line that a kill cut
    trainer = lab.trainer(tmp_path, tiny.two_stages())
    trainer.fit(resume=True)
    out, unbroken = whole
    assert losses(tmp_path) == losses(out)
    assert_equal_bits(weights(trainer), weights(unbroken))
    assert sorted(path.name for path in folder.iterdir()) == ["00-align-end.pt", "01-tune-end.pt"]


def test_resuming_a_finished_run_only_loads_it(
    tiny: ModuleType, lab: Any, whole: Any, tmp_path: Path
) -> None:
    out, unbroken = whole
    before = (out / "train.jsonl").read_bytes()
    trainer = lab.trainer(out, tiny.two_stages(), progress=stop_at("", 0))
    trainer.fit(resume=True)
    assert_equal_bits(weights(trainer), weights(unbroken))
    assert (out / "train.jsonl").read_bytes() == before
    with pytest.raises(CheckpointError, match="--resume"):
        lab.trainer(out, tiny.two_stages()).fit()


def test_a_hook_that_evaluates_changes_no_loss(
    tiny: ModuleType, lab: Any, whole: Any, tmp_path: Path
) -> None:
    seen: list[int] = []

    def hook(step: int, model: Any) -> dict[str, float]:
        seen.append(step)
        assert not model.training
        assert not any(module.training for module in model.modules())
        with torch.no_grad():
            model(input_ids=torch.ones(1, 4, dtype=torch.long))
        return {"accuracy": float(torch.rand(()) < 2)}

    trainer = lab.trainer(tmp_path, tiny.two_stages(evaluate_every=5), hook=hook)
    trainer.fit()
    out, unbroken = whole
    assert losses(tmp_path) == losses(out)
    assert_equal_bits(weights(trainer), weights(unbroken))
    assert seen == [5, 10, 12] * 2
    rows = [r for r in read_log(tmp_path / "train.jsonl") if r["event"] == "metrics"]
    assert [(r["stage"], r["step"], r["accuracy"]) for r in rows] == [
        (stage, step, 1.0) for stage in ("align", "tune") for step in (5, 10, 12)
    ]


def test_another_run_is_not_resumed(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    config = tiny.two_stages()
    with pytest.raises(StopError):
        lab.trainer(tmp_path, config, progress=stop_at("align", 4)).fit()
    log = (tmp_path / "train.jsonl").read_text()

    def resumed_with(text: str, **options: Any) -> None:
        with pytest.raises(CheckpointError, match=text) as caught:
            lab.trainer(tmp_path, options.pop("config", config), **options).fit(resume=True)
        assert "run.yaml" in str(caught.value)

    slower = config.with_overrides(["stages.0.learning_rate=1e-5"])
    resumed_with("another stage", config=slower)
    resumed_with("another seed", config=tiny.two_stages(seed=1))
    smaller = tiny.dataset(tmp_path / "data", images=4)
    resumed_with("another rows", dataset=smaller)
    first = config.stages[0].model_copy(update={"name": "first"})
    renamed = config.model_copy(update={"stages": (first, config.stages[1])})
    resumed_with("of stage 0 'align'", config=renamed)
    assert (tmp_path / "train.jsonl").read_text().splitlines() == log.splitlines()[:4]
