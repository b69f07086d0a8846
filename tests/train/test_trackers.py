"""Trackers, each written by its own package and read back by it."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import sys
from pathlib import Path

import pytest

from medloupe.errors import MissingExtraError
from medloupe.train.trackers import TrackerConfig


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"{package} is not installed: pip install 'medloupe[track]'",
    )


def scalars(folder: Path, name: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


@needs("tensorboard")
def test_tensorboard_reads_what_was_logged_and_a_resumed_run_replaces_the_rest(
    tmp_path: Path,
) -> None:
    config = TrackerConfig.parse({"name": "tensorboard"})
    first = config.open(tmp_path, {}, step=0)
    for step in (1, 2, 3):
        first.log(step, {"loss": 1.0 / step, "grad_norm": 2.0})
    first.close()
    assert scalars(tmp_path, "loss") == pytest.approx({1: 1.0, 2: 0.5, 3: 1 / 3})
    resumed = config.open(tmp_path, {}, step=2)  # the checkpoint was after step 2
    resumed.log(3, {"loss": 7.0})
    resumed.close()
    assert scalars(tmp_path, "loss") == pytest.approx({1: 1.0, 2: 0.5, 3: 7.0})


@needs("wandb")
def test_wandb_writes_a_run_that_can_be_sent_later(tmp_path: Path) -> None:
    import wandb

    tracker = TrackerConfig.parse({"name": "wandb", "mode": "offline"}).open(
        tmp_path / "run7", {"seed": 3}, step=0
    )
    tracker.log(1, {"loss": 0.25})
    tracker.log(2, {"loss": 0.015625})
    tracker.close()
    wandb.teardown()  # its service writes in a process of its own; this waits for the end of it
    (file,) = (tmp_path / "run7").rglob("*.wandb")
    written = file.read_bytes()  # records of protocol buffers, values as JSON
    assert b"loss" in written
    assert all(value in written for value in (b"0.25", b"0.015625"))


@needs("trackio")
def test_trackio_keeps_a_run_in_its_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "db"))
    tracker = TrackerConfig.parse({"name": "trackio", "project": "p"}).open(
        tmp_path / "run8", {"seed": 3}, step=0
    )
    tracker.log(1, {"loss": 0.25})
    tracker.close()
    (file,) = (tmp_path / "db").glob("p*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    assert [(name, step) for name, step, _ in rows] == [("run8", 1)]
    assert json.loads(rows[0][2])["loss"] == 0.25


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_named_with_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"medloupe\[track\]"):
        TrackerConfig.parse({"name": name}).open(tmp_path, {}, step=0)
