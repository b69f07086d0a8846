"""Drafts with a date that the source does not have: full dates, months, years, days of the week."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from medloupe.imaging.deidentify.text import finder
from medloupe.synthesis.filters.texts import drafted_text, source_text
from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow

_MONTHS: Final = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_DAYS: Final = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_WHEN: Final = r"(?:in|since|during|on|until|from|before|after|by|last|early|late|mid)[ -]"
# What stands for a time but is no identifier, and so no finding of the de-identification.
_LOOSE: Final = re.compile(
    rf"\b{_WHEN}(?:(?:early|late|mid)[ -])?(?P<month>{'|'.join(m.capitalize() for m in _MONTHS)})\b"
    rf"|\b(?P<day>{'|'.join(d.capitalize() for d in _DAYS)})\b"
    r"|(?<![\w.,/-])(?P<year>(?:19|20)\d{2})(?![\w%]|[.,/-]\d|\s?(?:mm|cm|ml|HU|g|kg|×|x)\b)(?:\s?年)?"
    r"|(?<!\d)(?P<digits>(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))(?!\d)"
    r"|(?<!\d)(?P<year_zh>(?:19|20)\d{2})(?=\s?年)|(?<![\d个])(?P<month_zh>1[0-2]|[1-9])(?=月(?!龄))"
    r"|(?:星期|礼拜|周)(?P<day_zh>[一二三四五六日天])(?![围边])"
)
_find = finder()


class Dates(Filter):
    """Invents a date."""

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        source, text = source_text(row), drafted_text(draft)
        known = [components(source[start:end]) for start, end in date_spans(source)]
        for start, end in date_spans(text):
            said = components(text[start:end])
            if not any(said <= of_source for of_source in known):
                return f"the source has no such date: {text[start:end]!r}"
        return None


def date_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where dates stand: those that identify, then months, years and weekdays by themselves."""
    spans = [(found.start, found.end) for found in _find(text) if found.kind == "date"]
    yield from spans
    for match in _LOOSE.finditer(text):
        assert match.lastgroup is not None
        start, end = match.span(match.lastgroup)
        if not any(start < other_end and other_start < end for other_start, other_end in spans):
            yield start, end


def components(date: str) -> frozenset[str]:
    """Year, month, day and weekday as far as they are given; the order is not kept."""
    found = set()
    for word in re.findall(r"[A-Za-z]+", date.lower()):
        for number, month in enumerate(_MONTHS, start=1):
            if len(word) >= 3 and month.startswith(word):
                found.add(str(number))
        found |= {day for day in _DAYS if day == word}
    if re.fullmatch(r"\d{8}", date):
        date = f"{date[:4]}-{date[4:6]}-{date[6:]}"
    for digits in re.findall(r"\d+", re.sub(r"\d{1,2}[:时]\d{2}.*", "", date)):
        found.add(digits.lstrip("0"))
    if re.fullmatch("[一二三四五六日天]", date):
        found.add(_DAYS["一二三四五六日".index(date.replace("天", "日"))])
    return frozenset(found)
