"""Text with images in its midst: markers become the record's images, in their order."""

from __future__ import annotations

from collections.abc import Mapping

from medloupe.data.builders.base import Piece, turn
from medloupe.data.builders.questions import key_of
from medloupe.errors import DataError
from medloupe.types import Conversation, Language, Record

MARKER = "<image>"


def interleave(
    record: Record,
    question: str,
    answer: str,
    *,
    task: str,
    key: str = "",
    marker: str = MARKER,
    language: Language = "en",
    attributes: Mapping[str, str] | None = None,
) -> Conversation:
    """A question whose markers stand for the images of the record.

    Raises:
        DataError: markers and images differ in number, or the answer holds a marker.
    """
    if marker in answer:
        raise DataError(
            f"the answer holds {marker!r}, and a language model writes no images",
            remedy="Move the image into the question",
            row=record.id,
            field="answer",
        )
    texts = question.split(marker)
    if len(texts) - 1 != len(record.images):
        raise DataError(
            f"the question has {len(texts) - 1} {marker!r}, the record {len(record.images)} images",
            remedy="Place every image once",
            row=record.id,
            field="question",
        )
    said: list[Piece] = [texts[0]] if texts[0] else []
    for image, text in zip(record.images, texts[1:], strict=True):
        said += [image, text] if text else [image]
    return turn(
        record,
        task=task,
        key="/".join(part for part in (key, key_of(language)) if part),
        question=said,
        answer=answer,
        template=f"{task}/{language}",
        language=language,
        attributes=attributes,
    )
