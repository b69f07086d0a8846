"""The answer is the truth, word for word."""

from __future__ import annotations

from medloupe.evaluate.scorers.base import Scorer, Verdict
from medloupe.evaluate.scorers.words import STRICT, strict_words
from medloupe.types import EvalRow


class ExactMatch(Scorer):
    """1 where the words are the truth's, in order; case, punctuation and articles do not count."""

    stated = f"share of equal answers; {STRICT}"

    def judge(self, row: EvalRow) -> Verdict:
        truth = strict_words(row.truth)
        if not truth:
            return None, "the truth has no words"
        return float(strict_words(row.prediction) == truth), ""
