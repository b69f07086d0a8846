"""Boxes as text, and back: the only place where a box is spelt.

A `Box` lives in the original pixels of its image. It becomes text after every transform: its corners go
forward through the image's `Geometry` into the view, are divided by the view's size and written on
the encoding's scale. Reading a box back runs the same steps the other way; the rounding of the scale
is all that is lost. Formats: `angle` is MiniGPT-v2's and LiteGPT's `{<x1><y1><x2><y2>}`, `square`
is `[x1, y1, x2, y2]`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from medloupe.config import Config
from medloupe.errors import PromptError
from medloupe.imaging.transforms import Geometry, clip_box
from medloupe.types import Box

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_PATTERNS = {
    "angle": re.compile(r"\{" + rf"<{_NUMBER}>" * 4 + r"\}"),
    "square": re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]"),
}
# What may stand between two findings, and the tags round a name in LiteGPT's answers.
_JOINS = re.compile(r"</?p>|^[\s,;.:、，；。]+|[\s,;.:、，；。]+$")


class BoxEncoding(Config):
    """`scale` is the number that the right or bottom edge of the view is written as.

    LiteGPT writes `scale=100` in angle form. `decimals` is 0 except for `scale=1`.
    """

    form: Literal["angle", "square"] = "angle"
    scale: Literal[1, 100, 1000] = 100
    decimals: int = Field(default=0, ge=0, le=4)

    def write(self, box: Box, geometry: Geometry) -> str:
        """The text of a 2D box.

        Raises:
            PromptError: the box is one of a volume, or lies wholly outside the view.
        """
        if box.z1 is not None:
            raise PromptError("a 3D box cannot be written for a 2D view", field="box")
        seen = clip_box(geometry.forward_box(box), geometry.view)
        if seen is None:
            raise PromptError(
                f"box {box.label!r} lies outside the part of the image that the model sees",
                field="box",
                remedy="Use fit: pad, or leave such boxes out",
            )
        width, height = geometry.view
        values = (seen.x1 / width, seen.y1 / height, seen.x2 / width, seen.y2 / height)
        numbers = [f"{value * self.scale:.{self._decimals}f}" for value in values]
        if self.form == "angle":
            return "{" + "".join(f"<{number}>" for number in numbers) + "}"
        return "[" + ", ".join(numbers) + "]"

    def read(self, text: str, geometries: Sequence[Geometry], *, image: int = 0) -> list[Box]:
        """Every well-formed box of `text`, in original pixels of image number `image`.

        A box's label is the text before it, since the box before. Boxes with reversed corners, or
        outside the scale, are not boxes: they are left out. Order is that of the text.
        """
        boxes: list[Box] = []
        end = 0
        for match in _PATTERNS[self.form].finditer(text):
            label, end = _JOINS.sub("", text[end : match.start()]).strip(), match.end()
            x1, y1, x2, y2 = (float(number) / self.scale for number in match.groups())
            if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1) or image >= len(geometries):
                continue
            width, height = geometries[image].view
            seen = Box(
                label=_JOINS.sub("", label),
                x1=x1 * width,
                y1=y1 * height,
                x2=x2 * width,
                y2=y2 * height,
                image=image,
            )
            boxes.append(geometries[image].back_box(seen))
        return boxes

    def without_boxes(self, text: str) -> str:
        """The text with its box strings taken out (text metrics are computed so)."""
        return re.sub(r"\s+", " ", _PATTERNS[self.form].sub("", text)).strip()

    @property
    def _decimals(self) -> int:
        return self.decimals or (2 if self.scale == 1 else 0)


@dataclass(frozen=True, kw_only=True)
class Views:
    """The geometry of every image of one conversation, in reading order."""

    geometries: tuple[Geometry, ...]

    def of(self, box: Box) -> Geometry:
        """The geometry of the image that `box` lies in.

        Raises:
            PromptError: the box names an image that the conversation does not have.
        """
        if box.image >= len(self.geometries):
            raise PromptError(
                f"box {box.label!r} names image {box.image}, the conversation has "
                f"{len(self.geometries)}",
                field="box.image",
            )
        return self.geometries[box.image]
