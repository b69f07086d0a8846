"""CT values that cannot be HU are refused with an explanation, and all kinds of real CT are not."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from medloupe.errors import ImageError
from medloupe.imaging.hounsfield import check_hounsfield
from medloupe.imaging.read import read_image, read_ref
from medloupe.imaging.windows import PADDING
from medloupe.types import ImageRef, MedicalImage

SIZE = 256


def chest(noise: float = 20.0, *, seed: int = 0) -> np.ndarray:
    """A slice `[256, 256]` of HU: air, a body with fat, muscle, two lungs and a spine."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    hu = np.full((SIZE, SIZE), -1000.0)
    hu[(x / 0.85) ** 2 + (y / 0.7) ** 2 < 1] = -100
    hu[(x / 0.75) ** 2 + (y / 0.6) ** 2 < 1] = 45
    for side in (-0.38, 0.38):
        hu[((x - side) / 0.27) ** 2 + (y / 0.42) ** 2 < 1] = -850
    hu[(x / 0.1) ** 2 + ((y - 0.45) / 0.1) ** 2 < 1] = 600
    return hu + np.random.default_rng(seed).normal(0, noise, hu.shape)


def head(noise: float = 5.0) -> np.ndarray:
    """A slice of a head that fills most of the picture: scalp, skull, brain."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    radius = np.hypot(x, y)
    hu = np.full((SIZE, SIZE), -1000.0)
    for outer, value in ((0.95, -90), (0.88, 1100), (0.8, 30), (0.15, 5)):
        hu[radius < outer] = value
    return hu + np.random.default_rng(1).normal(0, noise, hu.shape)


def finger() -> np.ndarray:
    """Hardly any tissue, in noisy air."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    noise = np.random.default_rng(5).normal(0, 20, (SIZE, SIZE))
    return np.where(np.hypot(x, y) < 0.2, 40, -1000) + noise


def check(hu: np.ndarray, **fields: object) -> None:
    array = np.asarray(hu, np.float32)
    array = array[None] if array.ndim == 2 else array
    check_hounsfield(MedicalImage(array=array, units="HU", **fields), "ct.nii")  # type: ignore[arg-type]


def disc_padding(hu: np.ndarray, value: float) -> np.ndarray:
    """Padding outside the circle that the scanner reconstructs."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    return np.where(np.hypot(x, y) > 1, value, hu)


def smoothed(hu: np.ndarray) -> np.ndarray:
    """Resampled by half a pixel: padding is smeared into its neighbours."""
    return (hu + np.roll(hu, 1, 0) + np.roll(hu, 1, 1) + np.roll(hu, 1, (0, 1))) / 4


ANATOMY = {"chest": chest(), "head": head()}
SOUND = {
    "chest": chest(),
    "head": head(),
    "volume": np.stack([chest(seed=k) for k in range(3)]),
    "noisy": chest(150),
    "clipped at -1024": np.maximum(chest(60), -1024),
    "padding -2000": disc_padding(chest(), -2000),
    "padding -2048": disc_padding(chest(), -2048),
    "padding -3024": disc_padding(head(), -3024),
    "padding -3024, resampled": smoothed(disc_padding(chest(), -3024)),
    "padding -8192": disc_padding(chest(), -8192),
    "metal": np.where(np.hypot(*np.mgrid[-9:9:256j, -9:9:256j]) < 1, 3071, chest()),
    "lung crop": chest(60)[90:170, 45:110],
    "a noisy lung alone": np.random.default_rng(2).normal(-870, 150, (96, 96)),
    "fat and muscle": np.random.default_rng(3).normal(-20, 60, (96, 96)),
    "brain window": np.clip(head(), 0, 80),
    "brain without air": head()[90:170, 90:170],
    "bone window": np.clip(head(), 0, 1300)[20:100, 90:170],
    "contrast": np.where(chest() > 0, chest() + 250, chest()),
    "air alone": np.random.default_rng(4).normal(-1000, 30, (96, 96)),
    "a finger in much air": finger(),
    "a finger, padding -2000": disc_padding(finger(), -2000),
    "a finger, padding -3024, resampled twice": smoothed(smoothed(disc_padding(finger(), -3024))),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_ct_passes(name):
    check(SOUND[name])


@pytest.mark.parametrize("name", ANATOMY)
@pytest.mark.parametrize("intercept", [-1024, -1000, -8192])
def test_a_ct_rescaled_twice_is_refused(name, intercept):
    with pytest.raises(ImageError, match=r"rescaled twice.*Rescale Intercept") as caught:
        check(ANATOMY[name] + intercept)
    assert caught.value.fault.file == "ct.nii"
    assert caught.value.fault.field == "units"


@pytest.mark.parametrize("padding", [-2000, -3024])
def test_padding_does_not_hide_a_second_rescale(padding):
    with pytest.raises(ImageError, match="rescaled twice"):
        check(disc_padding(chest(), padding) - 1024)
    with pytest.raises(ImageError, match="rescaled twice"):
        check(disc_padding(chest() - 1024, padding), attributes={PADDING: f"{padding} {padding}"})


def test_air_clipped_before_the_second_rescale_does_not_hide_it():
    with pytest.raises(ImageError, match="rescaled twice"):
        check(np.maximum(chest(60), -1024) - 1024)


@pytest.mark.parametrize("name", ANATOMY)
def test_a_ct_never_rescaled_is_refused(name):
    stored = np.maximum(ANATOMY[name] + 1024, 0)
    if name == "head":  # half of it is a thick skull, which hides it
        stored = stored[60:200, 60:200]
    with pytest.raises(ImageError, match=r"never to have been rescaled.*subtract 1024"):
        check(stored)


def test_what_is_not_in_hu_or_too_small_is_not_judged():
    twice = (chest() - 1024).astype(np.float32)[None]
    check_hounsfield(MedicalImage(array=twice, units="stored"), "x")
    check(twice, attributes={"localizer": "true"})
    check(twice[:, :60, :60])


@pytest.fixture
def twice_rescaled(tmp_path: Path) -> Path:
    """A real CT whose stored pixels are HU already, with the intercept left in."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.PixelData = (dataset.pixel_array - 1024).astype("<i2").tobytes()
    dataset.save_as(tmp_path / "twice.dcm")
    return tmp_path / "twice.dcm"


def test_a_dicom_file_is_checked_when_read(twice_rescaled):
    with pytest.raises(ImageError, match="rescaled twice") as caught:
        read_image(twice_rescaled)
    assert caught.value.fault.file == str(twice_rescaled)
    with pytest.raises(ImageError, match="rescaled twice"):
        read_ref(ImageRef(uri=twice_rescaled.name), twice_rescaled.parent)
    assert read_image(twice_rescaled, check_units=False).array.min() == -896 - 1024


def test_a_dicom_file_without_its_intercept(tmp_path):
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.RescaleIntercept = 0
    dataset.save_as(tmp_path / "never.dcm")
    with pytest.raises(ImageError, match="never to have been rescaled"):
        read_image(tmp_path / "never.dcm")


def test_nifti_is_checked_where_the_row_says_ct(tmp_path):
    volume = np.stack([chest(seed=k) for k in range(2)], axis=2) - 1024
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.int16), np.eye(4)), tmp_path / "v.nii.gz")
    ct = ImageRef(uri="v.nii.gz", kind="volume", modality="CT")
    with pytest.raises(ImageError, match="rescaled twice"):
        read_ref(ct, tmp_path)
    assert read_ref(ct.model_copy(update={"modality": "MR"}), tmp_path).units == "stored"


def test_real_ct_volumes_pass_and_their_faulty_copies_do_not(shared_data):
    volumes = sorted((shared_data / "radiomics_ct_mr" / "volumes").glob("lung?.nii.gz"))
    assert len(volumes) == 2
    for path in volumes:
        hu = read_ref(ImageRef(uri=str(path), kind="volume", modality="CT"), Path()).array
        with pytest.raises(ImageError, match="rescaled twice"):
            check(hu - 1024)
        with pytest.raises(ImageError, match="never"):
            check(hu + 1024)
        rng = np.random.default_rng(0)
        for _ in range(50):  # crops of 64 x 64
            k, i, j = (
                int(rng.integers(0, n - s)) for n, s in zip(hu.shape, (1, 64, 64), strict=True)
            )
            check(hu[k : k + 1, i : i + 64, j : j + 64])
