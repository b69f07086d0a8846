"""Accuracy on closed questions: yes or no, or one of the named options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from medloupe.evaluate.scorers.base import Scorer, Verdict
from medloupe.evaluate.scorers.words import CJK, llava_med_text, plain_words, strict_words
from medloupe.types import EvalRow

_YES_NO = re.compile(
    r"(?P<no>\bno\b|不是|没有|不对|否|无)|(?P<yes>\byes\b|是|有|对)", re.IGNORECASE | re.ASCII
)
_BRACKETS = re.compile(r"\(.*?\)")
_LETTER = "0-9A-Za-z\u00c0-\u024f"


class StrictClosedAccuracy(Scorer):
    """1 where the answer says the truth and nothing else, else 0 with the reason.

    Yes or no: the first such word decides. Options: exactly one of them is named, as a whole word,
    and it is the truth. Where a row lists no options the words must equal the truth's. Negation is
    not understood: "not left" names left.
    """

    stated = "share of right answers; the first yes or no, or the only option named, decides"

    def judge(self, row: EvalRow) -> Verdict:
        if not plain_words(row.truth):
            return None, "the truth has no words"
        if all(_is_yes_or_no(choice) for choice in (row.truth, *row.options)):
            said = yes_or_no(row.prediction)
            return float(said == yes_or_no(row.truth)), "" if said else "no yes or no in the answer"
        if row.options:
            return _judge_options(row)
        if not strict_words(row.truth):
            return None, "the truth has no words but articles"
        return float(strict_words(row.prediction) == strict_words(row.truth)), ""


class LlavaMedClosedAccuracy(Scorer):
    """LLaVA-Med's closed accuracy, kept so that published numbers can be compared.

    A hit contains "yes" or "no" anywhere (so "normal" and "nodule" do) and contains the truth as a
    substring: "normal" is right where the truth is "no", and "left" is wrong where the truth is
    "left". A row that is no hit counts as 0.
    """

    stated = "share of answers with the truth as a substring and yes or no anywhere (LLaVA-Med)"

    def judge(self, row: EvalRow) -> Verdict:
        answer = llava_med_text(row.prediction)
        if "yes" not in answer and "no" not in answer:
            return 0.0, "neither 'yes' nor 'no' occurs in the answer"
        return float(llava_med_text(row.truth) in answer), ""


class MedmVlClosedAccuracy(Scorer):
    """MedM-VL's accuracy of CT-RATE's multiple choice, kept so that published numbers can be compared.

    The first brackets of the truth, "(b)", stand anywhere in the answer, to the letter: an answer that
    lists every choice is right, "b" and "(B)" are wrong. A truth without brackets is left out, as there.
    """

    stated = "share of answers that hold the truth's first brackets to the letter (MedM-VL)"

    def judge(self, row: EvalRow) -> Verdict:
        letter = _BRACKETS.search(row.truth)
        if letter is None:
            return None, "the truth has no letter in brackets"
        return float(letter[0] in row.prediction), ""


def yes_or_no(text: str) -> str | None:
    """ "yes" or "no" by the first such word (English or Chinese), else None."""
    found = _YES_NO.search(text)
    return found.lastgroup if found else None


def _is_yes_or_no(text: str) -> bool:
    """Is this "yes" or "no" and nothing more ("no change" is not)?"""
    return _YES_NO.fullmatch(text.strip(" .!。！")) is not None


def positive_option(options: Sequence[str]) -> int | None:
    """Which of two options says yes; None where the options are not yes and no."""
    if len(options) != 2 or not all(_is_yes_or_no(option) for option in options):
        return None
    said = [yes_or_no(option) for option in options]
    return said.index("yes") if "yes" in said and "no" in said else None


def option_of(text: str, options: Sequence[str]) -> int | None:
    """The first option that `text` is: to the letter but for case, else in its words ("the left")."""
    spelt = text.strip().casefold()
    for index, option in enumerate(options):
        if spelt and option.strip().casefold() == spelt:
            return index
    words = strict_words(text)
    return next(
        (i for i, option in enumerate(options) if words and strict_words(option) == words), None
    )


def named_options(text: str, options: Sequence[str]) -> list[str]:
    """The options that stand in `text` as whole words, a longer one hiding those inside it."""
    found = {option for option, _, _ in option_places(text, tuple(options))}
    return [option for option in sorted(options, key=len, reverse=True) if option in found]


def option_places(text: str, options: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    """Where each option stands in `text` as whole words: (option, start, end), in reading order."""
    by_length, pattern = _options_pattern(options)
    for match in pattern.finditer(text):
        if match.lastindex is not None:
            yield by_length[match.lastindex - 1], match.start(), match.end()


@lru_cache(maxsize=1024)
def _options_pattern(options: tuple[str, ...]) -> tuple[list[str], re.Pattern[str]]:
    """One group per option, the longest first; a blank option stands nowhere."""
    by_length = sorted((option for option in options if option.strip()), key=len, reverse=True)
    pattern = "|".join(f"({_whole(option)})" for option in by_length) or "(?!)"
    return by_length, re.compile(pattern, re.IGNORECASE)


def _whole(option: str) -> str:
    """A pattern for an option as a whole word; Chinese is written without word limits."""
    escaped = re.escape(option.strip())
    if re.search(f"[{CJK}]", option):
        return escaped
    return f"(?<![{_LETTER}]){escaped}(?![{_LETTER}])"


def _judge_options(row: EvalRow) -> Verdict:
    truth = option_of(row.truth, row.options)
    if truth is None:
        return None, f"the truth {row.truth!r} is none of the options {', '.join(row.options)}"
    named = named_options(row.prediction, row.options)
    if not named:
        return 0.0, "no option is named"
    if len(named) > 1:
        return 0.0, f"more than one option is named: {', '.join(sorted(named))}"
    return float(option_of(named[0], row.options) == truth), ""
