"""One image as an audit sees it: hashes of its file, of its pixels, of its looks, and a thumbnail.

Looks are those of the displayed image, so that a DICOM file and a PNG made from it look alike. A
volume is seen as three of its slices, one below the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medloupe.data.audit.findings import Level
from medloupe.data.dataset import image_path
from medloupe.errors import Fault, MedLoupeError
from medloupe.imaging.dicom.identity import patient_and_series
from medloupe.imaging.files import sha256_path
from medloupe.imaging.read import read_ref
from medloupe.imaging.windows import to_display
from medloupe.types import ImageRef, MedicalImage

SIDE: Final = 64
"""Thumbnails are `SIDE` x `SIDE`, whatever the image's shape was."""

# Shares cut off at the (left, upper, right, lower) edge. An image is filed as it is and as it would be
# after being cropped a little, at its centre or at a corner.
CROPS: Final = (
    (0.0, 0.0, 0.0, 0.0),
    (0.015, 0.015, 0.015, 0.015),
    (0.02, 0.02, 0.0, 0.0),
    (0.0, 0.02, 0.02, 0.0),
    (0.02, 0.0, 0.0, 0.02),
    (0.0, 0.0, 0.02, 0.02),
)
Turn = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
TURNS: Final[dict[str, Turn]] = {  # of arrays that end in [..., H, W]
    "near-duplicate": lambda pixels: pixels,
    "mirrored near-duplicate": lambda pixels: pixels[..., ::-1],
    "upside-down near-duplicate": lambda pixels: pixels[..., ::-1, :],
    "near-duplicate turned by 180 degrees": lambda pixels: pixels[..., ::-1, ::-1],
}
# Below this spread of display values (of 255) an image shows nothing: blank pages all look alike.
_BLANK: Final = 2.0
_VIEW: Final = 2 * SIDE


@dataclass(frozen=True, kw_only=True)
class Look:
    """`hashes` and `thumbnail` are None where the image is blank or was not asked for its looks.
    `fault` says why it could not be read. `patient` and `series` are what a DICOM header states."""

    sha256: str | None = None
    pixels: str | None = None
    hashes: NDArray[np.uint64] | None = None  # [turns, crops]: cropped first, then turned
    thumbnail: NDArray[np.uint8] | None = None  # [SIDE, SIDE]
    patient: str | None = None
    series: str | None = None
    fault: Fault | None = None


def look_at(job: tuple[ImageRef, Path, Level]) -> Look:
    """Look at one image of a data set below the folder; never raises for what is in the file."""
    ref, root, _ = job
    patient, series = patient_and_series(image_path(root, ref.uri))
    return replace(_look(job), patient=patient, series=ref.series or series)


def _look(job: tuple[ImageRef, Path, Level]) -> Look:
    ref, root, level = job
    if level == "hash" and ref.sha256:
        return Look(sha256=ref.sha256.lower())
    path = image_path(root, ref.uri)
    try:
        sha256 = sha256_path(path)
        if level == "hash":
            return Look(sha256=sha256)
        image = read_ref(ref, root)
    except MedLoupeError as error:
        return Look(fault=error.at(file=str(path)).fault)
    pixels = pixel_hash(image)
    if level == "pixels":
        return Look(sha256=sha256, pixels=pixels)
    view = _view(image)
    if float(np.asarray(view).std()) < _BLANK:
        return Look(sha256=sha256, pixels=pixels)
    return Look(
        sha256=sha256,
        pixels=pixels,
        hashes=_hashes(view),
        thumbnail=np.asarray(view.resize((SIDE, SIDE), Image.Resampling.BOX)),
    )


def pixel_hash(image: MedicalImage) -> str:
    """The SHA-256 of the decoded pixels: the same for one picture in two containers.

    Grey pixels stored as RGB are taken as grey, so that their container does not matter.
    """
    array: NDArray[np.generic] = image.array
    if image.units == "rgb" and (array == array[..., :1]).all():
        array = array[None, ..., 0]
    values = np.ascontiguousarray(array, dtype="<f4")
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(values.data)
    return digest.hexdigest()


def _view(image: MedicalImage) -> Image.Image:
    """The display pixels, grey, `_VIEW` x `_VIEW`."""
    if image.units == "rgb" or image.array.shape[0] == 1:
        return _small(to_display(image), _VIEW)
    depth = image.array.shape[0]
    heights = (_VIEW // 3, _VIEW // 3, _VIEW - 2 * (_VIEW // 3))
    sheet = Image.new("L", (_VIEW, _VIEW))
    for number, height in enumerate(heights):
        shown = to_display(image, index=min(depth * (number + 1) // 4, depth - 1))
        sheet.paste(_small(shown, _VIEW).resize((_VIEW, height)), (0, sum(heights[:number])))
    return sheet


def _small(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    picture = Image.fromarray(pixels).convert("L")
    return picture.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _box(crop: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, upper, right, lower = (share * _VIEW for share in crop)
    return left, upper, _VIEW - right, _VIEW - lower


def _hashes(view: Image.Image) -> NDArray[np.uint64]:
    """The 64-bit perceptual hash (low frequencies of the cosine transform) of every turn and crop."""
    crops = np.stack(
        [np.asarray(view.resize((32, 32), Image.Resampling.LANCZOS, _box(crop))) for crop in CROPS]
    )
    turned = np.ascontiguousarray(np.stack([turn(crops) for turn in TURNS.values()]))
    bits = [imagehash.phash(Image.fromarray(pixels)).hash for pixels in turned.reshape(-1, 32, 32)]
    packed = np.packbits(np.stack(bits).reshape(len(bits), 64), axis=1)
    return packed.view(">u8").astype(np.uint64).reshape(turned.shape[:2])
