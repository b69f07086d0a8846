"""What a run writes of its steps, and who else hears of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from medloupe.errors import TrainingError
from medloupe.train.log import TrainLog, read_log
from medloupe.train.meters.spikes import Spikes
from medloupe.train.stages import TrainConfig
from medloupe.train.trackers import Tracked, Tracker, TrackerConfig


class Notes(Tracker):
    """Keeps what it hears; fails at a step."""

    def __init__(self, fails_at: int | None, *, closes: bool) -> None:
        self.fails_at, self.closes = fails_at, closes
        self.heard, self.closed = {}, False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.fails_at:
            raise ConnectionError("no network")
        self.heard.setdefault(step, {}).update(values)

    def close(self) -> None:
        if not self.closes:
            raise ConnectionError("no network any more")
        self.closed = True


OPENED: list[tuple[Notes, int]] = []


class NotesConfig(TrackerConfig):
    fails_at: int | None = None
    opens: bool = True
    closes: bool = True

    def open(self, folder: Path, config: Mapping[str, Any], *, step: int) -> Tracker:
        del folder, config
        if not self.opens:
            raise TrainingError("no login")
        OPENED.append((Notes(self.fails_at, closes=self.closes), step))
        return OPENED[-1][0]


@pytest.fixture(autouse=True)
def nobody_listens() -> None:
    OPENED.clear()


def stages(tiny: ModuleType) -> tuple[Any, ...]:
    return (
        tiny.language_stage(name="align", trainable=("connector",), steps=2),
        tiny.language_stage(name="both", trainable=("connector", "language_model"), steps=3),
    )


def rows(out: Path, event: str) -> list[dict[str, Any]]:
    return [row for row in read_log(out / "train.jsonl") if row["event"] == event]


def test_a_step_says_what_it_used(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    lab.trainer(tmp_path, TrainConfig(stages=stages(tiny))).fit()
    steps = rows(tmp_path, "step")
    assert all(0 < row["mfu"] < 1 for row in steps)
    assert all(2**26 < row["peak_memory_bytes"] < 2**36 for row in steps)
    assert [sorted(row.get("grad_norms", {})) for row in steps] == [
        *[[]] * 2,
        *[["connector", "language_model"]] * 3,
    ]
    for row in steps[2:]:
        whole = math.hypot(*row["grad_norms"].values())
        assert whole == pytest.approx(row["grad_norm"], rel=1e-5)


def test_trackers_hear_the_numbers_of_all_stages_in_one_count(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    trackers = (NotesConfig(), NotesConfig(fails_at=3), NotesConfig(closes=False))
    config = TrainConfig(stages=stages(tiny), trackers=trackers, evaluate_every=2)
    lab.trainer(tmp_path, config, hook=lambda step, _: {"score": step / 10}).fit()
    (whole, began), (broken, _), (late, _) = OPENED
    assert began == 0
    assert sorted(whole.heard) == [1, 2, 3, 4, 5]
    written = rows(tmp_path, "step")
    assert [whole.heard[k + 1][f"{row['stage']}/loss"] for k, row in enumerate(written)] == [
        row["loss"] for row in written
    ]
    assert whole.heard[4]["both/grad_norms/connector"] == written[3]["grad_norms"]["connector"]
    assert whole.heard[4]["both/score"] == 0.2
    assert whole.closed
    # one that fails hears no more, and the run goes on
    assert sorted(broken.heard) == [1, 2]
    assert sorted(late.heard) == [1, 2, 3, 4, 5]
    told = [(r["number"], r["step"], r["error"]) for r in rows(tmp_path, "tracker")]
    assert told == [(1, 1, "no network"), (1, 3, "no network any more")]


def test_a_resumed_run_tells_its_trackers_where_it_goes_on(tmp_path: Path) -> None:
    log = TrainLog(tmp_path / "train.jsonl")
    for number, steps in enumerate((7, 9)):
        log.write({"event": "stage", "number": number, "step": 0, "steps": steps})
    tracked = Tracked([NotesConfig()], {}, log)
    tracked.begin(1, 4)
    ((notes, step),) = OPENED
    assert step == 11
    tracked.log({"event": "step", "number": 1, "stage": "b", "step": 5, "loss": 0.5})
    assert notes.heard == {12: {"b/loss": 0.5}}


def test_a_tracker_that_cannot_be_opened_ends_the_run_before_a_step(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    config = TrainConfig(stages=stages(tiny), trackers=(NotesConfig(opens=False),))
    with pytest.raises(TrainingError, match="no login"):
        lab.trainer(tmp_path, config).fit()
    assert rows(tmp_path, "step") == []


def test_a_spike_names_its_rows(
    tiny: ModuleType, lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(self: Spikes, loss: float) -> bool:
        self._row += 1
        return self._row == 2

    monkeypatch.setattr(Spikes, "is_spike", second)
    stage = tiny.language_stage(trainable=("connector",), steps=3, batch_size=2)
    trainer = lab.trainer(tmp_path, TrainConfig(stages=(stage,)))
    trainer.fit()
    (spike,) = rows(tmp_path, "spike")
    assert (spike["step"], spike["loss"]) == (2, rows(tmp_path, "step")[1]["loss"])
    known = {row.id for row in lab.dataset.conversations}
    assert set(spike["rows"]) < known
    assert len(spike["rows"]) >= 2
