"""`medloupe train` in two processes, stopped by a signal, and evaluated on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "medloupe.cli")


def rows(run: Path, event: str = "step") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "train.jsonl").read_text("utf-8").splitlines()]
    return [row for row in found if row["event"] == event]


def losses(run: Path) -> list[tuple[str, int, float]]:
    return [(row["stage"], row["step"], row["loss"]) for row in rows(run)]


def test_a_signal_ends_a_run_with_its_own_code_and_another_goes_on(
    finished: Path, medloupe: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["train", finished / "my.yaml", "--data", finished / "run/data", "--out", run]
    with subprocess.Popen(
        [*COMMAND, *map(str, words)], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "train instruct" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 75, "".join(said)
    assert "stopped by SIGTERM; a checkpoint is written. Go on with --resume" in "".join(said)
    done = len(losses(run))
    assert 4 < done < 28
    assert (run / f"checkpoints/01-instruct-{done - 4:07d}.pt").is_file()
    assert not (run / "model").exists()
    medloupe(*words, "--resume", "--set", "train.prefetch=0")
    assert losses(run) == losses(finished / "run")
    assert (run / "model/model.safetensors").read_bytes() == (
        finished / "run/model/model.safetensors"
    ).read_bytes()


def test_torchrun_trains_in_two_processes(
    finished: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """Prepared, checked and trained; the first process alone speaks and writes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["train", finished / "my.yaml", "--out", tmp_path]
    changes = ["train.engine=ddp", "train.stages.instruct.steps=6"]
    changed = [word for change in changes for word in ("--set", change)]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "medloupe.cli", *map(str, words), *changed],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 1
    assert done.stdout.count("rows and") == 1
    assert [row[:2] for row in losses(tmp_path)] == [("ground", n) for n in range(1, 5)] + [
        ("instruct", n) for n in range(1, 7)
    ]
    assert (tmp_path / "model/model.safetensors").is_file()
    assert "engine:\n    name: ddp" in (tmp_path / "model/run.yaml").read_text("utf-8")


def test_a_run_evaluates_on_the_way_and_stops_early(
    finished: Path, medloupe: Any, tmp_path: Path
) -> None:
    """A metric that cannot rise: after the first evaluation and two more the stage is over."""
    changes = [
        "train.evaluate_every=2",
        "train.evaluate_limit=1",
        "train.stages.instruct.best.metric=presence/closed_accuracy.strict",
        "train.stages.instruct.best.patience=2",
        "train.stages.instruct.learning_rate=1e-12",
    ]
    words = [word for change in changes for word in ("--set", change)]
    train = ["train", finished / "my.yaml", "--data", finished / "run/data", "--out", tmp_path]
    medloupe(*train, *words)
    metrics = rows(tmp_path, "metrics")
    assert [(row["stage"], row["step"]) for row in metrics] == [
        *(("ground", step) for step in (2, 4)),
        *(("instruct", step) for step in (2, 4, 6)),
    ]
    assert all(0 <= row["presence/closed_accuracy.strict"] <= 1 for row in metrics)
    assert len(losses(tmp_path)) == 4 + 6
    assert (tmp_path / "checkpoints/01-instruct-0000002.best.pt").is_file()
