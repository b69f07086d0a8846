"""NPY and its sidecar: never unpickled, never copied without need, never guessed."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medloupe.errors import ImageError
from medloupe.imaging.read import read_image, read_ref, sha256_file
from medloupe.imaging.transforms import ImageTransform, Window
from medloupe.types import ImageRef

VOLUME = np.random.default_rng(2).normal(size=(5, 9, 7)).astype(np.float32)


def save(path: Path, array: np.ndarray, **sidecar: object) -> Path:
    np.save(path, array)
    if sidecar:
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


def test_a_volume_without_a_sidecar(tmp_path):
    image = read_image(save(tmp_path / "v.npy", VOLUME), kind="volume")
    assert np.array_equal(image.array, VOLUME)
    assert (image.units, image.affine, image.spacing, image.window) == ("stored", None, None, None)
    assert image.attributes == {"format": "NPY", "orientation": "unknown"}
    with pytest.raises(ImageError, match=r"5 slices.*kind='volume'"):
        read_image(tmp_path / "v.npy")
    assert np.array_equal(read_image(tmp_path / "v.npy", frame=2).array[0], VOLUME[2])


def test_float32_is_a_view_of_the_file(tmp_path):
    image = read_image(save(tmp_path / "v.npy", VOLUME), kind="volume")
    assert not image.array.flags.owndata
    assert not image.array.flags.writeable
    assert ImageTransform(size=8).apply(image).shape == (3, 8, 8)


def test_what_the_sidecar_says(tmp_path):
    path = save(
        tmp_path / "v.npy", VOLUME, units="HU", modality="CT", spacing=[4, 3, 2], window=[40, 80]
    )
    image = read_image(path, kind="volume")
    assert (image.units, image.spacing, image.window) == ("HU", (4.0, 3.0, 2.0), (40.0, 80.0))
    assert image.source is not None
    assert image.source.modality == "CT"
    ImageTransform(size=8, window=Window(mode="lung")).apply(image)


@pytest.mark.parametrize(
    ("sidecar", "modality", "units"),
    [
        ({}, None, "stored"),
        ({}, "CT", "HU"),
        ({"modality": "CT"}, None, "HU"),
        ({"units": "stored"}, "CT", "stored"),
        ({"modality": "MR"}, "MR", "stored"),
    ],
)
def test_when_the_numbers_are_hounsfield_units(tmp_path, sidecar, modality, units):
    save(tmp_path / "v.npy", VOLUME, **sidecar)
    ref = ImageRef(uri="v.npy", kind="volume", modality=modality)
    assert read_ref(ref, tmp_path).units == units


def test_an_array_from_nibabel_is_what_its_file_is(tmp_path):
    affine = np.array([[-2, 0, 0.3, 6], [0, 3, 0, -12], [0.2, 0, 4, -8], [0, 0, 0, 1]], float)
    stored = nibabel.Nifti1Image(VOLUME.transpose(2, 1, 0), affine)
    nibabel.save(stored, tmp_path / "v.nii")
    save(tmp_path / "v.npy", VOLUME.transpose(2, 1, 0), axes="WHD", affine=affine.tolist())
    one = read_image(tmp_path / "v.npy", kind="volume")
    two = read_image(tmp_path / "v.nii", kind="volume")
    assert np.array_equal(one.array, two.array)
    assert np.allclose(one.affine, two.affine, atol=1e-6)
    assert one.spacing == pytest.approx(two.spacing)
    third = read_image(tmp_path / "v.npy", frame=3)
    assert third.affine is not None
    assert two.affine is not None
    assert np.allclose(third.affine @ [1, 1, 0, 1], two.affine @ [1, 1, 3, 1])


@pytest.mark.parametrize(
    ("axes", "order"), [("DHW", (0, 1, 2)), ("HWD", (1, 2, 0)), ("WHD", (2, 1, 0))]
)
def test_axes(tmp_path, axes, order):
    path = save(tmp_path / "v.npy", VOLUME.transpose(order), axes=axes, spacing=[4, 3, 2])
    image = read_image(path, kind="volume")
    assert np.array_equal(image.array, VOLUME)
    assert image.spacing == (4.0, 3.0, 2.0)


@pytest.mark.parametrize("dtype", ["?", "u1", "<i2", ">u2", "<i4", ">f4", "<f8", "<f2"])
def test_number_types_and_planes(tmp_path, dtype):
    values = (np.arange(6) % 2 if dtype == "?" else np.arange(6) * 20).reshape(2, 3)
    image = read_image(save(tmp_path / "p.npy", values.astype(dtype)))
    assert image.array.dtype == np.float32
    assert image.array.tolist() == [values.tolist()]
    assert image.window == ((128.0, 256.0) if dtype == "u1" else None)


def test_columns_first_and_leading_ones(tmp_path):
    fortran = save(tmp_path / "f.npy", np.asfortranarray(VOLUME))
    assert np.array_equal(read_image(fortran, kind="volume").array, VOLUME)
    m3d = save(tmp_path / "m.npy", VOLUME[None])
    assert np.array_equal(read_image(m3d, kind="volume").array, VOLUME)


def test_colour(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    image = read_image(save(tmp_path / "c.npy", array))
    assert image.units == "rgb"
    assert np.array_equal(image.array, array)
    thin = read_image(save(tmp_path / "t.npy", array, units="stored"), kind="volume")
    assert thin.array.shape == (4, 5, 3)
    with pytest.raises(ImageError, match="colour must be"):
        read_image(save(tmp_path / "d.npy", array.astype(np.uint16), units="rgb"))


class Trap:
    """Unpickling this leaves a mark."""

    fired = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (setattr, (Trap, "fired", True))


def test_objects_are_refused_and_not_unpickled(tmp_path):
    np.save(tmp_path / "o.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match="pickle"):
        read_image(tmp_path / "o.npy")
    assert not Trap.fired
    (tmp_path / "bare.npy").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ImageError, match="not an image"):
        read_image(tmp_path / "bare.npy")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2), np.complex64), "complex64 are not read"),
        (np.zeros((2, 2), "U3"), "are not read"),
        (np.zeros((2, 2), [("r", "u1"), ("g", "u1")]), "are not read"),
        (np.zeros((2, 3, 4, 5), np.float32), "neither a plane nor a volume"),
        (np.zeros(3, np.float32), "neither a plane nor a volume"),
        (np.float32(1), "neither a plane nor a volume"),
        (np.zeros((0, 3), np.float32), "empty"),
        (np.full((2, 2), 2**24 + 1), "without loss"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, message):
    path = save(tmp_path / "x.npy", array)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path, kind="volume")
    assert caught.value.fault.file == str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"spacin": [1, 1, 1]}', "did you mean 'spacing'"),
        ('{"labels": ["nodule"]}', "rename it"),
        ('{"spacing": [0, 1, 1]}', "positive"),
        ('{"spacing": [1, 1]}', "spacing"),
        ('{"affine": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2]]}', "last row"),
        ('{"units": "hu"}', "units"),
        ('{"window": [40, 0]}', "window width"),
        ("[1, 2]", "x.json"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_wrong_sidecars_are_named(tmp_path, text, message):
    save(tmp_path / "x.npy", VOLUME)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(tmp_path / "x.npy", kind="volume")
    assert caught.value.fault.file == str(tmp_path / "x.json")


@pytest.mark.parametrize("change", [lambda data: data + b"\0\0", lambda data: data[:-1]])
def test_a_file_that_is_longer_or_shorter_than_it_says(tmp_path, change):
    path = save(tmp_path / "x.npy", VOLUME)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ImageError, match="1260 bytes of numbers"):
        read_image(path, kind="volume")


def test_an_affine_without_inverse(tmp_path):
    flat = [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    with pytest.raises(ImageError, match="no inverse"):
        read_image(save(tmp_path / "x.npy", VOLUME, affine=flat), kind="volume")


def test_a_changed_file_is_refused(tmp_path):
    save(tmp_path / "x.npy", VOLUME)
    ref = ImageRef(uri="x.npy", kind="volume", sha256=sha256_file(tmp_path / "x.npy"))
    assert np.array_equal(read_ref(ref, tmp_path).array, VOLUME)
    save(tmp_path / "x.npy", VOLUME + 1)
    with pytest.raises(ImageError, match="SHA-256"):
        read_ref(ref, tmp_path)


def test_cut_and_altered_files_only_ever_raise_image_errors(tmp_path, read_or_refuse):
    path = save(tmp_path / "x.npy", VOLUME.astype(np.int16))
    data = path.read_bytes()
    rng = random.Random(3)
    for cut in rng.sample(range(1, len(data)), 80):
        path.write_bytes(data[:cut])
        assert read_or_refuse(path, kind="volume") is None
    for _ in range(400):
        altered = bytearray(data)
        for _ in range(rng.choice([1, 3, 9])):
            altered[rng.randrange(128)] = rng.randrange(256)
        path.write_bytes(altered)
        read_or_refuse(path, kind="volume")
