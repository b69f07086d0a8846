"""Files to `MedicalImage`, decided by their content and never by their name.

A file is read into memory once; hash and decoder see the same bytes. Every way in which a file can
be broken comes out as an `ImageError` that names it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import numpy as np

from medloupe.errors import ImageError
from medloupe.imaging.dicom import SIGNATURE_BYTES, looks_like_dicom
from medloupe.imaging.files import (
    folder_files,
    sha256_file,
    sha256_folder,
    sha256_path,
    unreadable,
)
from medloupe.imaging.flips import HorizontalFlip
from medloupe.imaging.hounsfield import check_hounsfield
from medloupe.imaging.windows import measured
from medloupe.types import Edit, ImageRef, MedicalImage

__all__ = [
    "check_sha256",
    "folder_files",
    "read_image",
    "read_ref",
    "sha256_file",
    "sha256_folder",
    "sha256_path",
    "unreadable",
]

Kind = Literal["image", "volume"]
Decoder = Callable[[bytes, str, int | None, Kind], MedicalImage]

_RASTER: Final = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",  # JPEG
    b"II*\0",
    b"MM\0*",  # TIFF
    b"II+\0",
    b"MM\0+",  # BigTIFF
)
_GZIP: Final = b"\x1f\x8b"
NPY: Final = b"\x93NUMPY"
NRRD: Final = b"NRRD000"
WITHOUT_MODALITY: Final = ("NIfTI", "NRRD", "NPY")
# Common files that are taken for images: what to do with them.
_FOREIGN: Final = (
    (b"version https://git-lfs", "a Git LFS pointer, not the image", "Run: git lfs pull"),
    (b"<", "a page of HTML or XML", "The download failed; fetch the file again"),
    (b"PK\x03\x04", "a ZIP archive", "Unpack it"),
    (b"GIF8", "a GIF", "Convert it to PNG"),
    (b"BM", "a BMP", "Convert it to PNG"),
    (b"RIFF", "a WebP", "Convert it to PNG"),
    (b"\0\0\0\x0cjP", "a bare JPEG 2000 stream", "Convert it to PNG or wrap it in DICOM"),
)


def read_image(
    path: str | os.PathLike[str],
    *,
    frame: int | None = None,
    kind: Kind = "image",
    series: str | None = None,
    check_units: bool = True,
) -> MedicalImage:
    """Read PNG, JPEG, TIFF, DICOM, NIfTI (`.nii`, `.nii.gz`), NRRD or NPY.

    Grey pixels become `[D, H, W]` float32 in "stored" values ("HU" for a rescaled CT), colour
    `[H, W, 3]` uint8 in "rgb". `kind="image"` gives one plane: D = 1, and a file of several frames,
    pages or slices needs `frame`. `kind="volume"` gives them all; where several images lie at one
    place (time points, echoes), `frame` chooses. A folder is one DICOM series, or holds the one
    whose Series Instance UID is `series` (`dicom.series.read_series` also tells how it was read).

    Values that a file gives as NaN or infinite stay so (NIfTI marks voxels without a value that
    way); windows and statistics leave them out, and `medloupe check` says how many there are.
    `check_units=False` lets a CT pass whose values cannot be HU (`check_hounsfield`).

    Raises:
        ImageError: the file is missing, not an image, truncated, empty, too large, holds several
            frames where one is asked for, colour of more than 8 bits per channel, or a CT that was
            rescaled twice or never; a series with gaps or other faults.
        MissingExtraError: the pixels need a decoder that is not installed.
    """
    path = Path(path)
    if path.is_dir():
        image = _read_folder(path, frame, kind, series)
    else:
        image = _decode(_load(path), str(path), frame, kind)
    if check_units:
        check_hounsfield(image, str(path))
    return image


def read_ref(ref: ImageRef, root: Path) -> MedicalImage:
    """Read what `ref` points at, edited where it says so; a relative `uri` is below `root`. `source` is
    the ref itself.

    NIfTI, NRRD and NPY do not know their modality: where the ref says CT, their values are HU. The
    uri of a DICOM series is its folder, with `series` where that holds several.

    Raises:
        ImageError: as `read_image`, or the file's SHA-256 is not the ref's.
    """
    path = root / ref.uri
    if path.is_dir():
        if ref.sha256:
            check_sha256(sha256_path(path), ref.sha256, str(path))
        image = _read_folder(path, ref.frame, ref.kind, ref.series)
    else:
        data = _load(path)
        if ref.sha256:
            check_sha256(hashlib.sha256(data).hexdigest(), ref.sha256, str(path))
        image = _decode(data, str(path), ref.frame, ref.kind)
    image = dataclasses.replace(image, source=ref)
    silent = image.attributes.get("format") in WITHOUT_MODALITY and "units" not in image.attributes
    if silent and image.units == "stored" and ref.modality == "CT":
        image = dataclasses.replace(image, units="HU")
    check_hounsfield(image, str(path))
    return image if ref.edit is None else _edited(image, ref.edit)


def _edited(image: MedicalImage, edit: Edit) -> MedicalImage:
    """The image as a probe shows it; blank is one value everywhere, the median of those measured."""
    if edit == "mirrored":
        return HorizontalFlip().apply(image)
    values = image.array[measured(image, image.array)]
    middle = np.quantile(values, 0.5, method="lower") if values.size else 0
    return dataclasses.replace(image, array=np.full(image.array.shape, middle, image.array.dtype))


def check_sha256(found: str, said: str, name: str) -> None:
    """Refuse a file whose SHA-256 is not what its `ImageRef` says.

    Raises:
        ImageError: naming both.
    """
    if found != said.lower():
        raise ImageError(
            f"the file's SHA-256 is {found}, the data set says {said}",
            remedy="Fetch the file again; if the change is meant, prepare the data set again",
            file=name,
            field="sha256",
        )


def _read_folder(path: Path, frame: int | None, kind: Kind, series: str | None) -> MedicalImage:
    """A DICOM series; with `kind="image"` its slice number `frame`."""
    from medloupe.imaging.dicom.series import read_series, read_slice

    if kind == "image":
        return read_slice(path, frame=frame, series=series)
    return read_series(path, series=series, repeat=frame, check_units=False)[0]


def _load(path: Path) -> bytes | mmap.mmap:
    """The content; of an NPY file a memory map, since its array can be a view of it."""
    try:
        with path.open("rb") as stream:
            if stream.read(len(NPY)) == NPY:
                return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            stream.seek(0)
            data = stream.read()
    except OSError as error:
        raise unreadable(path, error) from None
    if not data:
        raise ImageError("the file is empty", remedy="Fetch it again", file=str(path))
    return data


def _decode(data: bytes | mmap.mmap, name: str, frame: int | None, kind: Kind) -> MedicalImage:
    if isinstance(data, mmap.mmap) or data.startswith(NPY):
        from medloupe.imaging.npy import decode_npy

        return decode_npy(data, name, frame, kind)
    return _decoder_for(data, name)(data, name, frame, kind)


def _decoder_for(data: bytes, name: str) -> Decoder:
    """The function that reads this content. pydicom and nibabel load only where needed.

    Raises:
        ImageError: it is none of the formats; says what it is instead where that is known.
    """
    # first, because the preamble of a DICOM file may be the header of a TIFF (PS3.10 7.1)
    if looks_like_dicom(data[:SIGNATURE_BYTES]):
        from medloupe.imaging.dicom.image import decode_dicom

        return decode_dicom
    if data.startswith(_RASTER):
        from medloupe.imaging.raster import decode_raster

        return decode_raster
    if data.startswith(_GZIP) or data[344:347] in (b"n+1", b"ni1") or data[4:7] in (b"n+2", b"ni2"):
        from medloupe.imaging.nifti import decode_nifti

        return decode_nifti
    if data.startswith(NRRD):
        from medloupe.imaging.nrrd import decode_nrrd

        return decode_nrrd
    for start, what, remedy in _FOREIGN:
        if data.startswith(start):
            raise ImageError(f"this is {what}", remedy=remedy, file=name)
    raise ImageError(
        "not an image that MedLoupe reads",
        remedy="It reads PNG, JPEG, TIFF, DICOM, NIfTI, NRRD and NPY, by content and not by name",
        file=name,
    )
