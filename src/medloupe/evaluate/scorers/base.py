"""The scorer family: one evaluated row -> one score, or counts that are scored together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medloupe.config import ComponentConfig
from medloupe.types import EvalRow, Score

Verdict = tuple[float | None, str]
"""A value in 0..1 and, where it is None or needs explaining, the reason."""

Counted = tuple[tuple[int, ...] | None, str]
"""What a row adds to the counts of all, or None and the reason."""


class Scorer(ComponentConfig):
    """Scores one row by its `prediction` and `predicted_boxes`.

    `right_from` is the value from which an answer is shown as right. `stated` is what a number must
    carry to be compared (tokens, smoothing); it stands in the note of every metric.
    """

    family = "scorer"
    table: ClassVar[Mapping[str, str]] = {
        "open_recall.strict": "medloupe.evaluate.scorers.open_recall:StrictOpenRecall",
        "open_recall.llava_med": "medloupe.evaluate.scorers.open_recall:LlavaMedOpenRecall",
        "closed_accuracy.strict": "medloupe.evaluate.scorers.closed:StrictClosedAccuracy",
        "closed_accuracy.llava_med": "medloupe.evaluate.scorers.closed:LlavaMedClosedAccuracy",
        "exact_match": "medloupe.evaluate.scorers.exact:ExactMatch",
        "bleu_1.sacrebleu": "medloupe.evaluate.scorers.bleu:SacrebleuBleu1",
        "bleu_2.sacrebleu": "medloupe.evaluate.scorers.bleu:SacrebleuBleu2",
        "bleu_3.sacrebleu": "medloupe.evaluate.scorers.bleu:SacrebleuBleu3",
        "bleu_4.sacrebleu": "medloupe.evaluate.scorers.bleu:SacrebleuBleu4",
        "bleu_1.nltk": "medloupe.evaluate.scorers.bleu:NltkBleu1",
        "bleu_2.nltk": "medloupe.evaluate.scorers.bleu:NltkBleu2",
        "bleu_3.nltk": "medloupe.evaluate.scorers.bleu:NltkBleu3",
        "bleu_4.nltk": "medloupe.evaluate.scorers.bleu:NltkBleu4",
        "bleu_4.coco": "medloupe.evaluate.scorers.bleu:CocoBleu4",
        "meteor.exact_stem": "medloupe.evaluate.scorers.meteor:MeteorExactStem",
        "meteor.nltk_wordnet": "medloupe.evaluate.scorers.meteor:MeteorNltkWordNet",
        "box_iou": "medloupe.evaluate.scorers.boxes:BoxIoU",
        "box_hit_0.5": "medloupe.evaluate.scorers.boxes:BoxHit50",
    }
    right_from: ClassVar[float] = 1.0
    stated: ClassVar[str] = ""

    @abstractmethod
    def judge(self, row: EvalRow) -> Verdict:
        """The row's value, or None with the reason it cannot be scored."""

    def require(self) -> None:
        """Check what it needs beyond the package, before a model is asked.

        Raises:
            MissingExtraError: something is not installed.
        """

    def score(self, row: EvalRow) -> Score:
        """`judge`, named: who scored what."""
        value, reason = self.judge(row)
        return Score(id=row.id, scorer=self.name, value=value, reason=reason)


class CorpusScorer(Scorer):
    """Scores all rows together: `combine` of the sums of what every row counts.

    The score of a row is `combine` of its own counts; their mean is not the metric.
    """

    @abstractmethod
    def count(self, row: EvalRow) -> Counted:
        """What the row adds, always as many numbers, or None with the reason it cannot be scored."""

    @abstractmethod
    def combine(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sums of counts `[..., K]` -> scores `[...]` in 0..1."""

    def judge(self, row: EvalRow) -> Verdict:
        counts, reason = self.count(row)
        if counts is None:
            return None, reason
        return float(self.combine(np.array(counts))), reason


class Collected(ABC):
    """The rows of a set scorer, made ready once to be scored under many weightings."""

    @abstractmethod
    def score(self, weights_RN: NDArray[np.int64]) -> NDArray[np.float64]:
        """`[R]` scores of the rows, row n counted `weights_RN[r, n]` times; NaN where there is none."""

    def parts(self) -> Mapping[str, Collected]:
        """Scores of parts of what a row says, by name ("finding = effusion"); over the same rows."""
        return {}


class SetScorer(Scorer):
    """Scores all rows together by more than sums: a ranking, a curve, an average over findings.

    `judge` gives a row a value of its own for readers of samples, and decides whether the row counts;
    the mean of these values is not the metric.
    """

    @abstractmethod
    def collect(self, rows: Sequence[EvalRow]) -> Collected:
        """Rows that `judge` gave a value, in this order."""
