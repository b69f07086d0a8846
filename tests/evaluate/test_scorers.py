"""Goldens computed by hand; where two flavours differ, both values stand side by side."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from medloupe.errors import ConfigError
from medloupe.evaluate.scorers.base import Scorer
from medloupe.evaluate.scorers.boxes import best_assignment, iou
from medloupe.evaluate.scorers.closed import named_options, yes_or_no
from medloupe.evaluate.scorers.words import llava_med_text, strict_words
from medloupe.types import Box, EvalRow


def row(truth: str = "", prediction: str = "", **fields: object) -> EvalRow:
    return EvalRow.parse(
        {
            "id": "r1",
            "patient_id": "p1",
            "task": "t",
            "template": "",
            "answer_type": "open",
            "images": (),
            "question": "?",
            "truth": truth,
            "prediction": prediction,
            **fields,
        }
    )


def value(name: str, scored: EvalRow) -> float | None:
    return Scorer.parse(name).judge(scored)[0]


def box(x1: float, y1: float, x2: float, y2: float, **fields: object) -> Box:
    return Box.parse({"label": "", "x1": x1, "y1": y1, "x2": x2, "y2": y2, **fields})


# These ask a network of their own, which no package brings; test_text_models gives them one.
MODELS = ("bertscore", "radgraph", "ratescore", "chexbert")


@pytest.mark.parametrize("name", Scorer.table)
def test_every_scorer_is_named_and_survives_a_round_trip(name: str, small_wordnet: Path) -> None:
    scorer = Scorer.parse(name)
    assert scorer.name == name
    assert Scorer.parse(scorer.to_dict()) == scorer
    if name.startswith(MODELS):
        return
    value, reason = scorer.judge(row("left lung", "left lung"))
    assert value is None or 0 <= value <= 1
    assert value is not None or reason


@pytest.mark.parametrize("name", Scorer.table)
def test_every_scorer_states_what_it_counts(name: str) -> None:
    assert Scorer.parse(name).stated


def test_an_unknown_scorer_is_answered_with_the_near_name() -> None:
    with pytest.raises(ConfigError, match=r"open_recall\.strict"):
        Scorer.parse("open_recall.strickt")


@pytest.mark.parametrize(
    ("truth", "prediction", "strict", "llava_med"),
    [
        ("left lung", "the left lung", 1.0, 1.0),
        ("left lung", "lung", 1 / 2, 1 / 2),
        # A word of the truth said three times counts three times: 3 / (3 + 1 missed).
        ("left lung", "lung lung lung", 1 / 2, 3 / 4),
        # The truth repeats a word that the answer lacks: missed once per repetition.
        ("left left lung", "lung", 1 / 2, 1 / 3),
        ("two nodules", "2 nodules", 1.0, 1.0),
        ("Right-sided", "right sided", 1.0, 1.0),
        # "none" is 0 in LLaVA-Med's normalisation only.
        ("none", "0", 0.0, 1.0),
        ("左肺结节", "右肺结节", 3 / 4, 0.0),
        ("left lung", "", 0.0, 0.0),
        ("the", "the", None, 0.0),
    ],
)
def test_open_recall(truth: str, prediction: str, strict: float | None, llava_med: float) -> None:
    scored = row(truth, prediction)
    assert value("open_recall.strict", scored) == strict
    assert value("open_recall.llava_med", scored) == pytest.approx(llava_med)


YES_NO = ("yes", "no")
SIDES = ("left", "right")


@pytest.mark.parametrize(
    ("truth", "options", "prediction", "strict", "llava_med"),
    [
        ("yes", YES_NO, "Yes.", 1, 1),
        ("yes", YES_NO, "yes, no doubt", 1, 1),
        ("no", YES_NO, "Yes, no doubt", 0, 1),  # contains "no" somewhere
        ("no", YES_NO, "normal", 0, 1),  # "normal" contains "no"
        ("no", YES_NO, "a nodule", 0, 1),
        ("no", YES_NO, "nothing abnormal", 0, 1),
        ("left", SIDES, "left", 1, 0),  # contains neither yes nor no
        ("left", SIDES, "On the left side.", 1, 0),
        ("left", SIDES, "left or right", 0, 0),
        ("left", SIDES, "cleft", 0, 0),
        ("left", SIDES, "the left lung is normal", 1, 1),
        ("right", SIDES, "left", 0, 0),
        ("T1", (), "T1.", 1, 0),
        ("T1", (), "T1 or T2", 0, 0),
        ("no change", ("no change", "grown"), "no", 0, 0),
        ("no change", ("no change", "grown"), "No change", 1, 1),
        ("没有", ("有", "没有"), "没有病灶", 1, 0),
        ("有", ("有", "没有"), "没有", 0, 0),
        ("是", ("是", "否"), "不是", 0, 0),
        ("左", ("左", "右"), "在左侧", 1, 0),
    ],
)
def test_closed_accuracy(
    truth: str, options: tuple[str, ...], prediction: str, strict: int, llava_med: int
) -> None:
    scored = row(truth, prediction, answer_type="closed", options=options)
    assert value("closed_accuracy.strict", scored) == strict
    assert value("closed_accuracy.llava_med", scored) == llava_med


@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),
    [
        ("(b) Effusion", "(b)", 1),
        ("(b) Effusion", "It is (b) effusion.", 1),
        ("(b) Effusion (pleural)", "(a) Nodule, (b) Effusion", 1),  # every choice listed
        ("(b) Effusion", "(B) Effusion", 0),
        ("(b) Effusion", "b", 0),
        ("(b) Effusion", "", 0),
        ("Effusion", "Effusion", None),
    ],
)
def test_closed_accuracy_of_lettered_choices(
    truth: str, prediction: str, expected: float | None
) -> None:
    options = ("(a) Nodule", truth)
    scored = row(truth, prediction, answer_type="closed", options=options)
    assert value("closed_accuracy.medm_vl", scored) == expected


def test_wrong_for_a_reason_and_unscored_for_a_reason() -> None:
    strict = Scorer.parse("closed_accuracy.strict")
    mute = strict.judge(row("yes", "perhaps", options=YES_NO))
    assert mute == (0.0, "no yes or no in the answer")
    both = strict.judge(row("left", "right and left", options=SIDES))
    assert both == (0.0, "more than one option is named: left, right")
    value, reason = strict.judge(row("upper", "upper", options=SIDES))
    assert value is None
    assert "'upper' is none of the options left, right" in reason
    assert strict.judge(row("", "yes", options=YES_NO))[0] is None


def test_a_longer_option_hides_the_shorter_inside_it() -> None:
    options = ("left", "left upper", "right")
    assert named_options("the Left upper lobe", options) == ["left upper"]
    assert named_options("left, then left upper", options) == ["left upper", "left"]
    assert named_options("leftmost", options) == []


def test_yes_or_no_is_a_whole_word() -> None:
    assert [yes_or_no(text) for text in ("No!", "know", "yesterday", "是的", "正常")] == [
        "no", None, None, "yes", None,
    ]  # fmt: skip


def test_words() -> None:
    assert strict_words("A 1.5 cm T1-bright, RIGHT-sided mass") == [
        "1.5", "cm", "t1", "bright", "right", "sided", "mass",
    ]  # fmt: skip
    # Beside a space a mark vanishes everywhere; elsewhere it becomes a space.
    assert llava_med_text("left-sided mass") == "left sided mass"
    assert llava_med_text("left- sided, mid-line") == "left sided midline"
    assert llava_med_text("It isnt 1.5 cm. Two of none") == "it isn't 1.5 cm 2 of 0"
    assert llava_med_text("10,000") == "10000"


def test_exact_match_ignores_case_articles_and_punctuation_only() -> None:
    assert value("exact_match", row("The left lung", "left lung.")) == 1
    assert value("exact_match", row("left lung", "lung left")) == 0
    assert value("exact_match", row("...", "left")) is None


def test_iou_in_continuous_coordinates() -> None:
    # 10 x 10 against the same moved by 5: 50 / 150. The +1 pixel convention would say 66 / 176.
    assert iou(box(0, 0, 10, 10), box(5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert iou(box(0, 0, 10, 10), box(10, 0, 20, 10)) == 0
    assert iou(box(1, 1, 1, 1), box(1, 1, 1, 1)) == 0
    assert iou(box(0, 0, 10, 10), box(0, 0, 10, 10, image=1)) == 0
    solid = box(0, 0, 10, 10, z1=0, z2=4)
    assert iou(solid, box(0, 0, 10, 10, z1=2, z2=6)) == pytest.approx(200 / 600)
    assert iou(solid, box(0, 0, 10, 10)) == 0


def test_boxes_are_matched_one_to_one_for_the_largest_total() -> None:
    a, b = box(0, 0, 10, 10), box(4, 0, 14, 10)
    p, q = box(3, 0, 13, 10), box(5, 0, 15, 10)
    # Widths overlap: a-p 7/13, b-q 9/11. Taking the single best pair (b-p 9/11) first would leave
    # a-q with 5/15.
    both = row(truth_boxes=(a, b), predicted_boxes=(p, q))
    assert value("box_iou", both) == pytest.approx((7 / 13 + 9 / 11) / 2)
    # One prediction cannot serve two truths, and saying too much costs nothing here.
    assert value("box_iou", row(truth_boxes=(a, b), predicted_boxes=(a,))) == pytest.approx(1 / 2)
    assert value("box_iou", row(truth_boxes=(a,), predicted_boxes=(p, a, b))) == pytest.approx(1)
    half = row(truth_boxes=(a, box(50, 50, 60, 60)), predicted_boxes=(b, a))
    assert value("box_hit_0.5", half) == 1 / 2


def test_a_hit_needs_more_than_half() -> None:
    truth = box(0, 0, 10, 10)
    exactly = row(truth_boxes=(truth,), predicted_boxes=(box(0, 0, 10, 5),))
    above = row(truth_boxes=(truth,), predicted_boxes=(box(0, 0, 10, 5.01),))
    assert value("box_iou", exactly) == pytest.approx(0.5)
    assert value("box_hit_0.5", exactly) == 0
    assert value("box_hit_0.5", above) == 1


def test_no_box_said_is_zero_and_no_true_box_is_unscored() -> None:
    scorer = Scorer.parse("box_iou")
    silent = scorer.judge(row(truth_boxes=(box(0, 0, 1, 1),)))
    assert silent == (0.0, "no box in the answer")
    assert scorer.judge(row(predicted_boxes=(box(0, 0, 1, 1),)))[0] is None


def test_the_assignment_is_the_best_of_all_permutations() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        rows, columns = (int(n) for n in rng.integers(1, 6, size=2))
        gains = np.round(rng.random((rows, columns)), 1) * (rng.random((rows, columns)) > 0.4)
        pairs = best_assignment(gains)
        assert len({r for r, _ in pairs}) == len({c for _, c in pairs}) == min(rows, columns)
        wide = gains if rows <= columns else gains.T
        best = max(
            sum(wide[index, column] for index, column in enumerate(order))
            for order in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        )
        assert sum(gains[pair] for pair in pairs) == pytest.approx(best)
