"""Does a model know when it is right: calibration, and what is gained by abstaining.

Each scorer comes in two readings of how sure a row is. `options`: the largest of the probabilities of
its options, right where that option is the truth. `answer`: the probability of the written answer, right
where the strict scorer of its kind says so (closed accuracy; exact match; every box hit, IoU > 0.5). A
row's own value is 1 where it is right, else 0. Of all but the accuracies lower is better.
Shapes: N rows, B bins, G distinct confidences, R resamples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medloupe.evaluate.scorers.base import (
    Collected,
    Falling,
    Scorer,
    SetScorer,
    Verdict,
    WeightedMean,
)
from medloupe.evaluate.scorers.boxes import BoxHit50
from medloupe.evaluate.scorers.closed import StrictClosedAccuracy, positive_option
from medloupe.evaluate.scorers.exact import ExactMatch
from medloupe.evaluate.scorers.ranking import read_options
from medloupe.types import AnswerType, EvalRow

BINS = 15
MOST_POINTS = 200

Floats = NDArray[np.float64]

_RIGHT: dict[AnswerType, Scorer] = {
    "closed": StrictClosedAccuracy(),
    "open": ExactMatch(),
    "box": BoxHit50(),
}
_OPTIONS = "confidence: the largest probability of an option, right where it is the truth"
_ANSWER = "confidence: the probability of the written answer, right by strict accuracy"


class Sure(NamedTuple):
    """How sure a model is of a row, and whether it is right."""

    confidence: float
    right: bool


class Bin(NamedTuple):
    """One point of a reliability plot: `rows` with a confidence in (low, high], their mean and accuracy."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


class RiskPoint(NamedTuple):
    """The share of errors among the most confident rows, down to `confidence`."""

    coverage: float
    risk: float
    confidence: float


def sure_by_options(row: EvalRow) -> tuple[Sure | None, str]:
    """By the option of the largest probability, the first of several equal ones."""
    told, reason = read_options(row)
    if told is None:
        return None, reason
    top = told.probs.index(max(told.probs))
    return Sure(told.probs[top], top == told.truth), ""


def sure_by_answer(row: EvalRow) -> tuple[Sure | None, str]:
    """By the written answer."""
    if row.confidence is None:
        return None, "no probability of the answer"
    if not 0 <= row.confidence <= 1:
        return None, "the probability of the answer is no number in 0..1"
    value, reason = _RIGHT[row.answer_type].judge(row)
    return (None, reason) if value is None else (Sure(row.confidence, value == 1), reason)


class SureScorer(SetScorer):
    """Scores how sure a model is against how often it is right."""

    @abstractmethod
    def sure(self, row: EvalRow) -> tuple[Sure | None, str]:
        """How sure of a row, or None with the reason that nobody can tell."""

    def judge(self, row: EvalRow) -> Verdict:
        sure, reason = self.sure(row)
        return (None if sure is None else float(sure.right)), reason

    def told(self, rows: Sequence[EvalRow]) -> tuple[Floats, Floats]:
        """Confidences and 1 or 0 for right or wrong, `[N]` each, of the rows that have both."""
        found = [sure for row in rows if (sure := self.sure(row)[0]) is not None]
        sure_N2 = np.array(found, dtype=np.float64).reshape(len(found), 2)
        return sure_N2[:, 0], sure_N2[:, 1]


class _ByOptions(SureScorer):
    def sure(self, row: EvalRow) -> tuple[Sure | None, str]:
        return sure_by_options(row)


class _ByAnswer(SureScorer):
    def sure(self, row: EvalRow) -> tuple[Sure | None, str]:
        return sure_by_answer(row)


class Ece(SureScorer):
    """Expected calibration error (Guo et al. 2017): the mean over rows of the gap between confidence and
    accuracy in the row's bin; 15 bins of equal width, (low, high], 0 in the first."""

    lower_is_better: ClassVar[bool] = True

    def edges(self, confidence_N: Floats) -> Floats:
        """`[B + 1]`, from 0 to 1."""
        del confidence_N
        return np.linspace(0, 1, BINS + 1)

    def collect(self, rows: Sequence[EvalRow]) -> Gaps:
        confidence_N, right_N = self.told(rows)
        return Gaps(confidence_N, right_N, self.edges(confidence_N))

    def points(self, rows: Sequence[EvalRow]) -> list[Bin]:
        """The reliability plot: every bin with a row in it, over the rows that can be scored."""
        confidence_N, right_N = self.told(rows)
        edges = self.edges(confidence_N)
        bin_N = bins_of(confidence_N, edges)
        return [
            Bin(
                float(edges[b]),
                float(edges[b + 1]),
                int((bin_N == b).sum()),
                float(confidence_N[bin_N == b].mean()),
                float(right_N[bin_N == b].mean()),
            )
            for b in np.unique(bin_N)
        ]


class AdaptiveEce(Ece):
    """The same with bins of equal count (Nguyen and O'Connor 2015): 15 quantiles of the rows as they were
    answered, equal confidences together; resamples keep the edges."""

    def edges(self, confidence_N: Floats) -> Floats:
        if not len(confidence_N):
            return super().edges(confidence_N)
        upper = np.ceil(np.arange(1, BINS) * len(confidence_N) / BINS).astype(int) - 1
        inner = np.sort(confidence_N)[np.maximum(upper, 0)]
        return np.unique(np.concatenate([[0.0], inner, [1.0]]))


def bins_of(confidence_N: Floats, edges: Floats) -> NDArray[np.intp]:
    """The bin of each confidence: bin b is (edges[b], edges[b + 1]], and 0 stands in the first."""
    return np.searchsorted(edges[1:-1], confidence_N, side="left")


class Gaps(Collected):
    """What each row adds to the gap of its bin."""

    def __init__(self, confidence_N: Floats, right_N: Floats, edges: Floats) -> None:
        self.gap_NB = np.zeros((len(confidence_N), len(edges) - 1))
        places = np.arange(len(confidence_N)), bins_of(confidence_N, edges)
        self.gap_NB[places] = confidence_N - right_N

    def score(self, weights_RN: NDArray[np.int64]) -> Floats:
        weights = weights_RN.astype(np.float64)
        return np.asarray(np.abs(weights @ self.gap_NB).sum(axis=1) / weights.sum(axis=1))


class Brier(SetScorer):
    """The mean squared distance between probabilities and what is so (Brier 1950)."""

    lower_is_better: ClassVar[bool] = True

    @abstractmethod
    def distance(self, row: EvalRow) -> Verdict:
        """A row's own, 0..1."""

    def judge(self, row: EvalRow) -> Verdict:
        distance, reason = self.distance(row)
        if distance is None:
            return None, reason
        sure, _ = sure_by_options(row)
        assert sure is not None
        return float(sure.right), f"squared distance {distance:.4g}"

    def collect(self, rows: Sequence[EvalRow]) -> WeightedMean:
        values = [value for row in rows if (value := self.distance(row)[0]) is not None]
        return WeightedMean(np.array(values, dtype=np.float64))


class BinaryBrier(Brier):
    """Of yes/no questions: (probability of yes - 1 or 0)^2, as scikit-learn's brier_score_loss."""

    stated = "mean of (probability of yes - truth)^2; yes/no questions; lower is better"

    def distance(self, row: EvalRow) -> Verdict:
        told, reason = read_options(row)
        yes = positive_option(row.options)
        if told is None or yes is None:
            return None, reason or "the options are not yes and no"
        return (told.probs[yes] - (told.truth == yes)) ** 2, ""


class MultiClassBrier(Brier):
    """Of any options: half the sum over options of (probability - 1 or 0)^2, so that it lies in 0..1 and
    is the binary score where there are two; scikit-learn's with scale_by_half=True."""

    stated = "mean of half the sum over options of (probability - truth)^2; lower is better"

    def distance(self, row: EvalRow) -> Verdict:
        told, reason = read_options(row)
        if told is None:
            return None, reason
        gaps = [prob - (index == told.truth) for index, prob in enumerate(told.probs)]
        return sum(gap**2 for gap in gaps) / 2, ""


class Aurc(SureScorer):
    """Area under the risk-coverage curve (Geifman and El-Yaniv 2017): the mean over k = 1..n of the share
    of errors among the k most confident rows. Rows of equal confidence stand in random order: the value
    is its expectation, exactly."""

    lower_is_better: ClassVar[bool] = True

    def collect(self, rows: Sequence[EvalRow]) -> Collected:
        return RiskCoverage(*self.told(rows))

    def points(self, rows: Sequence[EvalRow]) -> list[RiskPoint]:
        """The selective-risk curve, at most 200 points of it, over the rows that can be scored."""
        confidence_N, right_N = self.told(rows)
        return RiskCoverage(confidence_N, right_N).points() if len(right_N) else []


class AtCoverage(SureScorer):
    """Accuracy where the model answers only the share `coverage` of the rows that it is surest of: the
    first ceil(coverage x n), rows of equal confidence in random order."""

    coverage: ClassVar[float]

    def collect(self, rows: Sequence[EvalRow]) -> Collected:
        return Selected(*self.told(rows), self.coverage)


class RiskCoverage(Collected):
    """Rows by falling confidence, those of equal confidence together."""

    def __init__(self, confidence_N: Floats, right_N: Floats) -> None:
        self.falling = Falling(confidence_N)
        self.right_N = right_N[self.falling.order_M]

    def grouped(self, weights_RN: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """How many rows and how many errors have each confidence, `[R, G]`, the highest first."""
        weights = weights_RN[:, self.falling.order_M].astype(np.float64)
        wrong = weights * (1 - self.right_N)
        return self.falling.summed(weights), self.falling.summed(wrong)

    def score(self, weights_RN: NDArray[np.int64]) -> Floats:
        """A group of m rows with e errors that follows k rows with f errors adds the sum over j = 1..m of
        (f + e j / m) / (k + j) = e + (f - e k / m) (H(k + m) - H(k)), H the harmonic numbers."""
        rows_RG, wrong_RG = self.grouped(weights_RN)
        after_RG = rows_RG.cumsum(axis=1)
        before_RG = after_RG - rows_RG
        most = int(after_RG[:, -1].max())
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, most + 1))])
        rise_RG = harmonic[after_RG.astype(np.int64)] - harmonic[before_RG.astype(np.int64)]
        rate_RG = np.divide(wrong_RG, rows_RG, out=np.zeros_like(wrong_RG), where=rows_RG > 0)
        errors_RG = wrong_RG.cumsum(axis=1) - wrong_RG
        added_RG = wrong_RG + (errors_RG - rate_RG * before_RG) * rise_RG
        return np.asarray(added_RG.sum(axis=1) / after_RG[:, -1])

    def points(self) -> list[RiskPoint]:
        rows_1G, wrong_1G = self.grouped(np.ones((1, len(self.right_N)), dtype=np.int64))
        taken, wrong = rows_1G[0].cumsum(), wrong_1G[0].cumsum()
        shown = np.unique(np.linspace(0, len(taken) - 1, min(len(taken), MOST_POINTS)).astype(int))
        confidence_G = self.falling.values_G
        return [
            RiskPoint(taken[g] / taken[-1], wrong[g] / taken[g], float(confidence_G[g]))
            for g in shown.tolist()
        ]


class Selected(RiskCoverage):
    """The accuracy of the most confident rows."""

    def __init__(self, confidence_N: Floats, right_N: Floats, coverage: float) -> None:
        super().__init__(confidence_N, right_N)
        self.coverage = coverage

    def score(self, weights_RN: NDArray[np.int64]) -> Floats:
        rows_RG, wrong_RG = self.grouped(weights_RN)
        after_RG = rows_RG.cumsum(axis=1)
        kept_R = np.ceil(self.coverage * after_RG[:, -1] - 1e-9)
        last_R1 = (after_RG < kept_R[:, None]).sum(axis=1, keepdims=True)
        rows_R, wrong_R = (
            np.take_along_axis(part, last_R1, axis=1)[:, 0] for part in (rows_RG, wrong_RG)
        )
        errors_R = np.take_along_axis(wrong_RG.cumsum(axis=1), last_R1, axis=1)[:, 0] - wrong_R
        before_R = np.take_along_axis(after_RG, last_R1, axis=1)[:, 0] - rows_R
        errors_R += wrong_R * (kept_R - before_R) / rows_R
        return np.asarray(1 - errors_R / kept_R)


class OptionsEce(_ByOptions, Ece):
    """Of the most probable option."""

    stated = f"15 bins of equal width; {_OPTIONS}; lower is better"


class AnswerEce(_ByAnswer, Ece):
    """Of the written answer."""

    stated = f"15 bins of equal width; {_ANSWER}; lower is better"


class OptionsAdaptiveEce(_ByOptions, AdaptiveEce):
    """Of the most probable option."""

    stated = f"15 bins of equal count; {_OPTIONS}; lower is better"


class AnswerAdaptiveEce(_ByAnswer, AdaptiveEce):
    """Of the written answer."""

    stated = f"15 bins of equal count; {_ANSWER}; lower is better"


class OptionsAurc(_ByOptions, Aurc):
    """Of the most probable option."""

    stated = f"mean error over coverages; {_OPTIONS}; lower is better"


class AnswerAurc(_ByAnswer, Aurc):
    """Of the written answer."""

    stated = f"mean error over coverages; {_ANSWER}; lower is better"


class OptionsAt80(_ByOptions, AtCoverage):
    """The surest 80 %, by the most probable option."""

    coverage, stated = 0.8, f"accuracy of the surest 80 %; {_OPTIONS}"


class AnswerAt80(_ByAnswer, AtCoverage):
    """The surest 80 %, by the written answer."""

    coverage, stated = 0.8, f"accuracy of the surest 80 %; {_ANSWER}"


class OptionsAt50(_ByOptions, AtCoverage):
    """The surest half, by the most probable option."""

    coverage, stated = 0.5, f"accuracy of the surest 50 %; {_OPTIONS}"


class AnswerAt50(_ByAnswer, AtCoverage):
    """The surest half, by the written answer."""

    coverage, stated = 0.5, f"accuracy of the surest 50 %; {_ANSWER}"
