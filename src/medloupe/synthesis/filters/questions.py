"""Questions that ask nothing, and answers that say no more than the question."""

from __future__ import annotations

import re
from typing import Final

from medloupe.data.audit.text import normalised
from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow

_FIRST_WORDS: Final = (
    "when whom whose is are was were do does did can could has have had will"
    " would should may might describe list name explain compare summarise summarize give state identify tell"
    " locate provide count report comment characterise characterize outline point find show indicate specify"
    " discuss mention estimate assess evaluate interpret classify please"
)
_ASKS_FIRST: Final = frozenset(_FIRST_WORDS.split())
# One that asks may begin with where it looks: "In the left lung, what is seen".
_ASKS: Final = re.compile(r"\b(?:what|which|where|why|how|whether|who)\b")
_ASKS_ZH: Final = re.compile(
    "什么|哪|吗|呢|几|多少|多大|怎|是否|有无|有没有|是不是|能否|可否|为啥|何|谁|请|描述|说明|列出|指出"
    "|比较|简述|评价|解释|判断|总结"
)


class Questions(Filter):
    """A question that is a statement, or that is its own answer."""

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        for number, turn in enumerate(draft.turns, start=1):
            if normalised(turn.question) == normalised(turn.answer):
                return f"answer {number} repeats the question"
            if not _asks(turn.question):
                return f"question {number} asks nothing"
        return None


def _asks(text: str) -> bool:
    if "?" in text or "？" in text or _ASKS_ZH.search(text):
        return True
    low = text.lower()
    first = re.search("[a-z]+", low)
    return bool(_ASKS.search(low)) or (first is not None and first[0] in _ASKS_FIRST)
