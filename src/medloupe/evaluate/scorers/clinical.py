"""Clinical metrics of radiology reports, by the package radeval (MIT): does the answer say the same findings?

Each is a trained model that reads both texts; radeval fetches its weights the first time, so require()
only checks that the package is there. The models read English. Left out: RadCliQ (a distance without an
upper end) and what asks a paid service.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from medloupe.errors import MissingExtraError
from medloupe.evaluate.scorers.base import Scorer, Verdict
from medloupe.evaluate.scorers.mteval import is_chinese
from medloupe.evaluate.scorers.words import plain_words
from medloupe.types import EvalRow

if TYPE_CHECKING:
    from radeval import RadEval


class RadEvalScorer(Scorer):
    """The mean over rows of one of radeval's scores; `metric` is its name there, `key` the score's."""

    metric: ClassVar[str]
    key: ClassVar[str]

    def require(self) -> None:
        if importlib.util.find_spec("radeval") is None:
            raise MissingExtraError.naming("radeval", extra="clinical")

    def judge(self, row: EvalRow) -> Verdict:
        self.require()
        if is_chinese(row.truth):
            return None, "the truth is Chinese; radeval's models read English"
        if not plain_words(row.truth):
            return None, "the truth has no words"
        if not plain_words(row.prediction):
            return 0.0, "the answer has no words"
        return _scores(self.metric, row.truth, row.prediction)[self.key], ""


class RadGraphSimple(RadEvalScorer):
    """F1 of RadGraph-XL's entities (Delbrouck et al. 2022), whatever their relations."""

    metric, key = "radgraph", "radgraph_simple"
    stated = "mean F1 of entities found by RadGraph-XL (radeval); English"


class RadGraphPartial(RadEvalScorer):
    """F1 of RadGraph-XL's entities, with whether each has a relation: the one most papers report."""

    metric, key = "radgraph", "radgraph_partial"
    stated = (
        "mean F1 of entities, with whether each has a relation, by RadGraph-XL (radeval); English"
    )


class RadGraphComplete(RadEvalScorer):
    """F1 of RadGraph-XL's entities with their relations."""

    metric, key = "radgraph", "radgraph_complete"
    stated = "mean F1 of entities with their relations, by RadGraph-XL (radeval); English"


class RaTEScore(RadEvalScorer):
    """RaTEScore (Zhao et al. 2024): entities matched by what they mean, negation included."""

    metric, key = "ratescore", "ratescore"
    stated = "mean RaTEScore (radeval); English"


class CheXbertAccuracy5(RadEvalScorer):
    """Agreement of CheXbert's labels (Smit et al. 2020) on five findings; chest radiographs."""

    metric, key = "f1chexbert", "f1chexbert_sample_acc_5"
    stated = "mean share of CheXbert's 5 labels that agree (radeval); English chest reports"


class CheXbertAccuracy14(RadEvalScorer):
    """Agreement of CheXbert's labels on all fourteen; chest radiographs."""

    metric, key = "f1chexbert", "f1chexbert_sample_acc_all"
    stated = "mean share of CheXbert's 14 labels that agree (radeval); English chest reports"


@lru_cache(maxsize=256)  # the scores of one model follow each other row by row
def _scores(metric: str, truth: str, answer: str) -> Mapping[str, float]:
    """Every score that one model gives a pair."""
    found = _evaluator(metric)(refs=[truth], hyps=[answer])
    return {key: float(values[0]) for key, values in found.items()}


@lru_cache(maxsize=4)
def _evaluator(metric: str) -> RadEval:
    """A model, loaded once."""
    from radeval import RadEval

    return RadEval(metrics=[metric], per_sample=True, show_progress=False)
