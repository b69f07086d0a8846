"""What follows from scores alone: the verdict, and which image-blind arm a model is held against."""

from __future__ import annotations

import pytest
from made_logs import BENCHMARK, made_log, made_row

from medloupe.evaluate.metrics import BLIND_ARMS, about_arm, find_metric, stronger_blind, verdict
from medloupe.types import Answer, Metric


@pytest.mark.parametrize(
    ("low", "high", "lower", "said"),
    [
        (0.1, 0.3, False, "yes"),
        (0.0, 0.3, False, "no"),
        (-0.1, 0.3, False, "no"),
        (-0.3, -0.1, False, "no"),
        (-0.3, -0.1, True, "yes"),
        (-0.3, 0.0, True, "no"),
        (-0.3, 0.1, True, "no"),
        (0.1, 0.3, True, "no"),
        (None, 0.3, False, "too few patients"),
        (-0.3, None, True, "too few patients"),
    ],
)
def test_the_whole_interval_must_lie_on_the_better_side_of_zero(
    low: float | None, high: float | None, lower: bool, said: str
) -> None:
    found = Metric(
        name="s", arm="difference", estimate=0.1, low=low, high=high, n=20, clusters=20,
        lower_is_better=lower,
    )  # fmt: skip
    assert verdict(found) == said
    assert verdict(found.model_copy(update={"estimate": None})) == "not compared"


@pytest.mark.parametrize("stronger", BLIND_ARMS)
@pytest.mark.parametrize("scorer", ["closed_accuracy.strict", "brier.binary"])
def test_the_difference_is_to_the_blind_arm_that_scores_better(scorer: str, stronger: str) -> None:
    """One arm is right 9 times in 12, the other 3 times; by the squared distance less is better."""
    right = {arm: 9 if arm == stronger else 3 for arm in BLIND_ARMS}

    def said(arm: str, number: int) -> Answer:
        if number < right[arm]:
            return Answer(text="yes", option_probs=(0.9, 0.1))
        return Answer(text="no", option_probs=(0.2, 0.8))

    rows = [
        made_row(n, "yes", option_probs=(1, 0), others={arm: said(arm, n) for arm in BLIND_ARMS})
        for n in range(12)
    ]
    log = made_log(rows, BENCHMARK.with_overrides([f"scorers.closed=[{scorer}]"]))
    found = {
        arm: find_metric(log.metrics, name=scorer, arm=arm, answer_type="closed", group="presence")
        for arm in ("model", "difference", *BLIND_ARMS)
    }
    own, difference, blind = found["model"], found["difference"], found[stronger]
    assert own is not None
    assert own.estimate is not None
    assert blind is not None
    assert blind.estimate is not None
    assert difference is not None
    assert difference.estimate == pytest.approx(own.estimate - blind.estimate)
    assert difference.note.startswith(f"against {about_arm(stronger)}")
    assert stronger_blind(metric for metric in found.values() if metric is not None) == blind
