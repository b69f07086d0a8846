"""NIfTI-1 and NIfTI-2 through nibabel, turned into one array order.

Whatever order the file stores, a volume comes out as `[D, H, W]` = (slice k, row j, column i) with
k from inferior to superior, j from anterior to posterior and i from the patient's right to left:
the RAS axes as S, A reversed, R reversed. Slice by slice that is an axial picture in the
radiologist's view (the patient's right at the left edge) and the order of an axial DICOM series.
The affine maps (i, j, k) to RAS+ mm and keeps any obliquity. A single coronal or sagittal plane
comes out as one slice, superior at the top, the patient's right (or anterior) at the left edge.
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from medloupe.errors import ImageError
from medloupe.imaging.inflate import INFLATE_ERRORS, inflate
from medloupe.imaging.limits import check_size, choose_frame, choose_volume
from medloupe.imaging.orientation import spacing_of, to_display_order
from medloupe.types import ImageRef, MedicalImage

_BROKEN: Final = (
    *INFLATE_ERRORS,
    HeaderDataError,
    ImageFileError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
    WrapStructError,
)
_LARGEST_EXTENSIONS: Final = 2**26  # bytes between header and voxels


def decode_nifti(
    data: bytes, name: str, frame: int | None, kind: Literal["image", "volume"]
) -> MedicalImage:
    """Decode the bytes of a `.nii` or `.nii.gz`; see `read_image`.

    With `kind="image"`, `frame` is a slice of the reoriented volume. With `kind="volume"`, it is a
    time point of a 4D file.

    Raises:
        ImageError: broken, not NIfTI, several slices or time points where one is asked for, or
            voxels that are not real numbers.
    """
    try:
        header, inflated = _parse(data, name)
        stored = _stored(header, inflated, name, frame if kind == "volume" else None)
        turned: NDArray[np.float64] | None = None
        sides: tuple[float, float, float] | None
        if header["qform_code"] > 0 or header["sform_code"] > 0:
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
            array, turned = to_display_order(stored, affine, name)
            sides = spacing_of(turned)
        else:
            array, sides = np.transpose(stored, (2, 1, 0)), _stated_spacing(header, inflated)
        if kind == "image":
            index = choose_frame(name, frame, array.shape[0], what="slices")
            array = array[index : index + 1]
            if turned is not None:
                turned[:3, 3] += index * turned[:3, 2]
        values = _scaled(array, *header.get_slope_inter())
    except ImageError:
        raise
    except _BROKEN as error:
        raise ImageError(
            f"broken or truncated NIfTI: {str(error).strip() or type(error).__name__}",
            remedy="Fetch or export the file again",
            file=name,
        ) from error
    return MedicalImage(
        array=values,
        units="stored",
        affine=turned,
        spacing=sides,
        source=ImageRef(uri=name, kind=kind, frame=frame),
        attributes={"format": "NIfTI"} | ({"orientation": "unknown"} if turned is None else {}),
    )


def _stated_spacing(header: Any, data: bytes | memoryview) -> tuple[float, float, float] | None:
    """(slice, row, column) in mm of a file without affine; None where one is 0.

    Read once more without nibabel's checks, which turn a 0 into 1 mm.
    """
    raw = type(header)(bytes(data[: header.sizeof_hdr]), check=False)
    column, row, between = (float(abs(side)) for side in raw["pixdim"][1:4])
    sides = (between, row, column)
    return sides if all(0 < side < math.inf for side in sides) else None


def _parse(data: bytes, name: str) -> tuple[Any, bytes | memoryview]:
    """The checked header and the inflated file. (nibabel is untyped.)

    A gzip stream is inflated only as far as its header says it reaches.
    """
    if data[:2] != b"\x1f\x8b":
        return _header(data, name), data
    peek = nibabel.Nifti2Header.sizeof_hdr
    inflated = inflate(data, peek, lambda start: _end(_header(start, name)))
    return _header(bytes(inflated[:peek]), name), inflated


def _end(header: Any) -> int:
    """The byte behind the last voxel."""
    voxels = math.prod(int(length) for length in header.get_data_shape())
    return int(header["vox_offset"]) + voxels * int(header.get_data_dtype().itemsize)


def _header(start: bytes, name: str) -> Any:
    """The checked header of a single-file NIfTI."""
    if start[344:347] == b"ni1" or start[4:7] == b"ni2":
        raise ImageError(
            "a NIfTI header without its pixels (.hdr and .img pair)",
            remedy="Convert the pair to one .nii or .nii.gz file",
            file=name,
        )
    if start[344:347] == b"n+1":
        kind, size = nibabel.Nifti1Header, nibabel.Nifti1Header.sizeof_hdr
    elif start[4:7] == b"n+2":
        kind, size = nibabel.Nifti2Header, nibabel.Nifti2Header.sizeof_hdr
    else:
        raise ImageError(
            "a gzip file that holds no NIfTI image",
            remedy="Unpack it and give the image inside",
            file=name,
        )
    header = kind(start[:size])
    shape = tuple(int(length) for length in header.get_data_shape()) or (0,)
    columns, rows, *rest = (*shape, 1, 1)
    check_size(name, columns, rows, math.prod(rest))
    if not 0 <= header["vox_offset"] <= _LARGEST_EXTENSIONS:
        raise ImageError(f"voxels cannot start at byte {header['vox_offset']}", file=name)
    return header


def _stored(header: Any, data: bytes | memoryview, name: str, time: int | None) -> NDArray[Any]:
    """`[i, j, k]` as stored, a view of `data`."""
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ImageError(
            f"voxels of type {header.get_value_label('datatype')!r} are not real numbers",
            remedy="Convert the file to one real number a voxel",
            file=name,
        )
    shape = tuple(int(length) for length in header.get_data_shape())
    points = math.prod(shape[3:])
    if any(length > 1 for length in shape[4:]):
        raise ImageError(f"{len(shape)} dimensions {shape} are not a volume", file=name)
    if points > 1 and time is None:
        raise ImageError(
            f"the file holds {points} volumes (time points), and one is asked for",
            remedy=choose_volume(points),
            file=name,
            field="frame",
        )
    chosen = choose_frame(name, time, points, what="volumes")
    if len(data) < _end(header):
        raise EOFError(f"{len(data)} bytes, and the header says {_end(header)}")
    voxels = math.prod(shape[:3])
    offset = int(header["vox_offset"]) + chosen * voxels * dtype.itemsize
    flat = np.frombuffer(data, dtype=dtype, count=voxels, offset=offset)
    return flat.reshape((*shape[:3], 1, 1)[:3], order="F")


def _scaled(array: NDArray[Any], slope: float | None, inter: float | None) -> NDArray[np.float32]:
    """`stored * slope + inter` as nibabel computes it, in float64, then contiguous float32.

    Plane by plane: no volume of float64 is made, and the reversal of axes stays in the cache.
    """
    factor, shift = 1.0 if slope is None else slope, 0.0 if inter is None else inter
    values = np.empty(array.shape, dtype=np.float32)
    for plane, scaled in zip(array, values, strict=True):
        upright = np.ascontiguousarray(plane)
        if (factor, shift) == (1.0, 0.0):
            scaled[:] = upright
        else:
            scaled[:] = upright.astype(np.float64) * factor + shift
    return values
