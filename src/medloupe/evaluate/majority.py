"""The constant answer: what one scores who knows the training answers and looks at nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from medloupe.types import Conversation

MAJORITY = "majority"
"""The arm of the most frequent training answer."""


class MajorityAnswers:
    """The most frequent training answer of each question template.

    A template that training never saw takes that of its task; ties go to the first in the alphabet.
    """

    def __init__(self, rows: Iterable[Conversation]) -> None:
        templates: dict[tuple[str, ...], Counter[str]] = {}
        for row in rows:
            if row.answer is not None and row.answer.text.strip():
                for key in _template_keys(row):
                    templates.setdefault(key, Counter())[row.answer.text.strip()] += 1
        self._answers = {
            key: min(counts, key=lambda text: (-counts[text], text))
            for key, counts in templates.items()
        }

    def answer(self, row: Conversation) -> str | None:
        """The constant answer to a row's template, None where training has no such question."""
        found = (self._answers.get(key) for key in _template_keys(row))
        return next((text for text in found if text is not None), None)


def _template_keys(row: Conversation) -> tuple[tuple[str, ...], ...]:
    return (row.task, row.answer_type, row.template), (row.task, row.answer_type)
