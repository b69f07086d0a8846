"""Clinical metrics of radiology reports, by the package radeval (MIT): does the answer say the same findings?

Each is a trained model that reads both texts. The models read English; radeval fetches them the first time.
Left out: RadCliQ (a distance without an upper end) and what asks a paid service.

radeval's own entrance, its class of the same name, is not used. It switches off every warning of the
process, and release 2.2.1 cannot run CheXbert without CUDA or beside scikit-learn 1.9, nor import RadGraph
where file names have a case (its issue 27). The classes behind it give the same numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import ClassVar, Final, TypeAlias

from medloupe.errors import MissingExtraError, import_extra
from medloupe.evaluate.scorers.base import Scorer, Verdict
from medloupe.evaluate.scorers.mteval import is_chinese
from medloupe.evaluate.scorers.words import plain_words
from medloupe.types import EvalRow

Reader: TypeAlias = Callable[[str, str], Mapping[str, float]]


class RadEvalScorer(Scorer):
    """The mean over rows of one of the scores that `metric`, a model of radeval, gives a pair of texts."""

    metric: ClassVar[str]
    key: ClassVar[str]

    def require(self) -> None:
        """
        Raises:
            MissingExtraError: radeval or what it needs is not installed, or its models are not to be had.
        """
        _reader(self.metric)

    def judge(self, row: EvalRow) -> Verdict:
        if is_chinese(row.truth):
            return None, "the truth is Chinese; radeval's models read English"
        if not plain_words(row.truth):
            return None, "the truth has no words"
        self.require()
        if not plain_words(row.prediction):
            return 0.0, "the answer has no words"
        return _scores(self.metric, row.truth, row.prediction)[self.key], ""


class RadGraphSimple(RadEvalScorer):
    """F1 of RadGraph-XL's entities (Delbrouck et al. 2022), whatever their relations."""

    metric, key = "radgraph", "simple"
    stated = "mean F1 of entities found by RadGraph-XL (radeval); English"


class RadGraphPartial(RadEvalScorer):
    """F1 of RadGraph-XL's entities, with whether each has a relation: the one most papers report."""

    metric, key = "radgraph", "partial"
    stated = (
        "mean F1 of entities, with whether each has a relation, by RadGraph-XL (radeval); English"
    )


class RadGraphComplete(RadEvalScorer):
    """F1 of RadGraph-XL's entities with their relations."""

    metric, key = "radgraph", "complete"
    stated = "mean F1 of entities with their relations, by RadGraph-XL (radeval); English"


class RaTEScore(RadEvalScorer):
    """RaTEScore (Zhao et al. 2024): entities matched by what they mean, negation included."""

    metric, key = "ratescore", "f1"
    stated = "mean RaTEScore (radeval); English"


class CheXbertAccuracy5(RadEvalScorer):
    """Agreement of CheXbert's labels (Smit et al. 2020) on five findings; chest radiographs."""

    metric, key = "chexbert", "5"
    stated = "mean share of CheXbert's 5 labels that agree (radeval); English chest reports"


class CheXbertAccuracy14(RadEvalScorer):
    """Agreement of CheXbert's labels on all fourteen; chest radiographs."""

    metric, key = "chexbert", "14"
    stated = "mean share of CheXbert's 14 labels that agree (radeval); English chest reports"


@lru_cache(maxsize=256)  # the scores of one model follow each other row by row
def _scores(metric: str, truth: str, answer: str) -> Mapping[str, float]:
    """Every score that one model gives a pair."""
    return _reader(metric)(truth, answer)


@lru_cache(maxsize=4)
def _reader(metric: str) -> Reader:
    """A model, loaded once."""
    # RadGraph's modules in radeval 2.2.1 import each other by the package's former name
    sys.modules.setdefault("RadEval", import_extra("radeval", extra="clinical"))
    build, needs = _READERS[metric]
    try:
        return build()
    except (
        Exception
    ) as error:  # of radeval, transformers, huggingface_hub, spaCy, or a bare Exception
        reason = next(iter(str(error).splitlines()), "").rstrip(".")
        raise MissingExtraError(
            f"radeval's {metric} cannot be loaded: {type(error).__name__}: {reason}", remedy=needs
        ) from error


def _radgraph() -> Reader:
    from radeval.metrics.radgraph import F1RadGraph

    model = F1RadGraph(reward_level="all", model_type="radgraph-xl")

    def read(truth: str, answer: str) -> Mapping[str, float]:
        _, levels, _, _ = model(refs=[truth], hyps=[answer])
        return {
            level: float(values[0])
            for level, values in zip(("simple", "partial", "complete"), levels, strict=True)
        }

    return read


def _ratescore() -> Reader:
    from radeval.metrics.RaTEScore import RaTEScore as Model

    model = Model()

    def read(truth: str, answer: str) -> Mapping[str, float]:
        scores, _, _ = model.compute_score(candidate_list=[answer], reference_list=[truth])
        return {"f1": float(scores[0])}

    return read


def _chexbert() -> Reader:
    import torch
    from radeval.metrics.f1chexbert import F1CheXbert

    model = F1CheXbert(device="cuda" if torch.cuda.is_available() else "cpu")

    def read(truth: str, answer: str) -> Mapping[str, float]:
        true, said = model.get_labels([truth, answer])
        agree = [a == b for a, b in zip(true, said, strict=True)]
        five = [agree[place] for place in model.top5_idx]
        return {"5": sum(five) / len(five), "14": sum(agree) / len(agree)}

    return read


_ONCE: Final = "Let it fetch them once where there is a network, or bring the caches along"
_READERS: Final[Mapping[str, tuple[Callable[[], Reader], str]]] = {
    "radgraph": (
        _radgraph,
        "It needs radgraph-xl of the hub's StanfordAIMI/RRG_scorers and the encoder that names. "
        + _ONCE,
    ),
    "ratescore": (
        _ratescore,
        "It needs medspacy, whose spaCy for Python 3.11 does not go with NumPy 2 (use Python 3.12 or newer), "
        "and the hub's Angelakeke/RaTE-NER-Deberta and FremyCompany/BioLORD-2023-C. " + _ONCE,
    ),
    "chexbert": (
        _chexbert,
        "It needs chexbert.pth of the hub's StanfordAIMI/RRG_scorers and bert-base-uncased. "
        + _ONCE,
    ),
}
