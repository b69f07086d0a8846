"""The view a model sees: where things land, what it costs in bits, and that it is one value."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medloupe.config import ConfigError
from medloupe.imaging.transforms import Geometry, ImageTransform, Window
from medloupe.imaging.views import ViewTransform
from medloupe.types import MedicalImage

SIDE = st.integers(1, 3000)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # display values divided by 255


def picture(array: np.ndarray) -> MedicalImage:
    """A grey picture of 8-bit values `[H, W]`."""
    return MedicalImage(array=array.astype(np.float32)[None], units="stored", window=(128.0, 256.0))


def test_a_picture_of_the_right_size_is_only_normalised():
    values = np.arange(16).reshape(4, 4) * 17
    transform = ImageTransform(size=4, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    view = transform.apply(picture(values))
    assert view.shape == (3, 4, 4)
    assert view.dtype == np.float32
    for channel, (mean, std) in enumerate(zip(transform.mean, transform.std, strict=True)):
        assert np.allclose(view[channel], (values / 255 - mean) / std, atol=1e-6)


def test_colour_channels_keep_their_order():
    array = np.zeros((4, 4, 3), np.uint8)
    array[..., 0], array[..., 2] = 255, 51
    view = ImageTransform(size=8, **PLAIN).apply(MedicalImage(array=array, units="rgb"))
    assert np.allclose(view[:, 3, 3], [1, 0, 0.2])


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize(("width", "height"), [(90, 60), (60, 90), (300, 200), (31, 77)])
def test_a_blob_lands_where_the_geometry_says(fit, width, height):
    """The centre of mass of a bright disc in the view is the mapped centre of the disc."""
    centre = np.array([width * 0.55, height * 0.45])
    y, x = np.mgrid[:height, :width] + 0.5
    radius = min(width, height) / 6
    disc = 255 * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2)
    transform = ImageTransform(size=112, fit=fit, interpolation="bilinear", **PLAIN)
    view = transform.apply(picture(disc))[0]
    rows, columns = np.mgrid[:112, :112] + 0.5
    found = np.array([(columns * view).sum(), (rows * view).sum()]) / view.sum()
    y0, x0 = np.argwhere(disc > 0).mean(axis=0) + 0.5  # the disc as it was drawn
    expected = transform.geometry(width, height).forward([[x0, y0]])[0]
    assert np.allclose(found, expected, atol=0.15)


def test_shrinking_averages_what_a_pixel_covers():
    board = (np.indices((64, 64)).sum(axis=0) % 2) * 255  # checkerboard: mean 127.5
    view = ImageTransform(size=8, **PLAIN).apply(picture(board))
    assert np.allclose(view, 0.5, atol=0.01)


def test_overshoot_is_clipped():
    edge = np.zeros((16, 16))
    edge[:, 8:] = 255
    view = ImageTransform(size=64, **PLAIN).apply(picture(edge))
    assert view.min() == 0
    assert view.max() == 1


def test_padding_is_the_windows_black_or_the_mean():
    values = np.full((10, 20), 255)
    black = ImageTransform(size=20, **PLAIN).apply(picture(values))
    assert black[0, 0, 0] == 0
    assert black[0, 10, 10] == 1
    grey = ImageTransform(size=20, padding="mean").apply(picture(values))
    assert np.allclose(grey[:, 0, 0], 0, atol=1e-6)


def test_three_windows_are_three_channels_of_the_view():
    array = np.array([[[-1000, -100], [0, 1000]]], dtype=np.float32)
    image = MedicalImage(array=array, units="HU")
    window = {"mode": "rgb", "channels": ["lung", "mediastinum", "bone"]}
    view = ImageTransform(size=2, window=window, **PLAIN).apply(image)
    for channel, name in enumerate(window["channels"]):
        alone = ImageTransform(size=2, window=name, **PLAIN).apply(image)
        assert np.array_equal(view[channel], alone[0])
    assert not np.array_equal(view[0], view[1])


@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(["pad", "crop", "stretch"]))
def test_a_view_that_is_not_square(width, height, columns, rows, fit):
    geometry = ImageTransform(fit=fit).geometry(width, height, view=(columns, rows))
    assert geometry.view == (columns, rows)
    corners = geometry.forward([[0, 0], [width, height]])
    if fit == "pad":  # all of the image lies in the view, and fills it along one axis
        assert corners.min() >= -1e-9
        assert (corners[1] <= np.array([columns, rows]) + 1e-9).all()
        assert np.isclose(corners[1] - corners[0], (columns, rows)).any()
    elif fit == "crop":  # all of the view lies in the image
        seen = geometry.back([[0, 0], [columns, rows]])
        assert seen.min() >= -1e-6
        assert (seen[1] <= np.array([width, height]) + 1e-6).all()
        assert geometry.scale[0] == pytest.approx(geometry.scale[1], rel=1e-9)
    else:
        assert np.allclose(corners, [[0, 0], [columns, rows]])
    image = picture(np.full((min(height, 40), min(width, 40)), 200))
    view = ImageTransform(fit=fit, **PLAIN).apply(image, view=(columns % 50 + 1, rows % 50 + 1))
    assert view.shape == (3, rows % 50 + 1, columns % 50 + 1)
    assert np.isclose(view.max(), 200 / 255, atol=1e-5)


def test_what_was_saved_before_is_the_same_value():
    """Fields that came later are left out of the saved form while they are not used, and a form saved
    before transforms had names is an image's."""
    assert ImageTransform().fingerprint() == "ae5360e69a496cd5"
    nameless = {key: value for key, value in ImageTransform().to_dict().items() if key != "name"}
    assert ViewTransform.parse(nameless) == ImageTransform()


def test_sixteen_bits_are_windowed_before_they_are_rounded():
    """Neighbouring 16-bit values stay different in the view."""
    array = np.arange(256, dtype=np.float32).reshape(1, 16, 16) + 30000
    image = MedicalImage(array=array, units="stored")
    view = ImageTransform(size=16, window=Window(mode="custom", centre=32768, width=65536), **PLAIN)
    assert len(np.unique(view.apply(image)[0])) == 256


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(1, 1), (1, 5000), (5000, 1), (2, 3000), (1, 2), (224, 1)]),
    st.sampled_from(["pad", "crop", "stretch"]),
    st.sampled_from([1, 2, 224]),
)
def test_one_pixel_and_extreme_aspects(size, fit, side):
    width, height = size
    transform = ImageTransform(size=side, fit=fit, **PLAIN)
    view = transform.apply(picture(np.full((height, width), 200)))
    assert view.shape == (3, side, side)
    assert np.isclose(view.max(), 200 / 255, atol=1e-5)
    geometry = transform.geometry(width, height)
    assert isinstance(geometry, Geometry)
    assert np.allclose(geometry.back(geometry.forward([[0.5, 0.5]])), [[0.5, 0.5]])


def test_a_transform_is_a_value():
    transform = ImageTransform(size=384, window=Window(mode="lung"))
    assert ImageTransform.parse(transform.to_dict()) == transform
    assert ImageTransform.parse(transform.to_dict()).fingerprint() == transform.fingerprint()
    changed = {transform.fingerprint()} | {
        transform.model_copy(update=change).fingerprint()
        for change in ({"size": 385}, {"fit": "crop"}, {"window": Window()}, {"padding": "mean"})
    }
    assert len(changed) == 5


def test_a_standard_deviation_of_zero_is_refused():
    with pytest.raises(ConfigError, match="std"):
        ImageTransform(size=8).with_overrides(["std=[1, 0, 1]"])


def test_a_saved_transform_of_another_version_is_refused():
    with pytest.raises(ConfigError, match="version"):
        ImageTransform.parse({"version": 2})


def test_importing_the_transforms_loads_no_medical_reader():
    code = (
        "import sys, medloupe.imaging.transforms, medloupe.imaging.read;"
        "print([m for m in ('pydicom', 'nibabel', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
