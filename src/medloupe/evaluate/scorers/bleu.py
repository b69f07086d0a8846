"""BLEU (Papineni et al. 2002) of one answer against one truth, in the flavours people publish.

All count the same: for n = 1..4 the n-grams of the answer that the truth has too, each at most as
often as there (`correct`), and all of the answer's (`total`). BLEU-N is

    min(1, exp(1 - r / c)) * (p_1 * ... * p_N) ^ (1 / N),    p_n = correct_n / total_n,

with r the words of the truths and c those of the answers. The flavours differ in the words, in what
stands for a p_n of 0, and in whether the counts of all rows are summed first (sacrebleu, coco) or
each row is scored and the mean taken (nltk).
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medloupe.evaluate.scorers.base import CorpusScorer, Counted, Scorer, Verdict
from medloupe.evaluate.scorers.mteval import is_chinese, tokens_13a, tokens_zh
from medloupe.evaluate.scorers.ptb import PTB, ptb_words
from medloupe.evaluate.scorers.words import PLAIN, Words, ngrams, plain_words
from medloupe.types import EvalRow

ORDERS = 4
EPSILON = 0.1  # NLTK's default for smoothing method 1
TINY, SMALL = 1e-15, 1e-9  # pycocoevalcap's guards against 0 / 0

Floats = NDArray[np.float64]


class SacrebleuBleu(CorpusScorer):
    """Corpus BLEU as sacrebleu's BLEU(max_ngram_order=N): tokens 13a, or zh where the truth is Chinese;
    cased; "exp" smoothing (NIST): the k-th p_n of 0 becomes 1 / (2^k total_n). 0 to 1, not to 100."""

    order: ClassVar[int]
    stated = "corpus BLEU; cased; tokens 13a, for a Chinese truth zh (by characters); exp smoothing"

    def count(self, row: EvalRow) -> Counted:
        words = tokens_zh if is_chinese(row.truth) else tokens_13a
        return _counted(row, words)

    def combine(self, counts: NDArray[np.int64]) -> Floats:
        return sacrebleu(counts, self.order)


class SacrebleuBleu1(SacrebleuBleu):
    """Corpus BLEU-1 by sacrebleu's conventions."""

    order = 1


class SacrebleuBleu2(SacrebleuBleu):
    """Corpus BLEU-2 by sacrebleu's conventions."""

    order = 2


class SacrebleuBleu3(SacrebleuBleu):
    """Corpus BLEU-3 by sacrebleu's conventions."""

    order = 3


class SacrebleuBleu4(SacrebleuBleu):
    """Corpus BLEU-4 by sacrebleu's conventions."""

    order = 4


class NltkBleu(Scorer):
    """The mean over rows of NLTK's sentence_bleu with weights 1 / N and smoothing method 1 (Chen and
    Cherry 2014): 0.1 stands for a count of 0. A right answer of one word scores 0.18 in BLEU-4."""

    order: ClassVar[int]
    stated = f"mean of sentence BLEU; {PLAIN}; smoothing method 1 (epsilon {EPSILON})"

    def judge(self, row: EvalRow) -> Verdict:
        counts, reason = _counted(row, plain_words)
        if counts is None:
            return None, reason
        return float(nltk(np.array(counts), self.order)), reason


class NltkBleu1(NltkBleu):
    """The mean of sentence BLEU-1 by NLTK's conventions."""

    order = 1


class NltkBleu2(NltkBleu):
    """The mean of sentence BLEU-2 by NLTK's conventions."""

    order = 2


class NltkBleu3(NltkBleu):
    """The mean of sentence BLEU-3 by NLTK's conventions."""

    order = 3


class NltkBleu4(NltkBleu):
    """The mean of sentence BLEU-4 by NLTK's conventions."""

    order = 4


class CocoBleu(CorpusScorer):
    """Corpus BLEU by the arithmetic of the COCO caption evaluation (Chen et al. 2015): no smoothing.

    That evaluation splits words by the Penn Treebank's rules, with a Java program; here they are plain
    lower-case words. Both drop punctuation, but hyphens and clitics ("it's") differ.
    """

    order: ClassVar[int]
    stated = (
        f"corpus BLEU; {PLAIN} (not the Penn Treebank tokens of COCO's own program); unsmoothed"
    )

    def count(self, row: EvalRow) -> Counted:
        return _counted(row, plain_words)

    def combine(self, counts: NDArray[np.int64]) -> Floats:
        return coco(counts, self.order)


class CocoBleu1(CocoBleu):
    """Corpus BLEU-1 by COCO's arithmetic."""

    order = 1


class CocoBleu2(CocoBleu):
    """Corpus BLEU-2 by COCO's arithmetic."""

    order = 2


class CocoBleu3(CocoBleu):
    """Corpus BLEU-3 by COCO's arithmetic."""

    order = 3


class CocoBleu4(CocoBleu):
    """Corpus BLEU-4 by COCO's arithmetic."""

    order = 4


class CocoPtbBleu(CocoBleu):
    """Corpus BLEU as pycocoevalcap's: COCO's arithmetic over the tokens of its own program."""

    stated = f"corpus BLEU; {PTB}; unsmoothed"

    def count(self, row: EvalRow) -> Counted:
        return _counted(row, plain_words if is_chinese(row.truth) else ptb_words)


class CocoPtbBleu1(CocoPtbBleu):
    """Corpus BLEU-1 as pycocoevalcap's."""

    order = 1


class CocoPtbBleu2(CocoPtbBleu):
    """Corpus BLEU-2 as pycocoevalcap's."""

    order = 2


class CocoPtbBleu3(CocoPtbBleu):
    """Corpus BLEU-3 as pycocoevalcap's."""

    order = 3


class CocoPtbBleu4(CocoPtbBleu):
    """Corpus BLEU-4 as pycocoevalcap's."""

    order = 4


def sacrebleu(counts: NDArray[np.int64], order: int) -> Floats:
    """`[..., K]` sums -> `[...]` scores; 0 without a common word, or where no answer has N words."""
    c = _Counts.of(counts, order)
    missed = c.correct == 0
    halvings = np.where(missed, np.cumsum(missed, axis=-1), 0)
    precisions = np.where(missed, 0.5**halvings, c.correct) / np.maximum(c.total, 1)
    whole = (c.correct[..., 0] > 0) & (c.total[..., -1] > 0)
    return np.where(whole, c.brevity * _geometric_mean(precisions), 0.0)


def nltk(counts: NDArray[np.int64], order: int) -> Floats:
    """`[..., K]` counts -> `[...]` scores; 0 without a common word. An answer of fewer than n words has
    an n-gram total of 1."""
    c = _Counts.of(counts, order)
    precisions = np.where(c.correct == 0, EPSILON, c.correct) / np.maximum(c.total, 1)
    return np.where(c.correct[..., 0] > 0, c.brevity * _geometric_mean(precisions), 0.0)


def coco(counts: NDArray[np.int64], order: int) -> Floats:
    """`[..., K]` sums -> `[...]` scores; never exactly 0. Where an n-gram order has no match its p_n is
    1e-15 / total_n, and 1e-6 where the answer is shorter than n (a right answer of three words: 0.03)."""
    c = _Counts.of(counts, order)
    ratio = (c.said + TINY) / (c.true + SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    result: Floats = brevity * _geometric_mean((c.correct + TINY) / (c.total + SMALL))
    return result


@lru_cache(maxsize=64)  # the orders of one flavour follow each other row by row
def ngram_counts(truth: str, answer: str, words: Words) -> tuple[int, ...]:
    """Words of the answer, words of the truth, `correct` for n = 1..4, `total` for n = 1..4."""
    said, true = words(answer), words(truth)
    correct, total = [], []
    for n in range(1, ORDERS + 1):
        ours, theirs = ngrams(said, n), ngrams(true, n)
        correct.append(sum(min(times, theirs[ngram]) for ngram, times in ours.items()))
        total.append(max(0, len(said) - n + 1))
    return (len(said), len(true), *correct, *total)


class _Counts(NamedTuple):
    """Sums as floats: words of the answers and of the truths `[...]`, n-grams `[..., N]`."""

    said: Floats
    true: Floats
    correct: Floats
    total: Floats

    @classmethod
    def of(cls, counts: NDArray[np.int64], order: int) -> _Counts:
        c = counts.astype(np.float64)
        correct, total = c[..., 2 : 2 + order], c[..., 2 + ORDERS : 2 + ORDERS + order]
        return cls(c[..., 0], c[..., 1], correct, total)

    @property
    def brevity(self) -> Floats:
        result: Floats = np.exp(np.minimum(0.0, 1 - self.true / np.maximum(self.said, 1)))
        return result


def _counted(row: EvalRow, words: Words) -> Counted:
    counts = ngram_counts(row.truth, row.prediction, words)
    return (counts, "") if counts[1] else (None, "the truth has no words")


def _geometric_mean(values: Floats) -> Floats:
    result: Floats = np.exp(np.log(values).mean(axis=-1))
    return result
