"""Boxes as text, and back: the only place where a box is spelt.

A `Box` lives in the original pixels of its image. It becomes text after every transform: its corners go
forward through the image's `Geometry` into the view, are divided by the view's size and written on
the encoding's scale. Reading a box back runs the same steps the other way; the rounding of the scale
is all that is lost. Formats: `angle` is MiniGPT-v2's and LiteGPT's `{<x1><y1><x2><y2>}`, `square`
is `[x1, y1, x2, y2]`.

A box of a volume has six numbers, one corner and then the other: `{<x1><y1><z1><x2><y2><z2>}` and
`[x1, y1, z1, x2, y2, z2]`. z counts slices in the order in which they are read and is written as a
share of the whole volume, however many of its slices a model sees. A box without z, through all
slices, has four numbers there too. Text does not say which of several images a box lies in, see `read`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import Field

from medloupe.config import Config
from medloupe.errors import PromptError
from medloupe.imaging.geometry import Geometry, VolumeGeometry, clip_box, clip_box_3d
from medloupe.types import Box

Placement: TypeAlias = Geometry | VolumeGeometry
"""From the original pixels of an image, or voxels of a volume, to the model's view."""

_NUMBER = r"\s*-?\d+(?:\.\d+)?\s*"
# Four numbers, or six.
_PATTERNS = {
    "angle": re.compile(rf"\{{(?:<{_NUMBER}>){{4}}(?:(?:<{_NUMBER}>){{2}})?\}}"),
    "square": re.compile(rf"\[{_NUMBER}(?:,{_NUMBER}){{3}}(?:(?:,{_NUMBER}){{2}})?\]"),
}
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")
# A name in LiteGPT's answers; and what else may stand between two findings, with stray tags.
_NAMED = re.compile(r"<p>(.*?)</p>", re.DOTALL)
_JOINS = re.compile(r"</?p>|^[\s,;.:、，；。]+|[\s,;.:、，；。]+$")


class BoxEncoding(Config):
    """`scale` is the number that the right or bottom edge of the view is written as.

    LiteGPT writes `scale=100` in angle form. `decimals` is 0 except for `scale=1`.
    """

    form: Literal["angle", "square"] = "angle"
    scale: Literal[1, 100, 1000] = 100
    decimals: int = Field(default=0, ge=0, le=4)

    def write(self, box: Box, placement: Placement) -> str:
        """The text of a box.

        Raises:
            PromptError: a 3D box in a 2D image, or one that lies wholly outside the view.
        """
        if box.z1 is not None and isinstance(placement, Geometry):
            raise PromptError(
                f"box {box.label!r} has slices, its image has none",
                field="box",
                remedy="Name the image's kind in the data (kind: volume), or leave out z1 and z2",
            )
        seen = _seen(box, placement)
        if seen is None:
            raise PromptError(
                f"box {box.label!r} lies outside the part of the image that the model sees",
                field="box",
                remedy="Use fit: pad, or leave such boxes out",
            )
        shares = [
            value / length
            for corner in _corners(seen)
            for value, length in zip(corner, placement.view, strict=False)  # flat: no depth
        ]
        numbers = [f"{share * self.scale:.{self._decimals}f}" for share in shares]
        if self.form == "angle":
            return "{" + "".join(f"<{number}>" for number in numbers) + "}"
        return "[" + ", ".join(numbers) + "]"

    def read(self, text: str, placements: Sequence[Placement]) -> list[Box]:
        """Every well-formed box of `text`, in original pixels of one of the images.

        Six numbers are of the last volume, four of the last 2D image, or of the last volume where
        all images are volumes. A box's label is the text before it, since the box before; of that text
        the last name in `<p>` and `</p>`, where there is one. Boxes with reversed corners,
        outside the scale, or without an image for them are left out. Order is that of the text.
        """
        return [box for box, _ in self.find(text, placements)]

    def find(self, text: str, placements: Sequence[Placement]) -> list[tuple[Box, tuple[int, int]]]:
        """The boxes of `read`, each with the place of its numbers and brackets in the text."""
        boxes: list[tuple[Box, tuple[int, int]]] = []
        end = 0
        for match in _PATTERNS[self.form].finditer(text):
            before, end = text[end : match.start()], match.end()
            label = _JOINS.sub("", ([before, *_NAMED.findall(before)])[-1]).strip()
            shares = [float(number) / self.scale for number in _NUMBERS.findall(match.group())]
            axes = len(shares) // 2
            lows, highs = shares[:axes], shares[axes:]
            image = _owner(axes, placements)
            ordered = all(0 <= low <= high <= 1 for low, high in zip(lows, highs, strict=True))
            if not ordered or image is None:
                continue
            placement = placements[image]
            edges: dict[str, float] = {}
            for name, low, high, length in zip(
                "xyz"[:axes], lows, highs, placement.view, strict=False
            ):
                edges |= {f"{name}1": low * length, f"{name}2": high * length}
            seen = Box(label=_JOINS.sub("", label), image=image, **edges)
            boxes.append((placement.back_box(seen), match.span()))
        return boxes

    def without_boxes(self, text: str) -> str:
        """The text with its box strings taken out (text metrics are computed so)."""
        return re.sub(r"\s+", " ", _PATTERNS[self.form].sub("", text)).strip()

    @property
    def _decimals(self) -> int:
        return self.decimals or (2 if self.scale == 1 else 0)


@dataclass(frozen=True, kw_only=True)
class Views:
    """Where every image of one conversation stands, in reading order."""

    placements: tuple[Placement, ...]

    def of(self, box: Box) -> Placement:
        """That of the image that `box` lies in.

        Raises:
            PromptError: the box names an image that the conversation does not have.
        """
        if box.image >= len(self.placements):
            raise PromptError(
                f"box {box.label!r} names image {box.image}, the conversation has "
                f"{len(self.placements)}",
                field="box.image",
            )
        return self.placements[box.image]


def _seen(box: Box, placement: Placement) -> Box | None:
    """The part of a box that lies in the view, in the view's own units."""
    moved = placement.forward_box(box)
    if isinstance(placement, Geometry):
        return clip_box(moved, placement.view)
    return clip_box_3d(moved, placement.view)


def _corners(box: Box) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if box.z1 is None or box.z2 is None:
        return (box.x1, box.y1), (box.x2, box.y2)
    return (box.x1, box.y1, box.z1), (box.x2, box.y2, box.z2)


def _owner(axes: int, placements: Sequence[Placement]) -> int | None:
    """The number of the image that a box with so many axes is taken to lie in."""
    planes = [n for n, one in enumerate(placements) if isinstance(one, Geometry)]
    volumes = [n for n, one in enumerate(placements) if isinstance(one, VolumeGeometry)]
    fitting = volumes if axes == 3 else planes or volumes
    return fitting[-1] if fitting else None
