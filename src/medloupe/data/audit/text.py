"""Texts that stand word for word on two sides, punctuation and case aside.

Short answers and stock phrases ("no acute cardiopulmonary abnormality") are on every side of every
split and prove nothing. A finding is a long text that few pictures share, of a kind of row whose texts
are otherwise not repeated.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from medloupe.data.rows import Row
from medloupe.types import Record

# A group of rows whose texts recur on other pictures of the same side more often than this is
# written from templates: that its texts recur on the other side means nothing.
_RECURRING = 0.01

# A word is a run of letters and digits; a Chinese or Japanese character stands for one by itself.
_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿]|[^\W_぀-ヿ㐀-䶿一-鿿豈-﫿]+")


_CHARACTER = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿]$")


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case and compatibility form (NFKC)."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: str) -> str:
    """The words of a text, one space between them."""
    return " ".join(words_of(text))


def length_in_words(text: str) -> float:
    """The words of a normalised text; about two Chinese characters make a word."""
    words = text.split(" ")
    return sum(0.5 if _CHARACTER.match(word) else 1.0 for word in words)


@dataclass(frozen=True)
class Said:
    """A normalised text, the picture it goes with, its side, and the kind of row it stands in."""

    text: str
    picture: str
    side: int
    kind: str


def texts_of(row: Row) -> Iterator[tuple[str, str]]:
    """(kind, text): the report's sections and the questions, or all turns together."""
    if isinstance(row, Record):
        for section, text in row.report.items():
            yield f"report {section}", text
        for question in row.questions:
            yield f"question {question.task}", f"{question.text} {question.answer}"
    else:
        said = " ".join(message.text for message in row.messages if message.role != "system")
        yield f"turns {row.task} {row.template}", said


def recurring_kinds(texts: Iterable[Said]) -> set[str]:
    """The kinds of row whose texts recur on several pictures of one side."""
    pictures: dict[tuple[str, int, str], set[str]] = defaultdict(set)
    for said in texts:
        pictures[said.kind, said.side, said.text].add(said.picture)
    total: Counter[str] = Counter()
    again: Counter[str] = Counter()
    for (kind, _, _), shown in pictures.items():
        total[kind] += len(shown)
        again[kind] += len(shown) if len(shown) > 1 else 0
    return {kind for kind in total if again[kind] > _RECURRING * total[kind]}
