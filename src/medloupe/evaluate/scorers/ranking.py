"""AUROC and AUPRC over the probabilities that a model gives to the options of closed questions.

A yes/no question is a decision about one finding: its rows are one ranking, by the probability of yes.
A question with other options is as many decisions, each option against the rest. AUROC is the share of
(positive, negative) pairs in the right order, ties half (Hanley and McNeil 1982; scikit-learn's
`roc_auc_score`); AUPRC is average precision, the step-wise sum over distinct probabilities
(scikit-learn's `average_precision_score`). Both are NaN where there is no positive or no negative.
Shapes: N rows, M decisions of a ranking, G distinct probabilities, R resamples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medloupe.evaluate.scorers.base import Collected, Falling, MeanOfParts, SetScorer, Verdict
from medloupe.evaluate.scorers.closed import option_of, positive_option
from medloupe.types import EvalRow

SUM_WITHIN = 1e-3  # what rounding to half precision leaves of a sum of 1

SINGLE = "probability of yes per finding, of each option against the rest in a choice,"
MACRO = "mean over those with both positives and negatives"

Floats = NDArray[np.float64]
Area = Callable[[Floats, Floats], Floats]
"""Positives and negatives at each distinct probability, the highest first, `[R, G]` -> areas `[R]`."""


class Told(NamedTuple):
    """The probabilities of a row's options, and which of them is the truth."""

    probs: tuple[float, ...]
    truth: int


def read_options(row: EvalRow) -> tuple[Told | None, str]:
    """A row's probabilities, or None with the reason that it has none to go by."""
    probs = row.option_probs
    if not row.options:
        return None, "the row has no options"
    if not probs:
        return None, "no probabilities of the options"
    if len(probs) != len(row.options):
        return None, f"{len(probs)} probabilities for {len(row.options)} options"
    if not all(0 <= prob <= 1 for prob in probs):
        return None, "a probability of an option is no number in 0..1"
    if abs(sum(probs) - 1) > SUM_WITHIN:
        return None, f"the probabilities of the options add up to {sum(probs):.4g}, not 1"
    truth = option_of(row.truth, row.options)
    if truth is None:
        return None, f"the truth {row.truth!r} is none of the options {', '.join(row.options)}"
    return Told(probs, truth), ""


def finding_of(row: EvalRow) -> str:
    """What a question is about: its attribute "finding", else the middle of its template
    ("presence/pleural effusion/en" is pleural effusion), else the template or the question."""
    pieces = row.template.split("/")
    built = len(pieces) > 2 and (pieces[0], pieces[-1]) == (row.task, row.language)
    said = "/".join(pieces[1:-1]) if built else row.template or row.question
    return row.attributes.get("finding", "").strip() or said


def auroc(positive_RG: Floats, negative_RG: Floats) -> Floats:
    """`[R]` areas under the receiver operating characteristic."""
    total_R1 = negative_RG.sum(axis=1, keepdims=True)
    below_RG = total_R1 - negative_RG.cumsum(axis=1)
    ordered_R = (positive_RG * (below_RG + negative_RG / 2)).sum(axis=1)
    return _ratio(ordered_R, positive_RG.sum(axis=1) * total_R1[:, 0])


def average_precision(positive_RG: Floats, negative_RG: Floats) -> Floats:
    """`[R]` average precisions; NaN too where there is no negative, which would make them 1."""
    hits_RG = positive_RG.cumsum(axis=1)
    taken_RG = hits_RG + negative_RG.cumsum(axis=1)
    precision_RG = np.divide(hits_RG, taken_RG, out=np.zeros_like(hits_RG), where=taken_RG > 0)
    total_R = positive_RG.sum(axis=1)
    both_R = np.where(negative_RG.sum(axis=1) > 0, total_R, 0)
    return _ratio((positive_RG * precision_RG).sum(axis=1), both_R)


class Decision(NamedTuple):
    """One thing that a row decides: its part, the row's place, the probability, and whether it is so."""

    part: str
    place: int
    prob: float
    positive: bool


class RankingScorer(SetScorer):
    """An area over rankings. A row's own value is the probability of its truth."""

    right_from = 0.5

    @abstractmethod
    def area(self, positive_RG: Floats, negative_RG: Floats) -> Floats:
        """The area of a ranking."""

    def judge(self, row: EvalRow) -> Verdict:
        told, reason = read_options(row)
        return (None, reason) if told is None else (told.probs[told.truth], "")


class _Macro(RankingScorer):
    """The mean over findings, and over the options of a choice, that have positives and negatives."""

    def collect(self, rows: Sequence[EvalRow]) -> MeanOfParts:
        parts: dict[str, list[Decision]] = {}
        for decision in decisions(rows):
            parts.setdefault(decision.part, []).append(decision)
        return MeanOfParts({part: Ranking(made, self.area) for part, made in parts.items()})


class _Micro(RankingScorer):
    """One ranking of all decisions, whatever they are about."""

    def collect(self, rows: Sequence[EvalRow]) -> Ranking:
        return Ranking(decisions(rows), self.area)


class MacroAuroc(_Macro):
    """AUROC: the mean over findings."""

    stated = f"{SINGLE} by AUROC; {MACRO}"

    def area(self, positive_RG: Floats, negative_RG: Floats) -> Floats:
        return auroc(positive_RG, negative_RG)


class MicroAuroc(_Micro):
    """AUROC of all decisions pooled."""

    stated = f"{SINGLE} in one AUROC"

    def area(self, positive_RG: Floats, negative_RG: Floats) -> Floats:
        return auroc(positive_RG, negative_RG)


class MacroAuprc(_Macro):
    """Average precision: the mean over findings."""

    stated = f"{SINGLE} by average precision; {MACRO}"

    def area(self, positive_RG: Floats, negative_RG: Floats) -> Floats:
        return average_precision(positive_RG, negative_RG)


class MicroAuprc(_Micro):
    """Average precision of all decisions pooled."""

    stated = f"{SINGLE} in one average precision"

    def area(self, positive_RG: Floats, negative_RG: Floats) -> Floats:
        return average_precision(positive_RG, negative_RG)


class Ranking(Collected):
    """Decisions by falling probability, those of equal probability together."""

    def __init__(self, made: Sequence[Decision], area: Area) -> None:
        probs_M = np.array([decision.prob for decision in made], dtype=np.float64)
        self.falling = Falling(probs_M)
        order_M = self.falling.order_M
        self.places_M = np.array([decision.place for decision in made], dtype=np.int64)[order_M]
        self.positive_M = np.array([decision.positive for decision in made], dtype=bool)[order_M]
        self.area = area

    def score(self, weights_RN: NDArray[np.int64]) -> Floats:
        weights_RM = weights_RN[:, self.places_M].astype(np.float64)
        positive_RM = weights_RM * self.positive_M
        negative_RM = weights_RM - positive_RM
        return self.area(self.falling.summed(positive_RM), self.falling.summed(negative_RM))


def decisions(rows: Sequence[EvalRow]) -> list[Decision]:
    """One per yes/no question, and one per option of any other, of rows that `read_options` reads."""
    found = []
    choices = {finding_of(row) for row in rows if positive_option(row.options) is None}
    for place, row in enumerate(rows):
        told, _ = read_options(row)
        assert told is not None, "only rows that judge gave a value are collected"
        finding, yes = finding_of(row), positive_option(row.options)
        if yes is not None:
            part = f"finding = {finding}"
            found.append(Decision(part, place, told.probs[yes], told.truth == yes))
            continue
        lead = "option = " if len(choices) == 1 else f"{finding} = "
        for index, (option, prob) in enumerate(zip(row.options, told.probs, strict=True)):
            found.append(Decision(f"{lead}{option}", place, prob, told.truth == index))
    return found


def _ratio(part_R: Floats, whole_R: Floats) -> Floats:
    """`part / whole`, NaN where `whole` is 0."""
    return np.divide(part_R, whole_R, out=np.full_like(part_R, np.nan), where=whole_R > 0)
