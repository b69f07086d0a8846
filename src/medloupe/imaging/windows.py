"""Grey values to display values, by the VOI functions of DICOM PS3.3 C.11.2.

A window is applied only here, never while reading, so that one file can be shown through several.
Padding (PS3.3 C.7.5.1.1.2) and values that are not finite are shown black.
"""

from __future__ import annotations

from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from medloupe.config import Config
from medloupe.errors import ImageError
from medloupe.types import MedicalImage

# (centre, width) in HU, the settings in common use for reading CT.
HU_WINDOWS: Final[dict[str, tuple[float, float]]] = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
}

# Keys of `MedicalImage.attributes` that decide how grey values are shown.
INVERTED: Final = "inverted"  # "true": the lowest value is white (MONOCHROME1, WhiteIsZero)
PADDING: Final = "padding"  # "low high": values in this closed range are no measurement
SIGMOID: Final = "sigmoid"  # "true": the file's window is of the SIGMOID function


class Window(Config):
    """Which grey values are shown.

    `file`: the window that the file carries, else `full`. `full`: from the lowest to the highest
    value of the whole array, padding left out. `custom`: `centre` and `width` in the image's units.
    The names in `HU_WINDOWS` need an image in HU. Colour is shown as it is.
    """

    mode: Literal["file", "full", "custom", "lung", "mediastinum", "bone", "brain"] = "file"
    centre: float | None = None
    width: float | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = self.centre is not None and self.width is not None
        if self.mode == "custom" and not given:
            raise ValueError("a custom window needs centre and width")
        if self.mode != "custom" and (self.centre is not None or self.width is not None):
            raise ValueError(f"window {self.mode!r} has its own centre and width; use mode custom")
        if self.width is not None and self.width < 1:
            raise ValueError("window width must be at least 1 (DICOM PS3.3 C.11.2.1.2.1)")
        return self


def to_display(
    image: MedicalImage, window: Window | None = None, *, index: int | None = None
) -> NDArray[np.uint8]:
    """The pixels as they are shown, 0 to 255: `[H, W]` or, for colour, `[H, W, 3]`.

    Of a volume slice `index` is shown, by default the middle one (D // 2).

    Raises:
        ImageError: a window in HU for an image that is not, or no such slice.
    """
    if image.units == "rgb":
        return image.array.astype(np.uint8, copy=False)
    shown = grey_values(image, window or Window(), index=index)
    return np.rint(shown).astype(np.uint8)


def grey_values(
    image: MedicalImage, window: Window, *, index: int | None = None
) -> NDArray[np.float32]:
    """`to_display` of a grey image before rounding: `[H, W]` float32 from 0 to 255."""
    assert image.units != "rgb", "a window applies to grey values"
    centre, width = window_of(image, window)
    grey = image.array[_slice_index(image, index)]
    from_file = window.mode == "file" and image.window is not None
    if from_file and image.attributes.get(SIGMOID) == "true":
        shown = _sigmoid(grey, centre, width)
    else:
        shown = _linear(grey, centre, width)
    if image.attributes.get(INVERTED) == "true":
        np.subtract(np.float32(255), shown, out=shown)  # PS3.3 C.7.6.3.1.2, MONOCHROME1
    shown[~_measured(image, grey)] = 0
    return shown


def window_of(image: MedicalImage, window: Window) -> tuple[float, float]:
    """(centre, width) for this grey image, in its units.

    Raises:
        ImageError: a window in HU for an image that is not in HU.
    """
    if window.mode == "custom":
        assert window.centre is not None
        assert window.width is not None
        return window.centre, window.width
    if window.mode in HU_WINDOWS:
        if image.units != "HU":
            raise ImageError(
                f"window {window.mode!r} is in HU, but this image is in {image.units!r} values",
                remedy="Use window mode file, full or custom",
                file=image.source.uri if image.source else None,
            )
        return HU_WINDOWS[window.mode]
    if window.mode == "file" and image.window is not None:
        return image.window
    return _full_range(image)


def _linear(grey: NDArray[np.generic], centre: float, width: float) -> NDArray[np.float32]:
    """The LINEAR function of PS3.3 C.11.2.1.2.1 with y_min 0 and y_max 255.

    The clause's three branches are one clipped line from `low` to `high`.
    """
    low = np.float32(centre - 0.5 - (width - 1) / 2)
    span = np.float32(width - 1)
    shown: NDArray[np.float32] = np.subtract(grey, low, dtype=np.float32)
    if span == 0:  # a step: x <= c - 0.5 is black
        shown[:] = np.where(shown > 0, 255, 0)
        return shown
    shown *= np.float32(255) / span
    np.clip(shown, 0, 255, out=shown)
    return shown


def _sigmoid(grey: NDArray[np.generic], centre: float, width: float) -> NDArray[np.float32]:
    """The SIGMOID function of PS3.3 C.11.2.1.3.1 with output range 255."""
    exponent = np.subtract(grey, centre, dtype=np.float32) * np.float32(-4 / width)
    # exp overflows float32 beyond 88; the result is 0 long before
    shown: NDArray[np.float32] = np.float32(255) / (1 + np.exp(np.minimum(exponent, 80)))
    return shown


def _full_range(image: MedicalImage) -> tuple[float, float]:
    """The window whose line runs from the lowest to the highest measured value."""
    measured = image.array[_measured(image, image.array)]
    if measured.size == 0:
        return 0.5, 1.0
    low, high = float(measured.min()), float(measured.max())
    return (low + high + 1) / 2, high - low + 1


def _measured(image: MedicalImage, grey: NDArray[np.generic]) -> NDArray[np.bool_]:
    """True where a value is finite and not padding."""
    measured: NDArray[np.bool_] = np.isfinite(grey)
    if PADDING in image.attributes:
        low, high = (np.float32(value) for value in image.attributes[PADDING].split())
        measured &= (grey < low) | (grey > high)
    return measured


def _slice_index(image: MedicalImage, index: int | None) -> int:
    depth = int(image.array.shape[0])
    if index is None:
        return depth // 2
    if not 0 <= index < depth:
        raise ImageError(
            f"there is no slice {index}: the volume has slices 0 to {depth - 1}",
            file=image.source.uri if image.source else None,
        )
    return index
