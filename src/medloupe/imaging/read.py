"""Files to `MedicalImage`, decided by their content and never by their name.

A file is read into memory once; hash and decoder see the same bytes. Every way in which a file can
be broken comes out as an `ImageError` that names it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from medloupe.errors import ImageError
from medloupe.types import ImageRef, MedicalImage

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
# A DICOM data set without preamble starts with group 0002 or 0008, in either byte order.
_BARE_DICOM: Final = (b"\x02\0", b"\x08\0", b"\0\x08")
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


def read_image(path: Path, *, frame: int | None = None, kind: Kind = "image") -> MedicalImage:
    """Read PNG, JPEG, TIFF, DICOM or NIfTI (`.nii`, `.nii.gz`).

    Grey pixels become `[D, H, W]` float32 in "stored" values ("HU" for a rescaled CT), colour
    `[H, W, 3]` uint8 in "rgb". `kind="image"` gives one plane: D = 1, and a file of several frames,
    pages or slices needs `frame`. `kind="volume"` gives them all.

    Raises:
        ImageError: the file is missing, not an image, truncated, empty, too large, holds several
            frames where one is asked for, or colour of more than 8 bits per channel.
    """
    return _decode(_load(path), str(path), frame, kind)


def read_ref(ref: ImageRef, root: Path) -> MedicalImage:
    """Read what `ref` points at; a relative `uri` is below `root`. `source` is the ref itself.

    A NIfTI file does not know its modality: where the ref says CT, its values are HU.

    Raises:
        ImageError: as `read_image`, or the file's SHA-256 is not the ref's.
    """
    path = root / ref.uri
    data = _load(path)
    if ref.sha256:
        found = hashlib.sha256(data).hexdigest()
        if found != ref.sha256.lower():
            raise ImageError(
                f"the file's SHA-256 is {found}, the data set says {ref.sha256}",
                remedy="Fetch the file again; if the change is meant, prepare the data set again",
                file=str(path),
                field="sha256",
            )
    image = _decode(data, str(path), ref.frame, ref.kind)
    image = dataclasses.replace(image, source=ref)
    if image.attributes.get("format") == "NIfTI" and ref.modality == "CT":
        return dataclasses.replace(image, units="HU")
    return image


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits.

    Raises:
        ImageError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def _load(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    if not data:
        raise ImageError("the file is empty", remedy="Fetch it again", file=str(path))
    return data


def _unreadable(path: Path, error: OSError) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError("no such image file", remedy="Check path and root", file=str(path))
    return ImageError(f"cannot be read: {error.strerror}", file=str(path))


def _decode(data: bytes, name: str, frame: int | None, kind: Kind) -> MedicalImage:
    return _decoder_for(data, name)(data, name, frame, kind)


def _decoder_for(data: bytes, name: str) -> Decoder:
    """The function that reads this content. pydicom and nibabel load only where needed.

    Raises:
        ImageError: it is none of the formats; says what it is instead where that is known.
    """
    # first, because the preamble of a DICOM file may be the header of a TIFF (PS3.10 7.1)
    if data[128:132] == b"DICM" or data.startswith(_BARE_DICOM):
        from medloupe.imaging.dicom import decode_dicom

        return decode_dicom
    if data.startswith(_RASTER):
        from medloupe.imaging.raster import decode_raster

        return decode_raster
    if data.startswith(_GZIP) or data[344:347] in (b"n+1", b"ni1") or data[4:7] in (b"n+2", b"ni2"):
        from medloupe.imaging.nifti import decode_nifti

        return decode_nifti
    for start, what, remedy in _FOREIGN:
        if data.startswith(start):
            raise ImageError(f"this is {what}", remedy=remedy, file=name)
    raise ImageError(
        "not an image that MedLoupe reads",
        remedy="It reads PNG, JPEG, TIFF, DICOM and NIfTI, and looks at content, not at names",
        file=name,
    )
