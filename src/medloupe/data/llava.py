"""LLaVA's JSON form, read and written without loss of text.

`{"id", "image": "a.png" or [..], "image3d": [..], "conversations": [{"from", "value"}, ..]}`, with
one placeholder in the text for every file. LLaVA sets a placeholder off with a line break: one
break on either side is layout, not text; it is taken away on reading and put back on writing. Any
other keys of a row are `Conversation` fields of that name, else attributes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from medloupe.data import jsonl
from medloupe.data.dataset import Dataset
from medloupe.data.store import aside, write_lines
from medloupe.errors import DataError, MedLoupeError, did_you_mean
from medloupe.imaging.read import sha256_file
from medloupe.types import Box, Conversation, ImageRef, Message, Text

Ids = Literal["keep", "number"]
Row = dict[str, Any]

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}
_PLACEHOLDER = {"image": "<image>", "volume": "<image3d>"}
_ANY_PLACEHOLDER = re.compile("(<image3d>|<image>)")
_OWN_KEYS = {"id", "image", "image3d", "conversations"}
_FIELDS = tuple(name for name in Conversation.model_fields if name not in ("id", "messages"))


def import_llava(path: Path, images: Path, *, ids: Ids = "keep") -> tuple[Conversation, ...]:
    """Read a JSON array (or JSON Lines); `uri`s stay relative to the folder `images`.

    `ids="number"` names the rows by their number in the file, for files that repeat ids.

    Raises:
        DataError: the file is no LLaVA JSON, a row is malformed or names an unknown speaker,
            placeholders and files differ in number, an id occurs twice, or an image is missing.
    """
    rows = _read_array(path)
    hashes: dict[str, str] = {}
    found = []
    for number, row in enumerate(rows):
        name = _row_id(row, number, ids)
        try:
            data = _conversation(row, name, images, hashes)
        except MedLoupeError as error:
            raise DataError.of(error.at(file=str(path), row=name).fault) from None
        conversation, faults = jsonl.validate(Conversation, data, file=path)
        if conversation is None:
            raise DataError.of(faults[0])
        found.append(conversation)
    _refuse_repeated(found, path)
    return tuple(found)


def export_llava(
    dataset: Dataset,
    path: Path,
    *,
    conversations: Sequence[Conversation] | None = None,
    box_text: Callable[[Conversation, Box], str] | None = None,
) -> None:
    """Write LLaVA JSON; its image folder is `dataset.root`. Default: every conversation.

    LLaVA has no boxes and no frames: `box_text` says how a box is written (an encoding of
    `processing`). Series, study and modality of images are not written.

    Raises:
        DataError: a row holds a box and no `box_text` is given, names a frame, or has a placeholder
            in its own text.
    """
    rows = dataset.conversations if conversations is None else conversations
    lines = [json.dumps(llava_row(row, box_text), ensure_ascii=False) for row in rows]
    ended = [line + "," for line in lines[:-1]] + lines[-1:]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = aside(path)
    try:
        write_lines(temporary, ["[", *ended, "]"])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_array(path: Path) -> list[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", file=str(path)) from None
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else _parse_lines(text)
    except json.JSONDecodeError as error:
        remedy = "A JSON array of rows, or one row a line; was the file cut off?"
        raise DataError(f"is not JSON: {error}", file=str(path), remedy=remedy) from None
    if not rows:
        raise DataError("the file holds no rows", file=str(path))
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
            raise DataError(
                f"row number {number} is no LLaVA row: it needs a list 'conversations'",
                remedy='{"id": .., "image": .., "conversations": [{"from": .., "value": ..}, ..]}',
                file=str(path),
            )
    return list(rows)


def _parse_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _row_id(row: Row, number: int, ids: Ids) -> str:
    if ids == "number" or row.get("id") is None:
        return f"row-{number}"
    return str(row["id"])


def _refuse_repeated(found: Sequence[Conversation], path: Path) -> None:
    name, times = Counter(row.id for row in found).most_common(1)[0]
    if times > 1:
        remedy = 'Give every row its own id, or import with ids="number"'
        rule = f"the id occurs {times} times"
        raise DataError(rule, remedy=remedy, file=str(path), row=name, field="id")


def _conversation(row: Row, name: str, images: Path, hashes: dict[str, str]) -> Row:
    """The row as plain data of a `Conversation`."""
    turns = [_turn(turn, number) for number, turn in enumerate(row["conversations"])]
    refs = iter(_refs(row, [value for _, value in turns], images, hashes))
    messages = [{"role": role, "content": _parts(value, refs)} for role, value in turns]
    fields = {key: row[key] for key in _FIELDS if key in row}
    if isinstance(fields.get("answer_type"), str):
        fields["answer_type"] = fields["answer_type"].strip().lower()  # LLaVA-Med: "CLOSED"
    others = {key: value for key, value in row.items() if key not in _OWN_KEYS | {*_FIELDS}}
    attributes = {key: _as_text(value) for key, value in others.items() if value is not None}
    if attributes:
        fields["attributes"] = {**attributes, **fields.get("attributes", {})}
    return {"id": name, "messages": messages, **fields}


def _turn(turn: Any, number: int) -> tuple[str, str]:
    field = f"conversations.{number}"
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise DataError("a turn needs 'from' and a text 'value'", field=field)
    speaker = turn.get("from")
    if speaker not in _ROLES:
        rule = f"unknown speaker {speaker!r}; {did_you_mean(str(speaker), _ROLES)}"
        raise DataError(rule, field=f"{field}.from")
    return _ROLES[speaker], turn["value"]


def _refs(row: Row, values: Sequence[str], images: Path, hashes: dict[str, str]) -> list[Row]:
    """The images in the order of their placeholders."""
    flat, volumes = _names(row, "image"), _names(row, "image3d")
    placeholders = [p for value in values for p in _ANY_PLACEHOLDER.findall(value)]
    if volumes and not flat and "<image3d>" not in placeholders:
        # MedM-VL writes the plain placeholder for a volume too.
        placeholders = ["<image3d>"] * len(placeholders)
    for key, names, sign in (("image", flat, "<image>"), ("image3d", volumes, "<image3d>")):
        if placeholders.count(sign) != len(names):
            raise DataError(
                f"the text holds {placeholders.count(sign)} {sign}, "
                f"the field names {len(names)} files",
                remedy="One placeholder in the text for every file",
                field=key,
            )
    sources = {"<image>": iter(flat), "<image3d>": iter(volumes)}
    kinds = {sign: kind for kind, sign in _PLACEHOLDER.items()}
    refs = []
    for sign in placeholders:
        uri = next(sources[sign])
        if uri not in hashes:
            hashes[uri] = sha256_file(images / uri)
        refs.append({"type": "image", "uri": uri, "sha256": hashes[uri], "kind": kinds[sign]})
    return refs


def _names(row: Row, key: str) -> list[str]:
    names = row.get(key)
    if names is None or names == "":
        return []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{names!r} is neither a file name nor a list of them", field=key)
    return names


def _parts(value: str, refs: Any) -> list[Row]:
    pieces = _ANY_PLACEHOLDER.split(value)  # text, placeholder, text, placeholder, ..., text
    parts: list[Row] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            parts.append(next(refs))
            continue
        text = piece.removeprefix("\n") if number > 0 else piece
        text = text.removesuffix("\n") if number < len(pieces) - 1 else text
        if text:
            parts.append({"type": "text", "text": text})
    return parts


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def llava_row(row: Conversation, box_text: Callable[[Conversation, Box], str] | None = None) -> Row:
    """One row of the file, as `export_llava` writes it; raises what that raises."""
    written: Row = {"id": row.id}
    flat = [ref.uri for ref in row.images if ref.kind == "image"]
    volumes = [ref.uri for ref in row.images if ref.kind == "volume"]
    if flat:
        written["image"] = flat[0] if len(flat) == 1 else flat
    if volumes:
        written["image3d"] = volumes
    written["conversations"] = [
        {"from": _SPEAKERS[message.role], "value": _value(row, message, box_text)}
        for message in row.messages
    ]
    plain = json.loads(jsonl.dump_row(row))
    return written | {key: plain[key] for key in _FIELDS if key in plain}


def _value(
    row: Conversation,
    message: Message,
    box_text: Callable[[Conversation, Box], str] | None,
) -> str:
    """The message as text; a line break sets every placeholder off from what stands beside it."""
    text, after_image = "", False
    for part in message.content:
        if isinstance(part, ImageRef):
            text += ("\n" if text else "") + _placeholder(row, part)
        else:
            words = part.text if isinstance(part, Text) else _box_words(row, part, box_text)
            if _ANY_PLACEHOLDER.search(words):
                remedy = "Change the text; LLaVA would take it for an image"
                raise DataError("the text holds an image placeholder", remedy=remedy, row=row.id)
            text += ("\n" if after_image and words else "") + words
        after_image = isinstance(part, ImageRef) or (after_image and not words)
    return text


def _placeholder(row: Conversation, ref: ImageRef) -> str:
    if ref.frame is not None:
        remedy = "Save the frame as a file of its own first"
        raise DataError(f"LLaVA JSON cannot name frame {ref.frame}", remedy=remedy, row=row.id)
    return _PLACEHOLDER[ref.kind]


def _box_words(
    row: Conversation, box: Box, box_text: Callable[[Conversation, Box], str] | None
) -> str:
    if box_text is None:
        remedy = "Pass box_text: how a box of this data set is written in words"
        raise DataError(f"LLaVA JSON has no boxes ({box.label!r})", remedy=remedy, row=row.id)
    return box_text(row, box)
