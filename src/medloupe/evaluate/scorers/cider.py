"""CIDEr (Vedantam et al. 2015): n-grams weighted by how few truths have them, compared by their angle.

An n-gram that occurs g times in a text counts g * (ln N - ln df): N truths, of which df have it. For
n = 1..4 the cosine between answer and truth; the mean of the four is a row's value, the mean of the rows
the score. COCO's evaluation prints, as "CIDEr", ten times CIDEr-D: each n-gram at most as often as the
truth has it, and exp(-d^2 / 72) where the numbers of words differ by d. Here all are 0 to 1.

The truths are those of the rows that are scored together: a task's figure weighs n-grams by that task's
truths, and of a single row nothing is known (0). In the bootstrap the weights are those of the whole
sample: it resamples the rows' values, so the interval leaves out what the weights themselves vary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medloupe.evaluate.scorers.base import Collected, SetScorer, Verdict, WeightedMean
from medloupe.evaluate.scorers.mteval import is_chinese
from medloupe.evaluate.scorers.ptb import PTB, ptb_words
from medloupe.evaluate.scorers.words import PLAIN, ngrams, plain_words
from medloupe.types import EvalRow

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0  # CIDEr-D's tolerance of another length, in words

Text = tuple[str, ...]
Pair = tuple[Text, Text]
"""Words of the truth and of the answer."""

Idf = Callable[[Text], float]
_FIXED = (
    "weights from the truths scored together, kept for the interval; a row alone: all weights 1"
)


class CocoCider(SetScorer):
    """CIDEr-D, which COCO's caption evaluation (Chen et al. 2015) prints as CIDEr, over plain words."""

    clipped: ClassVar[bool] = True
    stated = f"CIDEr-D (COCO's CIDEr / 10); {PLAIN}; {_FIXED}"

    def judge(self, row: EvalRow) -> Verdict:
        pair = self._pair(row)
        if not pair[0]:
            return None, "the truth has no words"
        return similarity(pair, lambda _: 1.0, clipped=self.clipped), ""

    def collect(self, rows: Sequence[EvalRow]) -> Collected:
        return WeightedMean(_values(tuple(self._pair(row) for row in rows), self.clipped))

    def _pair(self, row: EvalRow) -> Pair:
        return tuple(plain_words(row.truth)), tuple(plain_words(row.prediction))


class CocoPtbCider(CocoCider):
    """CIDEr-D as pycocoevalcap's: over the Penn Treebank tokens of COCO's own program."""

    stated = f"CIDEr-D (COCO's CIDEr / 10); {PTB}; {_FIXED}"

    def _pair(self, row: EvalRow) -> Pair:
        if is_chinese(row.truth):
            return super()._pair(row)
        return tuple(ptb_words(row.truth)), tuple(ptb_words(row.prediction))


class PaperCider(CocoCider):
    """CIDEr before the -D (section 4 of the paper), without its stems, as the authors' program: repeated
    words pay and length is free, so a system can play it."""

    clipped = False
    stated = f"CIDEr / 10, unclipped, any length; {PLAIN}; no stems; {_FIXED}"


@lru_cache(maxsize=32)  # a metric asks for the same rows several times: itself, and its differences
def _values(pairs: tuple[Pair, ...], clipped: bool) -> NDArray[np.float64]:
    """The value of each row among all."""
    having = Counter(ngram for true, _ in pairs for n in ORDERS for ngram in ngrams(true, n))
    whole = math.log(len(pairs)) if pairs else 0.0
    weight = {ngram: whole - math.log(count) for ngram, count in having.items()}

    def idf(ngram: Text) -> float:
        return weight.get(ngram, whole)

    return np.array([similarity(pair, idf, clipped=clipped) for pair in pairs], dtype=np.float64)


def similarity(pair: Pair, idf: Idf, *, clipped: bool) -> float:
    """The mean over n of the cosines, 0..1; 0 for an order that a text has no n-gram of, or none that
    has a weight."""
    true, said = pair
    ours, theirs = (_vectors(text, idf) for text in (said, true))
    cosines = [_cosine(*both, clipped=clipped) for both in zip(ours, theirs, strict=True)]
    if clipped:  # COCO counts pairs of neighbours, not words: a text of one word is as long as none
        gap = max(0, len(said) - 1) - max(0, len(true) - 1)
        return math.exp(-(gap**2) / (2 * SIGMA**2)) * math.fsum(cosines) / len(ORDERS)
    return math.fsum(cosines) / len(ORDERS)


def _cosine(said: Mapping[Text, float], true: Mapping[Text, float], *, clipped: bool) -> float:
    norms = math.hypot(*said.values()) * math.hypot(*true.values())
    if not norms:
        return 0.0
    common = said.keys() & true.keys()
    return (
        math.fsum((min(said[g], true[g]) if clipped else said[g]) * true[g] for g in common) / norms
    )


def _vectors(text: Text, idf: Idf) -> list[dict[Text, float]]:
    """For n = 1..4 the weights of a text's n-grams."""
    return [{ngram: times * idf(ngram) for ngram, times in ngrams(text, n).items()} for n in ORDERS]
