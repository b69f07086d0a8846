"""Texts of rows and drafts as the filters read them: what the source says, sentences, who says what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from medloupe.synthesis.types import Draft, SourceRow

CJK: Final = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
LONGEST: Final = 400
_CJK: Final = re.compile(f"[{CJK}]")
# A full stop ends a sentence unless it belongs to an abbreviation or to an initial.
_END: Final = re.compile(
    r"(?<!\bFig\.)(?<!\bFigs\.)(?<!\bDr\.)(?<!\bvs\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bca\.)(?<=[.!?])\s+"
    r"|[;；。！？\n]+"
)


def source_text(row: SourceRow) -> str:
    """Everything the source says, one statement a line."""
    return "\n".join(part for part in parts(row) if part.strip())


def parts(row: SourceRow) -> Iterator[str]:
    """Each text of a row, whatever field it stands in."""
    yield row.text
    yield from row.mentions
    yield from row.sections.values()
    for label in row.labels:
        yield label.replace("_", " ")
    for box in row.boxes:
        yield " ".join((box.label.replace("_", " "), *box.words))
    yield from (row.modality.replace("_", " "), row.anatomy, row.domain.replace("_", " "))


def drafted_text(draft: Draft) -> str:
    """All questions and answers, one a line."""
    return "\n".join(f"{turn.question}\n{turn.answer}" for turn in draft.turns)


def sentences(text: str) -> list[str]:
    """The sentences of a text, English or Chinese, without white space around them.

    What goes on for longer than `LONGEST` characters without an end is cut there: no sentence is so long,
    and the cost of reading one grows faster than its length.
    """
    whole = [part.strip() for part in _END.split(text) if part.strip()]
    return [part[at : at + LONGEST] for part in whole for at in range(0, len(part), LONGEST)]


def has_chinese(text: str) -> bool:
    return _CJK.search(text) is not None


def excerpt(text: str, start: int, end: int, *, around: int = 24) -> str:
    """`text[start:end]` with a little of what stands beside it, on one line: for reasons."""
    left, right = max(0, start - around), min(len(text), end + around)
    shown = " ".join(text[left:right].split())
    return f"{'…' if left else ''}{shown}{'…' if right < len(text) else ''}"
