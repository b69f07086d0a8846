"""Token F1 of SQuAD (Rajpurkar et al. 2016): the harmonic mean of the precision and recall of words."""

from __future__ import annotations

from collections import Counter

from medloupe.evaluate.scorers.base import Scorer, Verdict
from medloupe.evaluate.scorers.words import STRICT, strict_words
from medloupe.types import EvalRow


class TokenF1(Scorer):
    """The mean over rows of 2 * common / (words said + words of the truth), repeated words as often as
    both have them. SQuAD's arithmetic on our strict words; its own keep "three", join "5-6" into 56, and
    take Chinese as one word."""

    stated = f"mean of SQuAD's token F1; {STRICT}"

    def judge(self, row: EvalRow) -> Verdict:
        said, true = strict_words(row.prediction), strict_words(row.truth)
        if not true:
            return None, "the truth has no words"
        common = (Counter(said) & Counter(true)).total()
        return 2 * common / (len(said) + len(true)), ""
