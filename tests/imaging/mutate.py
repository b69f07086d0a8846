"""Image files made wrong by chance, and what reading one came to. Used by a test and a benchmark.

Mutation number n of a seed is always the same file. Half of the damage is blind (bits, blocks,
ends), half knows the format: a header field or a length gets a value that programs trip over, or
whole elements, chunks or tags change places.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from medloupe.errors import MedLoupeError
from medloupe.imaging.read import read_image
from medloupe.imaging.transforms import ImageTransform

Chance = random.Random

# One or more of every transfer syntax that MedLoupe reads: raw in four encodings, deflated, RLE,
# JPEG baseline, extended and lossless, JPEG-LS, JPEG 2000; colour, palette, 1 to 32 bits, frames.
DICOM = (
    "CT_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "JPEG2000.dcm",
    "JPGExtended.dcm",
    "JPEGLSNearLossless_16.dcm",
    "SC_rgb_dcmtk_+eb+cy+np.dcm",
    "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jls_lossy_line.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_rle_2frame.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "ExplVR_BigEnd.dcm",
    "image_dfl.dcm",
    "liver_1frame.dcm",
    "rtdose.dcm",
    "rtdose_rle.dcm",
    "examples_palette.dcm",
    "examples_ybr_color.dcm",
)
# (group, element): Samples, Photometric, Planar, Frames, Rows, Columns, Spacing, Bits Allocated,
# Stored, High Bit, Representation, Padding, Window, Rescale, palettes, Position, Orientation,
# Transfer Syntax, functional groups, Pixel Data and its float kinds, meta length
TAGS = (
    (0x0028, (0x02, 0x04, 0x06, 0x08, 0x10, 0x11, 0x30, 0x100, 0x101, 0x102, 0x103, 0x120)),
    (0x0028, (0x1050, 0x1051, 0x1052, 0x1053, 0x1101, 0x1102, 0x1201, 0x1202)),
    (0x0020, (0x32, 0x37, 0x0E, 0x13)),
    (0x0002, (0x00, 0x01, 0x10)),
    (0x0008, (0x05, 0x08, 0x18, 0x60)),
    (0x5200, (0x9229, 0x9230)),
    (0x7FE0, (0x08, 0x09, 0x10)),
    (0xFFFE, (0xE000, 0xE00D, 0xE0DD)),
)
# (offset, struct format, how many) of NIfTI-1 header fields
FIELDS = (
    (0, "i", 1),
    (40, "h", 8),
    (70, "h", 1),
    (72, "h", 1),
    (76, "f", 8),
    (108, "f", 1),
    (112, "f", 1),
    (116, "f", 1),
    (252, "h", 1),
    (254, "h", 1),
    (256, "f", 6),
    (280, "f", 12),
    (344, "i", 1),
    (348, "i", 1),
)
NUMBERS = (0, 1, 2, 3, 7, 8, 12, 16, 32, 64, 127, 128, 255, 256, 4096, 32767, 32768, 65535)
LARGE = (2**16, 2**20, 2**24, 2**28, 2**31 - 1, 2**31, 2**32 - 1)
REALS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, 3.4e38, 0.5, 352.0, 1e9, *map(float, ("nan", "inf")))
WORDS = (b"", b"nan", b"1e999", b"-1", b"0", b"\\", b"1\\2\\3", b"RGB", b"PALETTE COLOR", b"\xff")


class Seed(NamedTuple):
    """A good file: its name with the suffix that says the format, and its bytes."""

    name: str
    data: bytes


class Outcome(NamedTuple):
    """`kind`: "image", "refused", "wrong shape", or "raised" for what is no MedLoupe error."""

    kind: str
    what: str = ""

    @property
    def good(self) -> bool:
        return self.kind in ("image", "refused")


def seeds() -> list[Seed]:
    """Good files, a third each of DICOM, NIfTI and pictures when drawn by `mutation`."""
    return [*_dicom(), *_nifti(), *_pictures()]


def _dicom() -> list[Seed]:
    found = []
    for name in DICOM:
        path = get_testdata_file(name, download=False)
        assert path is not None, name
        found.append(Seed(name, Path(path).read_bytes()))
    for syntax in (JPEGLSLossless, RLELossless):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
        plugin = "pyjpegls" if syntax == JPEGLSLossless else "pydicom"
        dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
        found.append(Seed(f"CT {syntax.name}.dcm", _saved(dataset)))
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    found.append(Seed("CT deflated.dcm", _saved(dataset)))
    return found


def _saved(dataset: pydicom.Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def _nifti() -> list[Seed]:
    random_ = np.random.default_rng(0)
    affine = np.array([[-2, 0, 0.1, 9], [0, 2, 0, -8], [0.1, 0, 3, 7], [0, 0, 0, 1]])
    found = []
    for dtype in (np.int16, np.uint8, np.float32, np.float64):
        voxels = (random_.normal(size=(12, 10, 8)) * 300).astype(dtype)
        found.append(_niftis(nibabel.Nifti1Image(voxels, affine), np.dtype(dtype).name))
    scaled = nibabel.Nifti1Image(random_.integers(0, 99, (12, 10, 8, 3), np.int16), affine)
    scaled.header.set_slope_inter(0.5, -1024)
    found.append(_niftis(scaled, "4d"))
    found.append(_niftis(nibabel.Nifti1Image(voxels[:, :, :1], affine), "plane"))
    found.append(_niftis(nibabel.Nifti2Image(voxels, affine), "nifti2"))
    return [seed for pair in found for seed in pair]


def _niftis(image: Any, name: str) -> tuple[Seed, Seed]:
    data = image.to_bytes()
    return Seed(f"{name}.nii", data), Seed(f"{name}.nii.gz", gzip.compress(data, mtime=0))


def _pictures() -> list[Seed]:
    random_ = np.random.default_rng(1)
    smooth = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint16) * 700
    colour = random_.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    pictures = {
        "grey8.png": Image.fromarray((smooth >> 8).astype(np.uint8)),
        "grey16.png": Image.fromarray(smooth),
        "colour.png": Image.fromarray(colour),
        "palette.png": Image.fromarray(colour).quantize(16),
        "bilevel.png": Image.fromarray(colour).convert("1"),
        "alpha.png": Image.fromarray(colour).convert("RGBA"),
        "grey.jpg": Image.fromarray((smooth >> 8).astype(np.uint8)),
        "colour.jpg": Image.fromarray(colour),
        "grey16.tif": Image.fromarray(smooth),
        "colour.tif": Image.fromarray(colour),
    }
    found = [Seed(name, _encoded(picture, name)) for name, picture in pictures.items()]
    pages = [Image.fromarray(smooth), Image.fromarray(smooth[::-1].copy())]
    for compression in ("tiff_lzw", "tiff_adobe_deflate"):
        stream = io.BytesIO()
        pages[0].save(
            stream, "TIFF", save_all=True, append_images=pages[1:], compression=compression
        )
        found.append(Seed(f"{compression}.tif", stream.getvalue()))
    return found


def _encoded(picture: Image.Image, name: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, {"png": "PNG", "jpg": "JPEG", "tif": "TIFF"}[name[-3:]])
    return stream.getvalue()


def mutation(good: list[Seed], seed: int, number: int) -> Seed:
    """File `number` of `seed`: its name says what it was and what was done to it."""
    chance = Chance(f"{seed} {number}")
    third = (".dcm", (".nii", ".gz"), (".png", ".jpg", ".tif"))[number % 3]
    start = chance.choice([one for one in good if one.name.endswith(third)] or good)
    data, done = start.data, []
    inflated = start.name.endswith(".gz") and chance.random() < 0.6
    if inflated:
        data = gzip.decompress(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        change = chance.choice(_changes(start.name))
        data = bytes(change(chance, bytearray(data)))
        done.append(change.__name__.strip("_"))
    if inflated:
        data = gzip.compress(data, mtime=0)
    return Seed(f"{number} {start.name} {'+'.join(done)}", data)


Change = Callable[[Chance, bytearray], "bytearray | bytes"]


def _changes(name: str) -> tuple[Change, ...]:
    known: dict[str, tuple[Change, ...]] = {
        "dcm": (_dicom_value, _dicom_value, _dicom_length, _dicom_shuffle, _dicom_word),
        "nii": (_nifti_field,),
        ".gz": (_nifti_field,),
        "png": (_png_header, _png_chunks, _png_length),
    }
    format_aware = known.get(name[-3:], (_number,))
    blind = (_bits, _cut, _drop, _double, _insert, _number, _swap, _tail)
    return (*blind, *format_aware * (len(blind) // len(format_aware)))


def _place(chance: Chance, data: bytearray, room: int = 1) -> int:
    """Somewhere with `room` bytes behind it; every other time in the first 600 bytes."""
    last = max(len(data) - room, 0)
    return chance.randint(0, min(last, 600) if chance.random() < 0.5 else last)


def _bits(chance: Chance, data: bytearray) -> bytearray:
    for _ in range(chance.choice((1, 2, 8, 64))):
        if data:
            data[_place(chance, data)] ^= 1 << chance.randrange(8)
    return data


def _cut(chance: Chance, data: bytearray) -> bytearray:
    return data[: _place(chance, data)]


def _block(chance: Chance, data: bytearray) -> tuple[int, int]:
    start = _place(chance, data)
    return start, min(len(data), start + chance.choice((1, 2, 4, 8, 64, 1000)))


def _drop(chance: Chance, data: bytearray) -> bytearray:
    start, end = _block(chance, data)
    return data[:start] + data[end:]


def _double(chance: Chance, data: bytearray) -> bytearray:
    start, end = _block(chance, data)
    return data[:end] + data[start:end] * chance.choice((1, 2, 50)) + data[end:]


def _insert(chance: Chance, data: bytearray) -> bytearray:
    start, count = _place(chance, data), chance.choice((1, 2, 4, 100))
    filling = chance.choice((bytes(count), b"\xff" * count, chance.randbytes(count)))
    return data[:start] + filling + data[start:]


def _number(chance: Chance, data: bytearray) -> bytearray:
    """An integer that programs trip over, somewhere."""
    kind = chance.choice(("<B", "<H", ">H", "<I", ">I", "<Q"))
    value = chance.choice(NUMBERS + LARGE) % 256 ** struct.calcsize(kind)
    start = _place(chance, data, struct.calcsize(kind))
    if len(data) >= start + struct.calcsize(kind):
        struct.pack_into(kind, data, start, value)
    return data


def _swap(chance: Chance, data: bytearray) -> bytearray:
    """Two neighbouring blocks change places."""
    start, middle = _block(chance, data)
    end = min(len(data), middle + (middle - start))
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def _tail(chance: Chance, data: bytearray) -> bytearray:
    return data + chance.randbytes(chance.choice((1, 128, 5000)))


def _elements(data: bytearray) -> list[int]:
    """Where the tags in `TAGS` stand, in either byte order."""
    found = set()
    for group, elements in TAGS:
        for element in elements:
            for order in ("<HH", ">HH"):
                at = data.find(struct.pack(order, group, element))
                while at >= 0 and len(found) < 500:
                    found.add(at)
                    at = data.find(struct.pack(order, group, element), at + 1)
    return sorted(found)


def _dicom_value(chance: Chance, data: bytearray) -> bytearray:
    """Two or four bytes of the value of an element."""
    places = [at for at in _elements(data) if at + 12 <= len(data)]
    if places:
        kind, value = chance.choice((("<H", 2**16), (">H", 2**16), ("<I", 2**32)))
        number = chance.choice(NUMBERS + LARGE) % value
        struct.pack_into(kind, data, chance.choice(places) + 8, number)
    return data


def _dicom_length(chance: Chance, data: bytearray) -> bytearray:
    """The length of an element, or its VR."""
    places = [at for at in _elements(data) if at + 12 <= len(data)]
    if places:
        offset, kind = chance.choice(((4, "<I"), (4, "<H"), (6, "<H"), (8, "<I"), (6, ">H")))
        number = chance.choice(NUMBERS + LARGE) % 256 ** struct.calcsize(kind)
        struct.pack_into(kind, data, chance.choice(places) + offset, number)
    return data


def _dicom_shuffle(chance: Chance, data: bytearray) -> bytearray:
    """Drop, double or move everything between two known tags."""
    places = _elements(data)
    if len(places) < 3:
        return data
    start, end = sorted(chance.sample(places, 2))
    target = chance.choice(places)
    block = data[start:end]
    action = chance.choice(("drop", "double", "move"))
    if action == "double":
        return data[:end] + block + data[end:]
    rest = data[:start] + data[end:]
    return rest if action == "drop" else rest[:target] + block + rest[target:]


def _dicom_word(chance: Chance, data: bytearray) -> bytearray:
    """A text over the value of an element."""
    places = [at for at in _elements(data) if at + 24 <= len(data)]
    if places:
        start, word = chance.choice(places) + 8, chance.choice(WORDS)
        data[start : start + len(word)] = word
    return data


def _nifti_field(chance: Chance, data: bytearray) -> bytearray:
    offset, kind, count = chance.choice(FIELDS)
    start = offset + chance.randrange(count) * struct.calcsize(kind)
    if len(data) >= start + struct.calcsize(kind):
        if kind == "f":
            struct.pack_into("<f", data, start, chance.choice(REALS))
        else:
            number = chance.choice((*NUMBERS, -1, -32768)) if kind == "h" else chance.choice(LARGE)
            size = 256 ** struct.calcsize(kind)
            struct.pack_into("<" + kind.upper(), data, start, number % size)
    return data


def _chunks(data: bytearray) -> list[bytes]:
    """The chunks of a PNG, whole."""
    found, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found.append(bytes(data[at : at + 12 + length]))
        at += 12 + length
    return found


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def _png_header(chance: Chance, data: bytearray) -> bytearray:
    """A field of IHDR, with the right checksum."""
    if len(data) < 33:
        return data
    header = bytearray(data[16:29])
    if chance.random() < 0.5:
        value = chance.choice(NUMBERS + LARGE) % 2**32
        struct.pack_into(">I", header, chance.choice((0, 4)), value)
    else:
        header[chance.randrange(8, 13)] = chance.choice(NUMBERS) % 256
    return data[:8] + _chunk(b"IHDR", bytes(header)) + data[33:]


def _png_chunks(chance: Chance, data: bytearray) -> bytes:
    """Chunks shuffled, dropped, doubled, or with an altered content and the right checksum."""
    chunks = _chunks(data)
    if not chunks:
        return bytes(data)
    index = chance.randrange(len(chunks))
    action = chance.choice(("shuffle", "drop", "double", "content", "new"))
    if action == "shuffle":
        chance.shuffle(chunks)
    elif action == "drop":
        del chunks[index]
    elif action == "double":
        chunks.insert(index, chunks[index])
    elif action == "content":
        content = bytearray(chunks[index][8:-4])
        chunks[index] = _chunk(chunks[index][4:8], bytes(_bits(chance, content)))
    else:
        kind = chance.choice((b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"gAMA"))
        chunks.insert(index, _chunk(kind, chance.randbytes(chance.choice((0, 3, 6, 300)))))
    return bytes(data[:8]) + b"".join(chunks)


def _png_length(chance: Chance, data: bytearray) -> bytearray:
    chunks = _chunks(data)
    if chunks:
        at = 8 + sum(map(len, chunks[: chance.randrange(len(chunks))]))
        struct.pack_into(">I", data, at, chance.choice(NUMBERS + LARGE) % 2**32)
    return data


def attempt(path: Path, number: int) -> Outcome:
    """Read a file, one way or another by its number, and make a view."""
    options: tuple[dict[str, Any], ...] = (
        {"frame": 0},
        {"kind": "volume"},
        {},
        {"kind": "volume", "frame": 0},
    )
    chosen = options[number // 3 % 4]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom and nibabel warn of what they see
            image = read_image(path, **chosen)
            view = ImageTransform(size=16).apply(image)
    except MedLoupeError as error:
        named = error.fault.file == str(path)
        return Outcome("refused" if named else "raised", f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome("raised", f"{type(error).__name__}: {error}")
    wrong = _wrong(image, chosen.get("kind", "image"))
    if view.shape != (3, 16, 16) or view.dtype != np.float32 or not np.isfinite(view).all():
        wrong = wrong or f"view {view.shape} {view.dtype}"
    return Outcome("wrong shape", wrong) if wrong else Outcome("image")


def _wrong(image: Any, kind: str) -> str:
    """What an image breaks of the promises of `MedicalImage`; empty where nothing."""
    array = image.array
    colour = image.units == "rgb"
    flat = array.ndim == 3 and (kind == "volume" or array.shape[0] == 1)
    layout = array.shape[2:] == (3,) and array.ndim == 3 if colour else flat
    if array.dtype != (np.uint8 if colour else np.float32) or not layout or not array.size:
        return f"{image.units} {array.dtype} {array.shape}"
    if not array.flags.c_contiguous:
        return f"strides {array.strides}"
    if image.spacing is not None and not all(0 < mm < np.inf for mm in image.spacing):
        return f"spacing {image.spacing}"
    if image.affine is not None and (
        image.affine.shape != (4, 4)
        or not np.isfinite(image.affine).all()
        or abs(np.linalg.det(image.affine[:3, :3])) == 0
    ):
        return f"affine {image.affine.tolist()}"
    if image.window is not None and not all(np.isfinite(image.window)):
        return f"window {image.window}"
    return ""
