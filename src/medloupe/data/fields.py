"""Fields of published JSON rows that have to be numbers, objects or boxes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medloupe.errors import DataError
from medloupe.types import Box


def number(row: Mapping[str, Any], field: str, *, file: Path, name: str) -> float | None:
    """A number, or None where the field is missing or null.

    Raises:
        DataError: anything else, or not finite.
    """
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{value!r} is no number", file=str(file), row=name, field=field)
    return float(value)


def mapping(row: Mapping[str, Any], field: str, *, file: Path, name: str) -> Mapping[str, Any]:
    """An object; empty where the field is missing or null.

    Raises:
        DataError: anything else.
    """
    value = row.get(field)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError("is not an object", file=str(file), row=name, field=field)
    return value


def listed_boxes(
    row: Mapping[str, Any], *, file: Path, name: str
) -> Iterator[tuple[Mapping[str, Any], Box]]:
    """Every item of `boxes: [{"label": ..., "box": [x1, y1, x2, y2], ...}, ...]` with its box.

    Raises:
        DataError: an item that is none; names the row.
    """
    items = row.get("boxes", ())
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise DataError("is not a list", file=str(file), row=name, field="boxes")
    for item in items:
        if not isinstance(item, Mapping) or not isinstance(item.get("label"), str):
            rule = f"{item!r} has no label"
            raise DataError(rule, file=str(file), row=name, field="boxes")
        yield item, box_of(item["label"], item.get("box"), file=file, name=name)


def box_of(label: str, edges: Any, *, file: Path, name: str) -> Box:
    """A box from its left, upper, right and lower edge, as numbers or text.

    Raises:
        DataError: not four numbers, or reversed.
    """
    try:
        x1, y1, x2, y2 = (float(edge) for edge in edges)
        return Box(label=label, x1=x1, y1=y1, x2=x2, y2=y2)
    except (TypeError, ValueError) as error:
        rule = f"{edges!r} is no box {label!r}"
        raise DataError(rule, file=str(file), row=name, field="boxes") from error
