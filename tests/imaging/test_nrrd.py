"""NRRD: values and places against SimpleITK and NIfTI, and files that lie about themselves."""

from __future__ import annotations

import bz2
import gzip
import random
from itertools import permutations, product
from pathlib import Path

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel import aff2axcodes

from medloupe.errors import ImageError
from medloupe.imaging.read import read_image, read_ref
from medloupe.types import ImageRef

ORDERS = ["".join(sides) for axes in permutations(["LR", "PA", "IS"]) for sides in product(*axes)]
SIZE = (7, 9, 5)  # i, j, k


def scan(dtype: type = np.int16) -> sitk.Image:
    """A volume in the order LPS, voxels of 2 x 3 x 4 mm, a little oblique."""
    values = np.random.default_rng(1).integers(0, 120, SIZE[::-1]).astype(dtype)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((2.0, 3.0, 4.0))
    image.SetOrigin((-6.5, 12.0, -8.25))
    angle = np.deg2rad(12)
    image.SetDirection([np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1])
    return image


def header(*lines: str) -> bytes:
    return ("\n".join(["NRRD0005", *lines]) + "\n\n").encode()


BASIC = ("type: uchar", "dimension: 3", "sizes: 2 3 4", "encoding: raw")


def write(path: Path, *lines: str, data: bytes = bytes(range(24))) -> Path:
    path.write_bytes(header(*lines) + data)
    return path


@pytest.mark.parametrize("codes", ORDERS)
def test_every_stored_order_gives_the_same_volume(tmp_path, codes):
    path = tmp_path / "x.nrrd"
    sitk.WriteImage(sitk.DICOMOrient(scan(), codes), path)
    image = read_image(path, kind="volume")
    assert np.array_equal(image.array, sitk.GetArrayFromImage(scan()))
    assert image.affine is not None
    assert aff2axcodes(image.affine) == ("L", "P", "S")
    place = scan().TransformContinuousIndexToPhysicalPoint((1.0, 6.0, 3.0))
    assert np.allclose(image.affine @ (1, 6, 3, 1), [-place[0], -place[1], place[2], 1])
    assert image.spacing == pytest.approx((4.0, 3.0, 2.0))


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64]
)
@pytest.mark.parametrize("compressed", [True, False])
def test_it_is_what_nifti_of_the_same_volume_is(tmp_path, dtype, compressed):
    sitk.WriteImage(scan(dtype), tmp_path / "x.nrrd", useCompression=compressed)
    sitk.WriteImage(scan(dtype), tmp_path / "x.nii")
    one = read_image(tmp_path / "x.nrrd", kind="volume")
    two = read_image(tmp_path / "x.nii", kind="volume")
    assert one.array.dtype == np.float32
    assert np.array_equal(one.array, two.array)
    assert np.allclose(one.affine, two.affine, atol=1e-5)


def test_a_detached_header(tmp_path):
    sitk.WriteImage(scan(), tmp_path / "x.nhdr")
    assert len(list(tmp_path.iterdir())) == 2
    image = read_image(tmp_path / "x.nhdr", kind="volume")
    assert np.array_equal(image.array, sitk.GetArrayFromImage(scan()))
    next(tmp_path.glob("x.raw*")).unlink()
    with pytest.raises(ImageError, match="beside its header") as caught:
        read_image(tmp_path / "x.nhdr", kind="volume")
    assert caught.value.fault.field == "data file"


@pytest.mark.parametrize("name", ["../secret.raw", "/etc/passwd", "a/../../x"])
def test_a_header_cannot_name_files_elsewhere(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes(24))
    path = write(tmp_path / "in" / "x.nhdr", *BASIC, f"data file: {name}", data=b"")
    with pytest.raises(ImageError, match="outside its folder"):
        read_image(path, kind="volume")


@pytest.mark.parametrize("name", ["LIST", "x%03d.raw 1 4 1"])
def test_voxels_in_several_files_are_refused(tmp_path, name):
    path = write(tmp_path / "x.nhdr", *BASIC, f"data file: {name}", data=b"")
    with pytest.raises(ImageError, match="several files"):
        read_image(path, kind="volume")


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (1, 1, 1)),
        ("LPS", (-1, -1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
def test_spaces_by_hand(tmp_path, space, signs):
    path = write(
        tmp_path / "x.nrrd",
        *BASIC,
        f"space: {space}",
        "space directions: (2,0,0) (0,3,0) (0,0,4)",
        "space origin: (10,20,30)",
    )
    image = read_image(path, kind="volume")
    assert image.affine is not None
    # voxel (1, 2, 3) of the file holds 1 + 2 * 2 + 6 * 3 = 23
    k, j, i = np.argwhere(image.array == 23)[0]
    expected = np.array([10 + 2, 20 + 6, 30 + 12]) * signs
    assert np.allclose(image.affine @ (i, j, k, 1), [*expected, 1])


def test_a_header_without_space_does_not_know_its_sides(tmp_path):
    path = write(tmp_path / "x.nrrd", *BASIC, "spacings: 0.5 0.6 2")
    image = read_image(path, kind="volume")
    assert image.affine is None
    assert image.attributes["orientation"] == "unknown"
    assert image.spacing == (2.0, 0.6, 0.5)
    assert image.array.ravel().tolist() == list(range(24))
    assert image.array.shape == (4, 3, 2)
    bare = read_image(write(tmp_path / "y.nrrd", *BASIC), kind="volume")
    assert bare.spacing == (1.0, 1.0, 1.0)
    scanner = write(
        tmp_path / "z.nrrd",
        *BASIC,
        "space: scanner-xyz",
        "space directions: (2,0,0) (0,3,0) (0,0,4)",
    )
    unknown = read_image(scanner, kind="volume")
    assert (unknown.affine, unknown.spacing) == (None, (4.0, 3.0, 2.0))


def test_units_other_than_mm(tmp_path):
    place = ("space: LPS", "space directions: (.2,0,0) (0,.3,0) (0,0,.4)")
    cm = write(tmp_path / "x.nrrd", *BASIC, *place, 'space units: "cm" "cm" "cm"')
    assert read_image(cm, kind="volume").spacing == pytest.approx((4.0, 3.0, 2.0))
    odd = write(tmp_path / "y.nrrd", *BASIC, *place, 'space units: "feet" "feet" "feet"')
    with pytest.raises(ImageError, match="lengths in feet"):
        read_image(odd, kind="volume")


def test_slices_planes_and_times(tmp_path):
    sitk.WriteImage(scan(), tmp_path / "x.nrrd")
    with pytest.raises(ImageError, match=r"5 slices.*kind='volume'"):
        read_image(tmp_path / "x.nrrd")
    whole = read_image(tmp_path / "x.nrrd", kind="volume")
    third = read_image(tmp_path / "x.nrrd", frame=3)
    assert np.array_equal(third.array[0], whole.array[3])
    assert whole.affine is not None
    assert third.affine is not None
    assert np.allclose(third.affine @ (1, 1, 0, 1), whole.affine @ (1, 1, 3, 1))
    plane = write(
        tmp_path / "p.nrrd",
        "type: uchar",
        "dimension: 2",
        "sizes: 2 3",
        "encoding: raw",
        data=bytes(6),
    )
    assert read_image(plane).array.shape == (1, 3, 2)
    times = write(
        tmp_path / "t.nrrd",
        "type: uchar",
        "dimension: 4",
        "sizes: 2 2 2 3",
        "encoding: raw",
        "space: RAS",
        "space directions: none (1,0,0) (0,1,0) (0,0,1)",
    )
    with pytest.raises(ImageError, match="2 volumes"):
        read_image(times, kind="volume")
    second = read_image(times, kind="volume", frame=1)
    assert sorted(second.array.ravel().tolist()) == list(range(1, 24, 2))


def test_a_plane_in_space(tmp_path):
    path = write(
        tmp_path / "p.nrrd",
        "type: uchar",
        "dimension: 2",
        "sizes: 2 3",
        "encoding: raw",
        "space: LPS",
        "space directions: (0,2,0) (0,0,-3)",
        "space origin: (5,0,0)",
        data=bytes(range(6)),
    )
    image = read_image(path)  # sagittal: rows run down, columns to the back
    assert image.affine is not None
    assert aff2axcodes(image.affine) == ("P", "I", "L")
    assert image.array[0].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_colour(tmp_path):
    lines = ("type: uchar", "dimension: 3", "sizes: 3 4 2", "encoding: raw")
    path = write(tmp_path / "c.nrrd", *lines, "kinds: RGB-color domain domain")
    # pynrrd and SimpleITK say that the first axis is no domain by "none"
    text = path.read_bytes().replace(
        b"kinds", b"space: LPS\nspace directions: none (1,0,0) (0,1,0)\nkinds"
    )
    path.write_bytes(text)
    image = read_image(path)
    assert image.units == "rgb"
    assert image.array.ravel().tolist() == list(range(24))
    assert image.array.shape == (2, 4, 3)


def test_encodings(tmp_path):
    raw = bytes(range(24))
    for name, stored in (
        ("raw", raw),
        ("gzip", gzip.compress(raw)),
        ("bz2", bz2.compress(raw)),
    ):
        path = write(tmp_path / f"{name}.nrrd", *BASIC[:3], f"encoding: {name}", data=stored)
        assert read_image(path, kind="volume").array.ravel().tolist() == list(raw)
    skipped = write(
        tmp_path / "s.nrrd", *BASIC, "line skip: 1", "byte skip: 2", data=b"a\nbc" + raw
    )
    assert read_image(skipped, kind="volume").array.ravel().tolist() == list(raw)
    last = write(tmp_path / "l.nrrd", *BASIC, "byte skip: -1", data=b"whatever" + raw)
    assert read_image(last, kind="volume").array.ravel().tolist() == list(raw)
    windows = (tmp_path / "w.nrrd", header(*BASIC).replace(b"\n", b"\r\n") + raw)
    windows[0].write_bytes(windows[1])
    assert read_image(windows[0], kind="volume").array.ravel().tolist() == list(raw)
    text = write(tmp_path / "t.nrrd", *BASIC[:3], "encoding: text", data=b"1 " * 24)
    with pytest.raises(ImageError, match="'text' is not read"):
        read_image(text, kind="volume")


def test_byte_orders(tmp_path):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4, order="F") - 12
    for endian in ("little", "big"):
        path = tmp_path / f"{endian}.nrrd"
        stored = values.astype("<i2" if endian == "little" else ">i2")
        lines = ("type: short", *BASIC[1:], f"endian: {endian}")
        write(path, *lines, data=stored.tobytes(order="F"))
        assert np.array_equal(read_image(path, kind="volume").array, values.transpose(2, 1, 0))
        assert np.array_equal(nrrd.read(str(path))[0], values)  # the file is a good one


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (BASIC[:3], "lacks this field"),
        ((*BASIC, "type: short"), "Duplicate"),
        (("type: short", *BASIC[1:]), "byte order"),
        (("type: block", *BASIC[1:]), "not real numbers"),
        ((BASIC[0], "dimension: 2", *BASIC[2:]), "3 sizes for dimension 2"),
        ((*BASIC[:2], "sizes: 2 3 5", BASIC[3]), "30 bytes of voxels, and there are 24"),
        ((*BASIC[:2], "sizes: 2 0 4", BASIC[3]), "empty"),
        ((*BASIC[:2], "sizes: 2 -3 4", BASIC[3]), "empty"),
        ((*BASIC[:2], "sizes: 99999 99999 9", BASIC[3]), "too large"),
        ((*BASIC, "space: LPS", "space directions: (0,0,0) (0,1,0) (0,0,1)"), "no inverse"),
        ((*BASIC, "space: LPS", "space directions: (1,0,0) (0,1,0)"), "space directions"),
        ((*BASIC, "space: LPS", "space directions: 1 0 0"), "broken"),
        ((*BASIC, "nonsense"), "broken"),
        ((*BASIC, "byte skip: -7"), "byte skip"),
        ((*BASIC, "line skip: 9"), "broken"),
    ],
)
def test_headers_that_mean_nothing(tmp_path, lines, message):
    path = write(tmp_path / "x.nrrd", *lines)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path, kind="volume")
    assert caught.value.fault.file == str(path)


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    bomb = gzip.compress(bytes(2**26), 9)
    path = write(tmp_path / "x.nrrd", *BASIC[:3], "encoding: gzip", data=bomb)
    with pytest.raises(ImageError, match="24 bytes of voxels, and there are 25"):
        read_image(path, kind="volume")


def test_integers_that_float32_would_merge(tmp_path):
    data = np.full(24, 2**24 + 1, "<i4").tobytes()
    path = write(tmp_path / "x.nrrd", "type: int", *BASIC[1:], "endian: little", data=data)
    with pytest.raises(ImageError, match="without loss"):
        read_image(path, kind="volume")


def test_a_ct_is_in_hounsfield_units(tmp_path):
    sitk.WriteImage(scan(), tmp_path / "ct.nrrd")
    ref = ImageRef(uri="ct.nrrd", kind="volume", modality="CT")
    assert read_ref(ref, tmp_path).units == "HU"


@pytest.mark.parametrize("compressed", [True, False])
def test_cut_and_altered_files_only_ever_raise_image_errors(tmp_path, compressed, read_or_refuse):
    path = tmp_path / "x.nrrd"
    sitk.WriteImage(scan(), path, useCompression=compressed)
    data = path.read_bytes()
    rng = random.Random(4)
    for cut in {*rng.sample(range(1, len(data)), 60), *range(len(data) - 9, len(data))}:
        path.write_bytes(data[:cut])
        assert read_or_refuse(path, kind="volume") is None
    for _ in range(300):
        altered = bytearray(data)
        for _ in range(rng.choice([1, 4, 16])):
            altered[rng.randrange(min(len(data), 420))] = rng.choice(
                b"0123456789-.(), \n:=naif\xff"
            )
        path.write_bytes(altered)
        read_or_refuse(path, kind="volume")
