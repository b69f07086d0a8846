"""Drafts in another language than the row's."""

from __future__ import annotations

import re
from typing import Final

from medloupe.synthesis.filters.texts import CJK, excerpt
from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow

_CHINESE: Final = re.compile(f"[{CJK}]")
_LATIN: Final = re.compile(r"[A-Za-zÀ-ÖØ-öø-ž]+")
# Scripts of neither language. Greek letters stand for quantities in both (α-fetoprotein, μm).
_FOREIGN: Final = re.compile(
    r"[\u0400-\u052f\u0590-\u06ff\u0900-\u0dff\u0e00-\u0eff\u3040-\u30ff\uac00-\ud7af]"
)
# Function words that no English sentence holds; those that are English words too ("die", "on") left out.
_OTHER_TEXT: Final = (
    "el los las una unos unas del que qué está están según imagen muestra y cuál cómo dónde"
    " les des une est sont dans avec sur qui quelle montre où du cette elle"
    " der das ein eine einer und ist sind auf dem den nicht wird zeigt welche bild wo"
    " il gli della nella è sono immagine mostra quale dove che um uma não são imagem"
)
_ENGLISH_TEXT: Final = (
    "the a an of is are in on what which where how does do there this that and with to be it has"
    " can you no yes or as at by for from seen shows any"
)
_OTHER_WORDS: Final = frozenset(_OTHER_TEXT.split())
_ENGLISH_WORDS: Final = frozenset(_ENGLISH_TEXT.split())
# Written so in Chinese too.
_X_RAY: Final = re.compile(r"\bX[- ]?rays?\b", re.IGNORECASE | re.ASCII)
_UNITS: Final = frozenset({"mm", "cm", "ml", "mg", "kg", "cc"})


class Language(Filter):
    """A turn is not in the row's language; acronyms and Latin terms do not count against Chinese."""

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        judged = _not_chinese if row.language == "zh" else _not_english
        for turn in draft.turns:
            for text in (turn.question, turn.answer):
                if (why := _foreign(text) or judged(text)) is not None:
                    return why
        return None


def _foreign(text: str) -> str | None:
    found = _FOREIGN.search(text)
    return f"another script: {excerpt(text, *found.span())!r}" if found else None


def _not_english(text: str) -> str | None:
    chinese = _CHINESE.search(text)
    if chinese:
        return f"Chinese in an English conversation: {excerpt(text, *chinese.span())!r}"
    words = [word.lower() for word in _LATIN.findall(text)]
    other = sum(word in _OTHER_WORDS for word in words)
    if other >= 2 and other > sum(word in _ENGLISH_WORDS for word in words):
        return f"not English: {excerpt(text, 0, 40)!r}"
    return None


def _not_chinese(text: str) -> str | None:
    characters = len(_CHINESE.findall(text))
    text = _X_RAY.sub("X", text)
    words = [word for word in _LATIN.findall(text) if not _acronym(word)]
    if characters >= 2 * len(words) and (characters or not _LATIN.search(text)):
        return None
    if not characters and not words:
        return None
    return f"not Chinese: {excerpt(text, 0, 40)!r}"


def _acronym(word: str) -> bool:
    """ "MRI", "pH", "A", "mm": a letter, a unit, or not in small letters."""
    return len(word) == 1 or word in _UNITS or any(letter.isupper() for letter in word[1:])
