"""Stored pixels: every encoding of the header, every transfer syntax, with values known beforehand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from by_path import loaded
from pydicom import uid

from medloupe.errors import ImageError
from medloupe.imaging.dicom.decoding import DECODERS
from medloupe.imaging.read import read_image
from medloupe.imaging.windows import to_display

files = loaded(Path(__file__).with_name("dicom_files.py"))
real, write, item, sequence = files.real, files.write, files.item, files.sequence

RGB = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
def test_pixels_of_every_type_and_byte_order(tmp_path, syntax, dtype):
    values = {"u": [0, 1, 254, 7, 3, 9], "i": [-3, -1, 0, 100, 5, 1], "f": [-1.5, 0, 2.25, 1, 3, 5]}
    pixels = np.array(values[dtype[0]], dtype).reshape(2, 3)
    image = read_image(write(tmp_path, pixels, syntax=syntax))
    assert image.array.dtype == np.float32
    assert np.array_equal(image.array[0], pixels)


@pytest.mark.parametrize("rle", [False, True])
def test_unused_high_bits_do_not_count(tmp_path, rle):
    # 12 of 16 bits; the upper four hold an old overlay (PS3.5 8.1.1)
    pixels = np.array([[0xF000 | 5, 0x0FFF, 0x8000, 0x1800]], np.uint16)
    path = write(tmp_path, pixels, BitsStored=12, HighBit=11)
    signed = write(tmp_path, pixels.view(np.int16), name="signed.dcm", BitsStored=12, HighBit=11)
    if rle:
        for file in (path, signed):
            dataset = pydicom.dcmread(file)
            dataset.compress(uid.RLELossless)
            dataset.save_as(file)
    assert read_image(path).array.tolist() == [[[5, 4095, 0, 2048]]]
    assert read_image(signed).array.tolist() == [[[5, -1, 0, -2048]]]


def test_bits_that_start_inside_a_byte(tmp_path):
    """Frames of 3 pixels of 1 bit: frame k starts at bit 3 k (PS3.5 8.1.1)."""
    bits = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]], np.uint8)
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    path = write(tmp_path, bits[:, None], data=packed, BitsAllocated=1, BitsStored=1, HighBit=0)
    for frame in range(6):
        assert read_image(path, frame=frame).array.tolist() == [[bits[frame].tolist()]]
    assert np.array_equal(read_image(path, kind="volume").array[:, 0], bits)


def test_planar_configuration(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    by_pixel = read_image(write(tmp_path, pixels, **RGB))
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes()
    by_plane = read_image(write(tmp_path, pixels, data=planes, **RGB | {"PlanarConfiguration": 1}))
    assert np.array_equal(by_pixel.array, pixels)
    assert np.array_equal(by_plane.array, pixels)


def test_ybr_full_by_hand(tmp_path):
    # PS3.3 C.7.6.3.1.2: pure red is Y 76, Cb 85, Cr 255; grey has Cb = Cr = 128
    pixels = np.array([[[76, 85, 255], [100, 128, 128]]], np.uint8)
    full = RGB | {"PhotometricInterpretation": "YBR_FULL"}
    assert np.abs(read_image(write(tmp_path, pixels, **full)).array[0, 0] - [254, 0, 0]).max() <= 1
    assert read_image(write(tmp_path, pixels, **full)).array[0, 1].tolist() == [100, 100, 100]
    # YBR_FULL_422: Y1 Y2 Cb Cr, the two pixels share their colour
    half = RGB | {"PhotometricInterpretation": "YBR_FULL_422"}
    shared = read_image(write(tmp_path, pixels, data=bytes([76, 100, 128, 128]), **half))
    assert shared.array.tolist() == [[[76] * 3, [100] * 3]]


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"PhotometricInterpretation": "HSV"}, "'HSV' with 3 samples a pixel is not read"),
        ({"PhotometricInterpretation": "MONOCHROME2"}, "cannot have 3 samples"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, "is not read|broken"),
    ],
)
def test_colour_that_is_none_is_refused(tmp_path, elements, message):
    pixels = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(ImageError, match=message):
        read_image(write(tmp_path, pixels, **RGB | elements))


def palette_file(folder: Path, pixels: np.ndarray, descriptor: list[int], **tables: bytes) -> Path:
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    syntax = tables.pop("syntax", uid.ExplicitVRLittleEndian)
    for colour in ("Red", "Green", "Blue"):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = descriptor
    return write(folder, pixels, syntax=syntax, **elements, **tables)


def plain(red: bytes, green: bytes, blue: bytes) -> dict[str, bytes]:
    named = zip(("Red", "Green", "Blue"), (red, green, blue), strict=True)
    return {f"{colour}PaletteColorLookupTableData": data for colour, data in named}


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_palettes_of_words_and_of_bytes(tmp_path, syntax):
    order = ">u2" if syntax == uid.ExplicitVRBigEndian else "<u2"
    pixels = np.array([[0, 9, 10, 11, 12, 255]], np.uint8)  # the table maps 10, 11, 12
    red, green, blue = [0xFF00, 0x1000, 0], [0, 0x8000, 0x0100], [0x00FF, 0, 0xFFFF]
    words = plain(*(np.array(t, order).tobytes() for t in (red, green, blue)))
    image = read_image(palette_file(tmp_path, pixels, [3, 10, 16], syntax=syntax, **words))
    first, second, third = [255, 0, 0], [16, 128, 0], [0, 1, 255]
    assert image.array[0].tolist() == [first, first, first, second, third, third]
    # 4 bytes, packed two a word, the first in the low byte
    packed = np.frombuffer(bytes([1, 2, 3, 4]), "<u2").astype(order).tobytes()
    image = read_image(
        palette_file(tmp_path, pixels, [4, 9, 8], syntax=syntax, **plain(*[packed] * 3))
    )
    assert image.array[0, :, 0].tolist() == [1, 1, 2, 3, 4, 4]


def test_a_palette_of_more_entries_than_an_entry_can_count(tmp_path):
    # 300 entries of 8 bits: an index of 8 bits would wrap at 256
    entries = bytes(i % 251 for i in range(300))
    image = read_image(
        palette_file(
            tmp_path, np.array([[255, 256, 299]], np.uint16), [300, 0, 8], **plain(*[entries] * 3)
        )
    )
    assert image.array[0, :, 1].tolist() == [255 % 251, 256 % 251, 299 % 251]


def test_palette_entries_of_eight_bits_in_words_that_say_sixteen(tmp_path):
    entries = np.array([0, 128, 255], "<u2").tobytes()
    image = read_image(
        palette_file(tmp_path, np.array([[0, 1, 2]], np.uint8), [3, 0, 16], **plain(*[entries] * 3))
    )
    assert image.array[0, :, 2].tolist() == [0, 128, 255]


def test_segmented_palettes(tmp_path):
    # PS3.3 C.7.9.2: 2 entries as they are (0, 1000); a line over 4 entries to 9000; and both again
    # (byte offset 0, two segments): 0, 1000, 3000, 5000, 7000, 9000, and once more
    words = [0, 2, 0, 1000, 1, 4, 9000, 2, 2, 0, 0]
    data = np.array(words, "<u2").tobytes()
    tables = {f"Segmented{k}": v for k, v in plain(data, data, data).items()}
    pixels = np.arange(12, dtype=np.uint8)[None]
    image = read_image(palette_file(tmp_path, pixels, [12, 0, 16], **tables))
    expected = [v >> 8 for v in (0, 1000, 3000, 5000, 7000, 9000)] * 2
    assert image.array[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([1, 4, 9000], "starts with a linear segment"),
        ([7, 4, 9000], "no segment at 0"),
        ([0, 2, 5, 6], "has 2 of 12 entries"),
        ([2, 1, 0, 0, 0], "no segment at 0"),
    ],
)
def test_segmented_palettes_that_are_none(tmp_path, words, message):
    data = np.array(words, "<u2").tobytes()
    tables = {f"Segmented{k}": v for k, v in plain(data, data, data).items()}
    with pytest.raises(ImageError, match=message):
        read_image(palette_file(tmp_path, np.zeros((1, 2), np.uint8), [12, 0, 16], **tables))


def test_voi_table_goes_before_the_window(tmp_path):
    # values 100, 101, 102 shown as 0, 128, 255 of 8 bits; beside them the first and the last
    table = item(LUTDescriptor=[3, 100, 8], LUTData=np.array([0, 128, 255], "<u2").tobytes())
    pixels = np.array([[0, 100, 101, 102, 9000]], np.uint16)
    path = write(tmp_path, pixels, VOILUTSequence=[table], WindowCenter=5000, WindowWidth=10000)
    image = read_image(path)
    assert image.window == (5000, 10000)
    assert to_display(image).tolist() == [[0, 0, 128, 255, 255]]
    by_pydicom = pydicom.pixels.apply_voi_lut(pixels, pydicom.dcmread(path), prefer_lut=True)
    assert by_pydicom.tolist() == [[0, 0, 128, 255, 255]]


def test_voi_table_maps_modality_values(tmp_path):
    # stored 0, 1, 2 are -1024, -1023, -1022; the first mapped value, -1024, is written as 64512
    table = item(LUTDescriptor=[3, 64512, 16], LUTData=np.array([0, 32768, 65535], "<u2").tobytes())
    pixels = np.array([[0, 1, 2]], np.uint16)
    image = read_image(
        write(tmp_path, pixels, RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=[table])
    )
    assert to_display(image).tolist() == [[0, 128, 255]]  # 32768 / 65535 * 255 = 127.5 -> 128


def test_padding_written_as_an_unsigned_number(tmp_path):
    pixels = np.array([[-2000, 0, 100]], np.int16)
    path = write(tmp_path, pixels)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 63536)
    dataset.save_as(path)
    assert to_display(read_image(path)).tolist() == [[0, 0, 255]]


def test_a_rescale_with_a_fraction(tmp_path):
    pixels = np.array([[0, 1, 4095]], np.uint16)
    image = read_image(write(tmp_path, pixels, RescaleSlope="0.625", RescaleIntercept="-0.5"))
    assert image.array.tolist() == [[[-0.5, 0.125, 2558.875]]]


def test_a_localizer_is_not_in_hounsfield_units(tmp_path):
    ct = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}
    pixels = np.zeros((2, 2), np.uint16)
    scout = write(tmp_path, pixels, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **ct)
    assert read_image(scout).units == "stored"
    axial = write(tmp_path, pixels, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], **ct)
    assert read_image(axial).units == "HU"


def test_every_compressed_syntax_has_decoders_that_pydicom_knows():
    for syntax, labels in DECODERS.items():
        decoder = pydicom.pixels.get_decoder(syntax)
        known = set(decoder.available_plugins) | set(decoder.missing_dependencies)
        assert all(any(label in entry for entry in known) for label in labels), (syntax, known)


def test_a_transfer_syntax_of_films_is_refused(tmp_path):
    path = write(tmp_path, np.zeros((2, 2), np.uint8), streams=[b"\0" * 8], syntax=uid.MPEG2MPML)
    with pytest.raises(ImageError, match=r"transfer syntax 'MPEG2.*is not read"):
        read_image(path)


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_gdcm.dcm", "JPGExtended.dcm"])
def test_a_missing_decoder_names_its_extra(name):
    """In a process where gdcm cannot be imported."""
    code = (
        "import sys; sys.modules['gdcm'] = None\n"
        "from pathlib import Path\n"
        "from medloupe.errors import MissingExtraError\n"
        "from medloupe.imaging.read import read_image\n"
        f"try: read_image(Path({str(real(name))!r}))\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "python-gdcm is not installed" in done.stdout
    assert 'pip install "medloupe[gdcm]"' in done.stdout
    assert name in done.stdout


def test_run_lengths_that_do_not_fit(tmp_path):
    def stream(runs: bytes) -> list[bytes]:
        header = np.array([2, 64, 64 + len(runs), *[0] * 13], "<u4").tobytes()
        return [header + runs * 2]

    # runs of 130 bytes for 4 pixels: the Rust decoder panics; pydicom's takes what is needed
    pixels = np.zeros((2, 2), np.uint16)
    long = write(tmp_path, pixels, streams=stream(b"\x81\x07" * 40), syntax=uid.RLELossless)
    assert read_image(long).array.tolist() == [[[0x0707] * 2] * 2]
    short = write(tmp_path, pixels, streams=stream(b"\x00\x07"), syntax=uid.RLELossless)
    with pytest.raises(ImageError, match="cannot be decoded") as caught:
        read_image(short)
    assert caught.value.fault.file == str(short)
