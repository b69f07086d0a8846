"""NIfTI-1 and NIfTI-2 through nibabel, turned into one array order.

Whatever order the file stores, a volume comes out as `[D, H, W]` = (slice k, row j, column i) with
k from inferior to superior, j from anterior to posterior and i from the patient's right to left:
the RAS axes as S, A reversed, R reversed. Slice by slice that is an axial picture in the
radiologist's view (the patient's right at the left edge) and the order of an axial DICOM series.
The affine maps (i, j, k) to RAS+ mm and keeps any obliquity. A single coronal or sagittal plane
comes out as one slice, superior at the top, the patient's right (or anterior) at the left edge.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from typing import Any, Final, Literal

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError, ImageDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from medloupe.errors import ImageError
from medloupe.imaging.limits import check_size, choose_frame
from medloupe.types import ImageRef, MedicalImage

_BROKEN: Final = (
    EOFError,
    HeaderDataError,
    ImageDataError,
    ImageFileError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
    WrapStructError,
    zlib.error,
)
_LARGEST_EXTENSIONS: Final = 2**26  # bytes between header and voxels
# Directions of increasing (i, j, k) for a volume or an axial, a coronal and a sagittal plane, by
# the world axis (R, A, S) that the slices stack along.
_DIRECTIONS: Final = {2: ("L", "P", "S"), 1: ("L", "I", "P"), 0: ("P", "I", "L")}


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
        image = _parse(data, name)
        values, affine = _values(image, name, frame if kind == "volume" else None)
        spacing = [float(abs(zoom)) for zoom in image.header.get_zooms()[:3]]
        spacing += [1.0] * (3 - len(spacing))
        if affine is None:
            array, turned = np.transpose(values, (2, 1, 0)), None
            sides = (spacing[2], spacing[1], spacing[0])
        else:
            array, turned = _reorient(values, affine, name)
            lengths = np.linalg.norm(turned[:3, :3], axis=0)
            sides = (float(lengths[2]), float(lengths[1]), float(lengths[0]))
    except ImageError:
        raise
    except _BROKEN as error:
        raise ImageError(
            f"broken or truncated NIfTI: {str(error).strip() or type(error).__name__}",
            remedy="Fetch or export the file again",
            file=name,
        ) from error
    if kind == "image":
        index = choose_frame(name, frame, array.shape[0], what="slices")
        array = array[index : index + 1]
        if turned is not None:
            turned = turned.copy()
            turned[:3, 3] += index * turned[:3, 2]
    return MedicalImage(
        array=np.ascontiguousarray(array),
        units="stored",
        affine=turned,
        spacing=sides,
        source=ImageRef(uri=name, kind=kind, frame=frame),
        attributes={"format": "NIfTI"} | ({"orientation": "unknown"} if turned is None else {}),
    )


def _parse(data: bytes, name: str) -> Any:
    """The image; a gzip stream is inflated only as far as its header says it reaches."""
    if data[:2] != b"\x1f\x8b":
        header = _header(data, name)
        return _image_class(header).from_bytes(data)
    with gzip.open(io.BytesIO(data)) as stream:
        start = stream.read(nibabel.Nifti2Header.sizeof_hdr + 4)
        header = _header(start, name)
        voxels = math.prod(int(length) for length in header.get_data_shape())
        end = int(header["vox_offset"]) + voxels * header.get_data_dtype().itemsize
        wanted = max(0, end - len(start))
        body = stream.read(wanted)
        stream.read(65536)  # reach the trailer, so that gzip compares its checksum
    return _image_class(header).from_bytes(start + body)


def _image_class(header: Any) -> Any:
    """The image class of a header. (nibabel is untyped.)"""
    return nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image


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


def _values(
    image: Any, name: str, time: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
    """`[i, j, k]` float32, scaled by scl_slope and scl_inter, and the affine of that order.

    The affine is None where neither qform nor sform is set: such a file does not know its sides.
    """
    if image.get_data_dtype().kind not in "iuf":
        raise ImageError(
            f"voxels of type {image.header.get_value_label('datatype')!r} are not real numbers",
            remedy="Convert the file to one real number a voxel",
            file=name,
        )
    shape = image.shape
    points = math.prod(shape[3:])
    if any(length > 1 for length in shape[4:]):
        raise ImageError(f"{len(shape)} dimensions {shape} are not a volume", file=name)
    if points > 1 and time is None:
        raise ImageError(
            f"the file holds {points} volumes (time points), and one is asked for",
            remedy=f"Choose one with kind='volume' and frame=0 to frame={points - 1}",
            file=name,
            field="frame",
        )
    chosen = choose_frame(name, time, points, what="volumes")
    proxy = image.dataobj
    index = (..., chosen, *(0 for _ in shape[4:])) if len(shape) > 3 else ...
    values = np.asarray(proxy[index], dtype=np.float32)
    values = values.reshape((*values.shape, 1, 1)[:3])
    coded = image.header["qform_code"] > 0 or image.header["sform_code"] > 0
    return values, np.asarray(image.affine, dtype=np.float64) if coded else None


def _reorient(
    values: NDArray[np.float32], affine: NDArray[np.float64], name: str
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """`[i, j, k]` in the file's order to `[k, j, i]` in ours, with its affine."""
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ImageError(
            "the affine has no inverse, so the sides of the patient are unknown",
            remedy="Repair sform or qform, or set both codes to 0",
            file=name,
        )
    stored = io_orientation(affine)
    world_lengths = {int(axis): values.shape[i] for i, (axis, _) in enumerate(stored)}
    planes = [axis for axis, length in world_lengths.items() if length == 1]
    stacked = planes[0] if len(planes) == 1 else 2
    turn = ornt_transform(stored, axcodes2ornt(_DIRECTIONS[stacked]))
    turned = affine @ inv_ornt_aff(turn, values.shape)
    return np.transpose(apply_orientation(values, turn), (2, 1, 0)), turned
