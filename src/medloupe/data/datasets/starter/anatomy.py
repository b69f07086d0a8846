"""Real anatomy, warped: the MNI152 brain as one patient sees it in one slice.

Spaces: *patient* mm (RAS+, midline at x = 0) -> *template* mm (MNI) by a smooth warp that leaves
the midline where it is. A slice is sampled on a grid of `GRID` x `GRID` cells whatever the size of
the picture, so that the same slice at 224 and at 1134 pixels shows the same brain; edges and
texture are then drawn at the picture's own size.

A *frame* is `[3, 4]`: (u right, v down, w deep, 1) in mm from the middle of the field -> patient mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medloupe.errors import import_extra

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
FIELD_MM = 208.0  # side of the square field of view
GRID = 192  # cells per side on which anatomy is sampled: 1.08 mm, the template has 1 mm
WARP_GRID = 26  # cells per side on which the warp is evaluated: 8 mm, its waves are 70 mm or more
CHANNELS, T1, GREY, WHITE, BRAIN = 4, 0, 1, 2, 3

# Columns: image right (u), image down (v), depth (w) in RAS+ mm. Radiological display: the
# patient's right is at the image's left; a sagittal slice looks to the left.
AXES: dict[Plane, NDArray[np.float64]] = {
    "axial": np.array([[-1.0, 0, 0], [0, -1.0, 0], [0, 0, 1.0]]),
    "coronal": np.array([[-1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]]),
    "sagittal": np.array([[0, 0, 1.0], [-1.0, 0, 0], [0, -1.0, 0]]),
}


@dataclass(frozen=True, eq=False)
class Template:
    """Maps `[X, Y, Z, 4]` (T1, grey, white, brain) in 0..255 and the mm -> voxel affine."""

    maps: NDArray[np.uint8]
    to_voxel: NDArray[np.float64]

    def save(self, folder: Path) -> None:
        """Write the maps where worker processes share them through the page cache."""
        np.save(folder / "maps.npy", self.maps)
        np.save(folder / "to_voxel.npy", self.to_voxel)

    @classmethod
    def open(cls, folder: Path) -> Template:
        """What `save` wrote, memory-mapped."""
        return cls(np.load(folder / "maps.npy", mmap_mode="r"), np.load(folder / "to_voxel.npy"))


def load_template() -> Template:
    """The MNI152 template of nilearn at 1 mm (packaged files, no network).

    Raises:
        MissingExtraError: nilearn is not installed.
    """
    datasets = import_extra("nilearn.datasets", extra="starter")
    images = (
        datasets.load_mni152_template(resolution=1),
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
        datasets.load_mni152_brain_mask(resolution=1),
    )
    maps = np.stack([np.asarray(image.dataobj, dtype=np.float32) for image in images], axis=-1)
    levels = np.round(np.clip(maps, 0, 1) * 255).astype(np.uint8, order="C")
    return Template(maps=levels, to_voxel=np.linalg.inv(images[0].affine))


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One patient's warp and intensities: waves `[K, 3]` with phases, amplitudes, scales."""

    waves: NDArray[np.float64]
    phases: NDArray[np.float64]
    amplitudes: NDArray[np.float64]
    scale: NDArray[np.float64]
    gamma: float
    tissue: tuple[float, float, float]  # shifts of CSF, grey, white
    bias: NDArray[np.float64]

    def to_template(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Patient mm -> template mm, `[..., 3]`."""
        angles = points @ self.waves.T + self.phases
        shift = np.sin(angles) @ self.amplitudes
        shift[..., 0] *= 1.0 - np.exp(-((points[..., 0] / 18.0) ** 2))
        moved: NDArray[np.float64] = (points * self.scale) + shift
        return moved


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A patient at random: waves of 70 to 180 mm that add up to a few mm."""
    count = 8
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = rng.uniform(70.0, 180.0, size=(count, 1))
    return Anatomy(
        waves=directions * (2 * np.pi / lengths),
        phases=rng.uniform(0, 2 * np.pi, size=count),
        amplitudes=rng.normal(0.0, 0.014, size=(count, 3)) * lengths,
        scale=rng.uniform(0.96, 1.10, size=3),
        gamma=float(rng.uniform(0.85, 1.2)),
        tissue=tuple(rng.normal(0, (0.02, 0.03, 0.03)).tolist()),
        bias=rng.normal(0, 0.05, size=3),
    )


def resize(field: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Bicubic enlargement of a `[H, W]` field to `size` x `size`."""
    if field.shape == (size, size):
        return field
    picture = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def cell_centres(count: int) -> NDArray[np.float64]:
    """Centres of `count` cells over the field, in mm from its middle."""
    return np.asarray((np.arange(count) + 0.5) / count * FIELD_MM - FIELD_MM / 2, dtype=np.float64)


def frame_points(frame: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Patient mm `[count, count, 3]` of the cell centres of a slice (rows are v)."""
    centres = cell_centres(count)
    v, u = np.meshgrid(centres, centres, indexing="ij")
    points: NDArray[np.float64] = u[..., None] * frame[:, 0] + v[..., None] * frame[:, 1]
    return points + frame[:, 3]


def sample_slice(
    template: Template, anatomy: Anatomy, frame: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The template's maps in a slice: `[4, GRID, GRID]` in 0..1.

    The warp is smooth, so it is evaluated on a coarse grid and enlarged.
    """
    warped = to_voxels(template, anatomy.to_template(frame_points(frame, WARP_GRID)))
    voxels = np.stack([resize(warped[..., axis].astype(np.float32), GRID) for axis in range(3)])
    return sample(template, voxels)


def sample(template: Template, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The maps `[4, ...]` in 0..1 at voxels `[3, ...]` that lie on a grid of 2 or 3 dimensions.

    Cells that are not near the brain are 0 without a look.
    """
    near = _grown(nearest(template.maps[..., BRAIN], voxels) > 0)
    maps = np.zeros((CHANNELS, *near.shape), dtype=np.float32)
    maps[:, near] = trilinear(template.maps, voxels[:, near]).T
    return maps


def to_voxels(template: Template, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Template mm `[..., 3]` -> template voxels."""
    voxels: NDArray[np.float64] = points @ template.to_voxel[:3, :3].T + template.to_voxel[:3, 3]
    return voxels


def nearest(volume: NDArray[np.uint8], voxels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`volume` `[X, Y, Z]` at `voxels` `[3, ...]`, without interpolation; edges repeat outside."""
    last = np.array(volume.shape).reshape(3, *[1] * (voxels.ndim - 1)) - 1
    x, y, z = np.clip(np.rint(voxels).astype(np.int32), 0, last)
    found: NDArray[np.uint8] = volume[x, y, z]
    return found


def _grown(mask: NDArray[np.bool_], cells: int = 3) -> NDArray[np.bool_]:
    """`mask` grown by `cells` along each of its axes."""
    for axis in range(mask.ndim):
        grown = mask.copy()
        for step in range(1, cells + 1):
            grown |= np.roll(mask, step, axis) | np.roll(mask, -step, axis)
        mask = grown
    return mask


def trilinear(maps: NDArray[np.uint8], voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    """`maps` `[X, Y, Z, C]` in 0..255 at `voxels` `[3, N]` -> `[N, C]` in 0..1; edges repeat.

    Several times as fast as one `map_coordinates` a channel: the channels share their indices.
    """
    _, height, depth, channels = maps.shape
    limit = np.array(maps.shape[:3], dtype=np.float32)[:, None] - 1.001
    voxels = np.clip(voxels, 0, limit)
    corner = voxels.astype(np.int32)
    x, y, z = voxels - corner
    base = (corner[0] * height + corner[1]) * depth + corner[2]
    flat = maps.reshape(-1, channels)
    total = np.zeros((voxels.shape[1], channels), dtype=np.float32)
    for dx, wx in ((0, 1 - x), (1, x)):
        for dy, wy in ((0, wx * (1 - y)), (1, wx * y)):
            for dz, weight in ((0, wy * (1 - z)), (1, wy * z)):
                total += flat[base + (dx * height + dy) * depth + dz] * weight[:, None]
    return total / np.float32(255)
