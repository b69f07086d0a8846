"""Text as the tokens over which published BLEU is counted: those of mteval-v13a, case kept.

The rules are those of the NIST script mteval-v13a.pl as sacrebleu 2.6 runs them ("13a", and "zh" for
Chinese), with their quirks, so that numbers are the same to the last digit.
"""

from __future__ import annotations

import re

from medloupe.evaluate.scorers.words import CJK

_CHINESE = re.compile(f"[{CJK}]")

# Written as sacrebleu writes its ranges. "\u20000" there means U+2000 and a zero, so what is split off
# is not the ideographs from U+20000 on but everything from U+2001 to U+2A6D: curly quotes, arrows, signs.
_SPLIT_OFF = re.compile(
    "([\u3400-\u4db5\u4e00-\u9fa5\u9fa6-\u9fbb\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9"
    "\u2001-\u2a6d\u2e80-\u2eff\u2f00-\u2fdf\u2ff0-\u2fff\u3000-\u303f\u3100-\u312f\u31a0-\u31bf"
    "\u31c0-\u31ef\u3200-\u33ff\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef])"
)
_MARKS = re.compile(r"([{-~\[-` -&(-+:-@/])")
_POINT_AFTER_NO_DIGIT = re.compile(r"([^0-9])([.,])")
_POINT_BEFORE_NO_DIGIT = re.compile(r"([.,])([^0-9])")
_DASH_AFTER_DIGIT = re.compile(r"([0-9])(-)")
_ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}


def is_chinese(text: str) -> bool:
    """Has the text a Chinese character? An evaluated row names no language, so its truth decides."""
    return _CHINESE.search(text) is not None


def tokens_13a(text: str) -> list[str]:
    """Words and punctuation marks; a point or comma within a number stays in it."""
    line = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, mark in _ENTITIES.items():
        line = line.replace(entity, mark)
    return _western(f" {line} ")


def tokens_zh(text: str) -> list[str]:
    """Chinese by the character, the rest as in 13a; Latin words and numbers stay whole."""
    return _western(_SPLIT_OFF.sub(r" \1 ", text.strip()))


def _western(line: str) -> list[str]:
    line = _MARKS.sub(r" \1 ", line)
    line = _POINT_AFTER_NO_DIGIT.sub(r"\1 \2 ", line)
    line = _POINT_BEFORE_NO_DIGIT.sub(r" \1 \2", line)
    return _DASH_AFTER_DIGIT.sub(r"\1 \2 ", line).split()
