"""The images of a report: each embedded once, drawn as often as needed with boxes over it.

A picture's viewBox is the original image in pixels, so boxes are drawn where they are stored,
however small the embedded copy is.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medloupe.errors import MedLoupeError
from medloupe.html.markup import Html, tag
from medloupe.types import Box, ImageRef

ReadImage = Callable[[ImageRef], NDArray[np.uint8]]
"""Display pixels of an image at its original size: `[H, W]` or `[H, W, 3]` uint8."""

PIXELS = 448
"""The longest side of an embedded image."""

_LARGE_PNG = 60_000  # bytes; above this a JPEG is embedded


class Gallery:
    """Reads each image once and remembers its size; one that cannot be read says why."""

    def __init__(self, read: ReadImage, pixels: int = PIXELS) -> None:
        self._read, self._pixels = read, pixels
        self._sizes: dict[ImageRef, tuple[int, int]] = {}
        self._faults: dict[ImageRef, str] = {}
        self._stored: list[Html] = []
        self._numbers: dict[ImageRef, int] = {}

    def picture(self, ref: ImageRef, boxes: Iterable[tuple[Box, str]], title: str) -> Html:
        """An image with (box, class) drawn over it: "truth", "predicted" or "asked"."""
        self._load(ref)
        if ref in self._faults:
            return tag("p", f"This image could not be read. {self._faults[ref]}", class_="fault")
        width, height = self._sizes[ref]
        shapes = [shape for box, kind in boxes for shape in _box(box, kind, width, height)]
        return tag(
            "svg",
            tag("title", title),
            tag("use", href=f"#image-{self._numbers[ref]}"),
            *shapes,
            viewBox=f"0 0 {width} {height}",
            role="img",
        )

    def store(self) -> Html:
        """The embedded images, to stand once anywhere in the page."""
        defs = tag("defs", *self._stored)
        return tag("svg", defs, width="0", height="0", class_="store", aria_hidden="true")

    def _load(self, ref: ImageRef) -> None:
        if ref in self._sizes or ref in self._faults:
            return
        try:
            pixels = self._read(ref)
        except MedLoupeError as error:
            self._faults[ref] = str(error)
            return
        height, width = pixels.shape[:2]
        number = len(self._stored)
        self._sizes[ref], self._numbers[ref] = (width, height), number
        self._stored.append(
            tag(
                "image",
                id=f"image-{number}",
                href=data_uri(pixels, self._pixels),
                width=str(width),
                height=str(height),
                preserveAspectRatio="none",
            )
        )


def data_uri(pixels: NDArray[np.uint8], longest: int) -> str:
    """The image as a data URI, shrunk so that no side exceeds `longest`.

    PNG, or JPEG where the PNG would be large.
    """
    image = Image.fromarray(pixels)
    if max(image.size) > longest:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    kind, data = "png", _encoded(image, "PNG")
    if len(data) > _LARGE_PNG:
        kind, data = "jpeg", _encoded(image, "JPEG", quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _encoded(image: Image.Image, form: str, **options: int | bool) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _box(box: Box, kind: str, width: int, height: int) -> list[Html]:
    """A rectangle and its label: the truth's above the box, others below, inside at the rim."""
    size = max(width, height) / 24
    above, below = box.y1 - size * 0.35, box.y2 + size
    inside_top = kind == "truth" and above < size
    y = above if kind == "truth" else min(below, height - size * 0.3)
    rectangle = tag(
        "rect",
        x=_number(box.x1),
        y=_number(box.y1),
        width=_number(box.x2 - box.x1),
        height=_number(box.y2 - box.y1),
        class_=f"box {kind}",
    )
    if not box.label:
        return [rectangle]
    left = box.x1 < width * 0.7
    label = tag(
        "text",
        box.label,
        x=_number(max(box.x1, 2) if left else min(box.x2, width - 2)),
        y=_number(box.y1 + size if inside_top else y),
        font_size=_number(size),
        text_anchor="start" if left else "end",
        class_=f"label {kind}",
    )
    return [rectangle, label]


def _number(value: float) -> str:
    """A coordinate without rounding noise: 12.5, not 12.500001."""
    return f"{round(value, 3):.10g}"
