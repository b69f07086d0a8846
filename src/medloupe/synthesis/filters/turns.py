"""Drafts with too few or too many turns, or a turn without a question or an answer."""

from __future__ import annotations

from pydantic import Field, model_validator

from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow


class Turns(Filter):
    """Fewer turns than asked for, more than any image can carry, or a turn that lacks a side."""

    fewest: int = Field(default=2, ge=1)
    most: int = Field(default=12, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Turns:
        if self.fewest > self.most:
            raise ValueError(f"fewest {self.fewest} is above most {self.most}")
        return self

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        for number, turn in enumerate(draft.turns, start=1):
            for side, text in (("question", turn.question), ("answer", turn.answer)):
                if not any(letter.isalnum() for letter in text):
                    return f"turn {number} has no {side}"
        count = len(draft.turns)
        if self.fewest <= count <= self.most:
            return None
        return f"{count} turns; wanted {self.fewest} to {self.most}"
