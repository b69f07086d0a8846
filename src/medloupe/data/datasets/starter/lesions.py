"""Lesions as formulas: each kind is a function of local coordinates, so it is sharp at any size.

A shape has local coordinates (a, b), with its parts near the unit disc. `Shape` rescales it so that
the longer side of its tight box is exactly 1; boxes are therefore known without drawing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]

# kind -> how often it is drawn; the last four are rare
KINDS: dict[str, float] = {
    "bright": 0.17,
    "dark": 0.17,
    "ring": 0.15,
    "wedge": 0.13,
    "streak": 0.13,
    "cluster": 0.11,
    "spiculated": 0.05,
    "cystic": 0.04,
    "target": 0.03,
    "crescent": 0.02,
}
PROBES = 128  # cells per side of the grid on which a shape's extent is measured
REACH = 1.5  # half side of that grid in local units


@dataclass(frozen=True, eq=False)
class Shape:
    """A lesion's form: kind, random numbers that bend it, and the fit to its unit box.

    A point (x, y) in lesion widths from the box's centre is local (a, b) = (x, y) / fit + centre.
    `extent` is the (width, height) of the tight box; the longer one is 1.
    """

    kind: str
    angle: float
    wobble: NDArray[np.float64]
    fit: float = 1.0
    centre: tuple[float, float] = (0.0, 0.0)
    extent: tuple[float, float] = (1.0, 1.0)

    def paint(self, x: Field, y: Field) -> tuple[Field, Field]:
        """Coverage (0 or 1) and contrast (about -1..1) at points in widths from the box's centre."""
        return self.paint_local(x / self.fit + self.centre[0], y / self.fit + self.centre[1])

    def paint_local(self, a: Field, b: Field) -> tuple[Field, Field]:
        """The same in local coordinates, before `fit`."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return PAINTERS[self.kind](a * cos + b * sin, b * cos - a * sin, self.wobble)


def draw_shape(kind: str, rng: np.random.Generator) -> Shape:
    """A shape of this kind at random."""
    angle = float(rng.uniform(0, 2 * np.pi))
    return fitted(Shape(kind=kind, angle=angle, wobble=rng.uniform(-1, 1, size=12)))


def fitted(shape: Shape) -> Shape:
    """The shape measured on a fine grid and scaled so that its tight box has a longer side of 1."""
    step = 2 * REACH / PROBES
    axis = ((np.arange(PROBES) + 0.5) * step - REACH).astype(np.float32)
    b, a = np.meshgrid(axis, axis, indexing="ij")
    covered = shape.paint_local(a, b)[0] > 0
    columns, rows = np.flatnonzero(covered.any(axis=0)), np.flatnonzero(covered.any(axis=1))
    left, right = axis[columns[0]] - step / 2, axis[columns[-1]] + step / 2
    top, bottom = axis[rows[0]] - step / 2, axis[rows[-1]] + step / 2
    longest = max(right - left, bottom - top)
    return replace(
        shape,
        fit=float(1 / longest),
        centre=(float(left + right) / 2, float(top + bottom) / 2),
        extent=(float((right - left) / longest), float((bottom - top) / longest)),
    )


def _polar(a: Field, b: Field) -> tuple[Field, Field]:
    return np.hypot(a, b), np.arctan2(b, a)


def _blob(a: Field, b: Field, wobble: NDArray[np.float64], depth: float = 0.10) -> Field:
    """Distance from the middle over the outline's: below 1 inside an irregular ellipse."""
    radius, angle = _polar(a, b * (1.12 + 0.22 * wobble[0]))
    outline = (
        1 + depth * wobble[1] * np.cos(2 * angle + 3 * wobble[2])
        + depth * wobble[3] * np.cos(3 * angle + 3 * wobble[4])
        + 0.5 * depth * wobble[5] * np.cos(5 * angle + 3 * wobble[6])
    )  # fmt: skip
    result: Field = radius / outline
    return result


def _bright(a: Field, b: Field, wobble: NDArray[np.float64]) -> tuple[Field, Field]:
    r = _blob(a, b, wobble)
    return _mask(r < 1), _soft(r)


def _dark(a: Field, b: Field, wobble: NDArray[np.float64]) -> tuple[Field, Field]:
    r = _blob(a, b, wobble)
    return _mask(r < 1), -_soft(r)


def _ring(a: Field, b: Field, wobble: NDArray[np.float64]) -> tuple[Field, Field]:
    r = _blob(a, b, wobble, 0.05)
    return _mask(r < 1), np.where(r > 0.66, np.float32(1), np.float32(-0.25))


def _wedge(a: Field, b: Field, wobble: NDArray[np.float64]) -> tuple[Field, Field]:
    radius, angle = _polar(a + 0.9, b)
    half = 0.42 + 0.10 * wobble[0]
    outer = 1.75 + 0.06 * np.cos(9 * angle + 3 * wobble[1])
    inside = (np.abs(angle) < half) & (radius < outer)
    return _mask(inside), np.full_like(a, -0.9)


def _streak(a: Field, b: Field, wobble: NDArray[np.float64]) -> tuple[Field, Field]:
    bend = 0.28 * wobble[0] * (a * a - 0.4)
    thickness = 0.15 * np.sqrt(np.maximum(1 - a * a, 0))
    return _mask(np.abs(b - bend) < thickness), np.full_like(a, 1.0)


def _cluster(a: Field, b: Field, wobble: NDArray[np.float64]) -> tuple[Field, Field]:
    count = 5 + int(wobble[11] > 0)
    inside = np.zeros(a.shape, dtype=bool)
    for dot in range(count):
        turn = 2 * np.pi * dot / (count - 1) + 0.4 * wobble[dot]
        distance = 0.0 if dot == 0 else 0.76 + 0.12 * wobble[dot + 4]
        size = 0.23 + 0.04 * wobble[(3 * dot) % 12]
        offset = np.hypot(a - distance * np.cos(turn), b - distance * np.sin(turn))
        inside |= offset < size
    return _mask(inside), np.full_like(a, 1.0)


def _spiculated(a: Field, b: Field, wobble: NDArray[np.float64]) -> tuple[Field, Field]:
    radius, angle = _polar(a, b)
    spikes = 8 + int(2 * wobble[0])
    wave = 0.5 + 0.5 * np.cos(spikes * angle + 3 * wobble[1])
    uneven = 1 + 0.14 * np.cos(2 * angle + 3 * wobble[2]) + 0.12 * np.cos(3 * angle + 3 * wobble[3])
    return _mask(radius < (0.42 + 0.62 * wave**3) * uneven), np.full_like(a, 0.95)


def _cystic(a: Field, b: Field, wobble: NDArray[np.float64]) -> tuple[Field, Field]:
    r = _blob(a, b, wobble, 0.04)
    nodule = np.hypot(a - 0.52, b) < 0.34
    return _mask(r < 1), np.where(nodule, np.float32(1.0), np.float32(-1.15))


def _target(a: Field, b: Field, wobble: NDArray[np.float64]) -> tuple[Field, Field]:
    r = _blob(a, b, wobble, 0.03)
    return _mask(r < 1), np.where((r < 0.34) | (r > 0.72), np.float32(1.0), np.float32(-1.0))


def _crescent(a: Field, b: Field, wobble: NDArray[np.float64]) -> tuple[Field, Field]:
    outer = np.hypot(a, b) < 1
    inner = np.hypot(a - 0.55 - 0.1 * wobble[0], b) < 0.85
    return _mask(outer & ~inner), np.full_like(a, 1.0)


def _soft(r: Field) -> Field:
    """1 in the middle of a blob, falling to 0.65 at its edge."""
    return np.asarray(1.0 - 0.35 * np.minimum(r, 1) ** 2, dtype=np.float32)


def _mask(inside: NDArray[np.bool_]) -> Field:
    return inside.astype(np.float32)


PAINTERS: dict[
    str, Callable[[Field, Field, NDArray[np.float64]], tuple[Field, Field]]
] = {
    "bright": _bright,
    "dark": _dark,
    "ring": _ring,
    "wedge": _wedge,
    "streak": _streak,
    "cluster": _cluster,
    "spiculated": _spiculated,
    "cystic": _cystic,
    "target": _target,
    "crescent": _crescent,
}  # fmt: skip
