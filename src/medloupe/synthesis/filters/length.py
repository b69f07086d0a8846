"""Drafts that say too little to learn from, or go on for too long."""

from __future__ import annotations

from pydantic import Field

from medloupe.data.audit.text import length_in_words, normalised
from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow


class Length(Filter):
    """Too short or too long, in words; two Chinese characters count as one word.

    One answer may be a single word ("Yes."), all answers together may not.
    """

    shortest_question: float = Field(default=2.5, ge=0)
    longest_question: float = Field(default=60.0, gt=0)
    longest_answer: float = Field(default=180.0, gt=0)
    shortest_answers: float = Field(default=6.0, ge=0)

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        total = 0.0
        for number, turn in enumerate(draft.turns, start=1):
            asked, said = _words(turn.question), _words(turn.answer)
            total += said
            if asked < self.shortest_question:
                return f"question {number} has {asked:g} words; at least {self.shortest_question:g}"
            if asked > self.longest_question:
                return f"question {number} has {asked:g} words; at most {self.longest_question:g}"
            if said > self.longest_answer:
                return f"answer {number} has {said:g} words; at most {self.longest_answer:g}"
        if total < self.shortest_answers:
            return f"all answers have {total:g} words; at least {self.shortest_answers:g}"
        return None


def _words(text: str) -> float:
    return length_in_words(words) if (words := normalised(text)) else 0.0
