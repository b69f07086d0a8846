"""Two MR volumes of one patient, between which one lesion may have changed.

As in `series`: the head moves, contrast and noise differ, and every lesion stays at its place in the
patient. The change is of the lesion's width, so a lesion that has grown by half fills over three
times the volume.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medloupe.data.datasets.starter.anatomy import FIELD_MM, Anatomy, Template
from medloupe.data.datasets.starter.patients import Frame, patient_anatomy, rotation
from medloupe.data.datasets.starter.series import (
    ATTEMPTS,
    CHANGES,
    GROWTH,
    Plan,
    another_day,
    relative_sizes,
)
from medloupe.data.datasets.starter.volumes import (
    VOLUME_KINDS,
    WIDTHS,
    Room,
    Scene,
    Solid,
    Volume,
    draw_pose,
    fitted,
    sample_scene,
    scan,
    side_of_solid,
)


def plan_volumes(rank: int) -> Plan:
    """The plan of the pair of volumes number `rank` of a split; five in a row share all but the change."""
    five, number = divmod(rank, len(CHANGES))
    return Plan(VOLUME_KINDS[five % len(VOLUME_KINDS)], CHANGES[number], 2, (0, 1))


def draw_volume_series(
    template: Template, seed: int, patient: int, number: int, course: Plan, size: int,
    conspicuity: float, *, lesions: bool = True,
) -> tuple[Volume, ...]:  # fmt: skip
    """The volumes of series `number` of `patient`; `lesions=False` draws the same without them."""
    rng = np.random.default_rng((seed, patient, 8, number))
    anatomy = patient_anatomy(seed, patient)
    factor = float(rng.uniform(*GROWTH))
    first, lesion, others = _first_scene(template, anatomy, course, factor, size, rng)
    volumes = []
    for time, scale in enumerate(relative_sizes(course, factor, rng)):
        scene = first if time == 0 else _later(template, first, rng)
        present = [(lesion, scale)] if scale else []
        present += [(other, 1.0) for other in others]
        planted = tuple(_seen(first.frame, scene.frame, *known) for known in present)
        noise = np.random.default_rng((seed, patient, 8, number, time))
        volumes.append(scan(scene, planted, conspicuity, noise, lesions=lesions))
    return tuple(volumes)


def _first_scene(
    template: Template,
    anatomy: Anatomy,
    course: Plan,
    factor: float,
    size: int,
    rng: np.random.Generator,
) -> tuple[Scene, Solid, list[Solid]]:
    """A scene, the lesion that may change (at its largest), and up to two of other kinds."""
    low, high = WIDTHS
    bystanders = [kind for kind in VOLUME_KINDS if kind != course.kind]
    for _ in range(ATTEMPTS):
        scene = sample_scene(template, anatomy, draw_pose(rng), size)
        room = Room(scene)
        lesion = room.add(course.kind, (min(low * factor, high), high), rng)
        if lesion is None:
            continue
        kinds = rng.choice(bystanders, size=int(rng.integers(3)), replace=False).tolist()
        others = [room.add(kind, WIDTHS, rng) for kind in kinds]
        return scene, lesion, [other for other in others if other is not None]
    raise AssertionError("lesions of these widths fit into every brain")


def _later(template: Template, first: Scene, rng: np.random.Generator) -> Scene:
    """The same head on another day."""
    frame = first.frame.copy()
    frame[:, :3] = first.frame[:, :3] @ rotation(np.radians(rng.normal(0, 2.5, size=3)))
    frame[:, 3] += rng.normal(0, 2.5, size=3)
    return sample_scene(template, another_day(first.anatomy, rng), frame, first.size)


def _seen(before: Frame, after: Frame, solid: Solid, scale: float) -> Solid:
    """The lesion at the same place of the patient, in the pose `after`, `scale` times as large.

    The turn goes about the shape's own origin, which lies beside the middle of its box.
    """
    unit = solid.fit * solid.width
    origin = (solid.centre - solid.middle * unit - 0.5) * FIELD_MM
    place = before[:, :3] @ origin + before[:, 3] - after[:, 3]
    moved = fitted(solid.kind, solid.turn @ np.linalg.solve(before[:, :3], after[:, :3]))
    unit *= scale
    centre = np.linalg.solve(after[:, :3], place) / FIELD_MM + 0.5 + moved.middle * unit
    moved = replace(moved, centre=centre, width=unit / moved.fit)
    return replace(moved, side=side_of_solid(after, moved))
