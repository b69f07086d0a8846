"""Drafts with a number that the source does not have.

A number is in the source if it is written there, in digits or words, or follows from its unit (3 cm is
30 mm) or from rounding that the draft admits ("about 3 cm" for 3.2 cm), or counts what the source lists:
its images, its labels, its boxes of one label. Numbers of the body itself ("both lungs", "four
chambers") and the pronoun "one" are no claims.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from medloupe.synthesis.filters.dates import date_spans
from medloupe.synthesis.filters.quantities import Quantity, quantities, tokens
from medloupe.synthesis.filters.texts import drafted_text, excerpt, source_text
from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow

_ABOUT: Final = re.compile(
    r"(?:(?:slightly |just |a little )?(?:above|below|over|under|more than|less than)"
    r"|about|approximately|around|roughly|nearly|almost|close to|some|~|约|大约|近|将近"
    r"|大概)[\s为有是]*$",
    re.IGNORECASE,
)
# What every body or image has so many of: two lungs, four chambers, three dimensions.
_BODY: Final = re.compile(
    r"[\s-]*(?:(?:main|paired|cerebral|human|different|separate)\s)?"
    r"(?:lungs?|kidneys?|sides?|hemispheres?|hemi\w+|eyes?|hips?|knees?|breasts?|halves|dimension(?:s|al)?"
    r"|ovaries|adrenals?|atria|chambers?|limbs?|quadrants?|lead|way|tailed|侧|肺|肾|者|端|眼"
    r"|膝|髋|乳|下肢|上肢)",
    re.IGNORECASE,
)
_ORDINAL_PLACE: Final = re.compile(
    r"[\s-]*(?:ventricles?|trimester|of\b|part(?:y|ies)\b|molar)", re.IGNORECASE
)
_PORTION: Final = re.compile(
    r"(?:upper|middle|lower|inner|outer|proximal|distal|medial|lateral|a|one|two)[\s-]*$",
    re.IGNORECASE,
)
_ENUMERATION: Final = re.compile(r"(?:^|\n)[ \t]*$|[(（][ \t]*$")
# Names that a reader knows without the source.
_KNOWN_TOKENS: Final = frozenset({"d2", "d3", "covid19", "cov2", "x1"})


class Numbers(Filter):
    """Invents a number: a size, a count, an age, a level ("L4"), a sequence ("T2")."""

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        source, text = source_text(row), drafted_text(draft)
        known = [*quantities(source), *_counted(row)]
        skipped = [range(*span) for span in date_spans(text)]
        for quantity in quantities(text):
            if any(quantity.start in span for span in skipped) or _no_claim(text, quantity):
                continue
            if not _supported(text, quantity, known):
                return f"the source has no such number: {excerpt(text, quantity.start, quantity.end)!r}"
        names = {name for name, _, _ in tokens(source, apart=True)} | _KNOWN_TOKENS
        for name, start, end in tokens(text):
            if name not in names and not any(start in span for span in skipped):
                return f"the source does not say {text[start:end]!r}"
        return None


def _counted(row: SourceRow) -> Iterator[Quantity]:
    """Numbers that follow from lists: sizes in mm, and how many images, labels and boxes there are."""
    for box in row.boxes:
        for size in box.size_mm:
            yield _bare(size, size, "length")
    counts = {len(row.images), len(row.labels), len(row.boxes), 2 if row.kind == "pair" else 0}
    counts |= set(Counter(box.label for box in row.boxes).values())
    for count in counts - {0}:
        yield _bare(count, count, "")


def _bare(value: float, base: float, dimension: str) -> Quantity:
    return Quantity(value=value, base=base, dimension=dimension, start=0, end=0)


def _no_claim(text: str, quantity: Quantity) -> bool:
    before, behind = _beside(text, quantity)
    if quantity.ordinal:
        return bool(_ORDINAL_PLACE.match(behind) or _PORTION.search(before)) or quantity.value <= 2
    if quantity.value == 1 and not quantity.dimension and quantity.spelled:
        return not re.match(r"[期级型度]", behind)
    if quantity.value <= 4 and not quantity.dimension and _BODY.match(behind):
        return True
    # A list's own number, "1. ..." or "(1)".
    return bool(_ENUMERATION.search(before)) and bool(re.match(r"[.)）、]", behind))


def _beside(text: str, quantity: Quantity) -> tuple[str, str]:
    """A little of what stands before and behind: enough for the patterns above."""
    return text[max(0, quantity.start - 40) : quantity.start], text[
        quantity.end : quantity.end + 40
    ]


def _supported(text: str, quantity: Quantity, known: Sequence[Quantity]) -> bool:
    about = _ABOUT.search(_beside(text, quantity)[0]) is not None
    return any(_same(quantity, other, about) for other in known)


def _same(drafted: Quantity, source: Quantity, about: bool) -> bool:
    if drafted.dimension and source.dimension:
        if drafted.dimension != source.dimension:
            return False
        one, other, unit = drafted.base, source.base, drafted.base / (drafted.value or 1.0)
    elif drafted.spelled and source.dimension:
        return False  # "four nodules" is a count, "4 mm" is none
    else:
        one, other, unit = drafted.value, source.value, 1.0
    if abs(one - other) <= 1e-6 * max(1.0, abs(other)):
        return True
    # "about 3" for 3.2, "about 30" for 28: half of the last digit that is not zero.
    return about and abs(one - other) <= 0.5 * _last_digit(drafted.value) * unit


def _last_digit(value: float) -> float:
    """The worth of the last digit that is not zero: 1 for 3, 10 for 30, 0.1 for 2.5."""
    worth = 0.01
    while value and abs(value / (worth * 10) - round(value / (worth * 10))) < 1e-9:
        worth *= 10
    return worth
