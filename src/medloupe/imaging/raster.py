"""PNG, JPEG and TIFF through Pillow, without its silent conversions.

- 8-bit grey carries the window (128, 256), which the DICOM linear function maps to itself, so such
  a picture is shown as it is and never stretched. 16-bit grey carries none: its range is unknown.
- Pillow cuts 16-bit colour to 8 bits without a word; here that is an error.
- EXIF orientation is applied: "original pixels" are those of the upright picture, which is what a
  person who draws a box sees.
- Transparency is laid over black.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from medloupe.errors import ImageError
from medloupe.imaging.inflate import INFLATE_ERRORS, inflated_size
from medloupe.imaging.limits import (
    MAX_PIXELS,
    check_size,
    choose_frame,
    exact_float32,
    too_large,
)
from medloupe.imaging.windows import INVERTED
from medloupe.types import ImageRef, MedicalImage

# What Pillow raises for a broken file, by experiment with cut and altered files.
_BROKEN: Final = (
    *INFLATE_ERRORS,
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    AssertionError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_GREY: Final = {"1", "L", "I;16", "I;16B", "I;16L", "I", "F"}
_COLOUR: Final = {"RGB", "RGBA", "RGBX", "LA", "La", "P", "PA", "YCbCr", "CMYK", "RGBa"}
_IDENTITY_WINDOW: Final = (128.0, 256.0)
_BITS_PER_SAMPLE: Final = 258
_PNG_CHANNELS: Final = {2: 3, 4: 2, 6: 4}  # by colour type, where more than one (PNG 11.2.1)
# (first column, first row, columns apart, rows apart) of each pass of an interlaced PNG (8.2)
_ADAM7: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_PHOTOMETRIC: Final = 262


def decode_raster(
    data: bytes, name: str, frame: int | None, kind: Literal["image", "volume"]
) -> MedicalImage:
    """Decode the bytes of a PNG, JPEG or TIFF; see `read_image`.

    Raises:
        ImageError: broken, several pages where one is asked for, or more than 8 bits of colour.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF")) as picture:
            check_size(name, *picture.size)
            _refuse_deep_colour(picture, data, name)
            _refuse_missing_end(picture, data, name)
            if picture.format == "PNG":
                _refuse_short_png(data, name)
            pages = _pages(picture)
            if kind == "volume" and pages > 1:
                return _stack(picture, pages, name)
            picture.seek(choose_frame(name, frame, pages, what="pages"))
            return _image(picture, name, frame)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, met before ours
        limit = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
        raise too_large(name, f"more than {limit:,} pixels") from error
    except _BROKEN as error:
        raise _broken(error, name) from error


def _broken(error: BaseException, name: str) -> ImageError:
    said = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        said = "it starts like a PNG, JPEG or TIFF, but its header is damaged or says no size"
    return ImageError(
        f"broken or truncated image: {said}",
        remedy="Fetch or export the file again",
        file=name,
    )


def _pages(picture: Image.Image) -> int:
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return picture.n_frames
    return 1  # an animated PNG or a multi-picture JPEG is shown by its first picture


def _image(picture: Image.Image, name: str, frame: int | None) -> MedicalImage:
    source = ImageRef(uri=name, frame=frame)
    if picture.mode in _GREY:
        grey, attributes = _grey(picture, name)
        window = _IDENTITY_WINDOW if picture.mode in ("1", "L") else None
        return MedicalImage(
            array=grey[None], units="stored", window=window, source=source, attributes=attributes
        )
    if picture.mode in _COLOUR:
        return MedicalImage(array=_colour(picture), units="rgb", source=source)
    raise ImageError(
        f"pixels of kind {picture.mode!r} are not read",
        remedy="Convert the file to 8- or 16-bit grey or to 8-bit RGB",
        file=name,
    )


def _stack(picture: Image.Image, pages: int, name: str) -> MedicalImage:
    """All pages as one volume `[D, H, W]`, in the order of the file."""
    images = []
    for page in range(pages):
        picture.seek(page)
        check_size(name, *picture.size, pages)
        images.append(_image(picture, name, None))
    first = images[0]
    if any(i.units == "rgb" or i.array.shape != first.array.shape for i in images):
        raise ImageError(
            "the pages are not one volume: they are coloured or differ in size",
            remedy="Read one page with frame=",
            file=name,
        )
    return MedicalImage(
        array=np.concatenate([image.array for image in images]).astype(np.float32, copy=False),
        units="stored",
        window=first.window,
        source=ImageRef(uri=name, kind="volume"),
        attributes=first.attributes,
    )


def _grey(picture: Image.Image, name: str) -> tuple[NDArray[np.float32], dict[str, str]]:
    """`[H, W]` stored values, and the attributes that tell how to show them."""
    # Pillow turns WhiteIsZero over for 8 bits while decoding, and leaves deeper pixels alone.
    tags = picture.tag_v2 if isinstance(picture, TiffImagePlugin.TiffImageFile) else {}
    inverted = tags.get(_PHOTOMETRIC) == 0 and picture.mode not in ("1", "L")
    upright = _upright(picture)
    pixels = np.asarray(upright.convert("L") if upright.mode == "1" else upright)
    return exact_float32(pixels, name), {INVERTED: "true"} if inverted else {}


def _colour(picture: Image.Image) -> NDArray[np.uint8]:
    """`[H, W, 3]`; transparent pixels over black."""
    upright = _upright(picture)
    if upright.has_transparency_data:
        layered = upright.convert("RGBA")
        black = Image.new("RGBA", layered.size, (0, 0, 0, 255))
        upright = Image.alpha_composite(black, layered)
    return np.asarray(upright.convert("RGB"))


def _upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation (TIFF 6.0 tag 274) says."""
    picture.load()
    if "exif" in picture.info or isinstance(picture, TiffImagePlugin.TiffImageFile):
        return ImageOps.exif_transpose(picture)
    return picture


def _refuse_deep_colour(picture: Image.Image, data: bytes, name: str) -> None:
    """Colour (or grey with alpha) of more than 8 bits per channel would be cut by Pillow."""
    if picture.format == "PNG":  # IHDR (PNG 11.2.1): bit depth and colour type; type 0 is grey
        bits, several = data[24], data[25] != 0
    elif isinstance(picture, TiffImagePlugin.TiffImageFile):
        per_sample = picture.tag_v2.get(_BITS_PER_SAMPLE, (1,))
        bits, several = max(per_sample), len(per_sample) > 1
    else:
        return
    if bits > 8 and several:
        raise ImageError(
            f"colour with {bits} bits per channel would lose bits",
            remedy="Save it as 8-bit RGB, or as 16-bit grey if it has one channel",
            file=name,
        )


def _refuse_missing_end(picture: Image.Image, data: bytes, name: str) -> None:
    """The end marker must be there: Pillow accepts some files that are cut near their end."""
    if picture.format == "PNG":
        complete = data.rfind(b"IEND\xaeB`\x82") > 0
    elif picture.format in ("JPEG", "MPO"):
        # T.81 B.1.1.2: after the last scan header comes an end of image (FF D9)
        complete = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    else:
        return
    if not complete:
        raise ImageError(
            f"truncated: the end marker of a {picture.format} is missing",
            remedy="Fetch the file again",
            file=name,
        )


def _refuse_short_png(data: bytes, name: str) -> None:
    """All rows must be there: Pillow fills up with black where the stream ends early (PNG 10.1)."""
    if data[12:16] != b"IHDR":
        raise ImageError(
            "broken or truncated image: the header is not the first chunk (PNG 5.6)",
            remedy="Fetch or export the file again",
            file=name,
        )
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    pixel = bits * _PNG_CHANNELS.get(colour, 1)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    needed = 0
    for left, top, across, down in passes:
        columns, rows = -((left - width) // across), -((top - height) // down)
        needed += rows * (1 + -(-columns * pixel // 8)) if columns > 0 and rows > 0 else 0
    held = inflated_size(_png_stream(data), needed)
    if held < needed:
        raise ImageError(
            f"truncated: {width} x {height} pixels are {needed} bytes, and there are {held}",
            remedy="Fetch or export the file again",
            file=name,
        )


def _png_stream(data: bytes) -> bytes:
    """The content of the image data chunks (PNG 11.2.3), joined."""
    found, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"IDAT":
            found.append(data[at + 8 : at + 8 + length])
        at += 12 + length
    return b"".join(found)
