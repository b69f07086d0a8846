from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from medloupe.train.log import read_log
from medloupe.train.signals import StoppedError, listening


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("stage", "step"), [("align", 4), ("align", 12), ("tune", 7)])
def test_a_signal_saves_and_ends_the_run(
    tiny: ModuleType, lab: Any, tmp_path: Path, number: signal.Signals, stage: str, step: int
) -> None:
    """The step that follows is the last; at a stage's end its last checkpoint is the one."""

    def send(what: str, done: int, total: int) -> None:
        if what.startswith(f"train {stage}") and done == step:
            os.kill(os.getpid(), number)

    run = tiny.two_stages().with_overrides(["save_every=100"])
    lab.trainer(tmp_path / "whole", run).fit()
    out = tmp_path / "stopped"
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=f"stopped by {number.name}.*--resume"):
        lab.trainer(out, run, progress=send).fit()
    assert signal.getsignal(number) is before
    index = {"align": 0, "tune": 1}[stage]
    last = "end" if step == 12 else f"{step + 1:07d}"
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names[-1] == f"{index:02d}-{stage}-{last}.pt"
    lab.trainer(out, run).fit(resume=True)
    losses = [
        [row.get("loss") for row in read_log(p / "train.jsonl")] for p in (tmp_path / "whole", out)
    ]
    assert losses[0] == losses[1]


def test_asked_in_the_last_step_the_run_is_finished(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    def send(what: str, done: int, total: int) -> None:
        if what.startswith("train tune") and done == total:
            os.kill(os.getpid(), signal.SIGTERM)

    lab.trainer(tmp_path, tiny.two_stages(), progress=send).fit()
    assert (tmp_path / "checkpoints/01-tune-end.pt").is_file()


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Python's own handler: a shell that starts the tests in the background has interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_interrupts(interrupts: None) -> None:
    with listening() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.by == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def listen() -> None:
        with listening() as asked:
            seen.append((asked.by, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
