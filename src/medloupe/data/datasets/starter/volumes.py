"""Small 3D volumes: the same warped brains, with lesions that are solids of revolution.

A volume is drawn as `[D, H, W]` with slices from inferior to superior, rows from anterior to
posterior and columns from the patient's right to left (the order in which `read_image` gives every
NIfTI volume), and boxes are in that frame. The file may store it in any other order: the affine,
not the array, says what is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import nibabel
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    ornt_transform,
)
from numpy.typing import NDArray

from medloupe.data.datasets.starter.anatomy import (
    AXES,
    BRAIN,
    FIELD_MM,
    GREY,
    T1,
    WHITE,
    Anatomy,
    Template,
    cell_centres,
    sample,
    to_voxels,
)
from medloupe.data.datasets.starter.lesions import PAINTERS
from medloupe.data.datasets.starter.patients import (
    MIDLINE_MM,
    Frame,
    box_mean,
    patient_anatomy,
    rotation,
    side_of_points,
)
from medloupe.data.datasets.starter.render import BRIGHTER, DARKER, OPACITY, blend, to_bytes

VOLUME_KINDS = ("bright", "dark", "ring", "wedge", "streak", "cystic")
WIDTHS = (0.08, 0.18)  # of the field: 4 to 9 voxels of 48
MOST_LESIONS = 3
CENTRE = (0.0, -18.0, 6.0)  # middle of the field, mm
FINE = 3  # samples per voxel edge
STORED = ("RAS", "LAS", "LPS", "PIL", "SRA", "ILP")  # orders in which files store their voxels
NOISE = 0.02


@dataclass(frozen=True, eq=False)
class Solid:
    """A planted 3D lesion: `centre` (u, v, w) of its box and `width` in fractions of the field.

    `turn` `[3, 3]` takes slice directions to the solid's own, whose first is its axis; `extent` is
    the box in widths, `middle` the box's middle in local units, `fit` widths per local unit.
    """

    kind: str
    centre: NDArray[np.float64]
    width: float
    turn: NDArray[np.float64]
    fit: float
    middle: NDArray[np.float64]
    extent: NDArray[np.float64]
    side: str = ""

    def box(self, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest (x, y, z) in voxels."""
        half = self.extent * self.width / 2
        return (self.centre - half) * size, (self.centre + half) * size

    def paint(self, offsets: NDArray[np.float64]) -> tuple[NDArray[np.float32], ...]:
        """Coverage and contrast at `[..., 3]` offsets from the box's middle, in widths."""
        return paint_local(self.kind, self.turn, offsets / self.fit + self.middle)


def paint_local(
    kind: str, turn: NDArray[np.float64], points: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The plane shape of `kind`, without its irregularities, turned about its axis."""
    own = (points @ turn.T).astype(np.float32)
    return PAINTERS[kind](own[..., 0], np.hypot(own[..., 1], own[..., 2]), np.zeros(12))


def draw_solid(kind: str, rng: np.random.Generator) -> Solid:
    """A solid at random, its longest side 1."""
    return fitted(kind, rotation(rng.uniform(0, 2 * np.pi, size=3)))


def fitted(kind: str, turn: NDArray[np.float64]) -> Solid:
    """A solid measured on a grid so that the longest side of its tight box is 1."""
    count, reach = 64, 1.5
    axis = (np.arange(count) + 0.5) * (2 * reach / count) - reach
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    covered = points[paint_local(kind, turn, points)[0] > 0]
    low, high = covered.min(axis=0) - reach / count, covered.max(axis=0) + reach / count
    longest = float((high - low).max())
    return Solid(
        kind=kind,
        centre=np.zeros(3),
        width=0.0,
        turn=turn,
        fit=1 / longest,
        middle=(low + high) / 2,
        extent=(high - low) / longest,
    )


@dataclass(frozen=True, eq=False)
class Volume:
    """A drawn volume `[D, H, W]`, its affine (column, row, slice) -> RAS+ mm, and its lesions."""

    voxels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    lesions: tuple[Solid, ...]
    stored: str

    def to_nifti(self) -> bytes:
        """The bytes of a `.nii` file that stores the voxels in the order `stored`."""
        ours, theirs = axcodes2ornt(("L", "P", "S")), axcodes2ornt(tuple(self.stored))
        turn = ornt_transform(ours, theirs)
        ijk = self.voxels.transpose(2, 1, 0)
        affine = self.affine @ inv_ornt_aff(turn, ijk.shape)
        image = nibabel.Nifti1Image(np.ascontiguousarray(apply_orientation(ijk, turn)), affine)
        image.set_sform(affine, code=4)
        image.set_qform(affine, code=4)
        data: bytes = image.to_bytes()
        return data


def draw_volume(
    template: Template, seed: int, patient: int, number: int, size: int, conspicuity: float,
    *, lesions: bool = True,
) -> Volume:  # fmt: skip
    """Volume `number` of `patient`; `lesions=False` draws the same one without them."""
    rng = np.random.default_rng((seed, patient, 5, number))
    scene = sample_scene(template, patient_anatomy(seed, patient), draw_pose(rng), size)
    planted = _place(scene, rng)
    return scan(scene, planted, conspicuity, rng, lesions=lesions)


@dataclass(frozen=True, eq=False)
class Scene:
    """A brain as one volume cuts it: `maps` `[4, D, H, W]`, `points` `[D, H, W, 3]` in patient mm."""

    anatomy: Anatomy
    frame: Frame
    maps: NDArray[np.float32]
    points: NDArray[np.float64]

    @property
    def size(self) -> int:
        return len(self.maps[0])


def draw_pose(rng: np.random.Generator) -> Frame:
    """The frame of a volume: a few degrees and mm of head position."""
    frame = np.zeros((3, 4))
    frame[:, :3] = AXES["axial"] @ rotation(np.radians(rng.normal(0, 2.5, size=3)))
    frame[:, 3] = np.array(CENTRE) + rng.normal(0, 3.0, size=3)
    return frame


def scan(
    scene: Scene, planted: tuple[Solid, ...], conspicuity: float, rng: np.random.Generator,
    *, lesions: bool = True,
) -> Volume:  # fmt: skip
    """The voxels of a scene with its lesions and noise; `lesions=False` leaves them undrawn."""
    maps, size = scene.maps, scene.size
    picture = blend(scene.anatomy, maps[T1], maps[GREY], maps[WHITE]) * maps[BRAIN]
    for solid in planted if lesions else ():
        _plant(picture, solid, conspicuity)
    noise = rng.standard_normal((2, *picture.shape), dtype=np.float32) * np.float32(NOISE)
    affine = np.eye(4)
    affine[:3, :3] = scene.frame[:, :3] * (FIELD_MM / size)
    affine[:3, 3] = scene.frame @ np.array([*[FIELD_MM * (0.5 / size - 0.5)] * 3, 1.0])
    return Volume(
        voxels=to_bytes(np.hypot(picture + noise[0], noise[1])),
        affine=affine,
        lesions=planted,
        stored=STORED[int(rng.integers(len(STORED)))],
    )


def sample_scene(template: Template, anatomy: Anatomy, frame: Frame, size: int) -> Scene:
    """The template's maps and the patient mm of each voxel."""
    centres = cell_centres(size)
    w, v, u = np.meshgrid(centres, centres, centres, indexing="ij")
    points = np.stack([u, v, w], axis=-1) @ frame[:, :3].T + frame[:, 3]
    voxels = to_voxels(template, anatomy.to_template(points)).astype(np.float32)
    maps = sample(template, np.ascontiguousarray(np.moveaxis(voxels, -1, 0)))
    return Scene(anatomy, frame, maps, points)


def _place(scene: Scene, rng: np.random.Generator) -> tuple[Solid, ...]:
    """Up to `MOST_LESIONS` lesions of different kinds that do not overlap."""
    room = Room(scene)
    count = int(rng.integers(MOST_LESIONS + 1))
    kinds = rng.choice(VOLUME_KINDS, size=count, replace=False).tolist()
    placed = [room.add(kind, WIDTHS, rng) for kind in kinds]
    return tuple(solid for solid in placed if solid is not None)


class Room:
    """The free tissue of one volume; lesions go into it."""

    def __init__(self, scene: Scene) -> None:
        self.frame, self.size = scene.frame, scene.size
        self.brain, self.tissue = scene.maps[BRAIN], scene.maps[GREY] + scene.maps[WHITE]
        self.free = np.ones_like(self.brain)
        self.from_midline = np.abs(scene.points[..., 0])

    def add(self, kind: str, widths: tuple[float, float], rng: np.random.Generator) -> Solid | None:
        """A lesion of log-uniform width off the midline, apart from the others; None if none fits."""
        width, size = float(np.exp(rng.uniform(*np.log(widths)))), self.size
        solid = replace(draw_solid(kind, rng), width=width)
        half = max(1, round(width * size / 2))
        fits = (box_mean(self.brain, half) > 0.97) & (box_mean(self.tissue, half) > 0.7)
        fits &= box_mean(self.free, half + 1) > 0.999
        fits &= self.from_midline > width * FIELD_MM * 0.55 + MIDLINE_MM
        cells = np.argwhere(fits)
        if len(cells) == 0:
            return None
        cell = cells[int(rng.integers(len(cells)))][::-1]
        solid = replace(solid, centre=(cell + rng.uniform(0.25, 0.75, size=3)) / size)
        low, high = solid.box(size)
        x1, y1, z1 = np.floor(low).astype(int)
        x2, y2, z2 = np.ceil(high).astype(int)
        self.free[z1:z2, y1:y2, x1:x2] = 0
        return replace(solid, side=side_of_solid(self.frame, solid))


def side_of_solid(frame: Frame, solid: Solid) -> str:
    """The patient's side on which the whole box of a solid lies, or ""."""
    low, high = solid.box(1)
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True)), axis=-1).reshape(-1, 3)
    return side_of_points(list((corners - 0.5) * FIELD_MM @ frame[:, :3].T + frame[:, 3]))


def _plant(picture: NDArray[np.float32], solid: Solid, conspicuity: float) -> None:
    """Draw a lesion into `picture` `[D, H, W]`, in place, each voxel the mean of its inside."""
    size = picture.shape[0]
    low, high = solid.box(size)
    starts, stops = np.floor(low).astype(int), np.ceil(high).astype(int)
    axes = [
        (start + (np.arange((stop - start) * FINE) + 0.5) / FINE) / size - middle
        for start, stop, middle in zip(starts, stops, solid.centre, strict=True)
    ]
    w, v, u = np.meshgrid(*axes[::-1], indexing="ij")
    covered, contrast = solid.paint(np.stack([u, v, w], axis=-1) / solid.width)
    cover, signed = _voxel_means(covered), _voxel_means(covered * contrast)
    (x1, y1, z1), (x2, y2, z2) = starts, stops
    patch = picture[z1:z2, y1:y2, x1:x2]
    local = float((patch * cover).sum() / cover.sum())
    room = np.where(signed > 0, BRIGHTER, min(DARKER, max(local - 0.03, 0.0)))
    patch += OPACITY * cover * (local - patch) + np.float32(conspicuity) * room * signed


def _voxel_means(field: NDArray[np.float32]) -> NDArray[np.float32]:
    depth, height, width = (length // FINE for length in field.shape)
    blocks = field.reshape(depth, FINE, height, FINE, width, FINE)
    return np.asarray(blocks.mean(axis=(1, 3, 5)), dtype=np.float32)
