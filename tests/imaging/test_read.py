"""What every format shares: hashes, references, and files that are no images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from medloupe.errors import ImageError
from medloupe.imaging.read import read_image, read_ref, sha256_file
from medloupe.imaging.windows import to_display
from medloupe.types import ImageRef


@pytest.fixture
def picture(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "a.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    return path


def test_a_reference_with_its_hash(tmp_path, picture):
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    assert sha256_file(picture) == digest
    ref = ImageRef(uri="images/a.png", sha256=digest, modality="XR")
    image = read_ref(ref, tmp_path)
    assert image.source == ref
    assert np.array_equal(image.array, read_image(picture).array)
    assert read_ref(ImageRef(uri=str(picture), sha256=digest.upper()), Path("elsewhere")).size == (
        8,
        8,
    )


def test_a_changed_file_is_refused(tmp_path, picture):
    ref = ImageRef(uri="images/a.png", sha256=sha256_file(picture))
    Image.new("L", (8, 8)).save(picture)
    with pytest.raises(ImageError, match="SHA-256") as caught:
        read_ref(ref, tmp_path)
    assert caught.value.fault.file == str(picture)
    assert caught.value.fault.field == "sha256"


def test_a_reference_names_frame_and_kind():
    path = get_testdata_file("rtdose.dcm", download=False)
    assert path is not None
    third = read_ref(ImageRef(uri=path, frame=3), Path())
    whole = read_ref(ImageRef(uri=path, kind="volume"), Path())
    assert whole.array.shape[0] == 15
    assert np.array_equal(third.array[0], whole.array[3])


def test_nifti_of_a_ct_is_in_hounsfield_units(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / "ct.nii")
    ref = ImageRef(uri="ct.nii", kind="volume", modality="CT")
    assert read_ref(ref, tmp_path).units == "HU"
    assert read_ref(ref.model_copy(update={"modality": "MR"}), tmp_path).units == "stored"


def test_missing_empty_and_unreadable_files(tmp_path):
    with pytest.raises(ImageError, match=r"missing\.png.*no such image file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="no such image file"):
        sha256_file(tmp_path / "missing.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"empty\.png.*the file is empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match=r"no DICOM image here \(1 other files\)"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "download failed"),
        (b"PK\x03\x04rest", "Unpack it"),
        (b"GIF89a", "Convert it to PNG"),
        (b"hello", "not an image that MedLoupe reads"),
        (b"\0" * 400, "not an image that MedLoupe reads"),
        (b"\x89PNG\r\n\x1a\n", "broken or truncated"),
        (b"\xff\xd8\xff", "broken or truncated"),
        (b"II*\0", "broken or truncated"),
        (b"\0" * 128 + b"DICM", "holds no pixels"),
        (b"\x1f\x8b", "holds no NIfTI image"),
    ],
)
def test_files_that_are_no_images(tmp_path, content, message):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert caught.value.fault.file == str(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_bytes_are_never_an_image(tmp_path):
    rng = np.random.default_rng(5)
    path = tmp_path / "x.dcm"
    for start in (b"", b"\x08\0\x05\0", b"\0" * 128 + b"DICM", b"\x02\0\0\0UL\4\0"):
        for _ in range(40):
            path.write_bytes(start + rng.bytes(int(rng.integers(1, 3000))))
            with pytest.raises(ImageError):
                read_image(path)


def test_a_path_may_be_a_string(picture):
    assert np.array_equal(read_image(str(picture)).array, read_image(picture).array)


def test_values_that_are_none_stay_so_and_are_shown_black(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    values[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "x.nii")
    image = read_image(tmp_path / "x.nii")
    assert int(np.isnan(image.array).sum()) == 1
    shown = to_display(image)
    assert shown[np.isnan(image.array[0])].tolist() == [0]
    assert shown.max() == 255
