"""Findings by name: precision, recall, F1 and support per label, and their four averages.

An answer is read as a set of labels out of a vocabulary: the scorer's `labels`, or else the row's
`options`. An answer that says that there is nothing ("No finding", "None of these", 未见异常) is the
empty set, unless the vocabulary has such a label, as VinDr-CXR's six diagnoses have.
The figures are scikit-learn's `precision_recall_fscore_support` with `zero_division=0`: a label that is
never named has precision 0, one that is never true has recall 0, and both count in the macro average,
as in LiteGPT's Tables 8 to 13 (Edema, support 0).
Shapes: N rows, K labels, R resamples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medloupe.evaluate.scorers.base import Collected, SetScorer, Verdict
from medloupe.evaluate.scorers.closed import option_places
from medloupe.types import EvalRow

Figure = Literal["precision", "recall", "f1"]
Average = Literal["micro", "macro", "weighted", "samples"]
AVERAGES: tuple[Average, ...] = ("micro", "macro", "weighted", "samples")

FINDING = "Finding"
"""The label that holds where `negative` is not named."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_NOTHING = re.compile(
    r"\b(?:no|without(?: any)?)\s+"
    r"(?:(?:acute|significant|abnormal|critical|relevant|such|other|visible)\s+)*"
    r"(?:findings?|abnormalit(?:y|ies)|lesions?|diseases?|diagnos[ei]s)\b"
    r"|\bnone(?: of (?:these|them|the above))?\b|\b(?:unremarkable|normal)\b"
    r"|(?:未见|无)(?:明显|明确)?异常|以上均无|正常",
    re.IGNORECASE,
)
# Look like a denial, and deny nothing.
_NO_DENIAL = re.compile(
    r"\b(?:no|not|without)\s+(?:\w+\s+){0,2}?(?:change|changes|increase|decrease|growth|difference)\b"
    r"|\bnot only\b"
    r"|\b(?:cannot|can't|can not|not)\s+(?:be\s+)?(?:\w+\s+)?(?:excluded?|ruled? out)\b"
    r"|(?:无|未见|没有)(?:明显)?(?:变化|增大|缩小)|不(?:能)?(?:除外|排除)",
    re.IGNORECASE,
)
_DENIED_BEFORE = re.compile(
    r"\b(?:no|not|without|absence of|negative for|free of|denies|nor|neither|rules? out|isn't|aren't)\b"
    r"|(?<!有)无|没有|未(?:见|发现|显示)|不伴|除外|排除|否认",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    r"\s*(?:(?:is|are|was|were|has been|have been)\s+)?(?:absent|excluded|ruled out|resolved"
    r"|not\s+(?:\w+ly\s+)?(?:seen|present|identified|visible|evident|detected|noted))\b"
    r"|\s*[:：=-]\s*(?:no|none|absent|negative|无|阴性|否)(?![^\W_])|(?:未见|阴性|不存在)",
    re.IGNORECASE,
)
_ENDS = re.compile(
    r"[.;!?\n。；！？，]|\b(?:but|however|although|except|while|whereas)\b|但|而", re.IGNORECASE
)
_TAG = re.compile(r"<.*?>")


class LabelLine(NamedTuple):
    """One line of a classification report; `support` is how often the label is true."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class LabelScorer(SetScorer):
    """One figure under one average. The macro average has each label as a part of its own.

    `labels` () takes each row's options. With `negative` ("No finding"), a label "Finding" is added that
    holds wherever that one is not named: LiteGPT's Table 1. A row's own value is the F1 of its two sets,
    1 where both are empty.
    """

    figure: ClassVar[Figure]
    average: ClassVar[Average]

    labels: tuple[str, ...] = ()
    negative: str = ""

    def named(self, text: str, labels: tuple[str, ...]) -> set[str]:
        """The labels that an answer affirms."""
        return affirmed(text, labels)

    def judge(self, row: EvalRow) -> Verdict:
        labels = self._vocabulary(row)
        if not labels:
            return None, "no labels to look for: the row has no options, the scorer no labels"
        true = affirmed(row.truth, labels)
        if not true and not says_none(row.truth):
            return None, f"the truth {row.truth!r} names none of the {len(labels)} labels"
        said = self.named(row.prediction, labels)
        wrong = [f"not in the truth: {', '.join(sorted(said - true))}"] if said - true else []
        wrong += [f"missed: {', '.join(sorted(true - said))}"] if true - said else []
        both = len(said) + len(true)
        return (2 * len(said & true) / both if both else 1.0), "; ".join(wrong)

    def collect(self, rows: Sequence[EvalRow]) -> LabelSets:
        labels = list(dict.fromkeys(label for row in rows for label in self._vocabulary(row)))
        place = {label: index for index, label in enumerate(labels)}
        true_NK = np.zeros((len(rows), len(labels)), dtype=bool)
        said_NK = np.zeros_like(true_NK)
        for n, row in enumerate(rows):
            vocabulary = self._vocabulary(row)
            true_NK[n, [place[label] for label in affirmed(row.truth, vocabulary)]] = True
            said_NK[n, [place[label] for label in self.named(row.prediction, vocabulary)]] = True
        if self.negative in place:
            labels.append(FINDING)
            true_NK = np.column_stack([true_NK, ~true_NK[:, place[self.negative]]])
            said_NK = np.column_stack([said_NK, ~said_NK[:, place[self.negative]]])
        return LabelSets(labels, true_NK, said_NK, self.figure, self.average)

    def report(self, rows: Sequence[EvalRow]) -> list[LabelLine]:
        """Every label and the four averages, as scikit-learn's classification report and LiteGPT's
        Tables 8 to 13 have them; over the rows that can be scored."""
        scored = [row for row in rows if self.judge(row)[0] is not None]
        return self.collect(scored).report() if scored else []

    def _vocabulary(self, row: EvalRow) -> tuple[str, ...]:
        return self.labels or row.options


class LabelSets(Collected):
    """What is true `[N, K]` and what is said `[N, K]`."""

    def __init__(
        self,
        labels: Sequence[str],
        true_NK: Flags,
        said_NK: Flags,
        figure: Figure,
        average: Average,
    ) -> None:
        self.labels, self.figure, self.average = labels, figure, average
        self.true_NK, self.said_NK = true_NK, said_NK

    def score(self, weights_RN: NDArray[np.int64]) -> Floats:
        if not self.labels:
            return np.full(len(weights_RN), np.nan)
        weights = weights_RN.astype(np.float64)  # whole still; integer matrices multiply slowly
        if self.average == "samples":
            hit, said, true = (part.sum(axis=1) for part in self._counted())
            own_N = _figure(self.figure, hit, said, true)
            return np.asarray(weights @ own_N / weights.sum(axis=1))
        hit, said, true = (weights @ part for part in self._counted())
        if self.average == "micro":
            return _figure(self.figure, hit.sum(axis=1), said.sum(axis=1), true.sum(axis=1))
        values_RK = _figure(self.figure, hit, said, true)
        if self.average == "macro":
            return np.asarray(values_RK.mean(axis=1))
        return _shares((values_RK * true).sum(axis=1), true.sum(axis=1))

    def parts(self) -> Mapping[str, Collected]:
        if self.average != "macro":
            return {}
        return {
            f"finding = {label}": LabelSets(
                [label], self.true_NK[:, [k]], self.said_NK[:, [k]], self.figure, "macro"
            )
            for k, label in enumerate(self.labels)
        }

    def report(self) -> list[LabelLine]:
        """Labels in the order of the vocabulary, then "micro avg" and the others."""
        support = self.true_NK.sum(axis=0).tolist()
        lines = []
        for k, label in enumerate(self.labels):
            flags = [label], self.true_NK[:, [k]], self.said_NK[:, [k]]
            lines.append(LabelLine(label, *_figures(*flags, "macro"), support[k]))
        everything = self.labels, self.true_NK, self.said_NK
        return lines + [
            LabelLine(f"{average} avg", *_figures(*everything, average), sum(support))
            for average in AVERAGES
        ]

    def _counted(self) -> tuple[Floats, Floats, Floats]:
        """Hits, labels said and labels true, `[N, K]` each."""
        true, said = self.true_NK.astype(np.float64), self.said_NK.astype(np.float64)
        return true * said, said, true


def _figures(
    labels: Sequence[str], true_NK: Flags, said_NK: Flags, average: Average
) -> tuple[float, float, float]:
    once = np.ones((1, len(true_NK)), dtype=np.int64)
    figures: tuple[Figure, ...] = ("precision", "recall", "f1")
    precision, recall, f1 = (
        float(LabelSets(labels, true_NK, said_NK, figure, average).score(once)[0])
        for figure in figures
    )
    return precision, recall, f1


def _figure(figure: Figure, hit: Floats, said: Floats, true: Floats) -> Floats:
    if figure == "precision":
        return _shares(hit, said)
    return _shares(hit, true) if figure == "recall" else _shares(2 * hit, said + true)


def _shares(part: Floats, whole: Floats) -> Floats:
    """`part / whole`, 0 where `whole` is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def says_none(text: str) -> bool:
    """Does the text say that there is nothing to name?"""
    return _NOTHING.search(text) is not None


def affirmed(text: str, labels: tuple[str, ...]) -> set[str]:
    """The labels that stand in `text` as whole words and are denied neither before nor behind.

    A denial reaches over commas and "or" to the end of its sentence or a "but"; in Chinese to the next
    comma (，), since lists are written with 、. A label that is denied once and affirmed once is affirmed.
    The words of a label ("No finding") and phrases such as "no change" deny nothing.
    """
    places = list(option_places(text, labels))
    if not places:
        return set()
    bare = _blanked(text, [(start, end) for _, start, end in places])
    for phrase in (_NO_DENIAL, _NOTHING):
        bare = _blanked(bare, [match.span() for match in phrase.finditer(bare)])
    return {label for label, start, end in places if not _denied(bare, start, end)}


def _denied(bare: str, start: int, end: int) -> bool:
    """Is what stood in `bare[start:end]` denied in its own clause?"""
    since = max((match.end() for match in _ENDS.finditer(bare, 0, start)), default=0)
    return bool(_DENIED_BEFORE.search(bare, since, start) or _DENIED_BEHIND.match(bare, end))


def _blanked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text with some of its places blank and all others where they were."""
    for start, end in spans:
        text = text[:start] + " " * (end - start) + text[end:]
    return text


class _Strict(LabelScorer):
    stated = (
        "labels as whole words, denied ones not counted; no finding = no label; "
        "0 where nothing is said or true (scikit-learn's zero_division=0)"
    )


class _Litegpt(LabelScorer):
    """LiteGPT's reading of an answer, kept so that published numbers can be compared.

    Tags go, and a label counts where it occurs in lower case anywhere: "ILD" in "mild", and "no edema"
    names edema. The truth is read as in the strict flavour: LiteGPT takes it from a table.
    """

    stated = (
        "labels as lower-case substrings of the answer (LiteGPT); "
        "0 where nothing is said or true (scikit-learn's zero_division=0)"
    )

    def named(self, text: str, labels: tuple[str, ...]) -> set[str]:
        lower = _TAG.sub("", text.lower())
        return {label for label in labels if label.strip() and label.lower() in lower}


class StrictMicroPrecision(_Strict):
    """Of the labels said, the share that is true: all labels and rows pooled."""

    figure, average = "precision", "micro"


class StrictMacroPrecision(_Strict):
    """Of the labels said, the share that is true: the mean over labels."""

    figure, average = "precision", "macro"


class StrictWeightedPrecision(_Strict):
    """Of the labels said, the share that is true: the mean over labels by their support."""

    figure, average = "precision", "weighted"


class StrictSamplesPrecision(_Strict):
    """Of the labels said, the share that is true: the mean over rows."""

    figure, average = "precision", "samples"


class StrictMicroRecall(_Strict):
    """Of the true labels, the share that is said: all labels and rows pooled."""

    figure, average = "recall", "micro"


class StrictMacroRecall(_Strict):
    """Of the true labels, the share that is said: the mean over labels."""

    figure, average = "recall", "macro"


class StrictWeightedRecall(_Strict):
    """Of the true labels, the share that is said: the mean over labels by their support."""

    figure, average = "recall", "weighted"


class StrictSamplesRecall(_Strict):
    """Of the true labels, the share that is said: the mean over rows."""

    figure, average = "recall", "samples"


class StrictMicroF1(_Strict):
    """The harmonic mean of precision and recall: all labels and rows pooled."""

    figure, average = "f1", "micro"


class StrictMacroF1(_Strict):
    """The harmonic mean of precision and recall: the mean over labels."""

    figure, average = "f1", "macro"


class StrictWeightedF1(_Strict):
    """The harmonic mean of precision and recall: the mean over labels by their support."""

    figure, average = "f1", "weighted"


class StrictSamplesF1(_Strict):
    """The harmonic mean of precision and recall: the mean over rows."""

    figure, average = "f1", "samples"


class LitegptMicroPrecision(_Litegpt):
    """Of the labels said, the share that is true: all labels and rows pooled."""

    figure, average = "precision", "micro"


class LitegptMacroPrecision(_Litegpt):
    """Of the labels said, the share that is true: the mean over labels."""

    figure, average = "precision", "macro"


class LitegptWeightedPrecision(_Litegpt):
    """Of the labels said, the share that is true: the mean over labels by their support."""

    figure, average = "precision", "weighted"


class LitegptSamplesPrecision(_Litegpt):
    """Of the labels said, the share that is true: the mean over rows."""

    figure, average = "precision", "samples"


class LitegptMicroRecall(_Litegpt):
    """Of the true labels, the share that is said: all labels and rows pooled."""

    figure, average = "recall", "micro"


class LitegptMacroRecall(_Litegpt):
    """Of the true labels, the share that is said: the mean over labels."""

    figure, average = "recall", "macro"


class LitegptWeightedRecall(_Litegpt):
    """Of the true labels, the share that is said: the mean over labels by their support."""

    figure, average = "recall", "weighted"


class LitegptSamplesRecall(_Litegpt):
    """Of the true labels, the share that is said: the mean over rows."""

    figure, average = "recall", "samples"


class LitegptMicroF1(_Litegpt):
    """The harmonic mean of precision and recall: all labels and rows pooled."""

    figure, average = "f1", "micro"


class LitegptMacroF1(_Litegpt):
    """The harmonic mean of precision and recall: the mean over labels."""

    figure, average = "f1", "macro"


class LitegptWeightedF1(_Litegpt):
    """The harmonic mean of precision and recall: the mean over labels by their support."""

    figure, average = "f1", "weighted"


class LitegptSamplesF1(_Litegpt):
    """The harmonic mean of precision and recall: the mean over rows."""

    figure, average = "f1", "samples"
