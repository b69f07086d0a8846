"""Where findings are: localisation accuracy, mean average precision and FROC.

Labels are compared as words, case and punctuation ignored; a predicted box without a label takes the
truth's where the truth has only one ("Where is the effusion?" is answered with a bare box). A row is one
image: ask each image once. Rows without a finding count, for a false box on them is an error; rows that
neither have boxes, nor get any, nor say "no finding" ask for none and are unscored.
mAP and FROC rank boxes by `Box.score`, made of token probabilities; a box without one leaves its row
unscored.
Shapes: N rows, D predicted boxes of a label, T thresholds, G distinct scores, R resamples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medloupe.evaluate.scorers.base import (
    Collected,
    CorpusScorer,
    Counted,
    Falling,
    MeanOfParts,
    SetScorer,
    Verdict,
)
from medloupe.evaluate.scorers.boxes import best_assignment, iou_matrix
from medloupe.evaluate.scorers.labels import says_none
from medloupe.evaluate.scorers.words import plain_words
from medloupe.types import Box, EvalRow

COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
COCO_RECALLS = np.linspace(0, 1, 101)
COCO_MOST = 100
"""Boxes of a label that count on one image; the surest."""

FROC_RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""False positives per image at which sensitivity is read (LUNA16, Setio et al. 2017)."""

WIDTH, HEIGHT = "image_width", "image_height"
"""The attributes of a row in which LiteGPT's flavour finds the size of its image, in pixels."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Labelled(NamedTuple):
    """A row's boxes with the names under which they are compared."""

    truths: tuple[Box, ...]
    true_names: list[str]
    boxes: tuple[Box, ...]
    said_names: list[str]

    def same(self) -> Flags:
        """`[truths, boxes]`: do they name the same?"""
        true, said = (np.array(names, dtype=object) for names in (self.true_names, self.said_names))
        return np.asarray(np.equal.outer(true, said), dtype=bool)


def labelled(row: EvalRow) -> Labelled:
    """The boxes of truth and answer."""
    true = [name_of(box.label) for box in row.truth_boxes]
    only = true[0] if len(set(true)) == 1 else ""
    said = [name_of(box.label) or only for box in row.predicted_boxes]
    return Labelled(row.truth_boxes, true, row.predicted_boxes, said)


def name_of(label: str) -> str:
    """ "Nodule/Mass" and "nodule mass" are one."""
    return " ".join(plain_words(label))


class Localisation(CorpusScorer):
    """The share of the truth's boxes that are hit (IoU strictly above `threshold`), all rows pooled."""

    threshold: ClassVar[float]

    @abstractmethod
    def hits(self, row: EvalRow) -> Counted:
        """(truth's boxes hit, truth's boxes in question); None with the reason where it has none."""

    def count(self, row: EvalRow) -> Counted:
        if not row.truth_boxes:
            return None, "the truth has no box"
        counts, reason = self.hits(row)
        return counts, reason if row.predicted_boxes or counts is None else "no box in the answer"

    def combine(self, counts: NDArray[np.int64]) -> Floats:
        return np.asarray(counts[..., 0] / counts[..., 1])


class _Strict(Localisation):
    """One to one within a label, so that the most are hit; continuous IoU; all of the truth's boxes."""

    stated = "same label, one to one, IoU without +1; of all boxes of the truth"

    def hits(self, row: EvalRow) -> Counted:
        boxes = labelled(row)
        above = iou_matrix(boxes.truths, boxes.boxes) > self.threshold
        gains = (above & boxes.same()).astype(np.float64)
        hit = round(sum(gains[pair] for pair in best_assignment(gains)))
        return (hit, len(boxes.truths)), ""


class _Litegpt(Localisation):
    """LiteGPT's public code: a box of the truth is hit by any box of its label, in whole percent of the
    image's sides and with +1 to every length; all of the truth's boxes.

    The size of the image is the row's attributes `image_width` and `image_height`, which the runner gives.
    """

    stated = (
        "LiteGPT's code: same label, any box, percent coordinates and IoU with +1; of all boxes"
    )

    def hits(self, row: EvalRow) -> Counted:
        boxes, size = labelled(row), _size(row)
        if size is None:
            return None, f"the row lacks the size of its image (attributes {WIDTH} and {HEIGHT})"
        if any(box.z1 is not None for box in (*boxes.truths, *boxes.boxes)):
            return None, "LiteGPT's IoU is of flat boxes"
        ious = percent_ious(boxes.truths, boxes.boxes, size)
        hit = ((ious > self.threshold) & boxes.same()).any(axis=1).sum()
        return (int(hit), len(boxes.truths)), ""


class _LitegptPaper(Localisation):
    """LiteGPT's text: "only correctly classified findings are included", so the truth's boxes whose
    label the answer names; hit by any box of that label, continuous IoU."""

    stated = (
        "LiteGPT's text: same label, any box, IoU without +1; of the boxes whose label is named"
    )

    def hits(self, row: EvalRow) -> Counted:
        boxes = labelled(row)
        same = boxes.same()
        named = int(same.any(axis=1).sum())
        if not named:
            return None, "no finding of the truth is named with a box"
        above = iou_matrix(boxes.truths, boxes.boxes) > self.threshold
        return (int((above & same).any(axis=1).sum()), named), ""


def percent_ious(truths: Sequence[Box], boxes: Sequence[Box], size: tuple[float, float]) -> Floats:
    """`[truths, boxes]` IoUs as LiteGPT computes them: edges round(100 x / width), lengths + 1."""
    a, b = (
        np.rint(
            np.array([[b.x1, b.y1, b.x2, b.y2] for b in some]).reshape(-1, 4) / (size * 2) * 100
        )
        for some in (truths, boxes)
    )
    a, b = a[:, None], b[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    inner = np.maximum(sides, 0).prod(axis=-1)
    area_a, area_b = ((one[..., 2:] - one[..., :2] + 1).prod(axis=-1) for one in (a, b))
    same_image = np.equal.outer([t.image for t in truths], [p.image for p in boxes])
    return np.asarray(np.where(same_image, inner / (area_a + area_b - inner), 0.0))


def _size(row: EvalRow) -> tuple[float, float] | None:
    try:
        size = float(row.attributes[WIDTH]), float(row.attributes[HEIGHT])
    except (KeyError, ValueError):
        return None
    return size if min(size) > 0 else None


class DetectionScorer(SetScorer):
    """Ranked boxes. A row's own value is the share of the truth's boxes hit (same label, one to one,
    IoU > 0.5); without a finding, 1 where the answer has no box, else 0."""

    def judge(self, row: EvalRow) -> Verdict:
        if not (row.truth_boxes or row.predicted_boxes or says_none(row.truth)):
            return None, "the truth has no box and does not say that there is none"
        for box in row.predicted_boxes:
            if box.score is None:
                return None, f"the answer's box {box.label!r} has no confidence"
        if not row.truth_boxes:
            return float(not row.predicted_boxes), "a box where there is none" * bool(
                row.predicted_boxes
            )
        counted, reason = StrictLocalisation50().count(row)
        assert counted is not None
        return counted[0] / counted[1], reason


class MeanAveragePrecision(DetectionScorer):
    """The mean over the truth's labels of average precision; each label is a part."""

    @abstractmethod
    def match(self, ious: Floats) -> Flags:
        """`[T, D]`: which boxes are true positives; `ious` `[truths, D]` of one label and row, the surest
        box first."""

    @abstractmethod
    def area(self, taken_RH: Floats, hits_RH: Floats, positives_R: Floats) -> Floats:
        """`[R]` areas from boxes and true positives up to each true positive, `[R, H]`."""

    def collect(self, rows: Sequence[EvalRow]) -> MeanOfParts:
        found: dict[str, _Label] = {}
        for place, row in enumerate(rows):
            boxes = labelled(row)
            ious = iou_matrix(boxes.truths, boxes.boxes)
            for name in dict.fromkeys((*boxes.true_names, *boxes.said_names)):
                label = found.setdefault(name, _Label())
                wanted = [t for t, one in enumerate(boxes.true_names) if one == name]
                given = [d for d, one in enumerate(boxes.said_names) if one == name]
                given.sort(key=lambda d: -_score(boxes.boxes[d]))
                given = given[:COCO_MOST]
                label.truths += [place] * len(wanted)
                label.places += [place] * len(given)
                label.scores += [_score(boxes.boxes[d]) for d in given]
                label.hits.append(self.match(ious[np.ix_(wanted, given)]))
        return MeanOfParts(
            {
                f"finding = {name}": AveragePrecision(self, label)
                for name, label in sorted(found.items())
                if label.truths
            }
        )


class _Label:
    """What is collected of one label: the row of each of its true boxes; row, score and hits of each
    predicted one."""

    def __init__(self) -> None:
        self.truths: list[int] = []
        self.places: list[int] = []
        self.scores: list[float] = []
        self.hits: list[Flags] = []


def _score(box: Box) -> float:
    assert box.score is not None, "only rows that judge gave a value are collected"
    return box.score


class AveragePrecision(Collected):
    """One label's boxes by falling score; of equal scores, in the order of rows."""

    def __init__(self, scorer: MeanAveragePrecision, label: _Label) -> None:
        order = np.argsort(-np.asarray(label.scores), kind="stable")
        self.scorer = scorer
        self.truths = np.asarray(label.truths, dtype=np.int64)
        self.places_D = np.asarray(label.places, dtype=np.int64)[order]
        self.hits_TD = np.concatenate(label.hits, axis=1)[:, order]

    def score(self, weights_RN: NDArray[np.int64]) -> Floats:
        positives_R = weights_RN[:, self.truths].sum(axis=1).astype(np.float64)
        weights_RD = weights_RN[:, self.places_D].astype(np.float64)
        taken_RD = weights_RD.cumsum(axis=1)
        areas_TR = [
            self.scorer.area(taken_RD[:, hit_D], weights_RD[:, hit_D].cumsum(axis=1), positives_R)
            for hit_D in self.hits_TD
        ]
        return np.where(positives_R > 0, np.mean(areas_TR, axis=0), np.nan)


class CocoMap(MeanAveragePrecision):
    """COCO's AP (Lin et al. 2014, pycocotools): the mean over IoU 0.50, 0.55, ..., 0.95 of precision at
    101 recalls. The surest box takes the free truth of its label with the largest IoU, at least the
    threshold; at most 100 boxes of a label on an image."""

    ious: ClassVar[tuple[float, ...]] = COCO_IOUS
    stated = "COCO AP, IoU 0.5:0.95; confidence of boxes; equal ones in the order of rows"

    def match(self, ious: Floats) -> Flags:
        return coco_hits(ious, self.ious)

    def area(self, taken_RH: Floats, hits_RH: Floats, positives_R: Floats) -> Floats:
        best_RH = _best_from_here(taken_RH, hits_RH)
        recalls_RH = hits_RH / np.maximum(positives_R, 1)[:, None]
        reached_RH = np.searchsorted(COCO_RECALLS, recalls_RH, side="right")
        gained_RH = np.diff(reached_RH, axis=1, prepend=0)
        return np.asarray((best_RH * gained_RH).sum(axis=1) / len(COCO_RECALLS))


class CocoMap50(CocoMap):
    """COCO's AP at IoU 0.5."""

    ious = (0.5,)
    stated = "COCO AP at IoU 0.5; confidence of boxes; equal ones in the order of rows"


class VocMap50(MeanAveragePrecision):
    """PASCAL VOC's AP since 2010 (Everingham et al.): the whole area under the falling envelope of
    precision, IoU at least 0.5. A box takes the truth that it overlaps most, and is false where a surer
    box has taken that one. VOC's +1 is that of inclusive pixel corners; ours are edges and need none."""

    stated = "VOC 2010 AP at IoU 0.5; confidence of boxes; equal ones in the order of rows"

    def match(self, ious: Floats) -> Flags:
        return voc_hits(ious, 0.5)[None]

    def area(self, taken_RH: Floats, hits_RH: Floats, positives_R: Floats) -> Floats:
        steps_RH = np.diff(hits_RH, axis=1, prepend=0)
        whole_R = (_best_from_here(taken_RH, hits_RH) * steps_RH).sum(axis=1)
        return np.asarray(whole_R / np.maximum(positives_R, 1))


def coco_hits(ious: Floats, thresholds: Sequence[float]) -> Flags:
    """`[T, D]`; `ious` `[truths, D]`, the surest box first. Of equal IoUs the last truth is taken, as
    pycocotools does."""
    truths, boxes = ious.shape
    hits_TD = np.zeros((len(thresholds), boxes), dtype=bool)
    free = np.ones((len(thresholds), truths), dtype=bool)
    least_T = np.minimum(thresholds, 1 - 1e-10)
    every_T = np.arange(len(thresholds))
    for d in np.flatnonzero((ious >= least_T.min()).any(axis=0)).tolist():
        open_ious = np.where(free, ious[:, d], -1.0)
        taken_T = truths - 1 - open_ious[:, ::-1].argmax(axis=1)
        hits_TD[:, d] = open_ious[every_T, taken_T] >= least_T
        free[every_T, taken_T] &= ~hits_TD[:, d]
    return hits_TD


def voc_hits(ious: Floats, threshold: float) -> Flags:
    """`[D]`; `ious` `[truths, D]`, the surest box first."""
    hits = np.zeros(ious.shape[1], dtype=bool)
    free = np.ones(ious.shape[0], dtype=bool)
    for d in range(ious.shape[1] if len(free) else 0):
        nearest = int(np.argmax(ious[:, d]))
        hits[d] = ious[nearest, d] >= threshold and free[nearest]
        free[nearest] &= not hits[d]
    return hits


def _best_from_here(taken_RH: Floats, hits_RH: Floats) -> Floats:
    """The largest precision at this true positive or a later one, `[R, H]`."""
    precision = np.divide(hits_RH, taken_RH, out=np.zeros_like(hits_RH), where=taken_RH > 0)
    return np.asarray(np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1])


class FrocPoint(NamedTuple):
    """What is found with boxes of at least `confidence`, at how many false ones per image."""

    false_positives: float
    sensitivity: float
    confidence: float


class Froc(DetectionScorer):
    """The mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image (LUNA16, Setio et
    al. 2017), linear between the points of the curve, as LUNA16's script and MONAI's compute_froc_score.

    A finding has the score of its surest hit, more hits on it are neither right nor wrong, and a box that
    hits nothing of its label is a false positive. Boxes of equal score enter together.
    """

    @abstractmethod
    def hit(self, boxes: Labelled) -> Flags:
        """`[truths, boxes]`: is the finding where the box says, labels aside?"""

    def collect(self, rows: Sequence[EvalRow]) -> Sensitivities:
        truths: dict[str, list[int]] = {}
        events: dict[str, list[_Event]] = {}
        for place, row in enumerate(rows):
            boxes = labelled(row)
            scores = np.array([_score(box) for box in boxes.boxes])
            hit = self.hit(boxes) & boxes.same()
            for name, on in zip(boxes.true_names, hit, strict=True):
                truths.setdefault(name, []).append(place)
                if on.any():
                    events.setdefault(name, []).append(_Event(place, float(scores[on].max()), True))
            for name, score, on in zip(boxes.said_names, scores, np.any(hit, axis=0), strict=True):
                if not on:
                    events.setdefault(name, []).append(_Event(place, float(score), False))
        return Sensitivities(truths, events)

    def points(self, rows: Sequence[EvalRow]) -> list[FrocPoint]:
        """The curve, over the rows that can be scored; from no box at all to every box."""
        scored = [row for row in rows if self.judge(row)[0] is not None]
        return self.collect(scored).points(len(scored)) if scored else []


class _Event(NamedTuple):
    """A finding that is found, or a false positive."""

    place: int
    score: float
    found: bool


class Sensitivities(Collected):
    """Findings and false positives by falling score, of all labels; of one in each part."""

    def __init__(
        self, truths: Mapping[str, Sequence[int]], events: Mapping[str, Sequence[_Event]]
    ) -> None:
        self.truths, self.events = truths, events
        every = [event for made in events.values() for event in made]
        scores = np.array([event.score for event in every], dtype=np.float64)
        self.falling = Falling(scores)
        order = self.falling.order_M
        self.places = np.array([event.place for event in every], dtype=np.int64)[order]
        self.found = np.array([event.found for event in every], dtype=bool)[order]
        self.positives = np.array([p for some in truths.values() for p in some], dtype=np.int64)

    def score(self, weights_RN: NDArray[np.int64]) -> Floats:
        false_RG, found_RG = self._curve(weights_RN)
        images_R = weights_RN.sum(axis=1)
        positives_R = weights_RN[:, self.positives].sum(axis=1)
        total_R = np.zeros(len(weights_RN))
        for rate in FROC_RATES:
            total_R += _at(false_RG, found_RG, rate * images_R)
        whole_R = (len(FROC_RATES) * positives_R).astype(np.float64)
        share_R = np.full_like(total_R, np.nan)
        return np.asarray(np.divide(total_R, whole_R, out=share_R, where=whole_R > 0))

    def parts(self) -> Mapping[str, Collected]:
        return {
            f"finding = {name}": Sensitivities({name: places}, {name: self.events.get(name, ())})
            for name, places in sorted(self.truths.items())
        }

    def points(self, rows: int) -> list[FrocPoint]:
        if not len(self.positives):
            return []
        false_1G, found_1G = self._curve(np.ones((1, rows), dtype=np.int64))
        scores = [1.0, *self.falling.values_G.tolist()]
        return [
            FrocPoint(false / rows, found / len(self.positives), score)
            for false, found, score in zip(false_1G[0], found_1G[0], scores, strict=True)
        ]

    def _curve(self, weights_RN: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """False positives and findings found down to each score, `[R, 1 + G]`, from (0, 0)."""
        weights = weights_RN[:, self.places].astype(np.float64)
        found = weights * self.found
        false_RG, found_RG = (
            np.pad(self.falling.summed(events_RE).cumsum(axis=1), ((0, 0), (1, 0)))
            for events_RE in (weights - found, found)
        )
        return false_RG, found_RG


def _at(false_RG: Floats, found_RG: Floats, allowed_R: Floats) -> Floats:
    """`[R]` findings found at so many false positives: the last point within them, and the straight line
    to the next; after the last point, its value."""
    last_R1 = (false_RG <= allowed_R[:, None]).sum(axis=1, keepdims=True) - 1
    next_R1 = np.minimum(last_R1 + 1, false_RG.shape[1] - 1)
    x0, x1 = (np.take_along_axis(false_RG, at, axis=1)[:, 0] for at in (last_R1, next_R1))
    y0, y1 = (np.take_along_axis(found_RG, at, axis=1)[:, 0] for at in (last_R1, next_R1))
    share = np.divide(allowed_R - x0, x1 - x0, out=np.zeros_like(x0), where=x1 > x0)
    return np.asarray(y0 + share * (y1 - y0))


class FrocIoU50(Froc):
    """A box hits a finding with an IoU of at least 0.5."""

    stated = "sensitivity at 1/8 to 8 false positives per row; hit: same label, IoU >= 0.5"

    def hit(self, boxes: Labelled) -> Flags:
        return iou_matrix(boxes.truths, boxes.boxes) >= 0.5


class FrocCentre(Froc):
    """A box hits a finding if its centre lies in the truth's box, edges included."""

    stated = "sensitivity at 1/8 to 8 false positives per row; hit: same label, centre inside"

    def hit(self, boxes: Labelled) -> Flags:
        inside = [[_centre_inside(box, truth) for box in boxes.boxes] for truth in boxes.truths]
        return np.array(inside, dtype=bool).reshape(len(boxes.truths), len(boxes.boxes))


def _centre_inside(box: Box, truth: Box) -> bool:
    flat = (
        truth.x1 <= (box.x1 + box.x2) / 2 <= truth.x2
        and truth.y1 <= (box.y1 + box.y2) / 2 <= truth.y2
    )
    if box.image != truth.image or (box.z1 is None) != (truth.z1 is None):
        return False
    if box.z1 is None or box.z2 is None or truth.z1 is None or truth.z2 is None:
        return flat
    return flat and truth.z1 <= (box.z1 + box.z2) / 2 <= truth.z2


class StrictLocalisation30(_Strict):
    """One to one, IoU > 0.3."""

    threshold = 0.3


class StrictLocalisation40(_Strict):
    """One to one, IoU > 0.4."""

    threshold = 0.4


class StrictLocalisation50(_Strict):
    """One to one, IoU > 0.5."""

    threshold = 0.5


class LitegptLocalisation30(_Litegpt):
    """LiteGPT's code, IoU > 0.3."""

    threshold = 0.3


class LitegptLocalisation40(_Litegpt):
    """LiteGPT's code, IoU > 0.4."""

    threshold = 0.4


class LitegptLocalisation50(_Litegpt):
    """LiteGPT's code, IoU > 0.5."""

    threshold = 0.5


class LitegptPaperLocalisation30(_LitegptPaper):
    """LiteGPT's text, IoU > 0.3."""

    threshold = 0.3


class LitegptPaperLocalisation40(_LitegptPaper):
    """LiteGPT's text, IoU > 0.4."""

    threshold = 0.4


class LitegptPaperLocalisation50(_LitegptPaper):
    """LiteGPT's text, IoU > 0.5."""

    threshold = 0.5
