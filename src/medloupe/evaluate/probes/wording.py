"""The sentence that a row asks: found, and replaced without touching what stands round it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from medloupe.types import Conversation, Message, Text

CJK = re.compile(r"[\u3400-\u9fff]")
_OPTIONS = ("Options:", "选项：")
_SENTENCE = re.compile(r"(?P<before>\s*)(?P<said>[^\n]*?)(?P<after>[^\S\n]*(?:\n.*)?)", re.DOTALL)


class _Place(NamedTuple):
    """Where the sentence stands: a message, one of its parts, and what is round it there."""

    message: int
    part: int
    before: str
    said: str
    after: str


def reword(row: Conversation, change: Callable[[str], str | None]) -> Conversation | None:
    """The row with `change` of its sentence, the line that is asked; options listed below it are no part.

    None where there is no text, where other lines follow, where its script is not its language's, or
    where the change is None.
    """
    place = _place(row)
    said = None if place is None else change(place.said)
    if place is None or said is None:
        return None
    content = list(row.messages[place.message].content)
    content[place.part] = Text(text=f"{place.before}{said}{place.after}")
    message = row.messages[place.message].model_copy(update={"content": tuple(content)})
    messages = (*row.messages[: place.message], message, *row.messages[place.message + 1 :])
    return row.model_copy(update={"messages": messages})


def answered(row: Conversation, text: str) -> Conversation:
    """The row with another answer, in words."""
    answer = Message(role="assistant", content=(Text(text=text),))
    return row.model_copy(update={"messages": (*row.messages[:-1], answer)})


def answer_in_words(row: Conversation) -> str | None:
    """The answer where it is words alone, None where it holds a box or there is none."""
    if row.answer is None or not all(isinstance(part, Text) for part in row.answer.content):
        return None
    return row.answer.text.strip()


def _place(row: Conversation) -> _Place | None:
    users = [number for number, message in enumerate(row.messages) if message.role == "user"]
    if not users:
        return None
    for number, part in reversed(list(enumerate(row.messages[users[-1]].content))):
        if isinstance(part, Text) and part.text.strip():
            found = _SENTENCE.fullmatch(part.text)
            assert found is not None, "the pattern takes any text"
            place = _Place(users[-1], number, *found.group("before", "said", "after"))
            return place if _is_asked(place, row) else None
    return None


def _is_asked(place: _Place, row: Conversation) -> bool:
    below = place.after.strip()
    native = bool(CJK.search(place.said)) == (row.language == "zh")
    return native and (not below or below.startswith(_OPTIONS))
