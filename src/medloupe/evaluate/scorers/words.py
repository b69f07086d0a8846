"""Text as words, in flavours that differ on purpose.

`plain_words` ignores case and punctuation and takes Chinese by the character; Latin words and numbers
within Chinese stay whole. `strict_words`, for short answers, also drops articles and writes number
words as digits.
`llava_med_text` is the normalisation behind LLaVA-Med's published numbers (the rules of the VQA
evaluation, https://visualqa.org/evaluation.html, with its quirks): a punctuation mark vanishes
where it stands beside a space anywhere in the text and otherwise becomes a space, number words
become digits ("none" is 0), articles go, and a negated auxiliary gets its apostrophe back. Of the
rules' contractions only those are kept; answers about images have no others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

Words = Callable[[str], list[str]]

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip

CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{CJK}]|\d+\.\d+|[^\W_{CJK}]+")

PLAIN = "lower-case words without punctuation, Chinese by characters"
"""What `plain_words` gives, as a metric states it."""

STRICT = f"{PLAIN}, without articles, number words as digits"
"""What `strict_words` gives."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_NEGATED = re.compile(
    r"(?:ai|are|ca|could|did|does|do|had|has|have|is|might|must|need|sha|should|was|were|wo|would)nt"
)


def plain_words(text: str) -> list[str]:
    """Lower-case words and numbers in order: "左肺 GGO, 3.5 mm" is 左, 肺, ggo, 3.5, mm."""
    return _WORD.findall(text.lower())


def strict_words(text: str) -> list[str]:
    """The plain words without articles; "two" is "2"."""
    words = (NUMBERS.get(word, word) for word in plain_words(text))
    return [word for word in words if word not in ARTICLES]


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n words stands there."""
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def llava_med_text(text: str) -> str:
    """The text as LLaVA-Med compares it: lower case, words joined by single spaces."""
    out = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or _DIGIT_COMMA.search(text) else " ")
    words = _PERIOD.sub("", out).lower().split()
    words = ["0" if word == "none" else NUMBERS.get(word, word) for word in words]
    return " ".join(_with_apostrophe(word) for word in words if word not in ARTICLES)


def _with_apostrophe(word: str) -> str:
    return f"{word[:-1]}'t" if _NEGATED.fullmatch(word) else word
