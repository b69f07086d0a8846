"""A mirrored patient: pixels, boxes and the sides named in text change together.

The flip is an augmentation: the image shows another, mirrored patient in the same position, so the
affine stays as it is and what was left is right, in pixels and in words. It is meant for images
whose columns run between the patient's sides, and not for organs of one side (heart, liver).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np

from medloupe.config import Config
from medloupe.errors import DataError, ImageError
from medloupe.imaging.geometry import Geometry
from medloupe.types import Box, Conversation, ImageRef, MedicalImage, Message, Text

_MIRRORED: Final = {
    "left": "right",
    "leftward": "rightward",
    "leftwards": "rightwards",
    "leftmost": "rightmost",
    "lul": "rul",
    "lll": "rll",
    "luq": "ruq",
    "llq": "rlq",
    "左": "右",
}
_PARTNER: Final = _MIRRORED | {right: left for left, right in _MIRRORED.items()}
# "About" after a quantity, rotations and drug names, in which the character is no side of the
# patient. English idioms are not spared: "all right" may go on with "ribs".
_NO_SIDE: Final = (
    r"(?<=[0-9米mM%岁天年月周时度])(?:左右|右左)|左旋|右旋|左氧氟沙星|左甲状腺素|右美托咪定"
)
_WORDS: Final = "|".join(word for word in _PARTNER if word.isascii())
_SIDE: Final = re.compile(rf"(?P<keep>{_NO_SIDE})|\b(?:{_WORDS})\b|左|右", re.IGNORECASE | re.ASCII)


def swap_sides(text: str) -> str:
    """`text` with left and right exchanged (English and Chinese), whole words, case kept.

    Hyphenated forms ("left-sided") count as words; the lobe and quadrant abbreviations (RUL, LLQ)
    are exchanged too. Swapping twice gives the text back.

    Left alone are 左右 where it means "about" and the names in which 左 or 右 is no side.
    """
    return _SIDE.sub(lambda m: m.group() if m.group("keep") else _mirror_word(m.group()), text)


class HorizontalFlip(Config):
    """Mirror an image, its boxes and the sides in its text. Twice is the identity."""

    version: Literal[1] = 1

    def geometry(self, width: int, height: int) -> Geometry:
        """Columns reversed."""
        return Geometry.mirror((width, height))

    def allows(self, image: MedicalImage) -> bool:
        """False where the affine says that columns do not run between the patient's sides."""
        return image.affine is None or int(np.argmax(np.abs(image.affine[:3, 0]))) == 0

    def apply(self, image: MedicalImage) -> MedicalImage:
        """The mirrored image, with the same affine: the patient is mirrored, not the scanner.

        Raises:
            ImageError: the affine says that columns do not run between the patient's sides.
        """
        if not self.allows(image):
            raise ImageError(
                "the columns of this image do not run between left and right (a sagittal view?)",
                remedy="Leave such images out of the flip",
                file=image.source.uri if image.source else None,
            )
        pixels: Any = image.array
        flipped = pixels[:, ::-1] if image.units == "rgb" else pixels[:, :, ::-1]
        return dataclasses.replace(image, array=np.ascontiguousarray(flipped))

    def flip_conversation(
        self, conversation: Conversation, sizes: Sequence[tuple[int, int]]
    ) -> Conversation:
        """Sides swapped in every text, option, template and attribute; boxes and labels mirrored.

        Args:
            conversation: its image references stay as they are; flip their pixels with `apply`.
            sizes: (width, height) of each image, in the order of `conversation.images`.

        Raises:
            DataError: `sizes` are not one per image, or a box names an image that is not there.
        """
        images = len(conversation.images)
        if len(sizes) != images:
            raise DataError(
                f"{len(sizes)} sizes for {images} images", row=conversation.id, field="sizes"
            )
        messages = tuple(
            Message(
                role=message.role,
                content=tuple(
                    self._flip_part(part, sizes, conversation.id) for part in message.content
                ),
            )
            for message in conversation.messages
        )
        changes: dict[str, Any] = {
            "messages": messages,
            "template": swap_sides(conversation.template),
            "options": tuple(swap_sides(option) for option in conversation.options),
            "attributes": {k: swap_sides(v) for k, v in conversation.attributes.items()},
        }
        return conversation.model_copy(update=changes)

    def _flip_part(
        self, part: Text | ImageRef | Box, sizes: Sequence[tuple[int, int]], row: str
    ) -> Text | ImageRef | Box:
        if isinstance(part, Text):
            return Text(text=swap_sides(part.text))
        if isinstance(part, ImageRef):
            return part
        if part.image >= len(sizes):
            raise DataError(
                f"a box lies in image {part.image}, but there are {len(sizes)} images",
                row=row,
                field="image",
            )
        mirrored = self.geometry(*sizes[part.image]).forward_box(part)
        words = tuple(swap_sides(word) for word in part.words)
        return mirrored.model_copy(update={"label": swap_sides(part.label), "words": words})


def _mirror_word(word: str) -> str:
    partner = _PARTNER[word.lower()]
    if word.isupper():
        return partner.upper()
    return partner.capitalize() if word[0].isupper() else partner
