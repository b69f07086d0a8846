"""Stored values to modality values (PS3.3 C.11.1), once: slope and intercept, or a table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medloupe.imaging.dicom.parse import first, text
from medloupe.imaging.dicom.tables import Table, table_of
from medloupe.imaging.windows import PADDING
from medloupe.types import Units

_EXACT_IN_FLOAT32 = 2**24


def modality_values(
    pixels: NDArray[Any], dataset: Dataset, transformation: Dataset, name: str
) -> NDArray[np.float32]:
    """Slope and intercept of `transformation` (or its table) applied to stored values.

    Values above 2^24 (32-bit and double pixels) are rounded to float32.

    Raises:
        ImageError: a modality table that does not fit its descriptor.
    """
    table = _modality_table(dataset, transformation, name)
    if table is not None:
        return table.look_up(pixels).astype(np.float32)
    slope, intercept = rescale_of(transformation)
    if (slope, intercept) == (1, 0):
        return pixels.astype(np.float32)
    if pixels.dtype.itemsize <= 2 and slope == 1 and intercept == int(intercept):
        # integers far below 2^24: float32 is exact, and twice as fast
        values: NDArray[np.float32] = np.add(pixels, np.float32(intercept), dtype=np.float32)
    else:
        values = (pixels * np.float64(slope) + intercept).astype(np.float32)
    return values


def rescale_of(transformation: Dataset) -> tuple[float, float]:
    """(slope, intercept); (1, 0) where there is none."""
    slope = first(transformation, "RescaleSlope")
    intercept = first(transformation, "RescaleIntercept")
    return (1.0 if slope is None else slope), (0.0 if intercept is None else intercept)


def units_of(dataset: Dataset, transformation: Dataset) -> Units:
    """HU where Rescale Type says so (PS3.3 C.11.1.1.2), or a rescaled CT does not say.

    A CT localizer need not be in HU (PS3.3 C.8.2.1.1.2 leaves it out), so it must say so.
    """
    if transformation.get("ModalityLUTSequence"):
        item = transformation.ModalityLUTSequence[0]
        return "HU" if text(item, "ModalityLUTType") == "HU" else "stored"
    if "RescaleSlope" not in transformation:
        return "stored"
    said = text(transformation, "RescaleType")
    if said is None and text(dataset, "Modality") == "CT":
        return "stored" if is_localizer(dataset) else "HU"
    return "HU" if said == "HU" else "stored"


def is_localizer(dataset: Dataset) -> bool:
    """Whether Image Type says so (PS3.3 C.8.2.1.1.1, C.7.6.1.1.2)."""
    kinds = dataset.get("ImageType") or ()
    return "LOCALIZER" in ([kinds] if isinstance(kinds, str) else list(kinds))


def padding_of(dataset: Dataset, transformation: Dataset, name: str) -> dict[str, str]:
    """The range of Pixel Padding Value and Range Limit (PS3.3 C.7.5.1.1.2) after rescaling."""
    value = first(dataset, "PixelPaddingValue")
    if value is None:
        value = first(dataset, "FloatPixelPaddingValue")
    if value is None:
        return {}
    limit = first(dataset, "PixelPaddingRangeLimit")
    stored = np.array([value, value if limit is None else limit])
    if dataset.get("PixelRepresentation") and dataset.get("BitsAllocated") == 16:
        # written as an unsigned number (63536 for -2000) by many devices
        stored = np.where(stored >= 32768, stored - 65536, stored)
    ends = modality_values(stored, dataset, transformation, name)
    return {PADDING: f"{float(ends.min())!r} {float(ends.max())!r}"}


def _modality_table(dataset: Dataset, transformation: Dataset, name: str) -> Table | None:
    sequence = transformation.get("ModalityLUTSequence")
    if not sequence:
        return None
    signed = bool(dataset.get("PixelRepresentation"))
    little = bool(dataset.original_encoding[1])
    return table_of(sequence[0], signed=signed, little=little, name=name)
