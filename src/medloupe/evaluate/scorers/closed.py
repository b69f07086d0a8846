"""Accuracy on closed questions: yes or no, or one of the named options."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medloupe.evaluate.scorers.base import Scorer, Verdict
from medloupe.evaluate.scorers.words import CJK, llava_med_text, strict_words
from medloupe.types import EvalRow

_YES_NO = re.compile(
    r"(?P<no>\bno\b|不是|没有|不对|否|无)|(?P<yes>\byes\b|是|有|对)", re.IGNORECASE | re.ASCII
)
_LETTER = "0-9A-Za-z\u00c0-\u024f"


class StrictClosedAccuracy(Scorer):
    """1 where the answer says the truth and nothing else, else 0 with the reason.

    Yes or no: the first such word decides. Options: exactly one of them is named, as a whole word,
    and it is the truth. Where a row lists no options the words must equal the truth's. Negation is
    not understood: "not left" names left.
    """

    def judge(self, row: EvalRow) -> Verdict:
        if not strict_words(row.truth):
            return None, "the truth has no words"
        if all(_is_yes_or_no(choice) for choice in (row.truth, *row.options)):
            said = yes_or_no(row.prediction)
            return float(said == yes_or_no(row.truth)), "" if said else "no yes or no in the answer"
        if row.options:
            return _judge_options(row)
        return float(strict_words(row.prediction) == strict_words(row.truth)), ""


class LlavaMedClosedAccuracy(Scorer):
    """LLaVA-Med's closed accuracy, kept so that published numbers can be compared.

    A hit contains "yes" or "no" anywhere (so "normal" and "nodule" do) and contains the truth as a
    substring: "normal" is right where the truth is "no", and "left" is wrong where the truth is
    "left". A row that is no hit counts as 0.
    """

    def judge(self, row: EvalRow) -> Verdict:
        answer = llava_med_text(row.prediction)
        if "yes" not in answer and "no" not in answer:
            return 0.0, "neither 'yes' nor 'no' occurs in the answer"
        return float(llava_med_text(row.truth) in answer), ""


def yes_or_no(text: str) -> str | None:
    """ "yes" or "no" by the first such word (English or Chinese), else None."""
    found = _YES_NO.search(text)
    return found.lastgroup if found else None


def _is_yes_or_no(text: str) -> bool:
    """Is this "yes" or "no" and nothing more ("no change" is not)?"""
    return _YES_NO.fullmatch(text.strip(" .!。！")) is not None


def named_options(text: str, options: Sequence[str]) -> list[str]:
    """The options that stand in `text` as whole words, a longer one hiding those inside it."""
    by_length = sorted(options, key=len, reverse=True)
    pattern = "|".join(f"({_whole(option)})" for option in by_length)
    found = {match.lastindex for match in re.finditer(pattern, text, re.IGNORECASE)}
    return [option for index, option in enumerate(by_length, start=1) if index in found]


def _whole(option: str) -> str:
    """A pattern for an option as a whole word; Chinese is written without word limits."""
    escaped = re.escape(option.strip())
    if re.search(f"[{CJK}]", option):
        return escaped
    return f"(?<![{_LETTER}]){escaped}(?![{_LETTER}])"


def _judge_options(row: EvalRow) -> Verdict:
    truths = [option for option in row.options if strict_words(option) == strict_words(row.truth)]
    if not truths:
        return None, f"the truth {row.truth!r} is none of the options {', '.join(row.options)}"
    named = named_options(row.prediction, row.options)
    if not named:
        return 0.0, "no option is named"
    if len(named) > 1:
        return 0.0, f"more than one option is named: {', '.join(sorted(named))}"
    return float(named[0] in truths), ""
