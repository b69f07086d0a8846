"""The scorer family: one evaluated row -> one score."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from medloupe.config import ComponentConfig
from medloupe.types import EvalRow, Score

Verdict = tuple[float | None, str]
"""A value in 0..1 and, where it is None or needs explaining, the reason."""


class Scorer(ComponentConfig):
    """Scores one row by its `prediction` and `predicted_boxes`.

    `right_from` is the value from which an answer is shown as right.
    """

    family = "scorer"
    table: ClassVar[Mapping[str, str]] = {
        "open_recall.strict": "medloupe.evaluate.scorers.open_recall:StrictOpenRecall",
        "open_recall.llava_med": "medloupe.evaluate.scorers.open_recall:LlavaMedOpenRecall",
        "closed_accuracy.strict": "medloupe.evaluate.scorers.closed:StrictClosedAccuracy",
        "closed_accuracy.llava_med": "medloupe.evaluate.scorers.closed:LlavaMedClosedAccuracy",
        "exact_match": "medloupe.evaluate.scorers.exact:ExactMatch",
        "box_iou": "medloupe.evaluate.scorers.boxes:BoxIoU",
        "box_hit_0.5": "medloupe.evaluate.scorers.boxes:BoxHit50",
    }
    right_from: ClassVar[float] = 1.0

    @abstractmethod
    def judge(self, row: EvalRow) -> Verdict:
        """The row's value, or None with the reason it cannot be scored."""

    def score(self, row: EvalRow) -> Score:
        """`judge`, named: who scored what."""
        value, reason = self.judge(row)
        return Score(id=row.id, scorer=self.name, value=value, reason=reason)
