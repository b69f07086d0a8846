"""A DICOM file in memory: what must be there, and where its values are looked up.

Enhanced multi-frame files keep geometry, rescaling and windows per frame (PS3.3 C.7.6.16), so
everything that may differ between frames is asked for through `group`.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medloupe.errors import ImageError

# What pydicom and its decoders raise for a broken file, by experiment with cut and altered files.
BROKEN: Final = (
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
PIXEL_ELEMENTS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_REQUIRED: Final = ("Rows", "Columns", "PhotometricInterpretation", "BitsAllocated")


def parse(data: bytes, name: str) -> Dataset:
    """The data set, with a transfer syntax even where the file has no meta header.

    Raises:
        ImageError: it holds no pixels, or an element is missing that nothing can be shown without
            (PS3.3 C.7.6.3).
    """
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if not any(element in dataset for element in PIXEL_ELEMENTS):
        modality = text(dataset, "Modality") or "not given"
        raise ImageError(
            f"the DICOM file holds no pixels (modality: {modality})",
            remedy="It is cut off before them, or is a report, a structure set or a waveform",
            file=name,
        )
    give_transfer_syntax(dataset)
    # Float Pixel Data has no Bits Stored (PS3.3 C.7.6.24)
    for keyword in (*_REQUIRED, *(["BitsStored"] if "PixelData" in dataset else [])):
        if dataset.get(keyword) is None:
            raise ImageError(
                "the DICOM file has pixels, but not this element (PS3.3 C.7.6.3)",
                remedy="Export the file again",
                file=name,
                field=keyword,
            )
    return dataset


def give_transfer_syntax(dataset: Dataset) -> None:
    """Name the encoding that pydicom found where the file does not."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def broken(error: BaseException, name: str) -> ImageError:
    """What a failure inside pydicom means to the owner of the file."""
    said = "; ".join(str(error).split("\n")) or type(error).__name__
    return ImageError(
        f"broken or truncated DICOM: {said}", remedy="Fetch or export the file again", file=name
    )


def frame_count(dataset: Dataset) -> int:
    """Number of Frames, 1 where it is not given."""
    return int(dataset.get("NumberOfFrames") or 1)


def group(dataset: Dataset, frame: int, sequence: str) -> Dataset:
    """Where an attribute of a functional group (PS3.3 C.7.6.16.1) stands for this frame.

    The frame's own group, else the shared one, else the top level of the file.
    """
    for groups in _functional_groups(dataset, frame):
        if groups.get(sequence):
            return groups[sequence].value[0]
    return dataset


def anywhere(dataset: Dataset, frame: int, keyword: str) -> str | None:
    """An element of this frame's functional groups, whichever holds it, else of the file; as text."""
    for groups in _functional_groups(dataset, frame):
        for element in groups:
            for item in element.value if element.VR == "SQ" else ():
                if (found := text(item, keyword)) is not None:
                    return found
    return text(dataset, keyword)


def _functional_groups(dataset: Dataset, frame: int) -> Iterator[Dataset]:
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    yield from (*per_frame[frame : frame + 1], *shared[:1])


def text(dataset: Dataset, keyword: str) -> str | None:
    """An element as text; None where it is missing or empty."""
    value = dataset.get(keyword)
    return None if value is None or value == "" else str(value)


def numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """A multi-valued number of exactly `count` values, else None."""
    value = dataset.get(keyword)
    if value is None or isinstance(value, str | float | int) or len(value) != count:
        return None
    return tuple(float(number) for number in value)


def first(dataset: Dataset, keyword: str) -> float | None:
    """A number, the first where there are several; None where it is missing or empty."""
    value = dataset.get(keyword)
    if isinstance(value, Sequence | pydicom.multival.MultiValue) and not isinstance(value, str):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)
