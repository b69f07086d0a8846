"""The rules that rows of a data set obey, beyond having the right fields.

Each function looks at everything and returns every fault; none raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from medloupe.errors import Fault
from medloupe.types import Box, Conversation, ImageRef, Message, Record, Text

Row = Conversation | Record
AnyRow = TypeVar("AnyRow", Conversation, Record)
Broken = tuple[str, str, str]
"""A broken rule, its remedy, and the field where it stands."""


def conversation_faults(conversations: Sequence[Conversation], file: Path) -> list[Fault]:
    """Faults inside each conversation, and ids that occur twice."""
    faults = [
        Fault(rule=rule, remedy=remedy, field=field, row=row.id, file=str(file))
        for row in conversations
        for rule, remedy, field in (
            *_speech_rules(row),
            *_option_rules(row),
            *_box_rules(boxes_of(row), len(row.images)),
        )
    ]
    return faults + _duplicate_faults(conversations, file)


def record_faults(records: Sequence[Record], file: Path) -> list[Fault]:
    """Faults inside each record, priors that do not exist, and ids that occur twice."""
    known = {row.id for row in records}
    faults = [
        Fault(rule=rule, remedy=remedy, field=field, row=row.id, file=str(file))
        for row in records
        for rule, remedy, field in (
            *_prior_rules(row, known),
            *_box_rules(boxes_of(row), len(row.images)),
        )
    ]
    return faults + _duplicate_faults(records, file)


def count_faults(stated: Mapping[str, int], found: Mapping[str, int], card: Path) -> list[Fault]:
    """Counts on the card that the rows do not bear out: rows were lost, or edited by hand."""
    return [
        Fault(
            rule=f"the card states {stated[name]:,} {name}, the files hold {found[name]:,}",
            remedy="Copy or prepare the data set again; after an edit by hand, mend the card",
            field=f"counts.{name}",
            file=str(card),
        )
        for name in found
        if name in stated and stated[name] != found[name]
    ]


def all_rows(conversations: Iterable[Conversation], records: Iterable[Record] = ()) -> list[Row]:
    """Conversations and records as rows of one list."""
    return [*conversations, *records]


def boxes_of(row: Row) -> list[tuple[str, Box]]:
    """The boxes of a row, each with the path of its field."""
    if isinstance(row, Record):
        return [(f"boxes.{i}", box) for i, box in enumerate(row.boxes)]
    return [(field, part) for field, part in _parts_of(row) if isinstance(part, Box)]


def images_of(row: Row) -> list[tuple[str, ImageRef]]:
    """The images of a row, each with the path of its field; masks of a record come last."""
    if isinstance(row, Record):
        images = [(f"images.{i}", ref) for i, ref in enumerate(row.images)]
        return images + [(f"masks.{i}", ref) for i, ref in enumerate(row.masks)]
    return [(field, part) for field, part in _parts_of(row) if isinstance(part, ImageRef)]


def with_images(row: AnyRow, renew: Callable[[ImageRef], ImageRef]) -> AnyRow:
    """The row with every image (and mask) replaced."""
    if isinstance(row, Record):
        images = tuple(renew(ref) for ref in row.images)
        masks = tuple(renew(ref) for ref in row.masks)
        return row.model_copy(update={"images": images, "masks": masks})
    messages = tuple(_message_with(message, renew) for message in row.messages)
    return row.model_copy(update={"messages": messages})


def _message_with(message: Message, renew: Callable[[ImageRef], ImageRef]) -> Message:
    content = tuple(renew(p) if isinstance(p, ImageRef) else p for p in message.content)
    return message.model_copy(update={"content": content})


def _parts_of(row: Conversation) -> Iterator[tuple[str, Text | ImageRef | Box]]:
    for i, message in enumerate(row.messages):
        for j, part in enumerate(message.content):
            yield f"messages.{i}.content.{j}", part


def _speech_rules(row: Conversation) -> Iterator[Broken]:
    if not any(message.role == "user" for message in row.messages):
        yield "nobody asks: there is no user message", "Add the question", "messages"
    if row.answer is None:
        remedy = "End the conversation with an assistant message, or leave the row out"
        yield "the row has no answer", remedy, "messages"
    for number, message in enumerate(row.messages):
        if message.text.strip() or any(not isinstance(part, Text) for part in message.content):
            continue
        what = "answer" if message is row.answer else f"{message.role} message"
        remedy = "Give it text, or leave the row out"
        yield f"the {what} is empty", remedy, f"messages.{number}.content"


def _option_rules(row: Conversation) -> Iterator[Broken]:
    said = row.answer.text.casefold() if row.answer is not None else ""
    if row.options and said.strip() and not any(o.casefold() in said for o in row.options):
        rule = f"the answer {said.strip()!r} names none of the options"
        yield rule, "Options: " + ", ".join(row.options), "options"


def _box_rules(boxes: Iterable[tuple[str, Box]], images: int) -> Iterator[Broken]:
    for field, box in boxes:
        if box.image >= images:
            rule = f"box {box.label!r} is on image {box.image}, but the row has {images}"
            yield rule, "Images count from 0 in reading order", f"{field}.image"
        if box.x1 == box.x2 or box.y1 == box.y2:
            remedy = "Edges are continuous: a box round one pixel is 1 wide"
            yield f"box {box.label!r} has no area", remedy, field


def _prior_rules(row: Record, known: set[str]) -> Iterator[Broken]:
    if row.prior is not None and row.prior not in known:
        rule = f"the earlier study {row.prior!r} is not among the records"
        yield rule, "Name the id of another record, or leave it out", "prior"


def _duplicate_faults(rows: Sequence[Row], file: Path) -> list[Fault]:
    return [
        Fault(
            rule=f"the id occurs {times} times",
            remedy="Give every row its own id: answers and scores are joined by it",
            field="id",
            row=name,
            file=str(file),
        )
        for name, times in Counter(row.id for row in rows).items()
        if times > 1
    ]
