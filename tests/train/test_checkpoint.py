from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from medloupe.errors import CheckpointError, TrainingError
from medloupe.train.checkpoint import CheckpointFolder, write_atomically
from medloupe.train.log import TrainLog, read_log
from medloupe.train.stages import TrainConfig


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the kernel refuses the write, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


BIG = {"weights": torch.arange(300_000, dtype=torch.float32)}


@pytest.mark.parametrize("limit", [0, 100, 5_000, 400_000, 1_199_000])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, limit: int) -> None:
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.write(0, "a", 1, {**BIG, "step": 1})
    with files_up_to(limit), pytest.raises(CheckpointError, match="could not be written") as caught:
        folder.write(0, "a", 2, {**BIG, "step": 2})
    assert "Free disk space and run again with --resume" in str(caught.value)
    assert caught.value.fault.file is not None
    assert caught.value.fault.file.endswith("00-a-0000002.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["00-a-0000001.pt"]
    state = folder.read(folder.found()[-1])
    assert state["step"] == 1
    assert torch.equal(state["weights"], BIG["weights"])
    folder.write(0, "a", 2, {**BIG, "step": 2})
    assert folder.read(folder.found()[-1])["step"] == 2


def test_a_checkpoint_is_never_replaced_by_half_of_one(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    write_atomically(path, BIG)
    before = path.read_bytes()
    with files_up_to(len(before) // 2), pytest.raises(CheckpointError):
        write_atomically(path, BIG)
    assert path.read_bytes() == before


def test_a_run_survives_a_full_disk(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    stage = tiny.language_stage(trainable=("connector", "language_model"), steps=8)
    run = TrainConfig(stages=(stage,), save_every=2, keep=1)
    lab.trainer(tmp_path / "whole", run).fit()
    out = tmp_path / "broken"
    with contextlib.ExitStack() as stack:

        def fill_up(_: str, done: int, total: int) -> None:
            if (done, total) == (5, 8):
                stack.enter_context(files_up_to(50_000))  # the log fits, a checkpoint does not

        with pytest.raises(CheckpointError, match="could not be written"):
            lab.trainer(out, run, progress=fill_up).fit()
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["00-tune-0000004.pt"]
    lab.trainer(out, run).fit(resume=True)
    losses = [
        [r.get("loss") for r in read_log(p / "train.jsonl")] for p in (tmp_path / "whole", out)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 9


def test_a_log_on_a_full_disk(tmp_path: Path) -> None:
    log = TrainLog(tmp_path / "train.jsonl")
    rows = [{"event": "step", "number": 0, "step": n, "loss": 0.5} for n in (1, 2, 3)]
    for row in rows[:2]:
        log.write(row)
    size = log.path.stat().st_size
    with files_up_to(size + 10):
        with pytest.raises(TrainingError, match="log could not be written") as caught:
            log.write(rows[2])
        assert "--resume" in str(caught.value)
        assert read_log(log.path) == rows[:2]
    with files_up_to(10), pytest.raises(TrainingError):
        log.rewind(0, 1)
    assert read_log(log.path) == rows[:2]
    log.rewind(0, 1)
    log.write(rows[2])
    assert read_log(log.path) == [rows[0], rows[2]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:3],
        lambda data: data[:1000],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda _: b"not a checkpoint at all",
        lambda data: bytes(len(data)),
        lambda data: b"\x80\x02}q\x00." + data,
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: Any) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.write(0, "a", 1, {"step": 1})
    path = folder.write(0, "a", 2, BIG)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="damaged") as caught:
        folder.read(folder.found()[-1])
    assert caught.value.fault.file == str(path)
    assert "Delete it" in str(caught.value)
    path.unlink()
    assert folder.read(folder.found()[-1]) == {"step": 1}


def test_a_run_resumes_from_the_one_before_a_damaged_one(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    stage = tiny.language_stage(steps=8)
    run = TrainConfig(stages=(stage,), save_every=2, keep=2)
    lab.trainer(tmp_path / "whole", run).fit()
    out = tmp_path / "broken"

    def stop(_: str, done: int, total: int) -> None:
        if (done, total) == (7, 8):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.trainer(out, run, progress=stop).fit()
    newest = out / "checkpoints" / "00-tune-0000006.pt"
    newest.write_bytes(newest.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="damaged"):
        lab.trainer(out, run).fit(resume=True)
    newest.unlink()
    lab.trainer(out, run).fit(resume=True)
    losses = [
        [r.get("loss") for r in read_log(p / "train.jsonl")] for p in (tmp_path / "whole", out)
    ]
    assert losses[0] == losses[1]


def test_names_and_keeping(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.found() == []
    for step in (1, 2, 10):
        folder.write(0, "a-b_c", step, {})
    (tmp_path / "00-a-b_c-0000011.partial").write_bytes(b"half")
    (tmp_path / "notes.pt").write_bytes(b"")
    assert [(f.stage, f.name, f.step) for f in folder.found()] == [
        (0, "a-b_c", 2),
        (0, "a-b_c", 10),
    ]
    folder.write(1, "d", 3, {})
    folder.write(0, "a-b_c", None, {})
    assert [(f.stage, f.step) for f in folder.found()] == [(0, None), (1, 3)]
