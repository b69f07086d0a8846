"""Each run once, a kill costs at most the run it hits, and nothing is tuned after the first result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from medloupe.errors import ConfigError, PromptError
from medloupe.evaluate.log import read_log
from medloupe.reproduce import Grid, Reproduction
from medloupe.reproduce.ledger import Entry, Ledger
from medloupe.train.log import read_log as read_training


class Killed(BaseException):
    """As a kill: nothing catches it."""


class Watch:
    """Notes what is told, and kills the second run of a grid after its third step."""

    def __init__(self, *, kill: bool = False) -> None:
        self.kill, self.told, self.steps = kill, list[str](), 0

    def progress(self, what: str, done: int, _: int) -> None:
        if what.startswith("train "):
            self.steps += 1
            if self.kill and len(self.told) == 2 and done == 3:
                raise Killed

    def run(self, grid: Grid, out: Path, seeds: int = 1) -> None:
        Reproduction(
            grid, out, seeds=tuple(range(seeds)), progress=self.progress, tell=self.told.append
        ).run()


@pytest.fixture(scope="module")
def whole(tiny_grid: Grid, begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of it, without a break."""
    out = shutil.copytree(begun, tmp_path_factory.mktemp("runner") / "whole")
    Watch().run(tiny_grid, out)
    return out


@pytest.fixture(scope="module")
def broken(tiny_grid: Grid, begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed in the second of two runs."""
    out = shutil.copytree(begun, tmp_path_factory.mktemp("runner") / "broken")
    with pytest.raises(Killed):
        Watch(kill=True).run(tiny_grid, out)
    return out


def test_a_killed_grid_goes_on_where_it_stopped(tiny_grid: Grid, whole: Path, broken: Path) -> None:
    first, second = (broken / "runs" / tiny_grid.key(label, 0) for label in ("one", "two"))
    assert [entry.label for entry in Ledger(broken / "ledger.jsonl").entries()] == ["one"]
    trained = (first / "train.jsonl").stat().st_mtime_ns
    again = Watch()
    again.run(tiny_grid, broken)
    assert again.told[0] == "[1/2] one, seed 0: finished before"
    assert again.told[1].startswith("[2/2] two, seed 0 (about 0 min left")
    assert again.steps == 2, "the checkpoint of step 2 was used"
    assert (first / "train.jsonl").stat().st_mtime_ns == trained
    for label in ("one", "two"):
        key = tiny_grid.key(label, 0)
        rows = [read_training(out / "runs" / key / "train.jsonl") for out in (whole, broken)]
        losses = [[row["loss"] for row in log if row["event"] == "step"] for log in rows]
        assert losses[0] == losses[1]
        logs = [read_log(out / "runs" / key / "eval.jsonl") for out in (whole, broken)]
        assert logs[0].rows == logs[1].rows
    assert (second / "report.html").is_file()
    assert not (second / "checkpoints").exists()
    once_more = Watch()
    once_more.run(tiny_grid, broken)
    assert once_more.steps == 0


def test_runs_side_by_side_are_the_same_runs(
    tiny_grid: Grid, begun: Path, whole: Path, tmp_path: Path
) -> None:
    """Row two begins with row one, so it waits for it."""
    out, told = shutil.copytree(begun, tmp_path / "beside"), list[str]()
    Reproduction(
        tiny_grid, out, seeds=(0, 1), progress=lambda *_: None, tell=told.append, processes=2
    ).run()
    assert [line.partition(" (about")[0] for line in told[:2]] == [
        "[1/4] one, seed 0",
        "[3/4] one, seed 1",
    ]
    entries = Ledger(out / "ledger.jsonl").entries()
    assert len({(entry.label, entry.seed) for entry in entries}) == len(entries) == 4
    for label in ("one", "two"):
        key = tiny_grid.key(label, 0)
        logs = [read_log(folder / "runs" / key / "eval.jsonl") for folder in (whole, out)]
        # one thread here, all of them there: equal up to the last bits
        assert [row.id for row in logs[0].rows] == [row.id for row in logs[1].rows]
        losses = [
            [row["loss"] for row in read_training(folder / "runs" / key / "train.jsonl")
             if row["event"] == "step"]
            for folder in (whole, out)
        ]  # fmt: skip
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_run_that_fails_leaves_the_one_beside_it(
    tiny_grid: Grid, begun: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(begun, tmp_path / "failing")
    bad = tiny_grid.rows[0].model_copy(
        update={"label": "bad", "overrides": ("processor.max_length=2",)}
    )
    grid = tiny_grid.model_copy(update={"rows": (bad, *tiny_grid.rows), "claims": ()})
    with pytest.raises(PromptError, match="the limit is 2"):
        Reproduction(
            grid, out, seeds=(0,), progress=lambda *_: None, tell=lambda _: None, processes=2
        ).run()
    assert [entry.label for entry in Ledger(out / "ledger.jsonl").entries()] == ["one"]


def test_the_results_say_what_was_found_and_where(tiny_grid: Grid, whole: Path) -> None:
    page = (whole / "tiny" / "results.md").read_text()
    assert "answers Table 0" in page
    assert "two above one" in page
    for label in ("one", "two"):
        link = f"../runs/{tiny_grid.key(label, 0)}/report.html"
        assert f"[report]({link})" in page
        assert (whole / "tiny" / link).is_file()
    manifest = json.loads((whole / "tiny" / "manifest.json").read_text())
    assert Grid.parse(manifest["grid"]) == tiny_grid
    assert manifest["rows_fingerprint"] == tiny_grid.rows_fingerprint()


def test_the_second_row_began_with_the_first_one(tiny_grid: Grid, whole: Path) -> None:
    manifest = json.loads(
        (whole / "runs" / tiny_grid.key("two", 0) / "model" / "manifest.json").read_text()
    )
    assert "start" in manifest


def test_another_grid_takes_over_what_has_run(tiny_grid: Grid, whole: Path) -> None:
    other = tiny_grid.model_copy(update={"name": "other", "rows": tiny_grid.rows[:1], "claims": ()})
    watch = Watch()
    watch.run(other, whole)
    assert watch.steps == 0
    assert {entry.grid for entry in Ledger(whole / "ledger.jsonl").entries()} == {"tiny", "other"}


def test_rows_with_a_result_do_not_change(tiny_grid: Grid, whole: Path) -> None:
    tuned = tiny_grid.rows[1].model_copy(update={"overrides": ("train.stages.align.steps=5",)})
    changed = tiny_grid.model_copy(update={"rows": (tiny_grid.rows[0], tuned)})
    with pytest.raises(ConfigError, match="have changed since"):
        Watch().run(changed, whole)
    turned = tiny_grid.claims[0].model_copy(update={"says": "no more"})
    with pytest.raises(ConfigError, match="have changed since"):
        Watch().run(tiny_grid.model_copy(update={"claims": (turned,)}), whole)
    Ledger(whole / "ledger.jsonl").refuse_changed(changed.model_copy(update={"version": 2}))
    reworded = tiny_grid.claims[0].model_copy(update={"because": "It is small."})
    Ledger(whole / "ledger.jsonl").refuse_changed(
        tiny_grid.model_copy(update={"claims": (reworded,), "title": "Other words"})
    )


def test_one_process_at_a_time(tiny_grid: Grid, tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock"), pytest.raises(ConfigError, match="another process"):
        Watch().run(tiny_grid, tmp_path)


def test_a_line_that_was_cut_short_is_no_entry(tmp_path: Path) -> None:
    entry = Entry(
        grid="g", version=1, rows="r", label="a", seed=0, key="k", seconds=1.0, date="2026-01-01"
    )
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.add(entry)
    with ledger.path.open("a") as stream:
        stream.write(entry.to_json()[:20])
    assert ledger.entries() == [entry]
    ledger.add(entry)
    assert ledger.entries() == [entry, entry]


def test_the_key_follows_everything_a_run_is_made_of(tiny_grid: Grid) -> None:
    keys = {tiny_grid.key(label, seed) for label in ("one", "two") for seed in (0, 1)}
    assert len(keys) == 4
    part = tiny_grid.parts["language"].model_copy(update={"steps": 4})
    other = tiny_grid.model_copy(update={"parts": {"language": part}})
    assert other.key("one", 0) != tiny_grid.key("one", 0)
    slower = tiny_grid.rows[0].model_copy(update={"overrides": ("train.stages.align.steps=5",)})
    before = tiny_grid.model_copy(update={"rows": (slower, tiny_grid.rows[1])})
    assert before.key("two", 0) != tiny_grid.key("two", 0), "it begins with another model"
