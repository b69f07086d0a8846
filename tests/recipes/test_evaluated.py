"""What a run asks while it trains."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from medloupe.errors import DataError
from medloupe.recipes import load_run, run


def test_few_rows_that_are_not_the_tests() -> None:
    config = load_run("starter_tiny", ["train.evaluate_every=5"])
    asked = run.training_benchmark(config)
    assert (asked.split, asked.limit) == ("validation", 32)
    assert asked.tasks == config.evaluate.benchmark.tasks
    changes = ["train.evaluate_split=train", "train.evaluate_limit=3"]
    asked = run.training_benchmark(config.with_overrides(changes))
    assert (asked.split, asked.limit) == ("train", 3)


def test_nothing_to_ask_is_said_before_any_trains(tiny: ModuleType, tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path)  # every row is of the training split
    config = load_run("starter_tiny", ["train.evaluate_every=5", "evaluate.benchmark.tasks=[]"])
    with pytest.raises(DataError, match="the validation split has no rows") as caught:
        run.refuse_unevaluable(config, data)
    assert caught.value.fault.field == "train.evaluate_split"
    run.refuse_unevaluable(config.with_overrides(["train.evaluate_split=train"]), data)
    run.refuse_unevaluable(config.with_overrides(["train.evaluate_every=null"]), data)


def test_how_the_work_is_done_may_change_at_a_resume() -> None:
    config = load_run("starter_tiny").train
    free = ["engine=ddp", "prefetch=0", "compile=true", "save_every=7", "keep=5"]
    assert config.with_overrides(free).decisive() == config.decisive()
    for change in ("seed=1", "stages.0.batch_size=3", "evaluate_every=2"):
        assert config.with_overrides([change]).decisive() != config.decisive()
