"""JSON Lines to typed rows and back; everything wrong becomes a `Fault`, nothing raises.

A line is found by its number, a row by its id, a field by its dotted path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from medloupe.config import Config
from medloupe.errors import Fault, did_you_mean
from medloupe.types import Box, ImageRef, Message, Text

Row = TypeVar("Row", bound=Config)

# The class that stands at a step of a field's path: a tag of `Part`, or a field of a row.
_CLASS_AT: Mapping[int | str, type[Config]] = {
    "text": Text,
    "image": ImageRef,
    "box": Box,
    "messages": Message,
    "images": ImageRef,
    "masks": ImageRef,
    "boxes": Box,
}


def read_jsonl(path: Path, kind: type[Row]) -> tuple[list[Row], list[Fault]]:
    """Every row that can be read, in file order, and the faults of those that cannot.

    Empty lines are skipped.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except FileNotFoundError:
        return [], [Fault(rule="no such file", file=str(path))]
    except OSError as error:
        return [], [Fault(rule=f"cannot be read: {error.strerror}", file=str(path))]
    found: list[Row] = []
    faults: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            rule = f"line {number} is not UTF-8 (byte {error.start})"
            faults.append(Fault(rule=rule, file=str(path), remedy="Save the file as UTF-8"))
            continue
        row, row_faults = parse_row(kind, text, file=path, line=number)
        faults += row_faults
        if row is not None:
            found.append(row)
    return found, faults


def parse_row(
    kind: type[Row], text: str, *, file: Path, line: int | None = None
) -> tuple[Row | None, list[Fault]]:
    """One JSON text as a `kind`, or None and every fault in it."""
    try:
        return kind.model_validate_json(text), []
    except ValidationError as error:
        reason = error.errors()[0]["msg"]  # the slow path below finds out where
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        at = "" if line is None else f"line {line} "
        remedy = "One JSON object a line; was the file cut off?" if line else "Mend the JSON"
        return None, [Fault(rule=f"{at}is not JSON: {error}", file=str(file), remedy=remedy)]
    row, faults = validate(kind, data, file=file, line=line)
    if row is not None:  # what only Python's reader takes, such as half of a surrogate pair
        faults = [Fault(rule=reason, file=str(file), row=_name_of(data, line))]
    return None, faults


def validate(
    kind: type[Row], data: Any, *, file: Path, line: int | None = None
) -> tuple[Row | None, list[Fault]]:
    """Plain data as a `kind`, or None and one fault for every wrong field."""
    try:
        return kind.model_validate(data), []
    except ValidationError as error:
        row = _name_of(data, line)
        return None, [_field_fault(kind, data, item, file, row) for item in error.errors()]


def dump_row(row: Config) -> str:
    """One line of JSON with sorted keys; optional fields that are None or empty are left out."""
    return json.dumps(_plain(row), sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return {
            name: _plain(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if field.is_required() or getattr(value, name) not in (None, "", (), {})
        }
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _name_of(data: Any, line: int | None) -> str | None:
    """The id of a row that is not valid, or the number of its line."""
    if isinstance(data, dict) and isinstance(data.get("id"), str) and data["id"]:
        return str(data["id"])
    return None if line is None else f"line {line}"


def _field_fault(kind: type[Config], data: Any, item: Any, file: Path, row: str | None) -> Fault:
    place: tuple[int | str, ...] = item["loc"]
    field = ".".join(str(step) for step in _without_tags(place, data)) or None
    rule, remedy = item["msg"].removeprefix("Value error, "), ""
    if item["type"] == "extra_forbidden":
        above = [_CLASS_AT[step] for step in place[:-1] if step in _CLASS_AT]
        known = (above[-1] if above else kind).model_fields
        rule, remedy = "unknown field", did_you_mean(str(place[-1]), known)
        remedy = remedy[0].upper() + remedy[1:]
    elif item["type"] in ("missing", "union_tag_not_found"):
        rule = "the field is missing" if item["type"] == "missing" else "a part has no 'type'"
    else:
        rule += f" (got {_short(item['input'])})"
    return Fault(rule=rule, remedy=remedy, file=str(file), row=row, field=field)


def _without_tags(place: tuple[int | str, ...], data: Any) -> list[int | str]:
    """The path as it stands in the file: pydantic puts the tag of a `Part` in between."""
    steps: list[int | str] = []
    for step in place:
        if isinstance(data, dict) and step not in data and step == data.get("type"):
            continue
        steps.append(step)
        if isinstance(data, dict):
            data = data.get(str(step))
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
    return steps


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
