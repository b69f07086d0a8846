"""Where and what: referring expressions, grounded findings and diagnoses.

LiteGPT names its task in a tag before the instruction; `tag` writes one. Boxes are parts of the
content: their text is written after every transform, in the encoding of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from medloupe.data.builders.base import Piece, turn
from medloupe.data.builders.prompts import word
from medloupe.data.builders.questions import key_of
from medloupe.data.builders.words import (
    NO_FINDING,
    in_sentence,
    listed,
    require_name,
    spoken,
)
from medloupe.errors import DataError, did_you_mean
from medloupe.types import Box, Conversation, Language, Record

Tag = Literal["", "grounding", "identify", "refer", "vqa"]
"""MiniGPT-v2's task identifiers, as far as LiteGPT uses them or their tasks."""

_COMMA: Mapping[Language, str] = {"en": ", ", "zh": "、"}


def refer(
    record: Record,
    label: str,
    boxes: Sequence[Box],
    *,
    task: str = "rec",
    language: Language = "en",
    tag: Tag = "",
    seed: int = 0,
) -> Conversation:
    """Referring expression comprehension: the boxes of what `label` names, in reading order.

    Raises:
        DataError: no box, a box on an image that the record does not have, or a label that is empty or a
            negation.
    """
    require_name(label, row=record.id)
    if not boxes:
        near = did_you_mean(label, {box.label for box in record.boxes})
        raise DataError(
            f"the record has no box of {label!r}; {near}",
            remedy="Ask only for what has a box; 'findings' and 'presence' can say that it is absent",
            row=record.id,
            field="boxes",
        )
    answer: list[Piece] = []
    for box in in_reading_order(record, boxes):
        answer += [" ", box] if answer else [box]
    name = in_sentence(label, language)
    wording = word("rec", record.id, task, language=language, seed=seed, label=name)
    return turn(
        record,
        task=task,
        key=key_of(language, name),
        question=tagged(wording.text, tag),
        answer=answer,
        template=f"{task}/{name}/{language}",
        answer_type="box",
        language=language,
        attributes={"wording": str(wording.number)},
    )


def describe_region(
    record: Record,
    box: Box,
    text: str | None = None,
    *,
    task: str = "reg",
    language: Language = "en",
    tag: Tag = "",
    seed: int = 0,
) -> Conversation:
    """Referring expression generation: what lies in `box` (default: its label).

    Raises:
        DataError: the box is on an image that the record does not have, or there is nothing to say.
    """
    in_reading_order(record, [box])
    answer = spoken(box.label) if text is None else text.strip()
    if not answer:
        raise DataError(
            "the region has no label and no text",
            remedy="Give the box a label, or leave it out",
            row=record.id,
            field="boxes",
        )
    # Neither the label nor the words may tell the answer.
    asked = box.model_copy(update={"label": "region", "words": ()})
    wording = word("reg", record.id, task, language=language, seed=seed)
    return turn(
        record,
        task=task,
        key=key_of(language, _place(box)),
        question=[tagged(wording.text, tag), asked],
        answer=answer,
        template=f"{task}/{language}",
        language=language,
        attributes={"wording": str(wording.number)},
    )


def ground(
    record: Record,
    boxes: Sequence[Box],
    *,
    task: str = "findings",
    language: Language = "en",
    tag: Tag = "",
    marked: bool = False,
    seed: int = 0,
) -> Conversation:
    """Every finding by name with its boxes; "No finding" without any.

    Findings come by name, boxes of one name from top to bottom. `marked` writes `<p>name</p>` as
    LiteGPT's answers do (appendix B.1).

    Raises:
        DataError: a box on an image that the record does not have.
    """
    by_name = sorted(in_reading_order(record, boxes), key=lambda box: spoken(box.label).casefold())
    answer: list[Piece] = []
    for box in by_name:
        name = spoken(box.label)
        lead = _COMMA[language] if answer else ""
        answer += [f"{lead}<p>{name}</p> " if marked else f"{lead}{name} ", box]
    wording = word("findings", record.id, task, language=language, seed=seed)
    return turn(
        record,
        task=task,
        key=key_of(language),
        question=tagged(wording.text, tag),
        answer=answer or NO_FINDING[language],
        template=f"{task}/{language}",
        language=language,
        attributes={"wording": str(wording.number)},
    )


def identify(
    record: Record,
    labels: Sequence[str],
    *,
    task: str = "identify",
    language: Language = "en",
    tag: Tag = "",
    seed: int = 0,
) -> Conversation:
    """Every finding by name, each once and in alphabetical order; "No finding" without any."""
    names = sorted({spoken(label) for label in labels}, key=lambda name: (name.casefold(), name))
    wording = word("identify", record.id, task, language=language, seed=seed)
    return turn(
        record,
        task=task,
        key=key_of(language),
        question=tagged(wording.text, tag),
        answer=listed(names, language) or NO_FINDING[language],
        template=f"{task}/{language}",
        language=language,
        attributes={"wording": str(wording.number)},
    )


def diagnose(
    record: Record,
    diagnosis: str | Sequence[str],
    *,
    classes: Sequence[str] = (),
    task: str = "diagnosis",
    language: Language = "en",
    tag: Tag = "",
    seed: int = 0,
) -> Conversation:
    """The diagnosis of the whole examination, or several; "No finding" without any.

    `classes`, where given, are listed in the question: any number of them may apply.
    """
    given = [diagnosis] if isinstance(diagnosis, str) else diagnosis
    names = list(dict.fromkeys(spoken(name) for name in given if name.strip()))
    wording = word(
        "diagnosis.listed" if classes else "diagnosis",
        record.id,
        task,
        language=language,
        seed=seed,
        classes=listed([spoken(name) for name in classes], language),
    )
    return turn(
        record,
        task=task,
        key=key_of(language),
        question=tagged(wording.text, tag),
        answer=listed(names, language) or NO_FINDING[language],
        template=f"{task}/{language}",
        language=language,
        attributes={"wording": str(wording.number)},
    )


def tagged(question: str, tag: Tag) -> str:
    """ "[identify] List the findings ..."."""
    return f"[{tag}] {question}" if tag else question


def in_reading_order(record: Record, boxes: Sequence[Box]) -> list[Box]:
    """The boxes by image, slice, top and left edge.

    Raises:
        DataError: a box on an image that the record does not have.
    """
    for box in boxes:
        if box.image >= len(record.images):
            raise DataError(
                f"box {box.label!r} is on image {box.image}, but the record has "
                f"{len(record.images)}",
                remedy="Images count from 0",
                row=record.id,
                field="boxes",
            )
    return sorted(boxes, key=lambda box: (box.image, box.z1 or 0.0, box.y1, box.x1))


def _place(box: Box) -> str:
    """A name for a box within its record that does not depend on the other boxes."""
    depth = () if box.z1 is None or box.z2 is None else (box.z1, box.z2)
    edges = ",".join(f"{edge:g}" for edge in (box.x1, box.y1, box.x2, box.y2, *depth))
    return f"{box.image}:{edges}"
