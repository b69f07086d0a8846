"""Text in pixels, through RapidOCR (PaddleOCR's models, inside the wheel: nothing is fetched).

What was read is compared with what the header says of the patient and then forgotten: a report holds
boxes and never words. First, middle and last frame of several are looked at.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medloupe.errors import ImageError, MissingExtraError
from medloupe.imaging.deidentify.dataset import Known
from medloupe.imaging.deidentify.known import name_parts
from medloupe.imaging.deidentify.report import TextBox
from medloupe.imaging.deidentify.text import Finding, finder
from medloupe.imaging.dicom.image import frame_image
from medloupe.imaging.dicom.parse import BROKEN, broken, frame_count, parse
from medloupe.imaging.windows import to_display

# Letters of a small image are a few pixels high; the detector learned from pages.
_ENLARGED_BELOW: Final = 1000
# Shorter names stand inside too many other words once the spaces are lost.
_SHORTEST_NAME: Final = 4


def find_text(data: bytes, name: str, known: Known) -> tuple[TextBox, ...]:
    """Every text that the recogniser sees in a DICOM file.

    Raises:
        ImageError: the pixels cannot be decoded.
        MissingExtraError: RapidOCR, its engine or a decoder is not installed.
    """
    read, identifiers = reader(), finder(known_names=known.names, known_ids=known.ids)
    try:
        dataset = parse(data, name)
        count = frame_count(dataset)
        found: list[TextBox] = []
        for frame in sorted({0, count // 2, count - 1}):
            pixels = to_display(frame_image(dataset, frame, name))
            found += _boxes(read, pixels, frame, known, identifiers)
    except ImageError:
        raise
    except BROKEN as error:
        raise broken(error, name) from error
    return tuple(found)


@functools.cache
def reader() -> Callable[[NDArray[np.uint8]], Any]:
    """RapidOCR on one thread.

    Raises:
        MissingExtraError: it or its engine is not installed.
    """
    for package in ("rapidocr", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError.naming(package, extra="ocr")
    from rapidocr import RapidOCR

    quiet = {"Global.log_level": "error", "EngineConfig.onnxruntime.intra_op_num_threads": 1}
    engine: Callable[[NDArray[np.uint8]], Any] = RapidOCR(params=quiet)
    return engine


def _boxes(
    read: Callable[[NDArray[np.uint8]], Any],
    pixels: NDArray[np.uint8],
    frame: int,
    known: Known,
    identifiers: Callable[[str], tuple[Finding, ...]],
) -> Iterable[TextBox]:
    scale = 2 if max(pixels.shape[:2]) < _ENLARGED_BELOW else 1
    shown = Image.fromarray(pixels).convert("RGB")
    shown = shown.resize((shown.width * scale, shown.height * scale), Image.Resampling.BICUBIC)
    result = read(np.asarray(shown))
    if result.boxes is None:
        return
    for corners, words in zip(result.boxes / scale, result.txts, strict=True):
        (x1, y1), (x2, y2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        yield TextBox(
            frame=frame,
            x1=round(x1, 1),
            y1=round(y1, 1),
            x2=round(x2, 1),
            y2=round(y2, 1),
            letters=sum(map(str.isalnum, words)),
            personal=bool(identifiers(words)) or _holds(words, known),
        )


def _holds(words: str, known: Known) -> bool:
    """Whether the header's names or numbers stand in a text whose spaces and signs may be lost."""
    parts = [part for part in name_parts(known.names) if len(part) >= _SHORTEST_NAME]
    letters = _letters(words)
    return any(_letters(part) in letters for part in (*parts, *known.ids) if _letters(part))


def _letters(words: str) -> str:
    return "".join(filter(str.isalnum, words.upper()))
