"""What a model that is not ours is shown: pictures through our windows, and volumes as some of their
slices.

Such models take 8-bit pictures. Windowing happens here, so that a CT is seen as a reader would see it;
pictures keep their shape and shrink to `longest` pixels, and boxes are written and read as shares of the
picture. A volume becomes one montage, or a picture for each slice; either is said in words before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from medloupe.config import Config
from medloupe.errors import ImageError
from medloupe.imaging.flips import HorizontalFlip
from medloupe.imaging.geometry import Geometry
from medloupe.imaging.read import read_ref
from medloupe.imaging.slices import SliceSelection
from medloupe.imaging.windows import Window, settled, to_display
from medloupe.processing.boxes import BoxEncoding, Placement, Views
from medloupe.types import Box, Conversation, ImageRef, MedicalImage

Pixels: TypeAlias = NDArray[np.uint8]  # [H, W] or [H, W, 3]
_MONTAGE: Final = (
    "{shown} of the {depth} slices of a volume, in order, row by row from the top left:"
)
_SLICES: Final = "{shown} of the {depth} slices of a volume, in order:"


class ShownConfig(Config):
    """How images are shown, and in which encoding boxes are written and read.

    `volumes`: "montage" puts `slices` evenly spread slices into one picture, "slices" shows them one after
    another, "refuse" makes rows with volumes errors. A montage shrinks as any picture does.
    """

    window: Window = Window()
    longest: int = Field(default=1024, ge=16)
    volumes: Literal["montage", "slices", "refuse"] = "montage"
    slices: int = Field(default=16, ge=1)
    boxes: BoxEncoding = BoxEncoding()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A message as texts and pictures, in reading order."""

    role: str
    parts: tuple[str | Pixels, ...]


class Showing:
    """Reads the images below `root` and shows them as a config says. It also is what probes `Look` at."""

    def __init__(self, root: Path, config: ShownConfig) -> None:
        self.root, self.config = root, config
        self._sizes: dict[ImageRef, tuple[int, ...]] = {}

    def size_of(self, ref: ImageRef) -> tuple[int, ...]:
        """(width, height) in original pixels, of a volume (width, height, depth).

        Raises:
            ImageError: it cannot be read.
        """
        if ref not in self._sizes:
            self._note(ref, read_ref(ref, self.root))
        return self._sizes[ref]

    def mirrors(self, ref: ImageRef) -> bool:
        """Do its columns run between the patient's sides, as far as the file says?

        Raises:
            ImageError: it cannot be read.
        """
        return HorizontalFlip().allows(read_ref(ref, self.root))

    def turns(self, conversation: Conversation) -> list[Turn]:
        """The conversation without its answer.

        Raises:
            ImageError: an image cannot be read, or a volume is refused.
            PromptError: a box cannot be written.
        """
        asked = conversation.without_answer()
        pictures = [self.pictures(ref) for ref in asked.images]
        views = Views(placements=self.placements(asked))
        left = iter(pictures)
        turns = []
        for message in asked.messages:
            parts: list[str | Pixels] = []
            for part in message.content:
                if isinstance(part, ImageRef):
                    parts += next(left)
                elif isinstance(part, Box):
                    parts.append(self.config.boxes.write(part, views.of(part)))
                else:
                    parts.append(part.text)
            turns.append(Turn(role=message.role, parts=_joined(parts)))
        return turns

    def boxes(self, text: str, conversation: Conversation) -> tuple[Box, ...]:
        """The boxes of an answer, in original pixels."""
        if not conversation.images:
            return ()
        return tuple(self.config.boxes.read(text, self.placements(conversation)))

    def placements(self, conversation: Conversation) -> tuple[Placement, ...]:
        """Boxes are shares of the picture, or of the whole volume."""
        found: list[Placement] = []
        for ref in conversation.without_answer().images:
            width, height, *depth = self.size_of(ref)
            flat = Geometry.identity((width, height))
            found.append(flat.through(depth[0]) if depth else flat)
        return tuple(found)

    def pictures(self, ref: ImageRef) -> list[str | Pixels]:
        """What stands in the place of an image.

        Raises:
            ImageError: it cannot be read, or is a volume and these are refused.
        """
        image = read_ref(ref, self.root)
        self._note(ref, image)
        if ref.kind == "image":
            return [self._small(to_display(image, self.config.window))]
        if self.config.volumes == "refuse":
            raise ImageError(
                "this model is not shown volumes",
                remedy="Set volumes to montage or slices",
                file=ref.uri,
            )
        shown = self._slices(image)
        said = {"shown": len(shown), "depth": len(image.array)}
        if self.config.volumes == "slices":
            return [_SLICES.format(**said), *map(self._small, shown)]
        return [_MONTAGE.format(**said), self._small(_montage(shown))]

    def _slices(self, volume: MedicalImage) -> list[Pixels]:
        """Evenly spread slices through one window."""
        plan = SliceSelection(count=self.config.slices).plan_of(volume)
        window = settled(volume, self.config.window)
        return [to_display(volume, window, index=index) for index in plan.indices]

    def _small(self, pixels: Pixels) -> Pixels:
        height, width = pixels.shape[:2]
        scale = self.config.longest / max(height, width)
        if scale >= 1:
            return pixels
        size = max(1, round(width * scale)), max(1, round(height * scale))
        resized: Pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
        return resized

    def _note(self, ref: ImageRef, image: MedicalImage) -> None:
        depth = () if ref.kind == "image" else (len(image.array),)
        self._sizes[ref] = (*image.size, *depth)


def _montage(slices: Sequence[Pixels]) -> Pixels:
    """Slices of one shape side by side, black where there is none."""
    columns = math.ceil(math.sqrt(len(slices)))
    rows = math.ceil(len(slices) / columns)
    height, width = slices[0].shape[:2]
    whole = np.zeros((rows * height, columns * width, *slices[0].shape[2:]), dtype=np.uint8)
    for number, one in enumerate(slices):
        top, left = number // columns * height, number % columns * width
        whole[top : top + height, left : left + width] = one
    return whole


def _joined(parts: Sequence[str | Pixels]) -> tuple[str | Pixels, ...]:
    """Neighbouring texts as one."""
    joined: list[str | Pixels] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, str) and isinstance(last, str):
            joined[-1] = last + part
        else:
            joined.append(part)
    return tuple(joined)
