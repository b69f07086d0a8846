"""PNG, JPEG and TIFF: no bit lost, nothing converted in silence, nothing broken let through."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medloupe.errors import ImageError
from medloupe.imaging.read import read_image
from medloupe.imaging.transforms import ImageTransform, to_display

RNG = np.random.default_rng(7)
GREY8 = RNG.integers(0, 256, (37, 53), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (37, 53), dtype=np.uint16)
COLOUR = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)


def png(
    width: int, height: int, bits: int, colour: int, pixels: bytes, *, interlaced: int = 0
) -> bytes:
    """A PNG written by hand (PNG 11.2): `pixels` are rows, each led by its filter byte."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_eight_bit_grey(tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    Image.fromarray(GREY8).save(path)
    image = read_image(path)
    assert image.units == "stored"
    assert image.array.dtype == np.float32
    assert np.array_equal(image.array, GREY8[None])
    assert np.array_equal(to_display(image), GREY8)  # shown as it is, never stretched
    assert image.source is not None
    assert image.source.uri == str(path)


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_sixteen_bit_grey_keeps_every_value(tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    Image.fromarray(GREY16).save(path)
    image = read_image(path)
    assert np.array_equal(image.array, GREY16[None])
    assert image.window is None


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_sixteen_bit_tiff(tmp_path, compression):
    path = tmp_path / "x.tif"
    Image.fromarray(GREY16).save(path, compression=compression)
    assert np.array_equal(read_image(path).array, GREY16[None])


def test_big_endian_sixteen_bit_tiff(tmp_path):
    # TIFF 6.0 section 2: MM, one strip, photometric BlackIsZero
    tags = [(256, 2), (257, 1), (258, 16), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1)]
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    entries += struct.pack(">HHIHH", 279, 3, 1, 4, 0)
    head = b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 9) + entries + struct.pack(">I", 0)
    assert len(head) == 122
    path = tmp_path / "x.tif"
    path.write_bytes(head + struct.pack(">HH", 513, 65535))
    assert read_image(path).array.tolist() == [[[513, 65535]]]


def test_white_is_zero_is_inverted_at_display_only(tmp_path):
    path = tmp_path / "x.tif"
    picture = Image.fromarray(np.array([[0, 1000]], np.uint16))
    picture.save(path, tiffinfo={262: 0})
    image = read_image(path)
    assert image.array.tolist() == [[[0, 1000]]]
    assert to_display(image).tolist() == [[255, 0]]


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_colour(tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    Image.fromarray(COLOUR).save(path)
    image = read_image(path)
    assert image.units == "rgb"
    assert np.array_equal(image.array, COLOUR)


def test_colour_jpeg(tmp_path):
    smooth = np.zeros((32, 32, 3), np.uint8)
    smooth[:, :16] = (200, 40, 10)
    Image.fromarray(smooth).save(tmp_path / "x.jpg", quality=95, subsampling=0)
    image = read_image(tmp_path / "x.jpg")
    assert np.abs(image.array[:, [2, 20]].astype(int) - smooth[:, [2, 20]]).max() <= 4


def test_palette_and_transparency(tmp_path):
    palette = Image.fromarray(COLOUR).quantize(256)
    palette.save(tmp_path / "p.png")
    assert np.array_equal(read_image(tmp_path / "p.png").array, np.asarray(palette.convert("RGB")))
    layered = np.zeros((1, 3, 4), np.uint8)
    layered[0] = [(200, 100, 50, 255), (200, 100, 50, 0), (200, 100, 50, 128)]
    Image.fromarray(layered).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png").array[0].tolist()
    assert found == [[200, 100, 50], [0, 0, 0], [100, 50, 25]]


def test_the_name_does_not_matter(tmp_path):
    Image.fromarray(GREY8).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.dcm")
    assert np.array_equal(read_image(tmp_path / "x.dcm").array, GREY8[None])


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bit_colour_is_refused(tmp_path, colour, channels):
    path = tmp_path / "deep.png"
    path.write_bytes(png(1, 1, 16, colour, b"\0" + b"\x12\x34" * channels))
    with pytest.raises(ImageError, match=r"deep.png.*16 bits per channel.*8-bit RGB"):
        read_image(path)


def test_sixteen_bit_colour_tiff_is_refused(tmp_path):
    tags = [(256, 1), (257, 1), (258, 16), (259, 1), (262, 2), (273, 140), (277, 3), (278, 1)]
    entries = b""
    for tag, value in tags:
        count, content = (
            (3, struct.pack("<I", 122)) if tag == 258 else (1, struct.pack("<I", value))
        )
        entries += struct.pack("<HHI", tag, 3, count) + content
    entries += struct.pack("<HHII", 279, 3, 1, 6)
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 9) + entries + struct.pack("<I", 0)
    path = tmp_path / "deep.tif"
    path.write_bytes(head + struct.pack("<3H", 16, 16, 16) + b"\0" * 12 + b"\1" * 6)
    with pytest.raises(ImageError, match="16 bits per channel"):
        read_image(path)


def test_values_that_float32_cannot_hold_are_refused(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(np.array([[0, 2**24 + 1]], np.int32)).save(path)
    with pytest.raises(ImageError, match="without loss"):
        read_image(path)


# EXIF orientation -> where the dark corner (top left of the stored pixels) is seen
CORNERS = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1)}


@pytest.mark.parametrize("extension", ["jpg", "png", "tiff"])
@pytest.mark.parametrize(("orientation", "corner"), CORNERS.items())
def test_exif_orientation_is_applied(tmp_path, extension, orientation, corner):
    stored = np.full((16, 32), 255, np.uint8)
    stored[:8, :8] = 0
    picture = Image.fromarray(stored)
    exif = picture.getexif()
    exif[274] = orientation
    path = tmp_path / f"x.{extension}"
    picture.save(path, exif=exif)
    image = read_image(path)
    assert image.size == ((32, 16) if orientation < 5 else (16, 32))
    assert image.array[0][corner] < 10
    assert (image.array[0] > 245).sum() >= 16 * 32 - 64 - 40


def test_pages_of_a_tiff(tmp_path):
    pages = [Image.fromarray(GREY16 // (k + 1)) for k in range(3)]
    path = tmp_path / "x.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match=r"3 pages.*kind='volume'"):
        read_image(path)
    assert np.array_equal(read_image(path, frame=2).array, (GREY16 // 3)[None])
    volume = read_image(path, kind="volume")
    assert volume.array.shape == (3, 37, 53)
    assert np.array_equal(volume.array[1], GREY16 // 2)
    with pytest.raises(ImageError, match="no frame 3"):
        read_image(path, frame=3)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
@pytest.mark.parametrize("extension", ["png", "jpg", "tiff"])
def test_one_pixel_and_extreme_aspects(tmp_path, extension, size):
    path = tmp_path / f"x.{extension}"
    Image.new("L", size, 90).save(path)
    image = read_image(path)
    assert image.size == size
    assert ImageTransform(size=32).apply(image).shape == (3, 32, 32)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of altered TIFF tags
@pytest.mark.parametrize(
    "make",
    [
        ("grey.png", GREY8, {}),
        ("deep.png", GREY16, {}),
        ("colour.png", COLOUR, {}),
        ("grey.jpg", GREY8, {}),
        ("progressive.jpg", COLOUR, {"progressive": True}),
        ("deep.tiff", GREY16, {}),
        ("lzw.tiff", COLOUR, {"compression": "tiff_lzw"}),
    ],
    ids=lambda make: make[0],
)
def test_cut_and_altered_files_only_ever_raise_image_errors(tmp_path, make, read_or_refuse):
    """A cut file is refused, or what comes out is the whole picture."""
    name, pixels, options = make
    path = tmp_path / name
    Image.fromarray(pixels).save(path, **options)
    data, whole = path.read_bytes(), read_image(path).array
    rng = random.Random(name)
    cuts = {*rng.sample(range(1, len(data)), 60), *range(len(data) - 20, len(data))}
    for cut in cuts:
        path.write_bytes(data[:cut])
        image = read_or_refuse(path)
        if name.endswith("tiff"):  # it has no end marker
            assert image is None or np.array_equal(image.array, whole)
        else:
            assert image is None
    for _ in range(150):
        altered = bytearray(data)
        for _ in range(rng.choice([1, 4, 16])):
            altered[rng.randrange(min(len(data), 600))] = rng.randrange(256)
        path.write_bytes(altered)
        read_or_refuse(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_sizes_that_a_header_claims(tmp_path):
    path = tmp_path / "claims.png"
    path.write_bytes(png(0, 5, 8, 0, b""))
    with pytest.raises(ImageError, match="says no size"):
        read_image(path)
    path.write_bytes(png(60000, 60000, 8, 0, b"\0"))
    with pytest.raises(ImageError, match=r"claims\.png"):
        read_image(path)
    path.write_bytes(png(13000, 13000, 8, 0, b"\0"))
    with pytest.raises(ImageError, match=r"too large: its header says 13000 x 13000"):
        read_image(path)


def test_real_radiographs(shared_data: Path):
    """A folder of real pictures reads whole, each in the units its mode says."""
    files = sorted((shared_data / "vqa_rad").rglob("*.jpg"))[:20]
    assert files
    for path in files:
        with Image.open(path) as picture:
            mode, size = picture.mode, picture.size
        image = read_image(path)
        assert image.units == ("stored" if mode == "L" else "rgb")
        assert image.size == size


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (9, 17)])
@pytest.mark.parametrize("missing", [0, 1])
def test_rows_that_a_png_does_not_hold(tmp_path, size, missing):
    """Pillow shows them black. Plain and interlaced (PNG 8.2), whose passes are 7 small images."""
    pixels = np.arange(1, 1 + size[0] * size[1], dtype=np.uint8).reshape(size)
    starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
    passes = [pixels[row::down, column::across] for row, column, down, across in starts]
    passes.append(pixels[1::2])
    rows = [row for one in passes for row in one if row.size]
    for interlaced, all_rows in ((0, list(pixels)), (1, rows)):
        path = tmp_path / "a.png"
        held = b"".join(b"\0" + row.tobytes() for row in all_rows[: len(all_rows) - missing])
        path.write_bytes(png(size[1], size[0], 8, 0, held, interlaced=interlaced))
        if missing:
            with pytest.raises(ImageError, match="truncated") as caught:
                read_image(path)
            assert caught.value.fault.file == str(path)
        else:
            assert np.array_equal(read_image(path).array[0], pixels)


def test_a_picture_beyond_pillows_own_limit_is_too_large_and_not_broken(tmp_path):
    path = tmp_path / "huge.png"
    path.write_bytes(png(20000, 20000, 8, 0, b""))
    with pytest.raises(ImageError, match=r"huge.png.*too large.*cut it into tiles") as caught:
        read_image(path)
    assert "Fetch" not in str(caught.value)
