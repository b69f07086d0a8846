"""What is needed of a DICOM file beside its pixels, which are not decoded here."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pydicom
from pydicom.errors import InvalidDicomError

from medloupe.errors import ImageError

_TAGS: Final = ("Rows", "Columns", "PixelSpacing", "Modality", "PatientSex", "PatientAge")
_BROKEN: Final = (
    ArithmeticError,
    AttributeError,
    InvalidDicomError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, kw_only=True)
class Header:
    """`spacing` is (row, column) in mm; Imager Pixel Spacing, which is at the detector, is none.

    `attributes` has sex and age where the publisher kept them.
    """

    width: int
    height: int
    modality: str | None = None
    spacing: tuple[float, float] | None = None
    attributes: dict[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """The size of an image and what its DICOM header says of the patient.

    Raises:
        ImageError: not DICOM, broken, or without Rows and Columns (PS3.3 C.7.6.3).
    """
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        spacing = dataset.get("PixelSpacing")
        known = spacing is not None and len(spacing) == 2 and min(spacing) > 0
        said = {"sex": "PatientSex", "age": "PatientAge"}
        return Header(
            width=int(dataset.Columns),
            height=int(dataset.Rows),
            modality=str(dataset.get("Modality") or "") or None,
            spacing=(float(spacing[0]), float(spacing[1])) if known else None,
            attributes={
                name: str(dataset.get(keyword)).strip()
                for name, keyword in said.items()
                if str(dataset.get(keyword) or "").strip()
            },
        )
    except _BROKEN as error:
        text = "; ".join(str(error).split("\n")) or type(error).__name__
        raise ImageError(
            f"the DICOM header cannot be read: {text}",
            remedy="Fetch the file again",
            file=str(path),
        ) from None
