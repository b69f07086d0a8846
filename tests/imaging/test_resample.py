"""Resampling: values against scipy, edges and centres by hand, and boxes that stay on their voxels."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import aff2axcodes
from scipy import ndimage

from medloupe.errors import ConfigError, ImageError
from medloupe.imaging.resample import Resampling, match, reorient, reorient_geometry, resample
from medloupe.types import Box, MedicalImage

ORDERS = ["".join(sides) for axes in permutations(["LR", "PA", "IS"]) for sides in product(*axes)]
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -3, 0, 40], [0, 0, 4, -20], [0, 0, 0, 1]])  # LPS
FIELDS = {"x1": 0.0, "y1": 0.0, "x2": 0.0, "y2": 0.0, "z1": 0.0, "z2": 0.0}


def volume(shape: tuple[int, int, int] = (5, 9, 7), seed: int = 1) -> MedicalImage:
    """Random values, voxels of 2 x 3 x 4 mm (column, row, slice)."""
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return MedicalImage(array=array, units="stored", affine=AFFINE, spacing=(4.0, 3.0, 2.0))


def scipy_at(array: np.ndarray, size: tuple[int, ...], order: int) -> np.ndarray:
    """scipy's values at the centres of `size` voxels that share the outer edges of `array`."""
    axes = [
        (np.arange(new) + 0.5) * old / new - 0.5 for new, old in zip(size, array.shape, strict=True)
    ]
    places = np.stack(np.meshgrid(*axes, indexing="ij"))
    return ndimage.map_coordinates(array, places, order=order, mode="nearest")


@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("nearest", 0)])
@pytest.mark.parametrize("size", [(5, 9, 7), (10, 18, 14), (8, 11, 9), (1, 9, 7), (3, 4, 21)])
def test_values_are_those_of_scipy(size, interpolation, order):
    image = volume()
    found = resample(image, size=size, interpolation=interpolation, smooth=False).array
    expected = scipy_at(image.array.astype(np.float64), size, order)
    if interpolation == "nearest":  # exact halves may go either way
        ties = np.zeros(size, bool)
        for axis, (new, old) in enumerate(zip(size, image.array.shape, strict=True)):
            place = (np.arange(new) + 0.5) * old / new - 0.5
            tie = np.isclose(place % 1, 0.5)
            ties |= tie.reshape([-1 if a == axis else 1 for a in range(3)])
        assert np.array_equal(found[~ties], expected[~ties])
    else:
        assert np.allclose(found, expected, atol=1e-5)


def test_one_axis_by_hand():
    # 4 columns of 1 mm into 2 of 2 mm: centres at 0.5 and 2.5, halfway between two voxels
    image = MedicalImage(
        array=np.array([[[0.0, 10.0, 20.0, 40.0]]], np.float32),
        units="stored",
        affine=np.eye(4),
        spacing=(1.0, 1.0, 1.0),
    )
    half = resample(image, size=(1, 1, 2), smooth=False)
    assert half.array.tolist() == [[[5.0, 30.0]]]
    assert half.spacing == (1.0, 1.0, 2.0)
    assert half.affine is not None
    assert half.affine[:3, 3].tolist() == [0.5, 0, 0]  # the centre of the first new voxel
    # and back into 8 of 0.5 mm: the first centre is a quarter voxel before the first old one
    finer = resample(image, spacing=(1.0, 1.0, 0.5))
    assert finer.array[0, 0].tolist() == [0, 2.5, 7.5, 12.5, 17.5, 25, 35, 40]
    assert finer.affine is not None
    assert finer.affine[0, 3] == -0.25


def test_spacing_is_kept_exactly_and_the_rest_is_shared():
    # 5 slices of 4 mm = 20 mm in slices of 3 mm: 7 (21 mm), half a millimetre over at each end
    image = volume()
    finer = resample(image, spacing=(3.0, 3.0, 2.0))
    assert finer.array.shape == (7, 9, 7)
    assert finer.spacing == pytest.approx((3.0, 3.0, 2.0))
    assert finer.affine is not None
    low_edge = AFFINE[2, 3] - 2.0
    assert finer.affine[2, 3] - 1.5 == pytest.approx(low_edge - 0.5)
    box = (
        Resampling(spacing=(3, 3, 2))
        .geometry(image)
        .forward_box(Box(label="", x1=0, y1=0, x2=7, y2=9, z1=0, z2=5))
    )
    assert (box.z1, box.z2) == pytest.approx((0.5 / 3, 7 - 0.5 / 3))


def test_the_extent_in_mm_stays():
    image = volume()
    for size in [(10, 18, 14), (2, 3, 3), (1, 1, 1)]:
        found = resample(image, size=size)
        assert found.affine is not None
        assert found.spacing is not None
        for edge, old_edge in [((-0.5,) * 3, (-0.5,) * 3), (size[::-1], (7, 9, 5))]:
            index = np.array(edge) - (0.5 if edge[0] > 0 else 0)
            old = np.array(old_edge) - (0.5 if edge[0] > 0 else 0)
            assert np.allclose(found.affine @ [*index, 1], AFFINE @ [*old, 1])


def test_spacing_without_an_affine():
    image = MedicalImage(array=volume().array, units="stored", spacing=(4.0, 3.0, 2.0))
    found = resample(image, size=(10, 3, 7))
    assert found.affine is None
    assert found.spacing == pytest.approx((2.0, 9.0, 2.0))


def test_a_planted_block_is_where_its_box_goes():
    array = np.zeros((20, 40, 30), np.float32)
    array[6:10, 12:20, 9:15] = 1
    image = MedicalImage(array=array, units="stored", spacing=(2.0, 1.0, 1.0))
    box = Box(label="", x1=9, y1=12, x2=15, y2=20, z1=6, z2=10, size_mm=(6.0, 8.0, 8.0))
    for to in (
        {"size": (10, 20, 15)},
        {"size": (40, 80, 60)},
        {"spacing": (1.0, 2.0, 0.5)},
        {"size": (20, 27, 30)},
    ):
        plan = Resampling(interpolation="nearest", **to)
        found, moved = plan.apply(image), plan.geometry(image).forward_box(box)
        centres = np.argwhere(found.array == 1) + 0.5
        low, high = centres.min(axis=0) - 0.5, centres.max(axis=0) + 0.5
        assert np.allclose(low, (moved.z1, moved.y1, moved.x1), atol=0.51)
        assert np.allclose(high, (moved.z2, moved.y2, moved.x2), atol=0.51)
        assert moved.size_mm == box.size_mm


def test_masks_keep_their_numbers():
    mask = np.random.default_rng(0).choice([0, 3, 17], (6, 8, 8)).astype(np.float32)
    image = MedicalImage(array=mask, units="stored", spacing=(1.0, 1.0, 1.0))
    found = resample(image, spacing=(2.3, 0.7, 1.9), interpolation="nearest")
    assert set(np.unique(found.array)) <= {0, 3, 17}


def test_shrinking_averages_and_can_be_told_not_to():
    board = (np.indices((8, 64, 64)).sum(axis=0) % 2).astype(np.float32)
    image = MedicalImage(array=board, units="stored", spacing=(1.0, 1.0, 1.0))
    smooth = resample(image, size=(2, 16, 16)).array[:, 2:-2, 2:-2]
    assert np.allclose(smooth, 0.5, atol=0.02)
    dot = np.zeros((1, 60, 60), np.float32)
    dot[0, 31, 31] = 100
    small = MedicalImage(array=dot, units="stored", spacing=(1.0, 1.0, 1.0))
    assert resample(small, size=(1, 10, 10), smooth=False).array.max() == 0
    kept = resample(small, size=(1, 10, 10)).array
    assert kept.argmax() == 55
    assert kept.sum() * 36 == pytest.approx(100, rel=0.05)


def test_no_change_is_no_change():
    image = volume()
    for found in (resample(image), resample(image, spacing=(4, 3, 2), interpolation="linear")):
        assert np.array_equal(found.array, image.array)
        assert np.allclose(found.affine, AFFINE)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 200)] * 3),
    st.one_of(
        st.fixed_dictionaries({"size": st.tuples(*[st.integers(1, 300)] * 3)}),
        st.fixed_dictionaries({"spacing": st.tuples(*[st.floats(1, 9)] * 3)}),
    ),
    st.tuples(*[st.floats(0, 1)] * 6),
)
def test_boxes_come_back_and_stay_inside(shape, to, places):
    # the array is a view of one number: only its shape matters
    array = np.broadcast_to(np.float32(0), shape)
    image = MedicalImage(array=array, units="stored", spacing=(4.0, 3.0, 2.0))
    geometry = Resampling(**to).geometry(image)
    assert geometry.original == shape[::-1]
    points = np.array(places).reshape(2, 3) * geometry.original
    assert np.allclose(geometry.back(geometry.forward(points)), points, atol=1e-6)
    (x1, y1, z1), (x2, y2, z2) = np.sort(points, axis=0).tolist()
    box = Box(label="a", x1=x1, y1=y1, x2=x2, y2=y2, z1=z1, z2=z2)
    seen = geometry.forward_box(box)
    over = 0.5 + 1e-6 if "spacing" in to else 1e-6  # a rounded grid may end half a voxel early
    assert min(seen.x1, seen.y1, seen.z1) >= -over
    assert all(
        end <= side + over
        for end, side in zip((seen.x2, seen.y2, seen.z2), geometry.view, strict=True)
    )
    again = geometry.back_box(seen)
    for field in FIELDS:
        assert getattr(again, field) == pytest.approx(getattr(box, field), abs=1e-5)


def test_a_box_without_slices_stays_so():
    geometry = Resampling(size=(3, 18, 14)).geometry(volume())
    box = geometry.forward_box(Box(label="", x1=1, y1=2, x2=3, y2=4, size_mm=(4.0, 6.0)))
    assert box == Box(label="", x1=2, y1=4, x2=6, y2=8, size_mm=(4.0, 6.0))


@pytest.mark.parametrize("codes", ORDERS)
def test_turned_voxels_keep_their_place_in_the_patient(codes):
    image = volume()
    turned, geometry = reorient(image, codes), reorient_geometry(image, codes)
    assert turned.affine is not None
    assert "".join(aff2axcodes(turned.affine)) == codes
    assert geometry.view == turned.array.shape[::-1]
    for k, j, i in np.random.default_rng(2).integers(0, image.array.shape, (20, 3)):
        x, y, z = np.floor(geometry.forward([[i + 0.5, j + 0.5, k + 0.5]])[0]).astype(int)
        assert turned.array[z, y, x] == image.array[k, j, i]
        assert np.allclose(turned.affine @ [x, y, z, 1], AFFINE @ [i, j, k, 1])
    box = Box(label="", x1=1, y1=2, x2=4, y2=6, z1=0, z2=1, size_mm=(6.0, 12.0, 4.0))
    moved = geometry.forward_box(box)
    assert geometry.back_box(moved) == box
    assert moved.z1 is not None
    assert moved.z2 is not None
    assert turned.spacing is not None
    extents = (moved.x2 - moved.x1, moved.y2 - moved.y1, moved.z2 - moved.z1)
    assert np.allclose(np.array(extents) * turned.spacing[::-1], moved.size_mm)
    assert np.array_equal(reorient(turned, "LPS").array, image.array)


def test_a_mask_of_another_grid_falls_on_its_scan():
    scan = volume((12, 30, 24))
    cut = MedicalImage(  # the scan's middle, turned to RAS, on half the voxels
        array=np.ascontiguousarray(scan.array[3:9, 10:20, 6:18]),
        units="stored",
        affine=AFFINE @ np.array([[1, 0, 0, 6], [0, 1, 0, 10], [0, 0, 1, 3], [0, 0, 0, 1]]),
    )
    back = match(reorient(cut, "RAS"), scan, interpolation="nearest")
    assert back.array.shape == scan.array.shape
    assert np.allclose(back.affine, AFFINE)
    assert np.array_equal(back.array[3:9, 10:20, 6:18], cut.array)
    assert (back.array[:3] == cut.array.min()).all()


def test_what_cannot_be_resampled_says_why():
    image = volume()
    with pytest.raises(ConfigError, match="not both"):
        resample(image, spacing=(1, 1, 1), size=(1, 1, 1))
    with pytest.raises(ConfigError, match="greater than 0"):
        resample(image, spacing=(0, 1, 1))
    no_mm = MedicalImage(array=image.array, units="stored")
    with pytest.raises(ImageError, match="mm cannot be asked for"):
        resample(no_mm, spacing=(1, 1, 1))
    assert resample(no_mm, size=(2, 2, 2)).spacing is None
    with pytest.raises(ImageError, match="too large"):
        resample(image, spacing=(1e-4, 1e-4, 1e-4))
    colour = MedicalImage(array=np.zeros((4, 4, 3), np.uint8), units="rgb")
    with pytest.raises(ImageError, match="colour"):
        resample(colour, size=(1, 2, 2))
    with pytest.raises(ImageError, match="sides of the patient"):
        reorient(no_mm)
    with pytest.raises(ConfigError, match="each of R/L"):
        reorient(image, "RAL")
    with pytest.raises(ImageError, match="both need an affine"):
        match(no_mm, image)


def test_one_voxel():
    image = MedicalImage(
        array=np.full((1, 1, 1), 7, np.float32), units="stored", affine=AFFINE, spacing=(4, 3, 2)
    )
    assert (resample(image, size=(3, 5, 4)).array == 7).all()
    assert resample(image, spacing=(100, 100, 100)).array.tolist() == [[[7.0]]]
