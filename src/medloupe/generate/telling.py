"""A predictor that tells of each answer as it comes, called as one that returns them all."""

from __future__ import annotations

from collections.abc import Callable

from medloupe.errors import MedLoupeError
from medloupe.types import Generation, Hear


def all_told(tell: Callable[[Hear], None], number: int) -> list[Generation]:
    """The answers that `tell` tells of, in the order of their `number` conversations.

    Raises:
        MedLoupeError: the first error that it tells of.
    """
    answers: dict[int, Generation] = {}

    def hear(place: int, answer: Generation | MedLoupeError) -> None:
        if isinstance(answer, MedLoupeError):
            raise answer
        answers[place] = answer

    tell(hear)
    return [answers[place] for place in range(number)]
