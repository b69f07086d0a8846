"""What is drawn: sides, boxes, sizes, the midline, and what a small picture cannot show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medloupe.data.datasets.starter.anatomy import (
    BRAIN,
    FIELD_MM,
    GRID,
    Template,
    draw_anatomy,
    load_template,
    to_voxels,
)
from medloupe.data.datasets.starter.lesions import KINDS, draw_shape, fitted
from medloupe.data.datasets.starter.patients import Slice, draw_slice, patient_anatomy
from medloupe.data.datasets.starter.render import render
from medloupe.data.datasets.starter.series import CHANGES, Plan, draw_series, judge, plan
from medloupe.data.datasets.starter.volume_series import _seen, draw_volume_series, plan_volumes
from medloupe.data.datasets.starter.volumes import STORED, VOLUME_KINDS, Volume, draw_volume
from medloupe.imaging.read import read_image

WIDTHS = (0.007, 0.12)


@pytest.fixture(scope="module")
def template() -> Template:
    return load_template()


@pytest.fixture(scope="module")
def cases(template: Template) -> list[Slice]:
    return [draw_slice(template, 3, patient, 0, WIDTHS) for patient in range(60)]


def changed(case: Slice, size: int) -> NDArray[np.bool_]:
    """The pixels that the lesions change."""
    return np.asarray(render(case, size, 1.0) != render(case, size, 1.0, lesions=False))


def alone(case: Slice, index: int) -> Slice:
    return replace(case, lesions=(case.lesions[index],))


def test_template_knows_its_sides(template: Template) -> None:
    """The affine of the template sends x < 0 mm to the low end of a voxel axis that runs to the
    right, and the brain lies on both sides of x = 0."""
    left, right = to_voxels(template, np.array([[-40.0, -18, 10], [40.0, -18, 10]]))
    assert left[0] < right[0]
    middle = to_voxels(template, np.array([0.0, 0.0, 0.0]))[0]
    brain = np.flatnonzero((template.maps[..., BRAIN] > 0).any(axis=(1, 2)))
    assert abs((brain[0] + brain[-1]) / 2 - middle) < 2


def test_left_is_left(cases: list[Slice]) -> None:
    """The pixels that a left lesion changes lie at x < 0 through the affine, and nowhere else."""
    seen = set()
    for case in cases:
        for index, lesion in enumerate(case.lesions):
            if not lesion.side or lesion.width < 0.02:
                continue
            rows, columns = np.nonzero(changed(alone(case, index), 224))
            pixels = np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)])
            x = (case.affine(224) @ pixels)[0]
            assert (x < 0).all() if lesion.side == "left" else (x > 0).all()
            seen.add((case.plane, lesion.side))
    assert seen == {(p, s) for p in ("axial", "coronal") for s in ("left", "right")}


def test_display_is_radiological(cases: list[Slice]) -> None:
    """The patient's left is at the image's right; anterior or superior is at the top."""
    for case in cases:
        right, down = case.affine(224)[:3, 0], case.affine(224)[:3, 1]
        if case.plane == "sagittal":
            assert right[1] < -0.8
        else:
            assert right[0] < -0.8
        assert down[1 if case.plane == "axial" else 2] < -0.8


def test_warp_leaves_the_midline_where_it_is() -> None:
    line = np.zeros((200, 3))
    line[:, 1:] = np.random.default_rng(0).uniform(-80, 80, size=(200, 2))
    for patient in range(5):
        anatomy = patient_anatomy(0, patient)
        assert np.abs(anatomy.to_template(line)[:, 0]).max() < 1e-9
        assert np.abs(anatomy.to_template(line + 30) - line - 30).max() > 1


def test_sagittal_and_midline_lesions_have_no_side(cases: list[Slice]) -> None:
    for case in cases:
        for lesion in case.lesions:
            x1, y1, x2, y2 = lesion.box(1)
            corners = np.array([[x, y, 0, 1] for x in (x1, x2) for y in (y1, y2)])
            corners[:, :2] = corners[:, :2] * 224 - 0.5
            x = (case.affine(224) @ corners.T)[0]
            crosses = x.min() < 2 and x.max() > -2
            assert (lesion.side == "") == (crosses or case.plane == "sagittal")


def test_boxes_are_tight_on_the_changed_pixels(cases: list[Slice]) -> None:
    """Every changed pixel is touched by the box, and each edge of the box lies in a changed pixel
    or, where the shape barely enters that pixel, in its neighbour."""
    size, checked = 400, set()
    for case in cases[:40]:
        bare = render(case, size, 1.0, lesions=False)
        for index, lesion in enumerate(case.lesions):
            rows, columns = np.nonzero(render(alone(case, index), size, 1.0) != bare)
            x1, y1, x2, y2 = lesion.box(size)
            assert columns.min() >= np.floor(x1)
            assert rows.min() >= np.floor(y1)
            assert columns.max() <= np.ceil(x2) - 1
            assert rows.max() <= np.ceil(y2) - 1
            if lesion.width > 0.02:
                assert columns.min() - x1 < 1.6
                assert x2 - columns.max() - 1 < 1.6
                assert rows.min() - y1 < 1.6
                assert y2 - rows.max() - 1 < 1.6
                checked.add(lesion.kind)
    assert len(checked) >= 8


def test_width_is_the_longer_side_of_the_box_and_log_uniform(template: Template) -> None:
    cases = [draw_slice(template, 5, patient, 0, WIDTHS) for patient in range(200)]
    lesions = [lesion for case in cases for lesion in case.lesions]
    widths = np.array([lesion.width for lesion in lesions])
    for lesion in lesions:
        x1, y1, x2, y2 = lesion.box(1000)
        assert max(x2 - x1, y2 - y1) == pytest.approx(1000 * lesion.width)
    edges = np.exp(np.linspace(*np.log(WIDTHS), 5))
    shares = np.histogram(widths, edges)[0] / len(widths)
    assert np.abs(shares - 0.25).max() < 0.06
    assert max(len(case.lesions) for case in cases) == 4


def test_lesions_lie_inside_the_brain(cases: list[Slice]) -> None:
    for case in cases:
        brain, tissue = case.maps[BRAIN] > 0.5, case.maps[1] + case.maps[2]
        for lesion in case.lesions:
            x1, y1, x2, y2 = (int(edge) for edge in lesion.box(GRID))
            assert brain[y1 : y2 + 1, x1 : x2 + 1].mean() > 0.98
            assert tissue[y1 : y2 + 1, x1 : x2 + 1].mean() > 0.7


def test_lesions_do_not_overlap(cases: list[Slice]) -> None:
    for case in cases:
        boxes = [lesion.box(1) for lesion in case.lesions]
        for i, (a1, b1, a2, b2) in enumerate(boxes):
            for c1, d1, c2, d2 in boxes[:i]:
                assert a2 <= c1 or c2 <= a1 or b2 <= d1 or d2 <= b1


@pytest.mark.parametrize("kind", list(KINDS))
def test_shapes_fill_their_unit_box(kind: str) -> None:
    for seed in range(5):
        shape = draw_shape(kind, np.random.default_rng(seed))
        axis = (np.arange(400) + 0.5) / 400 * 1.2 - 0.6
        y, x = np.meshgrid(axis, axis, indexing="ij")
        covered = shape.paint(x.astype(np.float32), y.astype(np.float32))[0] > 0
        for extent, along in zip(shape.extent, (0, 1), strict=True):
            inside = axis[np.flatnonzero(covered.any(axis=along))]
            assert inside[-1] - inside[0] == pytest.approx(extent, abs=0.03)
            assert inside[-1] + inside[0] == pytest.approx(0, abs=0.03)
        assert max(shape.extent) == 1.0
        assert fitted(shape).extent == shape.extent


def contrast(case: Slice, picture: NDArray[np.uint8], bare: NDArray[np.uint8]) -> float:
    """Root mean square of what the lesion changes, over the texture round it without it."""
    size = picture.shape[0]
    x1, y1, x2, y2 = case.lesions[0].box(size)
    inside = np.s_[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
    reach = 0.02 * size
    round_it = np.s_[int(y1 - reach) : int(y2 + reach), int(x1 - reach) : int(x2 + reach)]
    change = picture[inside].astype(float) - bare[inside]
    return float(np.sqrt((change**2).mean()) / bare[round_it].astype(float).std())


def test_smallest_lesions_are_lost_by_downsampling(template: Template) -> None:
    """0.7 to 0.9 % of the width: over 7 px at 1134 and under 2 px or so at 224. In the picture of
    1134 they stand out of the texture; its reduction to 224 holds less than the texture's noise."""
    large, small = [], []
    for patient in range(24):
        case = draw_slice(template, 7, patient, 0, (0.007, 0.0085))
        if not case.lesions:
            continue
        case = alone(case, 0)
        x1, y1, x2, y2 = case.lesions[0].box(1134)
        assert 7 < max(x2 - x1, y2 - y1) < 10
        assert max(x2 - x1, y2 - y1) * 224 / 1134 < 2
        full, bare = (render(case, 1134, 0.5, lesions=shown) for shown in (True, False))
        reduced = [
            np.asarray(Image.fromarray(p).resize((224, 224), Image.Resampling.BICUBIC))
            for p in (full, bare)
        ]
        large.append(contrast(case, full, bare))
        small.append(contrast(case, *reduced))
    assert len(large) > 10
    assert np.median(small) < 0.25
    assert np.max(small) < 1.0
    assert np.median(large) > 4 * np.median(small)


def test_lesions_are_drawn_at_size(cases: list[Slice]) -> None:
    """At 1134 px a ring's edge falls within two pixels; an enlarged picture needs more."""
    case, index = next(
        (case, index)
        for case in cases
        for index, lesion in enumerate(case.lesions)
        if lesion.kind == "ring" and lesion.width > 0.05
    )
    case = alone(case, index)
    x1, y1, x2, y2 = case.lesions[0].box(1134)
    row, columns = int((y1 + y2) / 2), slice(int(x1) - 4, int(x2) + 4)

    def steepest(drawn: NDArray[np.uint8], bare: NDArray[np.uint8]) -> float:
        change = drawn[row, columns].astype(float) - bare[row, columns]
        return float(np.abs(np.diff(change)).max() / np.abs(change).max())

    drawn, bare = (render(case, 1134, 1.0, lesions=shown) for shown in (True, False))
    enlarged = [
        np.asarray(
            Image.fromarray(render(case, 224, 1.0, lesions=shown)).resize(
                (1134, 1134), Image.Resampling.BICUBIC
            )
        )
        for shown in (True, False)
    ]
    assert steepest(drawn, bare) > 0.45 > 1.5 * steepest(*enlarged)


def test_texture_is_drawn_at_size(cases: list[Slice]) -> None:
    """Reducing the picture of 1134 px to 224 and enlarging it again loses detail inside tissue."""
    picture = render(cases[0], 1134, 0.5, lesions=False)
    image = Image.fromarray(picture)
    back = image.resize((224, 224), Image.Resampling.BICUBIC).resize((1134, 1134))
    white = np.asarray(Image.fromarray(cases[0].maps[2]).resize((1134, 1134))) > 0.98
    lost = picture.astype(float)[white] - np.asarray(back, dtype=float)[white]
    assert lost.std() > 3


def test_brain_is_the_same_at_every_size(cases: list[Slice]) -> None:
    large = Image.fromarray(render(cases[1], 672, 1.0)).resize((224, 224), Image.Resampling.BOX)
    small = render(cases[1], 224, 1.0).astype(float)
    assert np.corrcoef(np.asarray(large).ravel(), small.ravel())[0, 1] > 0.98


def test_conspicuity_is_contrast(cases: list[Slice]) -> None:
    case = next(case for case in cases if any(lesion.width > 0.05 for lesion in case.lesions))
    bare = render(case, 224, 0.5, lesions=False).astype(float)
    weak, plain = (np.abs(render(case, 224, c) - bare).max() for c in (0.3, 1.0))
    assert plain > weak + 20


def test_patients_differ(template: Template) -> None:
    anatomies = [draw_anatomy(np.random.default_rng(seed)) for seed in range(2)]
    points = np.random.default_rng(0).uniform(-60, 60, size=(100, 3))
    assert np.abs(anatomies[0].to_template(points) - anatomies[1].to_template(points)).max() > 3


@pytest.mark.parametrize("rank", range(15))
def test_series_show_the_change_they_plan(template: Template, rank: int) -> None:
    course = plan(rank)
    times = draw_series(template, 0, rank, 0, course, (0.02, 0.12))
    assert len(times) == course.times
    widths = [
        next((lesion.width for lesion in case.lesions if lesion.kind == course.kind), None)
        for case in times
    ]
    assert judge(widths[course.pair[0]], widths[course.pair[1]]) == course.change
    for kind in {lesion.kind for lesion in times[0].lesions} - {course.kind}:
        width = [lesion.width for case in times for lesion in case.lesions if lesion.kind == kind]
        assert len(width) == len(times)
        assert {judge(width[0], w) for w in width} == {"unchanged"}


@pytest.mark.parametrize("most", [1, 2])
def test_as_many_lesions_as_asked_for_at_most(template: Template, most: int) -> None:
    counts = [
        len(draw_slice(template, 5, patient, 0, WIDTHS, most).lesions) for patient in range(60)
    ]
    assert set(counts) == set(range(most + 1))
    series = [
        draw_series(template, 0, rank, 0, plan(rank), (0.02, 0.12), most) for rank in range(15)
    ]
    kinds = [{lesion.kind for case in times for lesion in case.lesions} for times in series]
    assert max(len(found) for found in kinds) == most
    for rank, found in enumerate(kinds):
        assert plan(rank).kind in found


def test_lesions_stay_at_their_place_in_the_patient(template: Template) -> None:
    """Through both affines the middle of a lesion's pixels is the same point, though the pose
    moved."""
    course = Plan("wedge", "unchanged", 2, (0, 1))
    for patient in range(4):
        middles, frames = [], []
        for case in draw_series(template, 1, patient, 0, course, (0.05, 0.1)):
            index = next(i for i, lesion in enumerate(case.lesions) if lesion.kind == "wedge")
            rows, columns = np.nonzero(changed(alone(case, index), 448))
            middle = case.affine(448) @ [columns.mean(), rows.mean(), 0, 1]
            middles.append(middle[:3])
            frames.append(case.frame)
        assert np.linalg.norm(middles[0] - middles[1]) < 0.4
        assert np.abs(frames[0] - frames[1]).max() > 0.2


def test_lesions_turn_with_the_patient(template: Template) -> None:
    """A streak points the same way in the patient, within a degree, at both times."""
    turned = []
    for patient in range(8):
        course = Plan("streak", "unchanged", 2, (0, 1))
        first, later = draw_series(template, 1, patient, 0, course, (0.09, 0.12))
        axes = []
        for case in (first, later):
            index = next(i for i, found in enumerate(case.lesions) if found.kind == "streak")
            rows, columns = np.nonzero(changed(alone(case, index), 448))
            points = (case.affine(448)[:3, :2] @ np.stack([columns, rows])).T
            axes.append(np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][0])
        assert np.degrees(np.arccos(min(1.0, abs(axes[0] @ axes[1])))) < 1.0
        turned.append(np.degrees(np.arccos(min(1.0, first.frame[:, 0] @ later.frame[:, 0]))))
    assert max(turned) > 2


def test_subtraction_alone_does_not_show_the_change(template: Template) -> None:
    """What pose and contrast change outside the lesion is larger in sum than the lesion."""
    case, later = draw_series(template, 2, 0, 0, Plan("bright", "new", 2, (0, 1)), (0.03, 0.04))
    difference = np.abs(render(later, 224, 1.0).astype(float) - render(case, 224, 1.0))
    x1, y1, x2, y2 = (int(edge) for edge in later.lesions[0].box(224))
    inside = difference[y1 : y2 + 1, x1 : x2 + 1].sum()
    assert difference.sum() > 20 * inside
    assert (difference > 40).sum() > 4 * (difference[y1 : y2 + 1, x1 : x2 + 1] > 40).sum()


def test_plans_ask_every_change_equally_often() -> None:
    plans = [plan(rank) for rank in range(150)]
    for kind in KINDS:
        changes = [p.change for p in plans if p.kind == kind]
        assert {changes.count(change) for change in CHANGES} == {3}
    assert {p.times for p in plans} == {2, 3}
    assert {p.pair for p in plans} == {(0, 1), (0, 2), (1, 2)}


def test_volume_boxes_and_sides_hold_in_the_file_as_read(
    template: Template, tmp_path: Path
) -> None:
    """Through the reader, whatever order the file stores: changed voxels fill the boxes, and left
    ones lie at x < 0 mm."""
    orders, sides = set(), set()
    for patient in range(24):
        drawn, bare = (
            draw_volume(template, 0, patient, 0, 40, 1.0, lesions=shown) for shown in (True, False)
        )
        images = []
        for name, volume in (("drawn", drawn), ("bare", bare)):
            path = tmp_path / f"{name}.nii"
            path.write_bytes(volume.to_nifti())
            images.append(read_image(path, kind="volume"))
        orders.add(drawn.stored)
        change = images[0].array != images[1].array
        touched = np.zeros_like(change)
        for solid in drawn.lesions:
            low, high = solid.box(40)
            (x1, y1, z1), (x2, y2, z2) = np.floor(low).astype(int), np.ceil(high).astype(int)
            part = np.s_[z1:z2, y1:y2, x1:x2]
            touched[part] = True
            k, j, i = np.nonzero(change[part])
            for found, start, first, last in ((i, x1, low[0], high[0]), (j, y1, low[1], high[1]),
                                              (k, z1, low[2], high[2])):  # fmt: skip
                assert found.min() + start - first < 1.6
                assert last - found.max() - start - 1 < 1.6
            affine = images[0].affine
            assert affine is not None
            x = (affine @ np.stack([i + x1, j + y1, k + z1, np.ones_like(i)]))[0]
            assert (x < 0).all() if solid.side == "left" else (x > 0).all()
            sides.add(solid.side)
        assert not change[~touched].any()
    assert orders == set(STORED)
    assert sides == {"left", "right"}


@pytest.mark.parametrize("rank", range(10))
def test_volume_series_show_the_change_they_plan(template: Template, rank: int) -> None:
    course = plan_volumes(rank)
    pair = draw_volume_series(template, 0, rank, 0, course, 24, 0.5)
    assert len(pair) == course.times == 2
    widths = [{solid.kind: solid.width for solid in volume.lesions} for volume in pair]
    assert judge(*(found.get(course.kind) for found in widths)) == course.change
    others = [found.keys() - {course.kind} for found in widths]
    assert others[0] == others[1]
    for kind in others[0]:
        assert judge(widths[0][kind], widths[1][kind]) == "unchanged"


def test_volume_plans_ask_every_change_equally_often() -> None:
    plans = [plan_volumes(rank) for rank in range(60)]
    for kind in VOLUME_KINDS:
        changes = [plan.change for plan in plans if plan.kind == kind]
        assert {changes.count(change) for change in CHANGES} == {2}


def lesion_voxels(drawn: Volume, bare: Volume) -> NDArray[np.float64]:
    """RAS+ mm `[N, 3]` of the voxels that the lesions change."""
    k, j, i = np.nonzero(drawn.voxels != bare.voxels)
    points = drawn.affine @ np.stack([i, j, k, np.ones_like(i)])
    return np.asarray(points[:3].T)


def test_solids_stay_at_their_place_in_the_patient_and_turn_with_it(template: Template) -> None:
    """Through both affines a streak's voxels have one middle, within half a voxel, and one axis."""
    moved = []
    for patient in range(6):
        course = Plan("streak", "unchanged", 2, (0, 1))
        drawn, bare = (
            draw_volume_series(template, 1, patient, 0, course, 64, 2.0, lesions=shown)
            for shown in (True, False)
        )
        middles, axes = [], []
        for volume, without in zip(drawn, bare, strict=True):
            streak = next(solid for solid in volume.lesions if solid.kind == "streak")
            low, high = streak.box(64)
            points = lesion_voxels(volume, without)
            voxel = np.linalg.solve(volume.affine[:3, :3], (points - volume.affine[:3, 3]).T).T
            inside = ((voxel > low - 1.5) & (voxel < high + 0.5)).all(axis=1)
            found = points[inside]
            middles.append(found.mean(axis=0))
            axes.append(np.linalg.svd(found - middles[-1], full_matrices=False)[2][0])
        assert np.linalg.norm(middles[0] - middles[1]) < 208 / 64 / 2
        assert np.degrees(np.arccos(min(1.0, abs(axes[0] @ axes[1])))) < 6
        turn = drawn[0].affine[:3, :3].T @ drawn[1].affine[:3, :3] / (208 / 64) ** 2
        moved.append(np.degrees(np.arccos((np.trace(turn) - 1) / 2)))
    assert max(moved) > 3


def body(volume: Volume, kind: str, size: int) -> NDArray[np.float64]:
    """RAS+ mm `[N, 3]` of points spread evenly over the body of a lesion."""
    solid = next(solid for solid in volume.lesions if solid.kind == kind)
    axis = np.linspace(-0.6, 0.6, 61)
    offsets = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    inside = offsets[solid.paint(offsets)[0] > 0]
    voxels = (solid.centre + inside * solid.width) * size - 0.5
    return np.asarray(voxels @ volume.affine[:3, :3].T + volume.affine[:3, 3])


@pytest.mark.parametrize("kind", VOLUME_KINDS)
def test_the_body_of_a_solid_is_the_same_points_of_the_patient(
    template: Template, kind: str
) -> None:
    """Its middle within 0.2 mm, though the box round it, and the place in the volume, change."""
    for patient in range(3):
        course = Plan(kind, "unchanged", 2, (0, 1))
        pair = draw_volume_series(template, 4, patient, 0, course, 24, 0.5)
        first, second = (body(volume, kind, 24).mean(axis=0) for volume in pair)
        assert np.linalg.norm(first - second) < 0.2


def test_volumes_of_a_series_differ_beyond_the_change(template: Template) -> None:
    """Subtraction does not show a new lesion alone: pose, contrast and noise differ, too."""
    course = Plan("bright", "new", 2, (0, 1))
    first, second = draw_volume_series(template, 2, 0, 0, course, 32, 0.5)
    difference = np.abs(second.voxels.astype(float) - first.voxels)
    (lesion,) = [solid for solid in second.lesions if solid.kind == "bright"]
    low, high = (edge.astype(int) for edge in lesion.box(32))
    inside = difference[low[2] : high[2] + 1, low[1] : high[1] + 1, low[0] : high[0] + 1].sum()
    assert difference.sum() > 5 * inside


def test_the_pose_of_a_later_volume_is_turned_and_moved(template: Template) -> None:
    """The middle of the patient's coordinates lies elsewhere in the volume, which no turn about it does."""
    moved = []
    for patient in range(6):
        pair = draw_volume_series(
            template, 5, patient, 0, Plan("bright", "new", 2, (0, 1)), 24, 0.5
        )
        centres = [np.linalg.norm(volume.affine[:3, :3] @ [12, 12, 12] + volume.affine[:3, 3])
                   for volume in pair]  # fmt: skip
        moved.append(abs(centres[0] - centres[1]))
    assert max(moved) > 1


def test_contrast_and_noise_of_a_later_volume_are_its_own(template: Template) -> None:
    """Without lesions, since these differ by plan."""
    tissue, noise = [], []
    for patient in range(4):
        course = Plan("bright", "unchanged", 2, (0, 1))
        pair = draw_volume_series(template, 6, patient, 0, course, 48, 0.5, lesions=False)
        voxels = [volume.voxels.astype(float) for volume in pair]
        bright = [values[values > np.quantile(values, 0.9)].mean() for values in voxels]
        tissue.append(abs(bright[0] / bright[1] - 1))
        air = [values[:4, :4, :4].ravel() for values in voxels]
        noise.append(np.corrcoef(*air)[0, 1] if all(one.std() > 0 for one in air) else 0.0)
    assert max(tissue) > 0.01
    assert max(map(abs, noise)) < 0.6


@pytest.mark.parametrize("kind", VOLUME_KINDS)
def test_a_solid_seen_in_the_same_pose_is_the_same(template: Template, kind: str) -> None:
    course = Plan(kind, "unchanged", 2, (0, 1))
    first, _ = draw_volume_series(template, 7, 0, 0, course, 24, 0.5)
    solid = next(one for one in first.lesions if one.kind == kind)
    again = _seen(first.affine[:3], first.affine[:3], solid, 1.0)
    assert np.allclose(again.centre, solid.centre)
    assert again.width == pytest.approx(solid.width)


def test_field_holds_the_brain(cases: list[Slice]) -> None:
    """A large head may touch the edge of the field, as heads do, but it is not cut off."""
    for case in cases:
        edge = np.ones((GRID, GRID), dtype=bool)
        edge[2:-2, 2:-2] = False
        assert case.maps[BRAIN][edge].mean() < 0.05
        assert np.linalg.norm(case.affine(224)[:3, 0]) == pytest.approx(FIELD_MM / 224)
