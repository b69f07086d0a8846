"""Masks to boxes, against boxes drawn by hand and against scipy's labelling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray

from medloupe.data.masks import boxes_from_mask
from medloupe.errors import DataError
from medloupe.types import Box

Edges = tuple[float, ...]


def drawn(*rows: str) -> NDArray[np.uint8]:
    """A mask from digits; a dot is 0."""
    return np.array([[0 if c == "." else int(c) for c in row] for row in rows], np.uint8)


def edges(box: Box) -> Edges:
    return (box.x1, box.y1, box.x2, box.y2)


def solid(box: Box) -> Edges:
    assert box.z1 is not None
    assert box.z2 is not None
    return (box.x1, box.y1, box.z1, box.x2, box.y2, box.z2)


def test_one_box_per_component() -> None:
    mask = drawn(
        "11....",
        "11..1.",
        "....1.",
        "......",
    )
    boxes = boxes_from_mask(mask, {1: "lesion"})
    assert [edges(box) for box in boxes] == [(0, 0, 2, 2), (4, 1, 5, 3)]
    assert {box.label for box in boxes} == {"lesion"}
    assert all((box.size_mm, box.z1, box.image) == ((), None, 0) for box in boxes)


def test_one_pixel_is_one_wide_and_the_border_is_inside() -> None:
    mask = drawn("1..", "...", "..1")
    assert [edges(box) for box in boxes_from_mask(mask, {1: "a"})] == [(0, 0, 1, 1), (2, 2, 3, 3)]
    full = np.ones((3, 5), np.uint8)
    assert edges(boxes_from_mask(full, {1: "a"})[0]) == (0, 0, 5, 3)


def test_corners_touch() -> None:
    mask = drawn("1...", ".1..", "..11")
    assert [edges(box) for box in boxes_from_mask(mask, {1: "a"})] == [(0, 0, 4, 3)]
    apart = boxes_from_mask(mask, {1: "a"}, connectivity="face")
    assert [edges(box) for box in apart] == [(0, 0, 1, 1), (1, 1, 2, 2), (2, 2, 4, 3)]


def test_corners_touch_in_three_dimensions() -> None:
    mask = np.zeros((3, 4, 5), np.int16)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = 1  # by corners of cubes
    assert [solid(box) for box in boxes_from_mask(mask, {1: "a"})] == [(0, 0, 0, 3, 3, 3)]
    assert len(boxes_from_mask(mask, {1: "a"}, connectivity="face")) == 3


def test_values_do_not_join_and_come_in_the_order_of_their_names() -> None:
    mask = drawn("112", "222")
    boxes = boxes_from_mask(mask, {2: "edema", 1: "core", 7: "absent"})
    assert [(box.label, edges(box)) for box in boxes] == [
        ("edema", (0, 0, 3, 2)),
        ("core", (0, 0, 2, 1)),
    ]


def test_extent_in_mm_follows_each_axis() -> None:
    mask = np.zeros((4, 10, 20), np.uint8)
    mask[1:3, 2:7, 4:14] = 5  # 2 slices, 5 rows, 10 columns
    (box,) = boxes_from_mask(mask, {5: "tumour"}, spacing=(5.0, 0.8, 0.5), image=2)
    assert solid(box) == (4, 2, 1, 14, 7, 3)
    assert box.size_mm == pytest.approx((5.0, 4.0, 10.0))
    assert box.image == 2


def test_extent_in_mm_of_a_plane() -> None:
    mask = drawn("....", ".11.", ".11.", ".11.")
    for spacing in ((2.0, 0.25), (9.0, 2.0, 0.25)):
        (box,) = boxes_from_mask(mask, {1: "a"}, spacing=spacing)
        assert box.size_mm == pytest.approx((0.5, 6.0))


def test_a_volume_of_one_slice_stays_a_volume() -> None:
    (box,) = boxes_from_mask(np.ones((1, 2, 3), np.uint8), {1: "a"}, spacing=(5, 1, 1))
    assert solid(box) == (0, 0, 0, 3, 2, 1)
    assert box.size_mm == (3, 2, 5)


def test_small_components_are_left_out_by_their_voxels() -> None:
    mask = drawn("11..1", ".1...", "....1", "....1")  # 3, 1 and 2 pixels
    sizes = {n: len(boxes_from_mask(mask, {1: "a"}, min_voxels=n)) for n in (1, 2, 3, 4)}
    assert sizes == {1: 3, 2: 2, 3: 1, 4: 0}


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.float32])
def test_any_type_of_whole_numbers(dtype: type[Any]) -> None:
    (box,) = boxes_from_mask(drawn(".1.").astype(dtype), {1: "a"})
    assert edges(box) == (1, 0, 2, 1)


def test_values_far_apart_and_below_zero() -> None:
    mask = np.zeros((2, 4), np.int32)
    mask[0, 0], mask[1, 3] = -3, 100_000
    boxes = boxes_from_mask(mask, {100_000: "b", -3: "a"})
    assert [(box.label, edges(box)) for box in boxes] == [
        ("b", (3, 1, 4, 2)),
        ("a", (0, 0, 1, 1)),
    ]


def test_nothing_marked_is_no_box() -> None:
    assert boxes_from_mask(np.zeros((3, 4), np.uint8), {1: "a"}) == ()


def test_a_fortran_ordered_mask_is_read_as_it_is_indexed() -> None:
    mask = np.asfortranarray(drawn("....", ".11.", "...."))
    assert edges(boxes_from_mask(mask, {1: "a"})[0]) == (1, 1, 3, 2)


@pytest.mark.parametrize(
    ("mask", "rule"),
    [
        (np.zeros(3), "this one is \\[3\\]"),
        (np.zeros((0, 3)), "this one is \\[0, 3\\]"),
        (np.full((2, 2), 0.5), "not whole"),
        (np.full((2, 2), np.nan), "not whole"),
        (np.full((2, 2), 1j), "holds numbers"),
        (np.full((2, 2), 12), "without a name: 12"),
    ],
)
def test_what_is_no_mask(mask: NDArray[Any], rule: str) -> None:
    with pytest.raises(DataError, match=rule) as caught:
        boxes_from_mask(mask, {1: "a"})
    assert caught.value.fault.field == "mask"


@pytest.mark.parametrize("spacing", [(1.0,), (0.0, 1.0), (1.0, -1.0), (1.0, float("nan"))])
def test_spacings_that_do_not_fit(spacing: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="spacing"):
        boxes_from_mask(drawn("1"), {1: "a"}, spacing=spacing)


@pytest.mark.parametrize("shape", [(30, 40), (8, 20, 25)])
@pytest.mark.parametrize("connectivity", ["full", "face"])
def test_random_masks_agree_with_scipy(shape: tuple[int, ...], connectivity: Any) -> None:
    rng = np.random.default_rng(7)
    mask = np.where(rng.random(shape) < 0.25, rng.integers(1, 4, shape), 0)
    rank = mask.ndim if connectivity == "full" else 1
    expected = []
    for value in (1, 2, 3):
        structure = scipy.ndimage.generate_binary_structure(mask.ndim, rank)
        labels, _ = scipy.ndimage.label(mask == value, structure)
        for number, part in enumerate(scipy.ndimage.find_objects(labels), start=1):
            if np.count_nonzero(labels == number) >= 2:
                ends = [(axis.start, axis.stop) for axis in reversed(part)]
                expected.append((str(value), tuple(end for pair in ends for end in pair)))
    boxes = boxes_from_mask(mask, {1: "1", 2: "2", 3: "3"}, min_voxels=2, connectivity=connectivity)
    found = [
        (b.label, (b.x1, b.x2, b.y1, b.y2, *(() if b.z1 is None else (b.z1, b.z2)))) for b in boxes
    ]
    assert sorted(found) == sorted(expected)
    assert len(found) > 20
