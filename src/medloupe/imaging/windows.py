"""Grey values to display values, by the VOI functions of DICOM PS3.3 C.11.2.

A window is applied only here, never while reading, so that one file can be shown through several.
Padding (PS3.3 C.7.5.1.1.2) and values that are not finite are shown black.

What a name means never changes: another centre or width gets another name, and a change of the
arithmetic raises `ImageTransform.version`, which refuses what an older version saved.
"""

from __future__ import annotations

from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from medloupe.config import Config
from medloupe.errors import ImageError
from medloupe.types import MedicalImage, VoiTable

# (centre, width) in HU, the settings in common use for reading CT, as the article "Windowing (CT)" of
# Radiopaedia.org lists them. Where it gives ranges, their middle: soft tissue of the neck 20 to 60
# and 350 to 400, subdural 50 to 100 and 130 to 300. `medm_vl` is MedM-VL's clip to -1000..1000 HU.
HU_WINDOWS: Final[dict[str, tuple[float, float]]] = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "stroke": (40.0, 40.0),
    "subdural": (75.0, 215.0),
    "soft_tissue": (40.0, 375.0),
    "abdomen": (50.0, 400.0),
    "liver": (30.0, 150.0),
    "medm_vl": (0.5, 2001.0),
}
Mode = Literal[
    "file",
    "full",
    "custom",
    "rgb",
    "litegpt",
    "lung",
    "mediastinum",
    "bone",
    "brain",
    "stroke",
    "subdural",
    "soft_tissue",
    "abdomen",
    "liver",
    "medm_vl",
]

_WIDEST: Final = 1e37  # a tenth of the largest float32, with room for a factor

# Keys of `MedicalImage.attributes` that decide how grey values are shown.
INVERTED: Final = "inverted"  # "true": the lowest value is white (MONOCHROME1, WhiteIsZero)
PADDING: Final = "padding"  # "low high": values in this closed range are no measurement
SIGMOID: Final = "sigmoid"  # "true": the file's window is of the SIGMOID function


class Window(Config):
    """Which grey values are shown.

    `file`: the table or window that the file carries, else `full`. `full`: from the lowest to the highest
    value of the whole array, padding left out. `custom`: `centre` and `width` in the image's units.
    `rgb`: three windows of `channels`, one each for red, green and blue. `litegpt`: the mapping of
    LiteGPT's appendix A.1, for comparison with its numbers only (see `_litegpt`). The names in
    `HU_WINDOWS` need an image in HU. Colour is shown as it is.

    A name stands for a window: `channels: [lung, mediastinum, bone]`.
    """

    mode: Mode = "file"
    centre: float | None = None
    width: float | None = None
    channels: tuple[Window, Window, Window] | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        return {"mode": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = self.centre is not None and self.width is not None
        if self.mode == "custom" and not given:
            raise ValueError("a custom window needs centre and width")
        if self.mode != "custom" and (self.centre is not None or self.width is not None):
            raise ValueError(f"window {self.mode!r} has its own centre and width; use mode custom")
        if self.width is not None and self.width < 1:
            raise ValueError("window width must be at least 1 (DICOM PS3.3 C.11.2.1.2.1)")
        if (self.mode == "rgb") != (self.channels is not None):
            raise ValueError("mode rgb needs three windows in channels, and no other mode has them")
        if self.channels is not None and any(one.mode == "rgb" for one in self.channels):
            raise ValueError("each of the three channels is one window, not three again")
        return self

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`channels` only where there are any: values saved before it existed keep their hash."""
        fields: dict[str, Any] = handler(self)
        if self.channels is None:
            fields.pop("channels", None)
        return fields


def to_display(
    image: MedicalImage, window: Window | None = None, *, index: int | None = None
) -> NDArray[np.uint8]:
    """The pixels as they are shown, 0 to 255: `[H, W]` or, for colour and `rgb`, `[H, W, 3]`.

    Of a volume slice `index` is shown, by default the middle one (D // 2).

    Raises:
        ImageError: a window in HU for an image that is not, or no such slice.
    """
    if image.units == "rgb":
        return image.array.astype(np.uint8, copy=False)
    shown = [np.rint(plane) for plane in grey_channels(image, window or Window(), index=index)]
    planes = np.stack(shown, axis=-1) if len(shown) > 1 else shown[0]
    return planes.astype(np.uint8)


def grey_channels(
    image: MedicalImage, window: Window, *, index: int | None = None
) -> list[NDArray[np.float32]]:
    """`to_display` of a grey image before rounding: one plane `[H, W]`, or three for `rgb`."""
    windows = window.channels or (window,)
    return [grey_values(image, one, index=index) for one in windows]


def grey_values(
    image: MedicalImage, window: Window, *, index: int | None = None
) -> NDArray[np.float32]:
    """A grey image through one window before rounding: `[H, W]` float32 from 0 to 255."""
    assert image.units != "rgb", "a window applies to grey values"
    grey = image.array[_slice_index(image, index)]
    if window.mode == "litegpt":
        return _litegpt(image, grey)
    from_file = window.mode == "file" and image.window is not None
    if window.mode == "file" and image.voi_table is not None:
        shown = _table(grey, image.voi_table)
    elif from_file and image.attributes.get(SIGMOID) == "true":
        shown = _sigmoid(grey, *window_of(image, window))
    else:
        shown = _linear(grey, *window_of(image, window))
    if image.attributes.get(INVERTED) == "true":
        np.subtract(np.float32(255), shown, out=shown)  # PS3.3 C.7.6.3.1.2, MONOCHROME1
    shown[~measured(image, grey)] = 0
    return shown


def settled(image: MedicalImage, window: Window) -> Window:
    """`window`, with the range of the whole array as a number where it is one: a volume that is shown
    slice by slice is then looked through once, and shown alike."""
    if window.channels is not None:
        channels = tuple(settled(image, one) for one in window.channels)
        return window.model_copy(update={"channels": channels})
    from_file = image.window is not None or image.voi_table is not None
    if window.mode != "full" and (window.mode != "file" or from_file):
        return window
    centre, width = _full_range(image)
    return Window(mode="custom", centre=centre, width=width)


def window_of(image: MedicalImage, window: Window) -> tuple[float, float]:
    """(centre, width) of one window for this grey image, in its units.

    Raises:
        ImageError: a window in HU for an image that is not in HU.
    """
    assert window.channels is None, "three windows have no one centre"
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
    if window.mode in ("file", "litegpt") and image.window is not None:
        return image.window
    return _full_range(image)


def _linear(grey: NDArray[np.generic], centre: float, width: float) -> NDArray[np.float32]:
    """The LINEAR function of PS3.3 C.11.2.1.2.1 with y_min 0 and y_max 255.

    The clause's three branches are one clipped line from `low` to `high`.
    """
    if width > _WIDEST:  # beyond what float32 can subtract
        wide = (grey.astype(np.float64) - (centre - width / 2)) * (255 / width)
        return np.clip(wide, 0, 255).astype(np.float32)
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


def _table(grey: NDArray[np.generic], table: VoiTable) -> NDArray[np.float32]:
    """The VOI LUT of PS3.3 C.11.2.1.1; values that are not finite are shown as 0."""
    values = np.nan_to_num(grey.astype(np.float64), nan=0, posinf=0, neginf=0)
    last = len(table.shown) - 1
    index = np.clip(np.rint(values) - table.first, 0, last).astype(np.intp)
    shown: NDArray[np.float32] = table.shown[index]
    return shown


def _litegpt(image: MedicalImage, grey: NDArray[np.generic]) -> NDArray[np.float32]:
    """LiteGPT's mapping (appendix A.1): (x - centre) / width, clipped to +-1, onto 0..255, cut off.

    The file's window fills only the middle half of the grey levels, so contrast is halved; without
    one, mean and range of the plane take its place. It knows no padding.
    """
    values = grey.astype(np.float64)
    finite = np.isfinite(values)
    if image.window is not None:
        centre, width = image.window
    elif finite.any():
        known = values[finite]
        centre, width = float(known.mean()), float(known.max() - known.min())
    else:
        centre, width = 0.0, 0.0
    sign = -1.0 if image.attributes.get(INVERTED) == "true" else 1.0
    relative = np.where(finite, values - centre, 0.0) / (width or 1.0)
    shown = np.floor(np.clip(relative, -1, 1) * sign * 127.5 + 127.5)
    shown[~finite] = 0
    return shown.astype(np.float32)


def _full_range(image: MedicalImage) -> tuple[float, float]:
    """The window whose line runs from the lowest to the highest measured value."""
    values = image.array[measured(image, image.array)]
    if values.size == 0:
        return 0.5, 1.0
    low, high = float(values.min()), float(values.max())
    return (low + high + 1) / 2, high - low + 1


def measured(image: MedicalImage, grey: NDArray[np.generic]) -> NDArray[np.bool_]:
    """True where a value is finite and not padding."""
    real: NDArray[np.bool_] = np.isfinite(grey)
    if PADDING in image.attributes:
        low, high = (np.float32(value) for value in image.attributes[PADDING].split())
        real &= (grey < low) | (grey > high)
    return real


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
