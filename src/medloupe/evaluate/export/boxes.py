"""Boxes as the files of other toolkits hold them."""

from __future__ import annotations

import json
from collections.abc import Iterable

from medloupe.types import Box


def corners(box: Box) -> list[float]:
    """x1, y1, x2, y2 in original pixels, and of a volume's box z1, z2."""
    flat = [box.x1, box.y1, box.x2, box.y2]
    return flat if box.z1 is None or box.z2 is None else [*flat, box.z1, box.z2]


def said(text: str, boxes: Iterable[Box]) -> str:
    """The text; boxes alone as JSON corners."""
    found = [corners(box) for box in boxes]
    return text if text.strip() or not found else json.dumps(found)
