"""Rankings by hand; scikit-learn's are compared in test_set_metric_parity."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medloupe.evaluate.scorers.base import Scorer, SetScorer
from medloupe.evaluate.scorers.closed import option_of
from medloupe.evaluate.scorers.ranking import finding_of
from medloupe.types import EvalRow

YES_NO = ("yes", "no")


def row(
    truth: str, probs: tuple[float, ...], options: tuple[str, ...] = YES_NO, **fields: object
) -> EvalRow:
    return EvalRow.parse(
        {
            "id": "r1",
            "patient_id": "p1",
            "task": "presence",
            "template": "presence/edema/en",
            "answer_type": "closed",
            "images": (),
            "question": "?",
            "truth": truth,
            "prediction": "",
            "options": options,
            "option_probs": probs,
            **fields,
        }
    )


def asked(decided: str, **fields: object) -> list[EvalRow]:
    """ "+.9 -.8": a positive row with probability of yes 0.9, a negative one with 0.8."""
    said = [(word[0] == "+", float(word[1:])) for word in decided.split()]
    return [row("yes" if yes else "no", (p, 1 - p), **fields) for yes, p in said]


def scorer(name: str) -> SetScorer:
    found = Scorer.parse(name)
    assert isinstance(found, SetScorer)
    return found


def score(name: str, rows: list[EvalRow], *weights: int) -> float:
    counted = np.array([weights or (1,) * len(rows)], dtype=np.int64)
    return float(scorer(name).collect(rows).score(counted)[0])


@pytest.mark.parametrize(
    ("decided", "auroc", "auprc"),
    [
        ("+.9 +.8 -.2", 1.0, 1.0),
        ("-.9 +.1", 0.0, 1 / 2),
        # Pairs: .9 over both, .4 over one of two and level with none: 3 of 4.
        ("+.9 -.6 +.4 -.1", 3 / 4, (1 + 2 / 3) / 2),
        # Level pairs are half right; the three stand at one threshold.
        ("+.5 -.5 -.5", 1 / 2, 1 / 3),
        ("+.5 -.5 +.9", 3 / 4, (1 + 2 / 3) / 2),
        ("+.5 +.9", math.nan, math.nan),
        ("-.5 -.9", math.nan, math.nan),
    ],
)
def test_one_ranking_by_hand(decided: str, auroc: float, auprc: float) -> None:
    rows = asked(decided)
    assert score("auroc.macro", rows) == pytest.approx(auroc, nan_ok=True)
    assert score("auprc.macro", rows) == pytest.approx(auprc, nan_ok=True)


def test_a_row_drawn_twice_counts_twice_and_one_not_drawn_does_not() -> None:
    rows = asked("+.9 -.6 +.4 -.1")
    # Without the second: .9 and .4, twice, over .1.
    assert score("auroc.macro", rows, 1, 0, 2, 1) == 1.0
    # Pairs: 1 x (2 + 1) of the first, 1 x 1 of the third, of 2 x 3.
    assert score("auroc.macro", rows, 1, 2, 1, 1) == pytest.approx(4 / 6)
    assert math.isnan(score("auroc.macro", rows, 1, 0, 1, 0))


def test_findings_are_ranked_apart_and_those_without_both_are_left_out() -> None:
    rows = [
        *asked("+.9 -.6 +.4 -.1"),
        *asked("+.9 -.1", template="presence/lung cyst/en"),
        *asked("+.9 +.1", template="presence/ILD/en"),
    ]
    assert score("auroc.macro", rows) == pytest.approx((3 / 4 + 1) / 2)
    parts = scorer("auroc.macro").collect(rows).parts()
    once = np.ones((1, len(rows)), dtype=np.int64)
    found = {name: float(part.score(once)[0]) for name, part in parts.items()}
    assert list(found) == ["finding = edema", "finding = lung cyst", "finding = ILD"]
    assert found["finding = edema"] == 3 / 4
    assert math.isnan(found["finding = ILD"])
    # All eight in one ranking: (.9 x 3 over three) + (.4 over two) + (.1 level with two) of 5 x 3.
    assert score("auroc.micro", rows) == pytest.approx((9 + 2 + 1) / 15)


def test_each_option_of_a_choice_is_ranked_against_the_rest() -> None:
    sides, template = ("left", "right", "both"), "side/en"
    rows = [
        row("left", (0.7, 0.2, 0.1), sides, template=template),
        row("right", (0.6, 0.3, 0.1), sides, template=template),
        # The same options in another order.
        row("both", (0.5, 0.1, 0.4), ("both", "right", "left"), template=template),
    ]
    parts = scorer("auroc.macro").collect(rows).parts()
    assert list(parts) == ["option = left", "option = right", "option = both"]
    assert score("auroc.macro", rows) == 1.0
    rows[1] = row("right", (0.8, 0.1, 0.1), sides, template=template)
    # left: .7 is over one of two; right: .1 is under .2 and level with .1.
    assert score("auroc.macro", rows) == pytest.approx((1 / 2 + 1 / 4 + 1) / 3)


def test_yes_and_no_are_known_in_chinese_and_in_either_order() -> None:
    rows = [row("有", (0.8, 0.2), ("有", "没有")), row("没有", (0.3, 0.7), ("有", "没有"))]
    assert score("auroc.macro", rows) == 1.0
    turned = [row("yes", (0.2, 0.8), ("no", "yes")), row("no", (0.7, 0.3), ("no", "yes"))]
    assert list(scorer("auroc.macro").collect(turned).parts()) == ["finding = edema"]
    assert score("auprc.micro", turned) == 1.0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"options": ()}, "the row has no options"),
        ({"probs": ()}, "no probabilities of the options"),
        ({"probs": (1.0,)}, "1 probabilities for 2 options"),
        ({"probs": (1.5, -0.5)}, "a probability of an option is no number in 0..1"),
        ({"probs": (0.5, 0.2)}, "add up to 0.7, not 1"),
        ({"truth": "maybe"}, "the truth 'maybe' is none of the options yes, no"),
    ],
)
def test_what_cannot_be_ranked_says_why(fields: dict[str, object], reason: str) -> None:
    broken = row(**{"truth": "yes", "probs": (0.9, 0.1), **fields})  # type: ignore[arg-type]
    value, said = scorer("auroc.macro").judge(broken)
    assert value is None
    assert reason in said


def test_a_row_shows_the_probability_of_its_truth() -> None:
    assert scorer("auprc.micro").judge(row("no", (0.9, 0.1))) == (0.1, "")


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({}, "edema"),
        ({"template": "presence/nodule/mass/en"}, "nodule/mass"),
        ({"template": "Is there a stent?"}, "Is there a stent?"),
        ({"template": "", "question": "Any CT/MR/US?"}, "Any CT/MR/US?"),
        ({"attributes": {"finding": "cyst"}}, "cyst"),
    ],
)
def test_what_a_question_is_about(fields: dict[str, object], finding: str) -> None:
    assert finding_of(row("yes", (0.5, 0.5), **fields)) == finding


@pytest.mark.parametrize(
    ("text", "options", "index"),
    [
        # "A" is an article, and the name of an option.
        ("A", ("A", "B"), 0),
        ("b ", ("A", "B"), 1),
        ("the left", ("right", "left"), 1),
        ("the left", ("left", "the left"), 1),
        ("two", ("1", "2"), 1),
        ("the", ("A", "B"), None),
        ("", ("", "B"), None),
    ],
)
def test_which_option_a_truth_is(text: str, options: tuple[str, ...], index: int | None) -> None:
    assert option_of(text, options) == index


def test_a_lettered_choice_can_be_right() -> None:
    closed = Scorer.parse("closed_accuracy.strict")
    said = [row("A", (), ("A", "B"), prediction=text) for text in ("A", "B", "the answer is B")]
    assert [closed.judge(one)[0] for one in said] == [1.0, 0.0, 0.0]
