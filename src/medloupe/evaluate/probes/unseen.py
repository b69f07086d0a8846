"""The model shown nothing: no image at all, or one that is the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from medloupe.evaluate.probes.base import Asked, Expect, Look, Probe, map_parts, with_images
from medloupe.types import Box, Conversation, ImageRef


class TextOnly(Probe):
    """The question without its images. Words round them ("First examination:") stay.

    Rows with a box in the question or the answer are not asked: boxes are written in the frame of an image.
    """

    about: ClassVar[str] = "given the question without its image"
    expect: ClassVar[Expect] = "worse"

    def ask(self, rows: Sequence[Conversation], *, seed: int, look: Look) -> Asked:
        del seed, look
        return [_without_images(row) if _stands_alone(row) else None for row in rows]


class Blank(Probe):
    """Each image replaced by one of its size in which every pixel is the same."""

    about: ClassVar[str] = "shown a blank image"
    expect: ClassVar[Expect] = "worse"

    def ask(self, rows: Sequence[Conversation], *, seed: int, look: Look) -> Asked:
        del seed, look
        return [_blanked(row) if row.images else None for row in rows]


def _stands_alone(row: Conversation) -> bool:
    boxed = row.answer_type == "box" or any(isinstance(part, Box) for part in row.parts())
    return bool(row.images) and not boxed and bool(row.question.strip())


def _without_images(row: Conversation) -> Conversation:
    return map_parts(row, lambda part: None if isinstance(part, ImageRef) else part)


def _blanked(row: Conversation) -> Conversation:
    return with_images(row, [ref.model_copy(update={"edit": "blank"}) for ref in row.images])
