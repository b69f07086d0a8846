"""DICOM: real files of pydicom, and small files whose every value is worked out by hand."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from by_path import loaded
from pydicom.sequence import Sequence

from medloupe.errors import ImageError
from medloupe.imaging.read import read_image
from medloupe.imaging.transforms import ImageTransform, Window, to_display

files = loaded(Path(__file__).with_name("dicom_files.py"))
real, write, item, sequence = files.real, files.write, files.item, files.sequence


def test_ct_small_is_rescaled_once():
    image = read_image(real("CT_small.dcm"))
    stored = pydicom.dcmread(real("CT_small.dcm")).pixel_array
    assert image.units == "HU"
    assert image.array.shape == (1, 128, 128)
    assert image.array.dtype == np.float32
    assert np.array_equal(image.array[0], stored.astype(np.float32) - 1024)  # slope 1, -1024
    assert image.source is not None
    assert image.source.modality == "CT"
    assert image.size == (128, 128)


def test_ct_small_lies_where_its_header_says():
    image = read_image(real("CT_small.dcm"))
    assert image.affine is not None
    # position (-158.135803, -179.035797, -75.699997) LPS; identity orientation; 0.661468 mm
    assert np.allclose(image.affine[:, 3], [158.135803, 179.035797, -75.699997, 1])
    assert np.allclose(image.affine[:3, :3], np.diag([-0.661468, -0.661468, 5.0]))
    assert image.spacing == (5.0, 0.661468, 0.661468)


def test_mr_small_keeps_stored_values_and_its_window():
    image = read_image(real("MR_small.dcm"))
    assert image.units == "stored"
    assert image.window == (600.0, 1600.0)
    stored = pydicom.dcmread(real("MR_small.dcm")).pixel_array.astype(float)
    by_hand = np.clip(((stored - 599.5) / 1599 + 0.5) * 255, 0, 255)
    assert np.abs(to_display(image).astype(float) - by_hand).max() <= 0.51


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_expb.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_padded.dcm",
    ],
)
def test_every_lossless_transfer_syntax_gives_the_same_values(name):
    reference = read_image(real("MR_small.dcm"))
    image = read_image(real(name))
    assert np.array_equal(image.array, reference.array)
    assert image.window == reference.window
    assert np.allclose(image.affine, reference.affine)


COLOUR = {
    "ExplVR_BigEnd.dcm": (60, 80),
    "SC_rgb_dcmtk_+eb+cr.dcm": (100, 100),
    "SC_rgb_dcmtk_+eb+cy+n1.dcm": (100, 100),
    "SC_rgb_dcmtk_+eb+cy+np.dcm": (100, 100),
    "SC_rgb_gdcm_KY.dcm": (100, 100),
    "SC_rgb_jpeg_dcmtk.dcm": (100, 100),
    "SC_rgb_rle.dcm": (100, 100),
    "SC_ybr_full_422_uncompressed.dcm": (100, 100),
    "SC_rgb_jpeg_lossy_gdcm.dcm": (100, 100),
    "examples_jpeg2k.dcm": (480, 640),
    "examples_rgb_color.dcm": (240, 320),
}


@pytest.mark.parametrize("name", COLOUR)
def test_colour_comes_out_as_rgb(name):
    image = read_image(real(name))
    assert image.units == "rgb"
    assert image.array.dtype == np.uint8
    assert image.array.shape == (*COLOUR[name], 3)
    if name.startswith("SC_") and COLOUR[name] == (100, 100):
        # the test card of these files: bars of red, green, blue at rows 5, 15, 25 ...
        card = [(255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255)]
        found = image.array[[5, 15, 25, 35, 45], 50].astype(int)
        assert np.abs(found - np.array(card)).max() <= 6


def test_palette_colour_is_looked_up():
    image = read_image(real("examples_palette.dcm"))
    dataset = pydicom.dcmread(real("examples_palette.dcm"))
    red = np.frombuffer(dataset.RedPaletteColorLookupTableData, "<u2")
    assert image.units == "rgb"
    assert np.array_equal(image.array[..., 0], red[dataset.pixel_array] >> 8)


def test_colour_of_sixteen_bits_is_refused():
    with pytest.raises(ImageError, match="16 bits per channel would lose bits"):
        read_image(real("SC_rgb_rle_16bit.dcm"))


def test_several_frames_need_a_choice():
    path = real("rtdose.dcm")
    with pytest.raises(ImageError, match=r"holds 15 frames.*frame=0 to frame=14"):
        read_image(path)
    with pytest.raises(ImageError, match="no frame 15"):
        read_image(path, frame=15)
    frames = pydicom.dcmread(path).pixel_array
    assert np.array_equal(read_image(path, frame=7).array[0], frames[7].astype(np.float32))
    assert np.array_equal(read_image(path, kind="volume").array, frames.astype(np.float32))


def test_a_frame_of_a_colour_clip():
    assert read_image(real("examples_ybr_color.dcm"), frame=29).array.shape == (240, 320, 3)
    with pytest.raises(ImageError, match="colour, not a volume"):
        read_image(real("SC_rgb_rle_2frame.dcm"), kind="volume")


def test_signed_and_unsigned_values(tmp_path):
    signed = np.array([[-32768, -1], [0, 32767]], np.int16)
    assert np.array_equal(read_image(write(tmp_path, signed)).array[0], signed)
    unsigned = np.array([[0, 1], [32768, 65535]], np.uint16)
    assert np.array_equal(read_image(write(tmp_path, unsigned)).array[0], unsigned)


def test_bits_stored_below_bits_allocated(tmp_path):
    # 12 of 16 bits; the upper four hold an old overlay (PS3.5 8.1.1) and must not count
    pixels = np.array([[0xF000 | 5, 0x0FFF]], np.uint16)
    image = read_image(write(tmp_path, pixels, BitsStored=12, HighBit=11))
    assert image.array.tolist() == [[[5, 4095]]]
    signed = np.array([[0x0FFF, 0x0800]], np.uint16).astype(np.int16)  # -1 and -2048 in 12 bits
    image = read_image(write(tmp_path, signed, BitsStored=12, HighBit=11))
    assert image.array.tolist() == [[[-1, -2048]]]


def test_rescale_units_and_window(tmp_path):
    pixels = np.array([[0, 1000, 2000]], np.uint16)
    ct = {"Modality": "CT", "RescaleSlope": 2, "RescaleIntercept": -1024}
    image = read_image(write(tmp_path, pixels, **ct, WindowCenter=[40, 400], WindowWidth=[80, 9]))
    assert image.array.tolist() == [[[-1024, 976, 2976]]]
    assert image.units == "HU"
    assert image.window == (40.0, 80.0)  # the first of several
    unspecified = read_image(write(tmp_path, pixels, **ct, RescaleType="US"))
    assert unspecified.units == "stored"
    assert read_image(write(tmp_path, pixels, Modality="CT")).units == "stored"
    positron = ct | {"Modality": "PT"}
    assert read_image(write(tmp_path, pixels, **positron)).units == "stored"


def test_monochrome1_is_stored_as_it_is_and_shown_inverted(tmp_path):
    pixels = np.array([[0, 100, 255]], np.uint8)
    image = read_image(
        write(
            tmp_path,
            pixels,
            PhotometricInterpretation="MONOCHROME1",
            WindowCenter=128,
            WindowWidth=256,
        )
    )
    assert image.array.tolist() == [[[0, 100, 255]]]
    assert to_display(image).tolist() == [[255, 155, 0]]


def test_padding_is_rescaled_with_the_pixels(tmp_path):
    pixels = np.array([[-2000, -1999, 0, 1000]], np.int16)
    elements = {"RescaleSlope": 2, "RescaleIntercept": -1024, "Modality": "CT"}
    one = read_image(write(tmp_path, pixels, PixelPaddingValue=-2000, **elements))
    # measured: -5022, -1024, 976
    assert to_display(one, Window(mode="full")).tolist() == [[0, 0, 170, 255]]
    several = read_image(
        write(tmp_path, pixels, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1999, **elements)
    )
    assert to_display(several, Window(mode="full")).tolist() == [[0, 0, 0, 255]]


def test_voi_functions_of_the_file(tmp_path):
    pixels = np.array([[0, 50, 100, 150]], np.uint8)
    window = {"WindowCenter": 50, "WindowWidth": 100}
    exact = read_image(write(tmp_path, pixels, VOILUTFunction="LINEAR_EXACT", **window))
    assert to_display(exact).tolist() == [[0, 128, 255, 255]]  # from c - w/2 to c + w/2
    sigmoid = read_image(write(tmp_path, pixels, VOILUTFunction="SIGMOID", **window))
    assert to_display(sigmoid).tolist() == [[30, 128, 225, 250]]
    nonsense = read_image(write(tmp_path, pixels, WindowCenter=50, WindowWidth=0))
    assert nonsense.window is None
    assert "not valid" in nonsense.attributes["voi"]


def test_modality_table_instead_of_rescale(tmp_path):
    table = item(
        LUTDescriptor=[3, 1, 16], LUTData=struct.pack("<3H", 10, 20, 40), ModalityLUTType="OD"
    )
    pixels = np.array([[0, 1, 2, 3, 9]], np.uint16)
    image = read_image(write(tmp_path, pixels, ModalityLUTSequence=Sequence([table])))
    assert image.array.tolist() == [[[10, 10, 20, 40, 40]]]
    assert image.units == "stored"


def enhanced(folder: Path, positions: list[float]) -> Path:
    """An Enhanced CT: slope and position per frame, spacing, orientation and window shared."""
    shared = item(
        PixelMeasuresSequence=Sequence([item(PixelSpacing=[0.5, 0.25], SliceThickness=9)]),
        PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
        FrameVOILUTSequence=Sequence([item(WindowCenter=40, WindowWidth=80)]),
    )
    frames = [
        item(
            PlanePositionSequence=Sequence([item(ImagePositionPatient=[10, 20, z])]),
            PixelValueTransformationSequence=Sequence(
                [item(RescaleSlope=k + 1, RescaleIntercept=-100 * k, RescaleType="HU")]
            ),
        )
        for k, z in enumerate(positions)
    ]
    pixels = np.full((len(positions), 2, 2), 7, np.uint16)
    return write(
        folder,
        pixels,
        Modality="CT",
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )


def test_enhanced_frames_have_their_own_rescale_and_place(tmp_path):
    path = enhanced(tmp_path, [0, 2, 4])
    frame = read_image(path, frame=2)
    assert frame.units == "HU"
    assert frame.window == (40.0, 80.0)
    assert (frame.array == 7 * 3 - 200).all()
    assert frame.affine is not None
    assert frame.affine[:3, 3].tolist() == [-10, -20, 4]
    volume = read_image(path, kind="volume")
    assert volume.array[:, 0, 0].tolist() == [7, -86, -179]
    assert volume.affine is not None
    # column step 0.25 mm to the left, row step 0.5 mm to the back, slice step 2 mm up
    assert volume.affine[:3].tolist() == [[-0.25, 0, 0, -10], [0, -0.5, 0, -20], [0, 0, 2, 0]]
    assert volume.spacing == (2.0, 0.5, 0.25)


def test_uneven_frames_have_no_affine(tmp_path):
    image = read_image(enhanced(tmp_path, [0, 2, 5]), kind="volume")
    assert image.affine is None
    assert "unevenly spaced" in image.attributes["series_uneven"]


def test_a_missing_frame_is_an_error(tmp_path):
    with pytest.raises(
        ImageError, match=r"slices are missing: the usual step is 2\.00 mm, but 1 are"
    ):
        read_image(enhanced(tmp_path, [0, 2, 4, 8]), kind="volume")


def test_enhanced_frames_are_sorted_by_place(tmp_path):
    # frame k holds 7 (k + 1) - 100 k; the file has the places in the order 4, 0, 2
    volume = read_image(enhanced(tmp_path, [4, 0, 2]), kind="volume")
    assert volume.array[:, 0, 0].tolist() == [-86, -179, 7]
    assert volume.affine is not None
    assert volume.affine[:3, 3].tolist() == [-10, -20, 0]


def test_frames_of_one_place_need_a_choice(tmp_path):
    shared = item(
        PixelMeasuresSequence=sequence(PixelSpacing=[1, 1]),
        PlaneOrientationSequence=sequence(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
    )
    frames = [
        item(
            PlanePositionSequence=sequence(ImagePositionPatient=[0, 0, z]),
            MREchoSequence=sequence(EffectiveEchoTime=echo),
        )
        for echo in (30, 5)
        for z in (2, 0)
    ]
    path = write(
        tmp_path,
        np.arange(4, dtype=np.uint16)[:, None, None] * np.ones((1, 2, 2), np.uint16),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )
    with pytest.raises(
        ImageError, match=r"differ in EffectiveEchoTime \(5.*, 30.*frame=0 to frame=1"
    ):
        read_image(path, kind="volume")
    early = read_image(path, kind="volume", frame=0)
    late = read_image(path, kind="volume", frame=1)
    assert early.array[:, 0, 0].tolist() == [3, 2]
    assert late.array[:, 0, 0].tolist() == [1, 0]


def test_an_oblique_plane(tmp_path):
    # a sagittal plane: columns run to the back (P), rows run down (I)
    path = write(
        tmp_path,
        np.zeros((2, 2), np.uint8),
        ImagePositionPatient=[5, -50, 60],
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        PixelSpacing=[2, 1],
    )
    affine = read_image(path).affine
    assert affine is not None
    assert (affine @ [0, 0, 0, 1]).tolist() == [-5, 50, 60, 1]
    assert (affine @ [3, 0, 0, 1]).tolist() == [-5, 47, 60, 1]  # 3 columns: 3 mm to the back
    assert (affine @ [0, 1, 0, 1]).tolist() == [-5, 50, 58, 1]  # 1 row: 2 mm down


def test_a_file_without_preamble_is_known_by_its_content(tmp_path):
    dataset = pydicom.dcmread(real("MR_small_implicit.dcm"))
    del dataset.file_meta
    dataset.preamble = None
    path = tmp_path / "bare.png"
    dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert path.read_bytes()[:2] == b"\x08\0"
    assert np.array_equal(read_image(path).array, read_image(real("MR_small.dcm")).array)


@pytest.mark.parametrize("name", ["rtplan.dcm", "rtstruct.dcm", "test-SR.dcm", "waveform_ecg.dcm"])
def test_dicom_without_pixels(name):
    with pytest.raises(ImageError, match="holds no pixels"):
        read_image(real(name))


def test_a_missing_element_is_named(tmp_path):
    dataset = pydicom.dcmread(real("CT_small.dcm"))
    del dataset.Rows
    dataset.save_as(tmp_path / "x.dcm")
    with pytest.raises(ImageError, match="field 'Rows'"):
        read_image(tmp_path / "x.dcm")


def test_sizes_that_a_header_claims(tmp_path):
    path = write(tmp_path, np.zeros((2, 2), np.uint8))
    for rows, message in ((0, "empty"), (65535, "too large|less than expected")):
        dataset = pydicom.dcmread(path)
        dataset.Rows, dataset.Columns = rows, 65535
        dataset.save_as(tmp_path / "claims.dcm")
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / "claims.dcm")


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "image_dfl.dcm",
        "examples_palette.dcm",
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of every altered value
def test_cut_and_altered_files_only_ever_raise_image_errors(name, tmp_path, read_or_refuse):
    """What can still be read must be the whole picture: cut bytes lie behind the pixels."""
    data = real(name).read_bytes()
    whole = read_image(real(name)).array
    rng = random.Random(name)
    path = tmp_path / name
    refused = 0
    for _ in range(40):
        path.write_bytes(data[: rng.randrange(len(data))])
        image = read_or_refuse(path)
        refused += image is None
        assert image is None or np.array_equal(image.array, whole)
    assert refused >= 30
    for _ in range(40):
        altered = bytearray(data)
        for _ in range(8):
            altered[rng.randrange(min(len(data), 4000))] = rng.randrange(256)
        path.write_bytes(altered)
        read_or_refuse(path)


def test_truncated_pixels_of_a_real_file():
    with pytest.raises(ImageError, match=r"MR_truncated.*8130 vs 8192"):
        read_image(real("MR_truncated.dcm"))


def test_one_pixel(tmp_path):
    image = read_image(write(tmp_path, np.array([[300]], np.uint16)))
    assert image.array.tolist() == [[[300]]]
    assert ImageTransform(size=8).apply(image).shape == (3, 8, 8)
