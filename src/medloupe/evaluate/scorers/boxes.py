"""Boxes against boxes, matched one to one so that the total is largest; and one box for one expression.

Edges are continuous coordinates (no +1 pixel). Labels are not compared: these scorers ask where.
A volume's box is compared in three dimensions; a flat box never meets it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medloupe.evaluate.scorers.base import Scorer, Verdict
from medloupe.types import Box, EvalRow


class BoxIoU(Scorer):
    """mIoU: the mean over the truth's boxes of the IoU with the box each is matched to (0 if none).

    Nothing is taken off for boxes too many.
    """

    right_from = 0.5
    stated = "mean IoU with the boxes matched one to one; labels not compared"

    def judge(self, row: EvalRow) -> Verdict:
        return _judge(row, iou_matrix(row.truth_boxes, row.predicted_boxes))


class BoxHit50(Scorer):
    """The share of the truth's boxes matched by a box with IoU > 0.5 (strictly)."""

    stated = "share of the truth's boxes with IoU > 0.5, matched one to one; labels not compared"

    def judge(self, row: EvalRow) -> Verdict:
        hits = iou_matrix(row.truth_boxes, row.predicted_boxes) > 0.5
        return _judge(row, hits.astype(np.float64))


class RecIoU(Scorer):
    """Referring expression comprehension: the IoU of the answer's first box with the one of the truth.

    Its mean is the mIoU of RefCOCO and of MedM-VL's REC tasks. An answer without a box is 0.
    """

    right_from = 0.5
    stated = "IoU of the first box"

    def judge(self, row: EvalRow) -> Verdict:
        if len(row.truth_boxes) != 1:
            return (
                None,
                f"the truth has {len(row.truth_boxes) or 'no'} boxes; the expression names one",
            )
        if not row.predicted_boxes:
            return 0.0, "no box in the answer"
        more = len(row.predicted_boxes) - 1
        said = f"{more} more box{'es' if more > 1 else ''}" if more else ""
        return iou(row.truth_boxes[0], row.predicted_boxes[0]), said


class RecAccuracy50(RecIoU):
    """Referring expression comprehension: 1 where the first box has an IoU of at least 0.5."""

    right_from = 1.0
    stated = "first box, IoU >= 0.5"

    def judge(self, row: EvalRow) -> Verdict:
        value, reason = super().judge(row)
        return None if value is None else float(value >= 0.5), reason


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 on different images or without any area."""
    if a.image != b.image or (a.z1 is None) != (b.z1 is None):
        return 0.0
    inner = outer_a = outer_b = 1.0
    for (a1, a2), (b1, b2) in zip(_extents(a), _extents(b), strict=True):
        inner *= max(0.0, min(a2, b2) - max(a1, b1))
        outer_a *= a2 - a1
        outer_b *= b2 - b1
    union = outer_a + outer_b - inner
    return inner / union if union > 0 else 0.0


def iou_matrix(truths: Sequence[Box], predictions: Sequence[Box]) -> NDArray[np.float64]:
    """`[truths, predictions]` intersections over union."""
    values = [[iou(truth, predicted) for predicted in predictions] for truth in truths]
    return np.array(values, dtype=np.float64).reshape(len(truths), len(predictions))


def best_assignment(gains: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs (row, column), each used at most once, with the largest total gain.

    The shortest-augmenting-path form of the Hungarian method, O(rows^2 x columns); `gains` >= 0.
    """
    rows, columns = gains.shape
    if rows > columns:
        return [(row, column) for column, row in best_assignment(gains.T)]
    cost = -gains
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)
    for start in range(rows):
        slack, previous = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, dtype=bool)
        row, column = start, -1
        while row >= 0:
            reduced = cost[row] - row_price[row] - column_price
            nearer = ~done & (reduced < slack)
            slack[nearer], previous[nearer] = reduced[nearer], column
            column = int(np.argmin(np.where(done, np.inf, slack)))
            step = slack[column]
            row_price[start] += step
            row_price[owner[done]] += step
            column_price[done] -= step
            slack[~done] -= step
            done[column] = True
            row = int(owner[column])
        while column >= 0:
            before = int(previous[column])
            owner[column] = owner[before] if before >= 0 else start
            column = before
    return [(int(row), column) for column, row in enumerate(owner) if row >= 0]


def _extents(box: Box) -> list[tuple[float, float]]:
    extents = [(box.x1, box.x2), (box.y1, box.y2)]
    if box.z1 is not None and box.z2 is not None:
        extents.append((box.z1, box.z2))
    return extents


def _judge(row: EvalRow, gains: NDArray[np.float64]) -> Verdict:
    if not row.truth_boxes:
        return None, "the truth has no box"
    if not row.predicted_boxes:
        return 0.0, "no box in the answer"
    total = sum(gains[pair] for pair in best_assignment(gains))
    return float(total) / len(row.truth_boxes), ""
