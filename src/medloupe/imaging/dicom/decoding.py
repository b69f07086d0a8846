"""Stored pixels of one frame, through the fastest decoder that is installed for its syntax.

The order of `DECODERS` was measured on one core (pydicom 3.0, best of 7): a CT slice and a grey
picture of 512 x 512 and a colour picture of 640 x 480. Milliseconds, CT / grey / colour:

    RLE             pylibjpeg 0.6 / 0.2 / 0.7     pydicom 5.4 / 2.7 / 4.7
    JPEG, 8 bit     pillow - / 0.8 / 2.8          gdcm - / 2.2 / 11.5
    JPEG lossless   gdcm 13.0 / 2.4 / 7.4
    JPEG-LS         pyjpegls 4.2 / 0.5 / 6.5      gdcm 6.8 / 2.0 / 8.6
    JPEG 2000       pylibjpeg 2.0 / 6.3 / 53      pillow 2.3 / 6.9 / 59     gdcm 6.0 / 8.5 / 70

GDCM runs in a process of its own (`apart`), and not where the others do.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder

from medloupe.errors import ImageError, MedLoupeError, MissingExtraError
from medloupe.imaging.dicom import tables
from medloupe.imaging.dicom.apart import decode_apart
from medloupe.imaging.dicom.parse import PIXEL_ELEMENTS, frame_count
from medloupe.imaging.dicom.plugins import Attempt, plugin, precision

GREY: Final = ("MONOCHROME1", "MONOCHROME2")
_JPEG_LOSSLESS: Final = ("gdcm", "pylibjpeg")
_JPEG_LS: Final = ("pyjpegls", "pylibjpeg")
_JPEG_2000: Final = ("pylibjpeg", "pillow")
# Transfer syntax -> pydicom's names of the decoding plugins, the fastest first.
DECODERS: Final[dict[str, tuple[str, ...]]] = {
    uid.RLELossless: ("pylibjpeg", "pydicom"),
    uid.JPEGBaseline8Bit: ("pillow", "gdcm", "pylibjpeg"),
    uid.JPEGExtended12Bit: ("pillow", "gdcm", "pylibjpeg"),
    uid.JPEGLossless: _JPEG_LOSSLESS,
    uid.JPEGLosslessSV1: _JPEG_LOSSLESS,
    uid.JPEGLSLossless: _JPEG_LS,
    uid.JPEGLSNearLossless: _JPEG_LS,
    uid.JPEG2000Lossless: _JPEG_2000,
    uid.JPEG2000: _JPEG_2000,
    uid.HTJ2KLossless: ("pylibjpeg",),
    uid.HTJ2KLosslessRPCL: ("pylibjpeg",),
    uid.HTJ2K: ("pylibjpeg",),
}
# What to install where no decoder of a syntax is: package and extra. Without entry: a dependency.
_EXTRA: Final = {
    uid.JPEGExtended12Bit: ("python-gdcm", "gdcm"),
    uid.JPEGLossless: ("python-gdcm", "gdcm"),
    uid.JPEGLosslessSV1: ("python-gdcm", "gdcm"),
}


def decode_frame(dataset: Dataset, frame: int, name: str) -> NDArray[Any]:
    """Stored values `[H, W]` of grey, or `[H, W, 3]` uint8 of any colour.

    Unused high bits are cleared (PS3.5 8.1.1), signs extended, planes interleaved, YBR turned into
    RGB (PS3.3 C.7.6.3.1.2) and palettes looked up.

    Raises:
        ImageError: a transfer syntax that is no image's, broken pixels, colour of more than 8 bits.
        MissingExtraError: no decoder of this transfer syntax is installed.
    """
    pixels, photometric = _stored(dataset, frame, name)
    if photometric in GREY:
        if pixels.ndim != 2:
            raise ImageError(
                f"{photometric} cannot have {pixels.shape[-1]} samples a pixel (PS3.3 C.7.6.3.1.1)",
                file=name,
                field="SamplesPerPixel",
            )
        return pixels
    if photometric == "PALETTE COLOR" and pixels.ndim == 2:
        return tables.colours(pixels, tables.palette(dataset, name))
    return _rgb(dataset, photometric, pixels, name)


def _rgb(dataset: Dataset, photometric: str, pixels: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if photometric != "RGB" or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(
            f"photometric interpretation {photometric!r} with {dataset.get('SamplesPerPixel')} "
            "samples a pixel is not read",
            remedy="Convert it to RGB",
            file=name,
            field="PhotometricInterpretation",
        )
    if int(dataset.BitsStored) > 8:
        raise ImageError(
            f"colour with {dataset.BitsStored} bits per channel would lose bits",
            remedy="Convert it to 8-bit RGB",
            file=name,
        )
    return pixels.astype(np.uint8)


def _stored(dataset: Dataset, frame: int, name: str) -> tuple[NDArray[Any], str]:
    """The frame and its photometric interpretation after decoding (YBR has become RGB)."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in DECODERS:
        return _native(dataset, frame, name)
    if sum(element in dataset for element in PIXEL_ELEMENTS) != 1 or "PixelData" not in dataset:
        raise ImageError("compressed pixels are not in Pixel Data (PS3.5 A.4)", file=name)
    attempts = _attempts(dataset, name)
    failures = []
    for label, attempt in attempts.items():
        try:
            return attempt(dataset, frame)
        except (MedLoupeError, MemoryError):
            raise
        # a decoder may raise whatever it likes; pydicom turns that into RuntimeError
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            failures.append(f"{label}: {_last_line(error)}")
    raise ImageError(
        f"the pixels cannot be decoded ({syntax.name}): {'; '.join(failures)}",
        remedy="Fetch or export the file again",
        file=name,
    )


def _attempts(dataset: Dataset, name: str) -> dict[str, Attempt]:
    """The decoders to try, in order."""
    syntax = dataset.file_meta.TransferSyntaxUID
    decoder = get_decoder(syntax)
    installed = [label for label in DECODERS[syntax] if label in decoder.available_plugins]
    deep = syntax == uid.JPEGExtended12Bit and int(dataset.BitsStored) > 8
    attempts: dict[str, Attempt] = {}
    if deep and "gdcm" in installed:
        attempts["gdcm, 12 bit"] = partial(decode_apart, way="gdcm, 12 bit")
    for label in installed:
        # of a 12-bit JPEG pydicom's gdcm plugin refuses what GDCM can; Pillow reads 8-bit ones
        if label == "pyjpegls" and dataset.get("SamplesPerPixel") == 1:
            attempts[label] = _grey_jpeg_ls
        elif label != "gdcm":
            attempts[label] = plugin(label)
        elif not deep:
            attempts[label] = partial(decode_apart, way=label)
    if not attempts or (deep and set(attempts) == {"pillow"} and precision(dataset.PixelData) != 8):
        package, extra = _EXTRA.get(syntax, (DECODERS[syntax][0], ""))
        line = None if extra else f"pip install pylibjpeg-rle pylibjpeg-openjpeg {package}"
        missing = MissingExtraError.naming(package, extra=extra, line=line)
        raise MissingExtraError(
            f"the pixels are compressed ({syntax.name}) and {missing.fault.rule}",
            remedy=missing.fault.remedy,
            file=name,
        )
    return attempts


def _grey_jpeg_ls(dataset: Dataset, frame: int) -> tuple[NDArray[Any], str]:
    """JPEG-LS of one sample a pixel: pyjpegls itself takes a fifth less than through pydicom."""
    import jpeg_ls

    stream = get_frame(dataset.PixelData, frame, number_of_frames=frame_count(dataset))
    buffer, said = jpeg_ls.decode_pixel_data(stream)
    size = int(dataset.Rows), int(dataset.Columns)
    if (said["height"], said["width"]) != size or said["components"] != 1:
        raise ValueError(f"the stream says {said['width']} x {said['height']} pixels")
    kind = "u1" if said["bits_per_sample"] <= 8 else "<u2"
    pixels = np.frombuffer(buffer, kind).reshape(size)
    if dataset.get("PixelRepresentation"):
        # JPEG-LS knows no sign: the highest bit of its samples is the sign
        unused = 8 * pixels.itemsize - said["bits_per_sample"]
        pixels = (pixels << unused).view(pixels.dtype.str.replace("u", "i")) >> unused
    elif said["bits_per_sample"] > int(dataset.BitsStored):
        pixels = pixels & ((1 << int(dataset.BitsStored)) - 1)
    return pixels, str(dataset.PhotometricInterpretation)


def _native(dataset: Dataset, frame: int, name: str) -> tuple[NDArray[Any], str]:
    """A frame of pixels that are not compressed."""
    try:
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    except NotImplementedError:
        raise ImageError(
            f"transfer syntax {dataset.file_meta.TransferSyntaxUID.name!r} is not read",
            remedy="Convert the file to an uncompressed or a JPEG 2000 one",
            file=name,
            field="TransferSyntaxUID",
        ) from None
    if dataset.get("BitsAllocated") == 1:
        return _bits(dataset, frame, decoder)
    pixels, properties = decoder.as_array(dataset, index=frame)
    return pixels, str(properties["photometric_interpretation"])


def _bits(
    dataset: Dataset, frame: int, decoder: pydicom.pixels.decoders.base.Decoder
) -> tuple[NDArray[Any], str]:
    """A frame of one bit a pixel. Frames need not start at a byte (PS3.5 8.1.1, D.1).

    All frames are unpacked: pydicom 3.0 cuts a single one short that ends in the byte after.
    """
    pixels, properties = decoder.as_array(dataset, allow_excess_frames=False)
    chosen = pixels if pixels.ndim == 2 else pixels[frame]
    return chosen, str(properties["photometric_interpretation"])


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return lines[-1] if lines else type(error).__name__
