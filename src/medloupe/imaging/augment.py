"""Small changes of a training row: pixels, boxes, text and affine change together or not at all.

What happens to a row depends on (seed, epoch, row id) alone, so workers, order and a resumed run
make no difference. There is one entrance, `Augmentation.apply`, which takes a conversation with its
images: nobody can mirror the pixels and keep the word "left". After a rotation or zoom the affine
still says where each voxel was in the patient, so sizes in mm stay true.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from medloupe.config import Config
from medloupe.errors import DataError
from medloupe.imaging.flips import HorizontalFlip
from medloupe.imaging.geometry import Geometry, clip_box
from medloupe.imaging.windows import INVERTED, PADDING, Window, measured, window_of
from medloupe.types import Box, Conversation, ImageRef, MedicalImage, Message, Text

Amount = Annotated[float, Field(ge=0, le=1)]
_ATTEMPTS: Final = 8


class Draw(Config):
    """One drawn change of one image. `angle` in degrees, anticlockwise as the picture is seen.

    `shift` is in widths and heights; `brightness` and `noise` in widths of the grey-value window.
    """

    angle: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    brightness: float = 0.0
    contrast: float = 1.0
    gamma: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0

    def geometry(self, width: int, height: int) -> Geometry:
        """Turned and enlarged round the centre, then shifted; the size stays."""
        turn = math.radians(self.angle)
        along, across = self.zoom * math.cos(turn), self.zoom * math.sin(turn)
        x, y = width / 2, height / 2
        return Geometry(
            original=(width, height),
            view=(width, height),
            scale=(along, along),
            shear=(across, -across),  # y runs downwards
            offset=(
                x - along * x - across * y + self.shift[0] * width,
                y + across * x - along * y + self.shift[1] * height,
            ),
        )

    def still(self) -> Draw:
        """The same change of grey values, without movement."""
        return self.model_copy(update={"angle": 0.0, "zoom": 1.0, "shift": (0.0, 0.0)})

    @property
    def moves(self) -> bool:
        """Whether anything leaves its place."""
        return (self.angle, self.zoom, self.shift) != (0.0, 1.0, (0.0, 0.0))

    @property
    def tones(self) -> bool:
        """Whether grey values change."""
        return (self.brightness, self.contrast, self.gamma, self.noise) != (0.0, 1.0, 1.0, 0.0)


class Augmentation(Config):
    """How far things may be changed; each is drawn evenly up to its limit, 0 is never.

    `rotation` in degrees either way; `zoom`, `contrast` and `gamma` as factors from 1 / (1 + x) to
    1 + x; `shift` in widths and heights; `brightness` and `noise` (standard deviation) in widths of
    `window`, which should be the one of the `ImageTransform` (with mode `full`, which stretches
    again, brightness and contrast do nothing). `flip` is a probability, and off: see
    `HorizontalFlip` for what it must not be used on. Rows that ask for sizes in words need `zoom=0`.

    A movement that leaves less than `keep` of a box inside the picture is drawn again, up to eight
    times; then the picture stays where it is. Boxes are cut at the picture's edge.
    """

    version: Literal[1] = 1
    rotation: Annotated[float, Field(ge=0, le=45)] = 5.0
    zoom: Amount = 0.05
    shift: Amount = 0.03
    brightness: Amount = 0.05
    contrast: Amount = 0.1
    gamma: Amount = 0.1
    noise: Amount = 0.01
    flip: Amount = 0.0
    keep: Amount = 0.75
    window: Window = Window()

    def apply(
        self,
        conversation: Conversation,
        images: Sequence[MedicalImage],
        *,
        seed: int,
        epoch: int,
    ) -> tuple[Conversation, tuple[MedicalImage, ...]]:
        """The changed row and its images; sizes and array shapes stay.

        Args:
            conversation: its image references stay as they are.
            images: what `conversation.images` points at, in that order.
            seed: of the run.
            epoch: counted from 0.

        Raises:
            DataError: images are missing, or a box names an image that is not there.
            ImageError: the window does not fit the units of an image.
        """
        _require_images(conversation, images)
        draws = [
            self.draw(seed, epoch, conversation.id, index, _boxes(conversation, index), image.size)
            for index, image in enumerate(images)
        ]
        changed = tuple(
            _changed(image, draw, self.window) for image, draw in zip(images, draws, strict=True)
        )
        geometries = [d.geometry(*i.size) for d, i in zip(draws, images, strict=True)]
        moved = _moved(conversation, geometries)
        flip = HorizontalFlip()
        if self._flips(seed, epoch, conversation.id) and all(map(flip.allows, images)):
            moved = flip.flip_conversation(moved, [image.size for image in images])
            changed = tuple(flip.apply(image) for image in changed)
        return moved, changed

    def draw(
        self,
        seed: int,
        epoch: int,
        row: str,
        image: int,
        boxes: Sequence[Box],
        size: tuple[int, int],
    ) -> Draw:
        """What happens to image number `image` of a row, of `size` (width, height)."""
        random = _generator(seed, epoch, row, str(image))
        for _ in range(_ATTEMPTS):
            draw = self._drawn(random)
            if not draw.moves or _keeps(draw.geometry(*size), boxes, self.keep):
                return draw
        return draw.still()

    def _drawn(self, random: np.random.Generator) -> Draw:
        def evenly(limit: float) -> float:
            return float(random.uniform(-limit, limit))

        def factor(limit: float) -> float:
            return math.exp(evenly(math.log1p(limit)))

        return Draw(
            angle=evenly(self.rotation),
            zoom=factor(self.zoom),
            shift=(evenly(self.shift), evenly(self.shift)),
            brightness=evenly(self.brightness),
            contrast=factor(self.contrast),
            gamma=factor(self.gamma),
            noise=float(random.uniform(0, self.noise)),
            noise_seed=int(random.integers(2**53)),
        )

    def _flips(self, seed: int, epoch: int, row: str) -> bool:
        return bool(_generator(seed, epoch, row, "flip").random() < self.flip)


def _generator(seed: int, epoch: int, row: str, what: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\n{epoch}\n{what}\n{row}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _require_images(conversation: Conversation, images: Sequence[MedicalImage]) -> None:
    wanted = len(conversation.images)
    if len(images) != wanted:
        raise DataError(
            f"{len(images)} images given for {wanted}", row=conversation.id, field="images"
        )
    for part in conversation.parts():
        if isinstance(part, Box) and part.image >= wanted:
            raise DataError(
                f"a box lies in image {part.image}, but there are {wanted} images",
                row=conversation.id,
                field="image",
            )


def _boxes(conversation: Conversation, image: int) -> list[Box]:
    parts = conversation.parts()
    return [part for part in parts if isinstance(part, Box) and part.image == image]


def _keeps(geometry: Geometry, boxes: Sequence[Box], share: float) -> bool:
    """Whether at least `share` of every moved box lies inside the picture."""
    for box in boxes:
        moved = geometry.forward_box(box)
        inside = clip_box(moved, geometry.view)
        if inside is None or _area(inside) < share * _area(moved):
            return False
    return True


def _area(box: Box) -> float:
    return (box.x2 - box.x1) * (box.y2 - box.y1)


def _moved(conversation: Conversation, geometries: Sequence[Geometry]) -> Conversation:
    """The conversation with its boxes moved and cut at the edge of the picture."""

    def move(part: Text | ImageRef | Box) -> Text | ImageRef | Box:
        if not isinstance(part, Box):
            return part
        geometry = geometries[part.image]
        if np.array_equal(geometry.matrix, np.eye(3)):
            return part
        inside = clip_box(geometry.forward_box(part), geometry.view)
        assert inside is not None, "a draw lets no box leave the picture"
        return inside

    messages = tuple(
        Message(role=message.role, content=tuple(map(move, message.content)))
        for message in conversation.messages
    )
    return conversation.model_copy(update={"messages": messages})


def _changed(image: MedicalImage, draw: Draw, window: Window) -> MedicalImage:
    moved = _turned(image, draw.geometry(*image.size)) if draw.moves else image
    if not draw.tones:
        return moved
    return _toned_colour(moved, draw) if image.units == "rgb" else _toned(moved, draw, window)


def _turned(image: MedicalImage, geometry: Geometry) -> MedicalImage:
    """Every slice moved within its plane, bilinear; what comes in from outside is background."""
    inverse = np.linalg.inv(geometry.matrix)
    # Pillow maps the centre of a pixel, (x + 0.5, y + 0.5), as `Geometry` does
    data = tuple(inverse[:2].ravel().tolist())
    fill: Any = (0, 0, 0) if image.units == "rgb" else _background(image)

    def turn(plane: NDArray[Any]) -> NDArray[Any]:
        picture = Image.fromarray(np.ascontiguousarray(plane))
        return np.asarray(
            picture.transform(
                geometry.view,
                Image.Transform.AFFINE,
                data,
                resample=Image.Resampling.BILINEAR,
                fillcolor=fill,
            )
        )

    pixels: Any = image.array
    array = turn(pixels) if image.units == "rgb" else np.stack([turn(plane) for plane in pixels])
    to_old = np.eye(4)  # new index to old index: both are centres, half a pixel from the edge
    to_old[:2, :2] = inverse[:2, :2]
    to_old[:2, 3] = inverse[:2, :2] @ (0.5, 0.5) + inverse[:2, 2] - 0.5
    affine = None if image.affine is None else image.affine @ to_old
    spacing = image.spacing
    if spacing is not None:
        row, column = np.linalg.norm(inverse[:2, 1]), np.linalg.norm(inverse[:2, 0])
        spacing = (spacing[0], spacing[1] * float(row), spacing[2] * float(column))
    return dataclasses.replace(image, array=array, affine=affine, spacing=spacing)


def _background(image: MedicalImage) -> float:
    """The value that is shown black: padding, or the lowest (of MONOCHROME1 the highest)."""
    if PADDING in image.attributes:
        return float(image.attributes[PADDING].split()[0])
    finite = image.array[np.isfinite(image.array)]
    if finite.size == 0:
        return 0.0
    return float(finite.max() if image.attributes.get(INVERTED) == "true" else finite.min())


def _toned(image: MedicalImage, draw: Draw, window: Window) -> MedicalImage:
    """Grey values changed on the scale of the window; padding and NaN are left alone."""
    windows = [window_of(image, one) for one in window.channels or (window,)]
    low = min(centre - width / 2 for centre, width in windows)
    high = max(centre + width / 2 for centre, width in windows)
    toned = _tone(image.array, draw, low, high - low)
    array = np.where(measured(image, image.array), toned, image.array).astype(np.float32)
    # without a window of its own it would be stretched again to its full range
    shown = image.window or windows[0]
    return dataclasses.replace(image, array=array, window=shown)


def _toned_colour(image: MedicalImage, draw: Draw) -> MedicalImage:
    toned = _tone(image.array, draw, 0.0, 255.0)
    return dataclasses.replace(image, array=np.clip(np.rint(toned), 0, 255).astype(np.uint8))


def _tone(array: NDArray[Any], draw: Draw, low: float, span: float) -> NDArray[np.float32]:
    relative = (array.astype(np.float32) - np.float32(low)) / np.float32(span)
    inside = (relative > 0) & (relative < 1)  # outside, a power would bend or break
    relative = np.where(inside, np.clip(relative, 0, 1) ** np.float32(draw.gamma), relative)
    relative = (relative - 0.5) * np.float32(draw.contrast) + np.float32(0.5 + draw.brightness)
    if draw.noise > 0:
        random = np.random.Generator(np.random.Philox(key=draw.noise_seed))
        relative += np.float32(draw.noise) * random.standard_normal(array.shape, dtype=np.float32)
    toned: NDArray[np.float32] = (relative * np.float32(span) + np.float32(low)).astype(np.float32)
    return toned
