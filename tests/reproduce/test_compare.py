"""Means, intervals and verdicts from made-up logs."""

from __future__ import annotations

import numpy as np
import pytest

from medloupe.evaluate.statistics import Estimate
from medloupe.reproduce import Claim, Grid
from medloupe.reproduce.compare import Scored, compare, crossed_means, judge
from medloupe.reproduce.page import markdown, shown
from medloupe.types import EvalLog, EvalRow, Score


def log(values: dict[str, float | None]) -> EvalLog:
    """One plane question a patient, scored as given; the majority scores 0.25."""
    rows = tuple(
        EvalRow(
            id=name,
            patient_id=name,
            task="plane",
            template="plane",
            answer_type="closed",
            images=(),
            question="?",
            truth="axial",
            prediction="axial",
        )
        for name in values
    )
    scores = tuple(
        Score(id=name, scorer="closed_accuracy.strict", arm=arm, value=given, reason="none")
        for name, value in values.items()
        for arm, given in (("model", value), ("majority", 0.25))
    )
    return EvalLog(benchmark="b", version="1", manifest={}, rows=rows, scores=scores)


@pytest.fixture
def logs() -> dict[tuple[str, int], EvalLog]:
    patients = [f"p{number}" for number in range(40)]
    made = {}
    for seed in (0, 1):
        made["one", seed] = log(dict.fromkeys(patients, 0.0))
        made["two", seed] = log({p: float((n + seed) % 2) for n, p in enumerate(patients)})
    return made


def test_means_intervals_and_verdicts(
    tiny_grid: Grid, logs: dict[tuple[str, int], EvalLog]
) -> None:
    found = compare(tiny_grid, logs, (0, 1))
    cell = found.cell("two", "closed")
    assert cell is not None
    assert cell.estimate.estimate == 0.5
    assert cell.per_seed == (0.5, 0.5)
    assert (cell.patients, cell.rows) == (40, 40)
    closed, boxes = found.answers
    assert closed.verdict == "agrees"
    assert closed.difference.estimate == 0.5
    assert boxes.verdict == "not measured"
    assert found.majority == {"closed": 0.25}


def test_a_row_that_one_seed_left_unscored_counts_for_none(tiny_grid: Grid) -> None:
    one = {("one", 0): log({"a": 1.0, "b": 0.0}), ("one", 1): log({"a": 1.0, "b": None})}
    cell = compare(tiny_grid, one, (0, 1)).cell("one", "closed")
    assert cell is not None
    assert cell.rows == 1


def test_seeds_that_disagree_widen_the_interval() -> None:
    counts = np.ones((200, 3))
    equal = Scored(patients=("p",) * 200, sums_PS=counts * 0.5, counts_PS=counts)
    apart = Scored(patients=("p",) * 200, sums_PS=counts * [0.2, 0.5, 0.8], counts_PS=counts)
    assert equal.mean == pytest.approx(apart.mean)
    assert np.ptp(crossed_means(equal, 500)) < 1e-9
    # three seeds drawn from three: the spread of their mean is sqrt(0.06 / 3)
    assert crossed_means(apart, 4000).std() == pytest.approx(np.sqrt(0.06 / 3), rel=0.05)


@pytest.mark.parametrize(
    ("says", "low", "high", "verdict"),
    [
        ("more", 0.1, 0.3, "agrees"),
        ("more", -0.1, 0.3, "undecided"),
        ("more", -0.3, -0.1, "differs"),
        ("no more", 0.1, 0.3, "differs"),
        ("no more", -0.1, 0.3, "agrees"),
        ("no more", -0.3, -0.1, "agrees"),
    ],
)
def test_only_a_whole_interval_decides(says: str, low: float, high: float, verdict: str) -> None:
    claim = Claim.parse({"first": "a", "second": "b", "says": says, "paper": "-"})
    assert judge(claim, Estimate((low + high) / 2, low, high)) == verdict


def test_what_differs_is_said_and_unexplained_where_nothing_is_known(
    tiny_grid: Grid, logs: dict[tuple[str, int], EvalLog]
) -> None:
    turned = {("one", s): logs["two", s] for s in (0, 1)} | {
        ("two", s): logs["one", s] for s in (0, 1)
    }
    found = compare(tiny_grid, turned, (0, 1))
    runs = {(label, seed): "x" for label in ("one", "two") for seed in (0, 1)}
    page = markdown(found, runs, dict.fromkeys(runs, 1.0))
    assert "two above one (closed): the opposite, -50.0" in page
    assert "Unexplained." in page
    assert "Direction as in the paper: 0 of 1; the opposite: 1" in page


def test_numbers_are_percent_with_their_interval() -> None:
    assert shown(Estimate(0.5, 0.25, 0.75)) == "50.0 (25.0 to 75.0)"
    assert shown(Estimate(0.5, None, None), signed=True) == "+50.0"
    assert shown(Estimate(None, None, None)) == "-"
