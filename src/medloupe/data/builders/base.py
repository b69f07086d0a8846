"""The one place where a record becomes a conversation: ids, provenance and the order of parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from medloupe.types import (
    AnswerType,
    Box,
    Conversation,
    ImageRef,
    Language,
    Message,
    Record,
    Text,
)

Piece = str | Box | ImageRef
Said = Piece | Sequence[Piece]
"""What one side says: text, boxes and images in the order in which they are read."""


def turn(
    record: Record,
    *,
    task: str,
    question: Said,
    answer: Said,
    key: str = "",
    template: str = "",
    answer_type: AnswerType = "open",
    options: Sequence[str] = (),
    language: Language = "en",
    images: Sequence[ImageRef] | None = None,
    attributes: Mapping[str, str] | None = None,
) -> Conversation:
    """One question and its answer about a record.

    The images (by default all of the record) stand before the question, unless the question places
    images itself. `key` tells apart several conversations of one record and task; the id is
    `record/task` or `record/task/key`. `template` defaults to the task.
    """
    return dialogue(
        record,
        task=task,
        turns=[(question, answer)],
        key=key,
        template=template,
        answer_type=answer_type,
        options=options,
        language=language,
        images=images,
        attributes=attributes,
    )


def dialogue(
    record: Record,
    *,
    task: str,
    turns: Sequence[tuple[Said, Said]],
    key: str = "",
    template: str = "",
    answer_type: AnswerType = "open",
    options: Sequence[str] = (),
    language: Language = "en",
    images: Sequence[ImageRef] | None = None,
    attributes: Mapping[str, str] | None = None,
) -> Conversation:
    """Several turns about a record; arguments as in `turn`."""
    assert turns, "a conversation has at least one turn"
    said = [pieces(side) for pair in turns for side in pair]
    placed = any(isinstance(piece, ImageRef) for piece in chain.from_iterable(said))
    if not placed:
        shown = record.images if images is None else images
        said[0] = [*shown, *said[0]]
    return Conversation(
        id="/".join(part for part in (record.id, task, key) if part),
        messages=tuple(
            Message(role="assistant" if number % 2 else "user", content=_content(side))
            for number, side in enumerate(said)
        ),
        patient_id=record.patient_id,
        study_id=record.study_id,
        split=record.split,
        dataset=record.dataset,
        licence=record.licence,
        task=task,
        template=template or task,
        answer_type=answer_type,
        options=tuple(options),
        language=language,
        attributes={**record.attributes, **(attributes or {})},
    )


def pieces(said: Said) -> list[Piece]:
    """One side as a list of its pieces."""
    return [said] if isinstance(said, str | Box | ImageRef) else list(said)


def _content(side: Sequence[Piece]) -> tuple[Text | ImageRef | Box, ...]:
    return tuple(Text(text=piece) if isinstance(piece, str) else piece for piece in side)
