"""Points and boxes through every map and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medloupe.imaging.geometry import Geometry, clip_box
from medloupe.imaging.transforms import HorizontalFlip, ImageTransform
from medloupe.types import Box

SIDE = st.integers(1, 5000)
PLACE = st.floats(-1, 2)  # in image widths and heights: outside is allowed


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    width, height = draw(SIDE), draw(SIDE)
    fit = draw(st.sampled_from(["pad", "crop", "stretch"]))
    transform = ImageTransform(size=draw(st.integers(1, 1134)), fit=fit)
    flip = HorizontalFlip()
    return draw(
        st.sampled_from(
            [
                transform.geometry(width, height),
                flip.geometry(width, height),
                flip.geometry(width, height).then(transform.geometry(width, height)),
                transform.geometry(width, height).then(
                    flip.geometry(transform.size, transform.size)
                ),
            ]
        )
    )


@given(geometries(), st.lists(st.tuples(PLACE, PLACE), min_size=1, max_size=5))
def test_back_undoes_forward(geometry, places):
    points = np.array(places) * geometry.original
    assert np.allclose(geometry.back(geometry.forward(points)), points, rtol=1e-9, atol=1e-6)
    assert np.allclose(geometry.forward(geometry.back(points)), points, rtol=1e-9, atol=1e-6)


@given(geometries(), PLACE, PLACE, st.floats(0, 1), st.floats(0, 1))
def test_a_box_comes_back(geometry, x, y, width, height):
    columns, rows = geometry.original
    box = Box(
        label="nodule",
        x1=x * columns,
        y1=y * rows,
        x2=(x + width) * columns,
        y2=(y + height) * rows,
        z1=3.0,
        z2=4.0,
        image=2,
        score=0.5,
    )
    seen = geometry.forward_box(box)
    again = geometry.back_box(seen)
    assert seen.x1 <= seen.x2
    assert seen.y1 <= seen.y2
    assert np.allclose(
        (again.x1, again.y1, again.x2, again.y2), (box.x1, box.y1, box.x2, box.y2), atol=1e-6
    )
    assert again.model_copy(update={"x1": 0, "y1": 0, "x2": 0, "y2": 0}) == box.model_copy(
        update={"x1": 0, "y1": 0, "x2": 0, "y2": 0}
    )


@given(geometries())
def test_the_matrix_says_the_same(geometry):
    points = np.array([[0.0, 0.0], [1.5, 2.5]])
    homogeneous = np.column_stack([points, np.ones(2)]) @ geometry.matrix.T
    assert np.allclose(homogeneous[:, :2], geometry.forward(points))


def test_pad_by_hand():
    # 400 x 200 into 100: a quarter, 25 rows of padding above and below
    geometry = ImageTransform(size=100, fit="pad").geometry(400, 200)
    assert geometry.forward([[0, 0], [400, 200]]).tolist() == [[0, 25], [100, 75]]
    upright = ImageTransform(size=100, fit="pad").geometry(200, 400)
    assert upright.forward([[0, 0], [200, 400]]).tolist() == [[25, 0], [75, 100]]


def test_crop_by_hand():
    # 400 x 200 into 100: the middle 200 columns at half size
    geometry = ImageTransform(size=100, fit="crop").geometry(400, 200)
    assert geometry.forward([[100, 0], [300, 200]]).tolist() == [[0, 0], [100, 100]]


def test_stretch_by_hand():
    geometry = ImageTransform(size=100, fit="stretch").geometry(400, 200)
    assert geometry.forward([[40, 40]]).tolist() == [[10, 20]]


def test_mirror_by_hand():
    box = Box(label="", x1=10, y1=5, x2=30, y2=6)
    seen = Geometry.mirror((100, 50)).forward_box(box)
    assert (seen.x1, seen.y1, seen.x2, seen.y2) == (70, 5, 90, 6)


@given(SIDE, SIDE, st.sampled_from(["pad", "crop", "stretch"]), PLACE, PLACE)
def test_then_is_one_map_after_the_other(width, height, fit, x, y):
    point = np.array([[x * width, y * height]])
    first = Geometry.mirror((width, height))
    second = ImageTransform(size=96, fit=fit).geometry(width, height)
    both = first.then(second)
    assert np.allclose(both.forward(point), second.forward(first.forward(point)))
    assert (both.original, both.view) == ((width, height), (96, 96))


def test_maps_that_do_not_meet_cannot_follow_each_other():
    with pytest.raises(AssertionError):
        Geometry.identity((4, 4)).then(Geometry.identity((5, 4)))


def test_clip():
    box = Box(label="a", x1=-5, y1=2, x2=5, y2=20)
    inside = clip_box(box, (10, 10))
    assert inside == Box(label="a", x1=0, y1=2, x2=5, y2=10)
    assert clip_box(Box(label="a", x1=-5, y1=2, x2=0, y2=20), (10, 10)) is None
