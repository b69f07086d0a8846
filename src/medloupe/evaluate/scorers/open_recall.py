"""Recall of the truth's words in a free answer. Nothing is taken off for saying too much."""

from __future__ import annotations

from collections import Counter

from medloupe.evaluate.scorers.base import Scorer, Verdict
from medloupe.evaluate.scorers.words import STRICT, llava_med_text, strict_words
from medloupe.types import EvalRow


class StrictOpenRecall(Scorer):
    """The share of the truth's distinct words that the answer contains."""

    stated = f"mean share of the truth's distinct words; {STRICT}"

    def judge(self, row: EvalRow) -> Verdict:
        wanted = set(strict_words(row.truth))
        if not wanted:
            return None, "the truth has no words"
        return len(wanted & set(strict_words(row.prediction))) / len(wanted), ""


class LlavaMedOpenRecall(Scorer):
    """LLaVA-Med's recall, kept so that published numbers can be compared.

    A word of the truth that the answer repeats counts once per repetition, above and below the
    line: truth "left lung", answer "lung lung lung" is 3 / (3 + 1), where the strict flavour says
    1 / 2. An empty answer, and a truth without words, are 0.
    """

    stated = (
        "mean recall; words as LLaVA-Med splits them (Chinese between spaces, not by characters)"
    )

    def judge(self, row: EvalRow) -> Verdict:
        answer = Counter(llava_med_text(row.prediction).split())
        truth = Counter(llava_med_text(row.truth).split())
        hit = sum(answer[word] for word in truth)
        missed = sum(count for word, count in truth.items() if word not in answer)
        return (hit / (hit + missed) if hit else 0.0), ""
