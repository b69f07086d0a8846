"""Localisation in three readings, average precision and FROC, by hand; pycocotools' and MONAI's are
compared in test_set_metric_parity."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medloupe.evaluate.scorers.base import CorpusScorer, Scorer, SetScorer
from medloupe.evaluate.scorers.detection import Froc, coco_hits, percent_ious, voc_hits
from medloupe.types import Box, EvalRow

SIZE = {"image_width": "1000", "image_height": "500"}


def box(
    x1: float, y1: float, x2: float, y2: float, label: str = "effusion", **fields: object
) -> Box:
    return Box.parse({"label": label, "x1": x1, "y1": y1, "x2": x2, "y2": y2, **fields})


def row(truths: tuple[Box, ...], said: tuple[Box, ...], **fields: object) -> EvalRow:
    return EvalRow.parse(
        {
            "id": "r1",
            "patient_id": "p1",
            "task": "findings",
            "template": "",
            "answer_type": "open",
            "images": (),
            "question": "?",
            "truth": "" if truths else "No finding",
            "truth_boxes": truths,
            "prediction": "",
            "predicted_boxes": said,
            "attributes": SIZE,
            **fields,
        }
    )


def count(name: str, one: EvalRow) -> tuple[tuple[int, ...] | None, str]:
    found = Scorer.parse(name)
    assert isinstance(found, CorpusScorer)
    return found.count(one)


def scorer(name: str) -> SetScorer:
    found = Scorer.parse(name)
    assert isinstance(found, SetScorer)
    return found


def score(name: str, rows: list[EvalRow], *weights: int) -> float:
    counted = np.array([weights or (1,) * len(rows)], dtype=np.int64)
    return float(scorer(name).collect(rows).score(counted)[0])


FLAVOURS = ("strict", "litegpt", "litegpt_paper")


def three(
    truths: tuple[Box, ...], said: tuple[Box, ...], at: float
) -> list[tuple[int, ...] | None]:
    one = row(truths, said)
    return [count(f"localisation_{at}.{flavour}", one)[0] for flavour in FLAVOURS]


# Two findings, one box over both: IoU 75 / 125 with each.
PAIR = (box(0, 0, 100, 100), box(0, 50, 100, 150))
BETWEEN = box(0, 25, 100, 125)


def test_one_box_hits_one_finding_or_all_that_it_overlaps() -> None:
    assert three(PAIR, (BETWEEN,), 0.5) == [(1, 2), (2, 2), (2, 2)]


def test_a_finding_that_is_not_named_is_in_the_denominator_but_not_the_paper_s() -> None:
    missed = box(500, 0, 600, 100, "mass")
    assert three((*PAIR, missed), (BETWEEN,), 0.5) == [(1, 3), (2, 3), (2, 2)]
    elsewhere = box(700, 300, 800, 400, "mass")
    assert three((*PAIR, missed), (BETWEEN, elsewhere), 0.5) == [(1, 3), (2, 3), (2, 3)]


def test_litegpt_adds_1_percent_to_every_length() -> None:
    truth, said = box(500, 100, 520, 110), box(510, 100, 530, 110)
    # 1/3 as edges. In percent 50-52 and 51-53 by 20-22: 2 x 3 of 9 + 9 - 6.
    assert percent_ious((truth,), (said,), (1000, 500)).tolist() == [[0.5]]
    assert three((truth,), (said,), 0.3) == [(1, 1), (1, 1), (1, 1)]
    assert three((truth,), (said,), 0.4) == [(0, 1), (1, 1), (0, 1)]
    assert three((truth,), (said,), 0.5) == [(0, 1), (0, 1), (0, 1)]  # above, not at


def test_labels_decide_unless_the_truth_has_one_and_the_box_none() -> None:
    truth = box(0, 0, 10, 10, "Nodule/Mass")
    same, other, bare = (box(0, 0, 10, 10, label) for label in ("nodule mass", "effusion", ""))
    for flavour in ("strict", "litegpt"):
        name = f"localisation_0.5.{flavour}"
        assert count(name, row((truth,), (same,)))[0] == (1, 1)
        assert count(name, row((truth,), (other,)))[0] == (0, 1)
        assert count(name, row((truth,), (bare,)))[0] == (1, 1)
        assert count(name, row((truth, other), (bare,)))[0] == (0, 2)


def test_hits_are_pooled_over_all_boxes() -> None:
    counts = np.array([[1, 4], [2, 2]]).sum(axis=0)
    found = Scorer.parse("localisation_0.3.strict")
    assert isinstance(found, CorpusScorer)
    assert float(found.combine(counts)) == 0.5
    assert Scorer.parse("localisation_0.5.litegpt").judge(row(PAIR, (BETWEEN,))) == (1.0, "")


@pytest.mark.parametrize(
    ("name", "one", "reason"),
    [
        ("strict", row((), (BETWEEN,)), "the truth has no box"),
        ("litegpt", row(PAIR, (BETWEEN,), attributes={}), "lacks the size of its image"),
        ("litegpt", row(PAIR, (), attributes={**SIZE, "image_width": "wide"}), "lacks the size"),
        ("litegpt", row(PAIR, (), attributes={**SIZE, "image_width": "0"}), "lacks the size"),
        ("litegpt", row((box(0, 0, 9, 9, z1=0, z2=1),), ()), "of flat boxes"),
        ("litegpt_paper", row(PAIR, ()), "no finding of the truth is named"),
    ],
)
def test_what_cannot_be_located_says_why(name: str, one: EvalRow, reason: str) -> None:
    counts, said = count(f"localisation_0.5.{name}", one)
    assert counts is None
    assert reason in said


def test_an_answer_without_a_box_finds_nothing() -> None:
    assert count("localisation_0.3.strict", row(PAIR, ())) == ((0, 2), "no box in the answer")
    assert count("localisation_0.3.litegpt", row(PAIR, ())) == ((0, 2), "no box in the answer")


HERE, THERE = box(0, 0, 10, 10), box(100, 100, 110, 110)


def at(place: Box, confidence: float, label: str = "effusion") -> Box:
    return place.model_copy(update={"score": confidence, "label": label})


# One finding in each of two rows: right at 0.9, wrong at 0.8, right at 0.7.
RANKED = [row((HERE,), (at(HERE, 0.9), at(THERE, 0.8))), row((HERE,), (at(HERE, 0.7),))]


def test_average_precision_by_hand() -> None:
    # COCO reads 101 recalls: 0 to 0.5 at precision 1, the other 50 at 2/3.
    coco = (51 + 50 * 2 / 3) / 101
    assert score("map_0.5.coco", RANKED) == pytest.approx(coco, abs=1e-12)
    assert score("map.coco", RANKED) == pytest.approx(coco, abs=1e-12)
    assert score("map_0.5.voc", RANKED) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3, abs=1e-12)


def test_a_row_drawn_twice_counts_twice_and_one_not_drawn_does_not() -> None:
    assert score("map_0.5.voc", RANKED, 1, 0) == 1.0
    assert score("map_0.5.voc", RANKED, 0, 3) == 1.0
    # Two right at 0.9, two wrong at 0.8, one right at 0.7: 3 of 5.
    assert score("map_0.5.voc", RANKED, 2, 1) == pytest.approx(2 / 3 + 1 / 3 * 3 / 5)


def test_findings_are_averaged_and_those_not_in_the_truth_are_not() -> None:
    rows = [*RANKED, row((at(HERE, 1, "mass"),), (at(THERE, 0.9, "mass"), at(HERE, 0.9, "cyst")))]
    assert score("map_0.5.voc", rows) == pytest.approx((5 / 6 + 0) / 2)
    parts = scorer("map_0.5.voc").collect(rows).parts()
    once = np.ones((1, 3), dtype=np.int64)
    assert {name: float(part.score(once)[0]) for name, part in parts.items()} == {
        "finding = effusion": pytest.approx(5 / 6),
        "finding = mass": 0.0,
    }
    # Where mass is not drawn, it is not in the mean.
    assert score("map_0.5.voc", rows, 1, 1, 0) == pytest.approx(5 / 6)


def test_a_false_box_on_an_image_without_findings_counts() -> None:
    none = row((), (at(HERE, 0.95),))
    # Wrong at 0.95, right at 0.9, wrong at 0.8, right at 0.7: 1 of 2, then 2 of 4.
    assert score("map_0.5.voc", [*RANKED, none]) == pytest.approx(1 / 2)
    assert math.isnan(score("map_0.5.coco", [none]))


def test_a_taken_finding_sends_coco_s_box_to_the_next_and_voc_s_to_the_wrong() -> None:
    # Both boxes overlap the first finding most; the second is above 0.5 too.
    ious = np.array([[0.9, 0.8], [0.1, 0.6]])
    assert coco_hits(ious, (0.5, 0.7)).tolist() == [[True, True], [True, False]]
    assert voc_hits(ious, 0.5).tolist() == [True, False]
    assert coco_hits(np.zeros((0, 2)), (0.5,)).tolist() == [[False, False]]
    assert voc_hits(np.zeros((2, 0)), 0.5).tolist() == []


def test_froc_by_hand() -> None:
    # Over four images: wrong at 0.9, right at 0.8, wrong at 0.7, right at 0.6.
    rows = [
        row((HERE,), (at(THERE, 0.9), at(HERE, 0.8))),
        row((HERE,), (at(THERE, 0.7), at(HERE, 0.6))),
        row((), ()),
        row((), ()),
    ]
    # None at 1/8; half from 1/4 on; all from 1/2 on.
    assert score("froc.iou_0.5", rows) == pytest.approx((0 + 1 / 2 + 5) / 7, abs=1e-12)
    assert score("froc.centre", rows) == pytest.approx((0 + 1 / 2 + 5) / 7, abs=1e-12)
    froc = scorer("froc.iou_0.5")
    assert isinstance(froc, Froc)
    assert froc.points(rows) == [
        (0, 0, 1.0), (0.25, 0, 0.9), (0.25, 0.5, 0.8), (0.5, 0.5, 0.7), (0.5, 1.0, 0.6),
    ]  # fmt: skip
    # Of five images the false ones are 1/5 and 2/5: half at 1/4 and all at 1/2 still.
    assert score("froc.iou_0.5", rows, 1, 1, 2, 1) == pytest.approx((0 + 1 / 2 + 5) / 7)
    assert math.isnan(score("froc.iou_0.5", rows, 0, 0, 1, 1))


def test_froc_is_linear_between_points_and_takes_equal_scores_together() -> None:
    rows = [row((HERE,), (at(HERE, 0.5), at(THERE, 0.5)))]
    # From (0, 0) to (1, 1) in one step.
    assert score("froc.centre", rows) == pytest.approx((1 / 8 + 1 / 4 + 1 / 2 + 4) / 7)


def test_a_second_hit_on_a_finding_is_neither_right_nor_wrong() -> None:
    rows = [row((HERE,), (at(HERE, 0.5), at(HERE, 0.9)))]
    froc = scorer("froc.iou_0.5")
    assert isinstance(froc, Froc)
    assert froc.points(rows) == [(0, 0, 1.0), (0, 1.0, 0.9)]


def test_findings_have_curves_of_their_own() -> None:
    rows = [row((HERE, at(THERE, 1, "mass")), (at(HERE, 0.9), at(HERE, 0.8, "cyst")))]
    parts = scorer("froc.iou_0.5").collect(rows).parts()
    once = np.ones((1, 1), dtype=np.int64)
    assert {name: float(part.score(once)[0]) for name, part in parts.items()} == {
        "finding = effusion": 1.0,
        "finding = mass": 0.0,
    }


def test_the_centre_is_compared_on_the_same_image_and_slices() -> None:
    deep = box(0, 0, 10, 10, z1=2, z2=6)
    for said, found in (
        (box(4, 4, 12, 12, z1=5, z2=7), 1.0),
        (box(4, 4, 12, 12, z1=6, z2=7), 0.0),
        (box(4, 4, 12, 12), 0.0),
        (box(4, 4, 12, 12, z1=5, z2=7, image=1), 0.0),
    ):
        rows = [row((deep,), (at(said, 0.5),))]
        froc = scorer("froc.centre")
        assert isinstance(froc, Froc)
        assert froc.points(rows)[-1].sensitivity == found


@pytest.mark.parametrize(
    "name", ["map.coco", "map_0.5.coco", "map_0.5.voc", "froc.iou_0.5", "froc.centre"]
)
def test_what_counts_as_an_image_with_boxes(name: str) -> None:
    found = scorer(name)
    assert found.judge(row((), (), truth="A normal heart.")) == (1.0, "")
    assert found.judge(row((), (at(HERE, 0.5),))) == (0.0, "a box where there is none")
    assert found.judge(row((HERE,), (at(HERE, 0.5),))) == (1.0, "")
    value, reason = found.judge(row((), (), truth="Cardiomegaly."))
    assert (value, reason) == (None, "the truth has no box and does not say that there is none")
    value, reason = found.judge(row((HERE,), (HERE,)))
    assert (value, reason) == (None, "the answer's box 'effusion' has no confidence")


def test_a_referring_expression_has_one_box() -> None:
    truth = box(0, 0, 10, 10)
    half, more = box(0, 0, 10, 5), box(0, 0, 10, 4.9)
    judged = {
        name: [
            Scorer.parse(name).judge(row((truth,), said))
            for said in ((half,), (more,), (more, truth), ())
        ]
        for name in ("rec_iou", "rec_accuracy_0.5")
    }
    empty = (0.0, "no box in the answer")
    assert judged["rec_iou"] == [
        (0.5, ""), (pytest.approx(0.49), ""), (pytest.approx(0.49), "1 more box"), empty,
    ]  # fmt: skip
    assert judged["rec_accuracy_0.5"] == [(1.0, ""), (0.0, ""), (0.0, "1 more box"), empty]
    assert Scorer.parse("rec_iou").judge(row(PAIR, (truth,)))[0] is None
