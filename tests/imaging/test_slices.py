"""Slices by mm and by count, and z coordinates both ways."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medloupe.errors import ConfigError, ImageError
from medloupe.imaging.slices import SlicePlan, SliceSelection
from medloupe.types import Box, MedicalImage

SELECTIONS = st.one_of(
    st.builds(SliceSelection, count=st.integers(1, 300)),
    st.builds(SliceSelection, every_mm=st.floats(0.1, 200)),
    st.just(SliceSelection()),
)


def volume(depth: int, spacing: float = 2.0) -> MedicalImage:
    """Slice k holds the number k and lies at z = spacing * k mm."""
    array = np.repeat(np.arange(depth, dtype=np.float32), 4).reshape(depth, 2, 2)
    return MedicalImage(
        array=array,
        units="stored",
        affine=np.diag([1.0, 1.0, spacing, 1.0]),
        spacing=(spacing, 1.0, 1.0),
    )


@pytest.mark.parametrize(
    ("depth", "count", "indices"),
    [
        (9, 3, (1, 4, 7)),  # slabs of three, the middle of each
        (10, 3, (1, 5, 8)),  # middles at 1.67, 5, 8.33
        (4, 2, (1, 3)),  # of two, the upper
        (5, 5, (0, 1, 2, 3, 4)),
        (3, 8, (0, 1, 2)),  # there are no more
        (1, 4, (0,)),
        (7, 1, (3,)),
    ],
)
def test_by_count(depth, count, indices):
    selection = SliceSelection(count=count)
    assert selection.plan(depth).indices == indices
    shown = selection.apply(volume(depth))
    assert shown.array[:, 0, 0].tolist() == list(indices)


def test_by_mm():
    # 30 slices of 2 mm, every 10 mm: slabs of five slices, their middles 2, 7, ...
    chosen = SliceSelection(every_mm=10).apply(volume(30))
    assert chosen.array[:, 0, 0].tolist() == [2, 7, 12, 17, 22, 27]
    assert chosen.spacing == (10.0, 1.0, 1.0)
    assert chosen.affine is not None
    for t, k in enumerate((2, 7, 12, 17, 22, 27)):
        assert (chosen.affine @ [0, 0, t, 1])[2] == 2.0 * k
    # finer than the file: every slice once
    assert len(SliceSelection(every_mm=0.5).apply(volume(30)).array) == 30
    # thicker than the volume: its middle
    assert SliceSelection(every_mm=500).plan(30, 2.0).indices == (15,)


def test_a_lesion_among_the_chosen_slices():
    # 40 slices into 8 slabs of five: slices 10 to 19 are slabs 2 and 3
    plan = SliceSelection(count=8).plan(40)
    box = Box(label="nodule", x1=1, y1=2, x2=3, y2=4, z1=10, z2=20)
    assert plan.forward_box(box) == box.model_copy(update={"z1": 2.0, "z2": 4.0})
    assert plan.back_box(plan.forward_box(box)) == box
    assert [plan.slab_of(k) for k in (9, 10, 14, 15, 19, 20)] == [1, 2, 2, 3, 3, 4]
    flat = box.model_copy(update={"z1": None, "z2": None})
    assert plan.forward_box(flat) == flat


@given(SELECTIONS, st.integers(1, 400), st.floats(0.3, 10), st.lists(st.floats(0, 1), min_size=1))
def test_there_and_back(selection, depth, spacing, places):
    plan = selection.plan(depth, spacing)
    indices = plan.indices
    assert len(indices) == plan.count == len(set(indices))
    assert list(indices) == sorted(indices)
    assert indices[0] >= 0
    assert indices[-1] < depth
    for place in places:
        z = place * depth
        assert plan.back(plan.forward(z)) == pytest.approx(z, abs=1e-9)
        point = plan.geometry((5, 6)).forward([[1.0, 2.0, z]])
        assert point[0].tolist() == pytest.approx([1, 2, plan.forward(z)])
    for t, index in enumerate(indices):
        assert plan.slab_of(index) == t
    if selection.count is not None:  # every slice belongs to one slab
        assert plan.forward(0) == 0
        assert plan.forward(depth) == pytest.approx(plan.count)


@given(SELECTIONS, st.integers(1, 60), st.floats(0.3, 10))
def test_the_affine_is_off_by_less_than_a_slice(selection, depth, spacing):
    image = volume(depth, spacing)
    chosen = selection.apply(image)
    assert chosen.affine is not None
    for t, number in enumerate(chosen.array[:, 0, 0]):
        z = (chosen.affine @ [0, 0, t, 1])[2]
        assert abs(z - number * spacing) < spacing * (1 + 1e-6)


def test_what_cannot_be_chosen():
    with pytest.raises(ConfigError, match="not both"):
        SliceSelection.parse({"every_mm": 1, "count": 2})
    with pytest.raises(ConfigError, match="version"):
        SliceSelection.parse({"version": 2})
    no_mm = MedicalImage(array=np.zeros((4, 2, 2), np.float32), units="stored")
    with pytest.raises(ImageError, match="mm cannot be asked for"):
        SliceSelection(every_mm=5).apply(no_mm)
    assert len(SliceSelection(count=2).apply(no_mm).array) == 2
    colour = MedicalImage(array=np.zeros((4, 4, 3), np.uint8), units="rgb")
    with pytest.raises(ImageError, match="colour"):
        SliceSelection(count=1).apply(colour)
    with pytest.raises(AssertionError):
        SlicePlan(depth=3, count=4, step=1)
