"""Some slices of a volume, chosen by mm or by count, as a value that maps z both ways.

A volume of D slices is cut into slabs of equal thickness, and each is shown by its middle slice
(of two, the upper). In edge coordinates (slice k covers [k, k + 1), as in `Box`) the map is
z' = (z - offset) / step: slab t covers [t, t + 1). No slice is made up: for slices between the
stored ones, and for averages over thick slabs, use `resample`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medloupe.config import Config
from medloupe.errors import ImageError
from medloupe.imaging.geometry import VolumeGeometry
from medloupe.types import Box, MedicalImage


@dataclass(frozen=True, kw_only=True)
class SlicePlan:
    """Which slices of a volume of `depth` stand for which slabs of `step` slices.

    `z' = (z - offset) / step` in edge coordinates.
    """

    depth: int
    count: int
    step: float
    offset: float = 0.0

    def __post_init__(self) -> None:
        assert 1 <= self.count <= self.depth, f"{self.count} of {self.depth} slices"
        assert self.step >= 1, f"a slab of {self.step} slices"

    @property
    def indices(self) -> tuple[int, ...]:
        """The slices shown, ascending: `count` different ones."""
        middles = (math.floor(self.back(t + 0.5) + 1e-9) for t in range(self.count))
        return tuple(min(max(middle, 0), self.depth - 1) for middle in middles)

    def forward(self, z: float) -> float:
        """A slice coordinate of the volume, among the slabs."""
        return (z - self.offset) / self.step

    def back(self, z: float) -> float:
        """A coordinate among the slabs, in slices of the volume."""
        return z * self.step + self.offset

    def slab_of(self, index: int) -> int:
        """Which of the shown slices stands for slice `index` of the volume."""
        assert 0 <= index < self.depth, f"slice {index} of {self.depth}"
        return min(max(math.floor(self.forward(index + 0.5)), 0), self.count - 1)

    def forward_box(self, box: Box) -> Box:
        """The box among the slabs; not clipped. Without z it goes through all and stays so."""
        return _with_slices(box, self.forward)

    def back_box(self, box: Box) -> Box:
        """The box in slices of the volume, not clipped."""
        return _with_slices(box, self.back)

    def geometry(self, size: tuple[int, int]) -> VolumeGeometry:
        """The same map for points (x, y, z) of a volume of `size` (width, height)."""
        matrix = np.diag([1.0, 1.0, 1 / self.step, 1.0])
        matrix[2, 3] = -self.offset / self.step
        return VolumeGeometry(original=(*size, self.depth), view=(*size, self.count), matrix=matrix)


class SliceSelection(Config):
    """Slices `every_mm` millimetres, or `count` evenly spread ones; with neither, all of them.

    Slabs of `every_mm` lie round the middle of the volume. A volume that has fewer slices than
    asked for gives those it has, each once. `axis` is not offered: turn the volume by `reorient`.
    """

    version: Literal[1] = 1
    every_mm: Annotated[float, Field(gt=0)] | None = None
    count: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.every_mm is not None and self.count is not None:
            raise ValueError("give every_mm or count, not both")
        return self

    def plan(self, depth: int, spacing: float | None = None) -> SlicePlan:
        """The plan for `depth` slices, `spacing` mm apart.

        Raises:
            ImageError: mm are asked for and the spacing is not known.
        """
        assert depth >= 1, f"{depth} slices"
        if self.every_mm is None:
            count = min(self.count or depth, depth)
            return SlicePlan(depth=depth, count=count, step=depth / count)
        if not spacing or spacing <= 0:
            raise ImageError(
                f"the distance of the slices is {spacing}, so mm cannot be asked for",
                remedy="Choose slices by count, or give the spacing",
            )
        step = max(1.0, self.every_mm / spacing)
        # as many whole slabs as there are; at least one, and no slab without a slice of its own
        count = min(max(1, math.floor(depth / step + 0.5)), depth)
        return SlicePlan(depth=depth, count=count, step=step, offset=(depth - count * step) / 2)

    def plan_of(self, image: MedicalImage) -> SlicePlan:
        """The plan for a volume.

        Raises:
            ImageError: colour, or as `plan`.
        """
        file = image.source.uri if image.source else None
        if image.units == "rgb":
            raise ImageError("a colour picture has no slices to choose from", file=file)
        try:
            return self.plan(len(image.array), image.spacing[0] if image.spacing else None)
        except ImageError as error:
            raise error.at(file=file) from None

    def apply(self, image: MedicalImage) -> MedicalImage:
        """The chosen slices as a volume.

        Its affine is exact where they are evenly spaced. Else it is that of the slabs, and a slice
        lies less than one stored slice from where the affine says.

        Raises:
            ImageError: as `plan_of`.
        """
        plan = self.plan_of(image)
        indices = plan.indices
        first, step = _even(indices) or (plan.back(0.5) - 0.5, plan.step)
        affine, spacing = image.affine, image.spacing
        if affine is not None:
            affine = affine.copy()
            affine[:3, 3] += first * affine[:3, 2]
            affine[:3, 2] *= step
        if spacing is not None:
            spacing = (spacing[0] * step, spacing[1], spacing[2])
        array = image.array[list(indices)]
        return dataclasses.replace(image, array=array, affine=affine, spacing=spacing)


def _even(indices: tuple[int, ...]) -> tuple[float, float] | None:
    """(first, step) of evenly spaced indices, of which there are at least two."""
    steps = set(np.diff(indices).tolist())
    return (float(indices[0]), float(steps.pop())) if len(steps) == 1 else None


def _with_slices(box: Box, move: Callable[[float], float]) -> Box:
    if box.z1 is None or box.z2 is None:
        return box
    return box.model_copy(update={"z1": move(box.z1), "z2": move(box.z2)})
