"""NIfTI: whatever order the file stores, the patient's left is the patient's left."""

from __future__ import annotations

import gzip
import random
import struct
from itertools import permutations, product
from pathlib import Path

import nibabel
import nilearn
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from medloupe.errors import ImageError
from medloupe.imaging.read import read_image
from medloupe.types import MedicalImage

# The volume in RAS order [x, y, z]; voxels of 2 x 3 x 4 mm; world origin at voxel (3, 4, 2).
SHAPE = (7, 9, 5)
AFFINE = np.array([[2, 0, 0, -6], [0, 3, 0, -12], [0, 0, 4, -8], [0, 0, 0, 1]], float)
LEFT = (1, 6, 3)  # x = -4 mm: on the patient's left, y = 6 mm: in front, z = 4 mm: up
ORDERS = ["".join(sides) for axes in permutations(["LR", "PA", "IS"]) for sides in product(*axes)]


def ras_volume() -> np.ndarray:
    values = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    values[LEFT] = 1000
    return values


def save(path: Path, codes: str, kind: type = nibabel.Nifti1Image) -> Path:
    """The same patient, stored in the order that `codes` says."""
    image = nibabel.Nifti1Image(ras_volume(), AFFINE)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(codes)))
    turned = image.as_reoriented(turn)
    assert "".join(nibabel.aff2axcodes(turned.affine)) == codes
    nibabel.save(kind(np.asarray(turned.dataobj), turned.affine), path)
    return path


def marker(image: MedicalImage) -> tuple[int, int, int]:
    k, j, i = np.argwhere(image.array == 1000)[0].tolist()
    return i, j, k


@pytest.mark.parametrize("codes", ORDERS)
def test_every_stored_order_gives_the_same_volume(tmp_path, codes):
    image = read_image(save(tmp_path / "x.nii", codes), kind="volume")
    # [S, P, L]: superior slices last, anterior rows first, the patient's right first
    assert np.array_equal(image.array, ras_volume()[::-1, ::-1, :].transpose(2, 1, 0))
    assert marker(image) == (SHAPE[0] - 1 - 1, SHAPE[1] - 1 - 6, 3)
    assert image.affine is not None
    world = image.affine @ (*marker(image), 1)
    assert world.tolist() == [-4, 6, 4, 1]  # negative x is left in RAS+
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.spacing == (4.0, 3.0, 2.0)


def test_the_marker_is_right_of_the_middle_as_radiologists_look(tmp_path):
    image = read_image(save(tmp_path / "x.nii.gz", "LAS"), kind="volume")
    column, row, _ = marker(image)
    assert column > image.array.shape[2] / 2
    assert row < image.array.shape[1] / 2


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_both_versions_packed_or_not_and_under_any_name(tmp_path, name, kind):
    path = save(tmp_path / name, "LPI", kind).rename(tmp_path / "scan.bin")
    assert read_image(path, kind="volume").array.shape == SHAPE[::-1]


def test_a_slice(tmp_path):
    path = save(tmp_path / "x.nii", "PIR")
    with pytest.raises(ImageError, match=r"5 slices.*kind='volume'"):
        read_image(path)
    image = read_image(path, frame=3)
    assert image.array.shape == (1, 9, 7)
    assert image.affine is not None
    assert (image.affine @ (*marker(image), 1)).tolist() == [-4, 6, 4, 1]
    with pytest.raises(ImageError, match="no frame 5"):
        read_image(path, frame=5)


def test_an_oblique_affine_stays_oblique(tmp_path):
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    nibabel.save(nibabel.Nifti1Image(ras_volume(), turn @ AFFINE), tmp_path / "x.nii")
    image = read_image(tmp_path / "x.nii", kind="volume")
    assert image.affine is not None
    expected = turn @ AFFINE @ (*LEFT, 1)
    assert np.allclose(image.affine @ (*marker(image), 1), expected, atol=1e-4)
    assert np.allclose(image.spacing, (4, 3, 2))


@pytest.mark.parametrize(
    ("axis", "codes"), [(0, ("P", "I", "L")), (1, ("L", "I", "P")), (2, ("L", "P", "S"))]
)
def test_a_single_plane_is_one_slice(tmp_path, axis, codes):
    plane = np.take(ras_volume(), [LEFT[axis]], axis=axis)
    shift = np.zeros(3)
    shift[axis] = LEFT[axis]
    affine = AFFINE.copy()
    affine[:3, 3] += AFFINE[:3, :3] @ shift
    nibabel.save(nibabel.Nifti1Image(plane, affine), tmp_path / "x.nii")
    image = read_image(tmp_path / "x.nii")
    assert image.array.shape[0] == 1
    assert image.affine is not None
    assert nibabel.aff2axcodes(image.affine) == codes
    assert (image.affine @ (*marker(image), 1)).tolist() == [-4, 6, 4, 1]


def test_scaled_integers(tmp_path):
    # stored as LPS, so that the order stays; the header says value = 0.5 * stored - 10
    stored = np.array([0, 100, 200, -100], np.int16).reshape(4, 1, 1)
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([-1, -1, 1, 1])), tmp_path / "x.nii")
    data = bytearray((tmp_path / "x.nii").read_bytes())
    data[112:120] = struct.pack("<2f", 0.5, -10)  # scl_slope, scl_inter
    (tmp_path / "x.nii").write_bytes(data)
    found = read_image(tmp_path / "x.nii", kind="volume").array
    assert found.tolist() == [[[-10, 40, 90, -60]]]


def test_a_file_that_does_not_know_its_sides(tmp_path):
    image = nibabel.Nifti1Image(ras_volume(), None)
    image.header["qform_code"] = image.header["sform_code"] = 0
    nibabel.save(image, tmp_path / "x.nii")
    read = read_image(tmp_path / "x.nii", kind="volume")
    assert read.affine is None
    assert read.attributes["orientation"] == "unknown"
    assert np.array_equal(read.array, ras_volume().transpose(2, 1, 0))


def test_time_points(tmp_path):
    series = np.stack([ras_volume() + t for t in range(3)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(series, AFFINE), tmp_path / "x.nii")
    with pytest.raises(ImageError, match=r"3 volumes \(time points\)"):
        read_image(tmp_path / "x.nii", kind="volume")
    second = read_image(tmp_path / "x.nii", kind="volume", frame=1)
    assert second.array.max() == 1001
    assert second.array.shape == SHAPE[::-1]


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_voxels_that_are_not_numbers(tmp_path, dtype):
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), dtype), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(ImageError, match="not real numbers"):
        read_image(tmp_path / "x.nii", kind="volume")


def test_a_pair_of_header_and_pixels(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(ras_volume(), AFFINE), tmp_path / "x.hdr")
    with pytest.raises(ImageError, match=r"\.hdr and \.img"):
        read_image(tmp_path / "x.hdr", kind="volume")


def test_an_affine_without_inverse(tmp_path):
    image = nibabel.Nifti1Image(ras_volume(), AFFINE)
    nibabel.save(image, tmp_path / "x.nii")
    data = bytearray((tmp_path / "x.nii").read_bytes())
    data[280:296] = bytes(16)  # srow_x
    (tmp_path / "x.nii").write_bytes(data)
    with pytest.raises(ImageError, match="no inverse"):
        read_image(tmp_path / "x.nii", kind="volume")


def test_a_header_that_claims_too_much(tmp_path):
    save(tmp_path / "x.nii", "RAS")
    data = bytearray((tmp_path / "x.nii").read_bytes())
    for dim in (42, 44, 46):
        data[dim : dim + 2] = (32000).to_bytes(2, "little")
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(data))
    with pytest.raises(ImageError, match="too large"):
        read_image(tmp_path / "x.nii.gz", kind="volume")


def test_gzip_of_something_else(tmp_path):
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(b"a,b,c\n" * 400))
    with pytest.raises(ImageError, match="holds no NIfTI"):
        read_image(tmp_path / "x.nii.gz", kind="volume")


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_cut_and_altered_files_only_ever_raise_image_errors(tmp_path, name, read_or_refuse):
    path = save(tmp_path / name, "LPS")
    data, whole = path.read_bytes(), read_image(path, kind="volume").array
    rng = random.Random(name)
    for cut in {*rng.sample(range(1, len(data)), 60), *range(len(data) - 12, len(data))}:
        path.write_bytes(data[:cut])
        assert read_or_refuse(path, kind="volume") is None
    path.write_bytes(data)
    assert np.array_equal(read_image(path, kind="volume").array, whole)
    for _ in range(150):
        altered = bytearray(data)
        for _ in range(rng.choice([1, 4, 16])):
            altered[rng.randrange(min(len(data), 360))] = rng.randrange(256)
        path.write_bytes(altered)
        read_or_refuse(path, kind="volume")


def test_the_mni_template():
    """A real brain: nilearn's MNI152 T1, of which the left is where the affine says."""
    folder = Path(nilearn.__file__).parent / "datasets" / "data"
    path = next(folder.glob("mni_icbm152_t1*.nii.gz"))
    image = read_image(path, kind="volume")
    stored = nibabel.load(path)
    assert image.affine is not None
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    rng = np.random.default_rng(3)
    values = stored.get_fdata(dtype=np.float32)
    back = np.linalg.inv(stored.affine)
    for k, j, i in rng.integers(0, image.array.shape, (200, 3)):
        x, y, z = np.rint((back @ image.affine @ (i, j, k, 1))[:3]).astype(int)
        assert image.array[k, j, i] == values[x, y, z]
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt("LPS"))
    assert np.allclose(image.affine, stored.affine @ inv_ornt_aff(turn, stored.shape))


@pytest.mark.parametrize(
    ("sides", "expected"), [((2, 3, 4), (4, 3, 2)), ((2, 3, 0), None), ((0, 0, 0), None)]
)
def test_without_affine_spacing_is_what_the_header_says_or_unknown(tmp_path, sides, expected):
    picture = nibabel.Nifti1Image(ras_volume(), None)
    picture.header.set_qform(None, code=0)
    picture.header.set_sform(None, code=0)
    picture.header["pixdim"][1:4] = sides
    path = tmp_path / "x.nii"
    path.write_bytes(picture.to_bytes())
    image = read_image(path, kind="volume")
    assert image.affine is None
    assert image.spacing == expected
