"""DICOM through pydicom: modality values, geometry and window; never display values.

Rescaling is applied once, here (PS3.3 C.11.1); the VOI window and MONOCHROME1 are left to
`windows`, which shows. Enhanced multi-frame files keep these per frame (PS3.3 C.7.6.16), so each is
looked up for its frame. Overlays are not drawn. Clauses are those of DICOM 2024.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from medloupe.errors import ImageError
from medloupe.imaging.limits import check_size, choose_frame
from medloupe.imaging.windows import INVERTED, PADDING, SIGMOID
from medloupe.types import ImageRef, MedicalImage, Units

# What pydicom and its decoders raise for a broken file, by experiment with cut and altered files.
_BROKEN: Final = (
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
_GREY: Final = ("MONOCHROME1", "MONOCHROME2")
_PIXEL_ELEMENTS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_UNEVEN_MM: Final = 0.01  # slice positions that differ by more are not one regular grid


def decode_dicom(
    data: bytes, name: str, frame: int | None, kind: Literal["image", "volume"]
) -> MedicalImage:
    """Decode the bytes of a DICOM file; see `read_image`.

    Raises:
        ImageError: broken, without pixels, several frames where one is asked for, deep colour, or a
            transfer syntax that no installed decoder reads.
    """
    try:
        dataset = _parse(data, name)
        _require(dataset, name)
        count = int(dataset.get("NumberOfFrames") or 1)
        check_size(name, int(dataset.Columns), int(dataset.Rows), count)
        if kind == "volume" and count > 1:
            frames = [_image(dataset, index, count, name) for index in range(count)]
            return _stack(frames, dataset, name)
        chosen = choose_frame(name, frame, count, what="frames")
        return _image(dataset, chosen, count, name)
    except ImageError:
        raise
    except _BROKEN as error:
        raise _explain(error, name) from error


def _parse(data: bytes, name: str) -> Dataset:
    """The data set, with a transfer syntax even where the file has no meta header.

    Raises:
        ImageError: it holds no pixels.
    """
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if not any(element in dataset for element in _PIXEL_ELEMENTS):
        modality = _text(dataset, "Modality") or "not given"
        raise ImageError(
            f"the DICOM file holds no pixels (modality: {modality})",
            remedy="It is cut off before them, or is a report, a structure set or a waveform",
            file=name,
        )
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _require(dataset: Dataset, name: str) -> None:
    """The elements of PS3.3 C.7.6.3 that nothing can be shown without."""
    for keyword in ("Rows", "Columns", "PhotometricInterpretation", "BitsStored"):
        if dataset.get(keyword) is None:
            raise ImageError(
                "the DICOM file has pixels, but not this element (PS3.3 C.7.6.3)",
                remedy="Export the file again",
                file=name,
                field=keyword,
            )


def _explain(error: BaseException, name: str) -> ImageError:
    text = "; ".join(str(error).split("\n")) or type(error).__name__
    if isinstance(error, NotImplementedError | RuntimeError) and "nable to deco" in text:
        return ImageError(
            f"the pixels cannot be decoded: {text}",
            remedy="Either the file is broken or its compression (JPEG lossless, 12-bit JPEG) needs "
            "a decoder that is not installed by default, for its licence: "
            "pip install pylibjpeg-libjpeg (GPL)",
            file=name,
        )
    return ImageError(
        f"broken or truncated DICOM: {text}", remedy="Fetch or export the file again", file=name
    )


def _image(dataset: Dataset, frame: int, count: int, name: str) -> MedicalImage:
    """One frame of `count`."""
    photometric = str(dataset.PhotometricInterpretation)
    # pylibjpeg-rle, the default, panics on broken data with what is not even an Exception
    plugin = "pydicom" if dataset.file_meta.TransferSyntaxUID == RLELossless else ""
    pixels = pixel_array(dataset, index=frame, decoding_plugin=plugin)
    source = ImageRef(
        uri=name,
        modality=_text(dataset, "Modality"),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        frame=frame if count > 1 else None,
    )
    affine, spacing = _geometry(dataset, frame, count)
    attributes = {"format": "DICOM", "photometric": photometric}
    if photometric not in _GREY:
        colour = _colour(dataset, photometric, pixels, name)
        return MedicalImage(
            array=colour,
            units="rgb",
            affine=affine,
            spacing=spacing,
            source=source,
            attributes=attributes,
        )
    modality_lut = _group(dataset, frame, "PixelValueTransformationSequence")
    values = apply_modality_lut(pixels, modality_lut).astype(np.float32)
    window, window_attributes = _window(_group(dataset, frame, "FrameVOILUTSequence"))
    if photometric == "MONOCHROME1":
        attributes[INVERTED] = "true"
    attributes |= window_attributes | _padding(dataset, modality_lut)
    return MedicalImage(
        array=values[None],
        units=_units(dataset, modality_lut),
        affine=affine,
        spacing=spacing,
        window=window,
        source=source,
        attributes=attributes,
    )


def _stack(frames: Sequence[MedicalImage], dataset: Dataset, name: str) -> MedicalImage:
    """The frames as one volume in the order of the file; with an affine if they form a grid."""
    first = frames[0]
    if first.units == "rgb":
        raise ImageError(
            f"the {len(frames)} frames are colour, not a volume",
            remedy="Read one frame with frame=",
            file=name,
        )
    affine = _stacked_affine([frame.affine for frame in frames])
    spacing = first.spacing
    if affine is not None and spacing is not None:
        spacing = (float(np.linalg.norm(affine[:3, 2])), *spacing[1:])
    return MedicalImage(
        array=np.concatenate([frame.array for frame in frames]).astype(np.float32, copy=False),
        units=first.units,
        affine=affine,
        spacing=spacing,
        window=first.window,
        source=ImageRef(uri=name, kind="volume", modality=_text(dataset, "Modality")),
        attributes=first.attributes,
    )


def _stacked_affine(affines: Sequence[NDArray[np.float64] | None]) -> NDArray[np.float64] | None:
    """One affine for frames that are parallel and evenly spaced, else None."""
    known = [affine for affine in affines if affine is not None]
    if len(known) < len(affines):
        return None
    stacked = np.stack(known)
    steps = np.diff(stacked[:, :3, 3], axis=0)
    parallel = np.allclose(stacked[:, :3, :2], stacked[0, :3, :2], atol=1e-4)
    even = np.allclose(steps, steps[0], atol=_UNEVEN_MM) and np.linalg.norm(steps[0]) > 0
    if not (parallel and even):
        return None
    affine: NDArray[np.float64] = stacked[0].copy()
    affine[:3, 2] = steps.mean(axis=0)
    return affine


def _colour(
    dataset: Dataset, photometric: str, pixels: NDArray[Any], name: str
) -> NDArray[np.uint8]:
    """`[H, W, 3]` uint8. pydicom has turned YBR into RGB already.

    The entries of a palette of 16 bits (PS3.3 C.7.6.3.1.6) are shown by their upper 8.
    """
    if photometric == "PALETTE COLOR":
        coloured = apply_color_lut(pixels, dataset)
        if coloured.dtype == np.uint16:
            coloured = coloured >> 8
        shown: NDArray[np.uint8] = coloured[..., :3].astype(np.uint8)
        return shown
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f"photometric interpretation {photometric!r} is not read", file=name)
    if int(dataset.BitsStored) > 8:
        raise ImageError(
            f"colour with {dataset.BitsStored} bits per channel would lose bits",
            remedy="Convert it to 8-bit RGB",
            file=name,
        )
    return pixels.astype(np.uint8)


def _group(dataset: Dataset, frame: int, sequence: str) -> Dataset:
    """Where an attribute of a functional group (PS3.3 C.7.6.16.1) stands for this frame.

    The frame's own group, else the shared one, else the top level of the file.
    """
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    for groups in (*per_frame[frame : frame + 1], *shared[:1]):
        if groups.get(sequence):
            return groups[sequence].value[0]
    return dataset


def _units(dataset: Dataset, modality_lut: Dataset) -> Units:
    """HU where Rescale Type says so (PS3.3 C.11.1.1.2), or a rescaled CT does not say."""
    if "RescaleSlope" not in modality_lut:
        return "stored"
    said = _text(modality_lut, "RescaleType")
    if said is None and _text(dataset, "Modality") == "CT":
        return "HU"
    return "HU" if said == "HU" else "stored"


def _window(voi: Dataset) -> tuple[tuple[float, float] | None, dict[str, str]]:
    """The first window as (centre, width) of the LINEAR function, and what it needs beside.

    LINEAR_EXACT (PS3.3 C.11.2.1.3.2) runs from c - w/2 to c + w/2, which is LINEAR of
    (c + 0.5, w + 1). A table (VOI LUT Sequence) is not applied.
    """
    centre, width = _first(voi, "WindowCenter"), _first(voi, "WindowWidth")
    if centre is None or width is None:
        return None, {"voi": "table, not applied"} if voi.get("VOILUTSequence") else {}
    function = _text(voi, "VOILUTFunction") or "LINEAR"
    narrowest = 1.0 if function == "LINEAR" else 0.0  # PS3.3 C.11.2.1.2.1, C.11.2.1.3
    if width < narrowest or (width == 0 and function != "LINEAR"):
        return None, {"voi": f"window width {width:g} is not valid, not applied"}
    if function == "LINEAR_EXACT":
        return (centre + 0.5, width + 1), {}
    return (centre, width), {SIGMOID: "true"} if function == "SIGMOID" else {}


def _padding(dataset: Dataset, modality_lut: Dataset) -> dict[str, str]:
    """The range of Pixel Padding Value and Range Limit (PS3.3 C.7.5.1.1.2) after rescaling."""
    value = _first(dataset, "PixelPaddingValue")
    if value is None:
        return {}
    limit = _first(dataset, "PixelPaddingRangeLimit")
    stored = np.array([value, value if limit is None else limit], dtype=np.int64)
    ends = apply_modality_lut(stored, modality_lut).astype(np.float32)
    return {PADDING: f"{float(ends.min())!r} {float(ends.max())!r}"}


def _geometry(
    dataset: Dataset, frame: int, count: int
) -> tuple[NDArray[np.float64] | None, tuple[float, float, float] | None]:
    """Affine (column, row, slice) to RAS+ mm (PS3.3 C.7.6.2.1.1) and (slice, row, column) spacing.

    DICOM's patient axes are LPS, so x and y change sign. Where the file gives no slice spacing or
    thickness, the third axis is 1 mm long. A multi-frame file without a position per frame has no
    affine. Imager Pixel Spacing (at the detector) is no spacing in the patient.
    """
    measures = _group(dataset, frame, "PixelMeasuresSequence")
    in_plane = _numbers(measures, "PixelSpacing", 2)
    if in_plane is None or min(in_plane) <= 0:
        return None, None
    between = _first(measures, "SpacingBetweenSlices") or _first(measures, "SliceThickness")
    spacing = (abs(between) if between else 1.0, in_plane[0], in_plane[1])
    position = _group(dataset, frame, "PlanePositionSequence")
    orientation = _group(dataset, frame, "PlaneOrientationSequence")
    if position is dataset and count > 1:
        return None, spacing
    origin = _numbers(position, "ImagePositionPatient", 3)
    cosines = _numbers(orientation, "ImageOrientationPatient", 6)
    if origin is None or cosines is None:
        return None, spacing
    along_row, along_column = np.array(cosines[:3]), np.array(cosines[3:])
    normal = np.cross(along_row, along_column)
    if not np.isclose(np.linalg.norm(normal), 1, atol=1e-2):
        return None, spacing  # not two perpendicular unit vectors
    affine = np.eye(4)
    affine[:3, 0] = along_row * spacing[2]
    affine[:3, 1] = along_column * spacing[1]
    affine[:3, 2] = normal * spacing[0]
    affine[:3, 3] = origin
    affine[:2] *= -1  # LPS to RAS
    return affine, spacing


def _text(dataset: Dataset, keyword: str) -> str | None:
    return str(dataset.get(keyword) or "") or None


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """A multi-valued number of exactly `count` values, else None."""
    value = dataset.get(keyword)
    if value is None or isinstance(value, str | float | int) or len(value) != count:
        return None
    return tuple(float(number) for number in value)


def _first(dataset: Dataset, keyword: str) -> float | None:
    """A number, the first where there are several; None where it is missing or empty."""
    value = dataset.get(keyword)
    if isinstance(value, Sequence | pydicom.multival.MultiValue) and not isinstance(value, str):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)
