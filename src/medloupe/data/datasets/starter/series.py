"""Examinations of one patient at two or three times, with one lesion that may have changed.

Between times the head moves (a small shift and turn in the plane), and contrast, shading and noise
differ, so that subtracting the pictures does not show the change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medloupe.data.datasets.starter.anatomy import FIELD_MM, PLANES, Anatomy, Template, sample_slice
from medloupe.data.datasets.starter.lesions import KINDS, fitted
from medloupe.data.datasets.starter.patients import (
    MOST_LESIONS,
    Frame,
    Ground,
    Lesion,
    Slice,
    draw_frame,
    patient_anatomy,
    rotation,
    side_of,
    to_patient,
)
from medloupe.errors import ConfigError

CHANGES = ("new", "grown", "unchanged", "shrunk", "gone")
GROWTH = (1.5, 2.2)  # by which factor a lesion grows or shrinks
JUDGED = 1.25  # a lesion has changed if its width has by more than this; turning alters it by less
ATTEMPTS = 24


@dataclass(frozen=True)
class Plan:
    """What happens in a series: `change` is between the examinations `pair` of `times`."""

    kind: str
    change: str
    times: int
    pair: tuple[int, int]


def plan(rank: int) -> Plan:
    """The plan of the series number `rank` of a split.

    Five in a row share all but the change, so that every question about change is asked once with
    every answer; every third five have three examinations.
    """
    five, number = divmod(rank, len(CHANGES))
    kinds = list(KINDS)
    times = 3 if five % 3 == 2 else 2
    pair = (0, 1) if times == 2 else ((1, 2) if five % 2 else (0, 2))
    return Plan(kinds[five % len(kinds)], CHANGES[number], times, pair)


def judge(before: float | None, after: float | None) -> str | None:
    """The change between two widths; None is absent. None if it was never there."""
    if before is None or after is None:
        return "new" if after is not None else "gone" if before is not None else None
    if after > before * JUDGED:
        return "grown"
    return "shrunk" if before > after * JUDGED else "unchanged"


def draw_series(
    template: Template,
    seed: int,
    patient: int,
    number: int,
    course: Plan,
    widths: tuple[float, float],
    most: int = MOST_LESIONS,
) -> tuple[Slice, ...]:
    """The examinations of series `number` of `patient`, first to last, of `most` lesions at most.

    Raises:
        ConfigError: lesions of these widths do not fit into the brain.
    """
    rng = np.random.default_rng((seed, patient, 3, number))
    anatomy = patient_anatomy(seed, patient)
    factor = float(rng.uniform(*GROWTH))
    first, lesion, others = _first_slice(template, anatomy, course, factor, widths, most, rng)
    cases = []
    for time, size in enumerate(relative_sizes(course, factor, rng)):
        case = first if time == 0 else _later(template, first, rng)
        present = [(lesion, size)] if size else []
        present += [(other, 1.0) for other in others]
        seen = tuple(_seen(first.frame, case, known, scale) for known, scale in present)
        cases.append(replace(case, lesions=seen, noise_key=(seed, patient, 4, number, time)))
    return tuple(cases)


def relative_sizes(course: Plan, factor: float, rng: np.random.Generator) -> list[float]:
    """The lesion's size at each time relative to its largest; 0 where it is absent.

    What the question does not ask about (the third examination) is as before or as after.
    """
    small = 1 / factor
    before, after = {
        "new": (0.0, 1.0),
        "grown": (small, 1.0),
        "unchanged": (1.0, 1.0),
        "shrunk": (1.0, small),
        "gone": (1.0, 0.0),
    }[course.change]
    other = before if rng.random() < 0.5 else after
    sizes = [other] * course.times
    sizes[course.pair[0]], sizes[course.pair[1]] = before, after
    return sizes


def _first_slice(
    template: Template,
    anatomy: Anatomy,
    course: Plan,
    factor: float,
    widths: tuple[float, float],
    most: int,
    rng: np.random.Generator,
) -> tuple[Slice, Lesion, list[Lesion]]:
    """A slice, the lesion that may change (at its largest), and up to two of other kinds: `most` in all."""
    low, high = widths
    bystanders = [kind for kind in KINDS if kind != course.kind]
    for _ in range(ATTEMPTS):
        plane = PLANES[int(rng.integers(len(PLANES)))]
        frame = draw_frame(plane, rng)
        maps = sample_slice(template, anatomy, frame)
        ground = Ground(plane, frame, maps)
        lesion = ground.add(course.kind, (min(low * factor, high), high), rng)
        if lesion is None:
            continue
        more = int(rng.integers(min(most, 3)))
        kinds = rng.choice(bystanders, size=more, replace=False).tolist()
        others = [ground.add(kind, widths, rng) for kind in kinds]
        case = Slice(plane, frame, anatomy, maps, (), ())
        return case, lesion, [other for other in others if other is not None]
    raise ConfigError(
        f"no place in the brain for a lesion of {low:.1%} to {high:.1%} of the image's width",
        remedy="Lower the upper end of lesion_width",
        field="lesion_width",
    )


def _later(template: Template, first: Slice, rng: np.random.Generator) -> Slice:
    """The same slice of the same patient on another day."""
    turn = rotation(np.array([0.0, 0.0, np.radians(rng.normal(0, 2.5))]))
    frame = first.frame.copy()
    frame[:, :3] = first.frame[:, :3] @ turn
    frame[:, 3] += first.frame[:, :3] @ np.array([*rng.normal(0, 2.5, size=2), 0.0])
    anatomy = another_day(first.anatomy, rng)
    maps = sample_slice(template, anatomy, frame)
    return replace(first, frame=frame, anatomy=anatomy, maps=maps)


def another_day(anatomy: Anatomy, rng: np.random.Generator) -> Anatomy:
    """The same brain with the contrast and the shading of another examination."""
    csf, grey, white = np.array(anatomy.tissue) + rng.normal(0, 0.025, size=3)
    return replace(
        anatomy,
        gamma=anatomy.gamma * float(rng.uniform(0.85, 1.18)),
        tissue=(float(csf), float(grey), float(white)),
        bias=rng.normal(0, 0.05, size=3),
    )


def _seen(first: Frame, case: Slice, lesion: Lesion, scale: float) -> Lesion:
    """The lesion at the same place of the patient, in the pose of `case`, `scale` times as large.

    The turn goes about the shape's own origin, which lies beside the middle of its box.
    """
    old = lesion.shape
    unit = old.fit * lesion.width
    origin = to_patient(first, lesion.u - old.centre[0] * unit, lesion.v - old.centre[1] * unit)
    u, v, _ = np.linalg.solve(case.frame[:, :3], origin - case.frame[:, 3]) / FIELD_MM + 0.5
    turned = np.linalg.solve(case.frame[:, :3], first[:, 0])
    angle = old.angle + float(np.arctan2(turned[1], turned[0]))
    shape = fitted(replace(old, angle=angle))
    unit *= scale
    moved = Lesion(
        kind=lesion.kind,
        u=float(u) + shape.centre[0] * unit,
        v=float(v) + shape.centre[1] * unit,
        width=unit / shape.fit,
        shape=shape,
        side="",
    )
    return replace(moved, side=side_of(case.plane, case.frame, moved))
