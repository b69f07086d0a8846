"""Calibration and abstention by hand, and by definition with every row written out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve

from medloupe.evaluate.scorers.base import Scorer, SetScorer
from medloupe.evaluate.scorers.calibration import Aurc, Ece, bins_of
from medloupe.types import Box, EvalRow


def row(truth: str = "yes", **fields: object) -> EvalRow:
    return EvalRow.parse(
        {
            "id": "r1",
            "patient_id": "p1",
            "task": "presence",
            "template": "",
            "answer_type": "closed",
            "images": (),
            "question": "?",
            "truth": truth,
            "prediction": "yes",
            "options": ("yes", "no"),
            **fields,
        }
    )


def answered(confidence: float, right: bool) -> EvalRow:
    """Sure by options and by answer alike, for confidences of 0.5 and more."""
    truth = "yes" if right else "no"
    return row(truth, confidence=confidence, option_probs=(confidence, 1 - confidence))


HAND = [answered(0.95, True), answered(0.95, False), answered(0.55, True)]
NAMES = ("ece", "ece_adaptive", "aurc", "accuracy_at_80", "accuracy_at_50")


def scorer(name: str) -> SetScorer:
    found = Scorer.parse(name)
    assert isinstance(found, SetScorer)
    return found


def score(name: str, rows: list[EvalRow], *weights: int) -> float:
    counted = np.array([weights or (1,) * len(rows)], dtype=np.int64)
    return float(scorer(name).collect(rows).score(counted)[0])


def drawn(number: int, seed: int) -> list[EvalRow]:
    """Confidences that many rows share."""
    rng = np.random.default_rng(seed)
    sure = np.round(rng.uniform(0.5, 1, number), 1)
    return [answered(float(c), bool(rng.random() < c)) for c in sure]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # |0.95 + 0.95 - 1| in the last bin, |0.55 - 1| in another, over 3.
        ("ece", (0.9 + 0.45) / 3),
        # Risks 1/2 (either row may be first), 1/2 and 1/3.
        ("aurc", (1 / 2 + 1 / 2 + 1 / 3) / 3),
        ("accuracy_at_80", 2 / 3),
        ("accuracy_at_50", 1 / 2),
    ],
)
@pytest.mark.parametrize("reading", ["options", "answer"])
def test_three_rows_by_hand(name: str, value: float, reading: str) -> None:
    assert score(f"{name}.{reading}", HAND) == pytest.approx(value, abs=1e-12)


def test_a_row_drawn_twice_counts_twice() -> None:
    assert score("ece.options", HAND, 1, 0, 2) == pytest.approx((0.05 + 0.9) / 3)
    # Once right at 0.95, then two right: nothing is wrong.
    assert score("aurc.options", HAND, 1, 0, 2) == 0
    # Wrong twice of three at 0.95: 2/3 at every k, then 2 of 4.
    assert score("aurc.options", HAND, 1, 2, 1) == pytest.approx((3 * 2 / 3 + 1 / 2) / 4)
    assert score("accuracy_at_80.options", HAND, 1, 2, 1) == pytest.approx(1 / 2)
    assert score("accuracy_at_50.options", HAND, 1, 2, 1) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("probs", "truth", "binary", "multi"),
    [
        ((0.9, 0.1), "yes", 0.01, 0.01),
        ((0.9, 0.1), "no", 0.81, 0.81),
        ((0.25, 0.75), "no", 0.0625, 0.0625),
    ],
)
def test_the_brier_score_by_hand(
    probs: tuple[float, ...], truth: str, binary: float, multi: float
) -> None:
    rows = [row(truth, option_probs=probs)]
    assert score("brier.binary", rows) == pytest.approx(binary)
    assert score("brier.multi_class", rows) == pytest.approx(multi)


def test_the_brier_score_of_a_choice_is_at_most_1() -> None:
    sides = ("left", "right", "both")
    rows = [row("left", options=sides, option_probs=(0.0, 1.0, 0.0))]
    assert score("brier.multi_class", rows) == 1.0
    rows = [row("left", options=sides, option_probs=(0.5, 0.3, 0.2))]
    assert score("brier.multi_class", rows) == pytest.approx((0.25 + 0.09 + 0.04) / 2)
    assert scorer("brier.binary").judge(rows[0]) == (None, "the options are not yes and no")


def test_bins_are_open_below() -> None:
    edges = np.linspace(0, 1, 16)
    found = bins_of(np.array([0.0, edges[1], np.nextafter(edges[1], 1), 1.0]), edges)
    assert found.tolist() == [0, 0, 1, 14]


def test_the_reliability_plot_is_scikit_learn_s() -> None:
    rows = drawn(300, seed=4)
    ece = scorer("ece.options")
    assert isinstance(ece, Ece)
    bins = ece.points(rows)
    confidence, right = ece.told(rows)
    accuracy, mean = calibration_curve(right, confidence, n_bins=15)
    np.testing.assert_allclose([one.accuracy for one in bins], accuracy, atol=1e-12)
    np.testing.assert_allclose([one.confidence for one in bins], mean, atol=1e-12)
    assert sum(one.rows for one in bins) == 300
    gaps = [one.rows * abs(one.accuracy - one.confidence) for one in bins]
    assert score("ece.options", rows) == pytest.approx(sum(gaps) / 300)
    assert ece.points([row()]) == []


def test_adaptive_bins_hold_equally_many_rows_and_keep_equal_confidences_together() -> None:
    spread = [answered(0.5 + n / 100, True) for n in range(45)]
    ece = scorer("ece_adaptive.options")
    assert isinstance(ece, Ece)
    assert [one.rows for one in ece.points(spread)] == [3] * 15
    rows = drawn(100, seed=5)
    assert sum(one.rows for one in ece.points(rows)) == 100
    assert len(ece.points(rows)) == 6  # 0.5, 0.6, ..., 1.0
    assert score("ece_adaptive.options", rows) == pytest.approx(
        score("ece_adaptive.options", rows[::-1]), abs=1e-15
    )


@pytest.mark.parametrize("seed", range(5))
def test_risk_and_coverage_by_definition(seed: int) -> None:
    rows = drawn(40, seed)
    weights = np.random.default_rng(seed).integers(0, 4, size=40)
    risks = by_definition(rows, weights)
    n = len(risks)
    assert score("aurc.answer", rows, *weights.tolist()) == pytest.approx(risks.mean(), abs=1e-12)
    for percent in (80, 50):
        wanted = 1 - risks[-(-n * percent // 100) - 1]
        found = score(f"accuracy_at_{percent}.answer", rows, *weights.tolist())
        assert found == pytest.approx(wanted, abs=1e-12)


def by_definition(rows: list[EvalRow], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """`[n]`: expected share of errors among the k most confident, equal ones in random order."""
    confidence = np.array([one.confidence for one in rows]).repeat(weights)
    wrong = np.array([one.truth == "no" for one in rows]).repeat(weights).astype(np.float64)
    spread = np.array([wrong[confidence == one].mean() for one in confidence])
    order = np.argsort(-confidence, kind="stable")
    return spread[order].cumsum() / np.arange(1, len(order) + 1)


def test_the_selective_risk_curve_ends_with_all_rows() -> None:
    aurc = scorer("aurc.answer")
    assert isinstance(aurc, Aurc)
    assert aurc.points(HAND) == [
        pytest.approx((2 / 3, 1 / 2, 0.95)),
        pytest.approx((1.0, 1 / 3, 0.55)),
    ]
    many = [answered(0.5 + n / 4000, n % 2 == 0) for n in range(1000)]
    assert len(aurc.points(many)) == 200
    assert aurc.points([]) == []


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_confidence_says_so(name: str) -> None:
    assert scorer(f"{name}.answer").judge(row()) == (None, "no probability of the answer")
    beyond = row(confidence=1.2)
    assert scorer(f"{name}.answer").judge(beyond)[1].endswith("is no number in 0..1")
    assert scorer(f"{name}.options").judge(row())[1] == "no probabilities of the options"
    value, reason = scorer(f"{name}.answer").judge(row("", confidence=0.5))
    assert (value, reason) == (None, "the truth has no words")


@pytest.mark.parametrize(
    ("fields", "right"),
    [
        (
            {
                "answer_type": "open",
                "options": (),
                "truth": "left lung",
                "prediction": "The left lung.",
            },
            1.0,
        ),
        ({"answer_type": "open", "options": (), "truth": "left lung", "prediction": "lung"}, 0.0),
        ({"answer_type": "box", "prediction": "", "boxes": (0, 0, 10, 8)}, 1.0),
        ({"answer_type": "box", "prediction": "", "boxes": (0, 0, 10, 4)}, 0.0),
    ],
)
def test_an_answer_of_any_kind_is_right_or_wrong(fields: dict[str, object], right: float) -> None:
    fields = dict(fields)
    edges = fields.pop("boxes", None)
    if edges is not None:
        x1, y1, x2, y2 = edges  # type: ignore[misc]
        fields["truth_boxes"] = (Box(label="", x1=0, y1=0, x2=10, y2=10),)
        fields["predicted_boxes"] = (Box(label="", x1=x1, y1=y1, x2=x2, y2=y2),)
    assert scorer("ece.answer").judge(row(**{"confidence": 0.5, **fields}))[0] == right  # type: ignore[arg-type]
