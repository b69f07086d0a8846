"""Volumes on another grid, by SimpleITK, with the affine and the way back for boxes.

Two conventions meet here. An affine maps voxel *indices*: index i is the centre of voxel i. A `Box`
has *edges*: voxel i covers [i, i + 1), its centre is i + 0.5. A resampled grid keeps the outer edges
of the volume, not its outer centres: n voxels of s mm cover n s mm before and after.

- `size` divides that extent evenly, so both outer edges stay exactly.
- `spacing` is kept exactly; the number of voxels is rounded, and what that adds or takes (less than
  half a voxel a side) is shared between both ends, where the nearest voxel is repeated.

Shrinking first smooths (a Gaussian as wide as the new voxel), so that a new voxel stands for what it
covers; `nearest`, for masks, never does. Padding values are numbers like others here: they blend.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Final, Literal, Self

import numpy as np
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from pydantic import Field, model_validator

from medloupe.config import Config
from medloupe.errors import ConfigError, ImageError
from medloupe.imaging.geometry import VolumeGeometry
from medloupe.imaging.limits import check_size
from medloupe.imaging.orientation import orientation_of, spacing_of
from medloupe.types import ImageRef, MedicalImage

Interpolation = Literal["linear", "nearest", "bspline"]
Length = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

_INTERPOLATORS: Final = {
    "linear": sitk.sitkLinear,
    "nearest": sitk.sitkNearestNeighbor,
    "bspline": sitk.sitkBSpline,
}
# Half maximum to half maximum of the smoothing Gaussian, in units of the two voxel sizes, is
# sqrt(new^2 - old^2) (Cardoso et al., MICCAI 2015); a Gaussian's is this many standard deviations.
_WIDTHS: Final = 2 * math.sqrt(2 * math.log(2))
_LONGEST_KERNEL: Final = 129
# From centre (index) to edge coordinates: add one half.
_HALF: Final = np.array([[1, 0, 0, 0.5], [0, 1, 0, 0.5], [0, 0, 1, 0.5], [0, 0, 0, 1]])


class Resampling(Config):
    """A new grid, as a value. `spacing` (mm) and `size` (voxels) are (slice, row, column).

    With neither, the grid stays.
    """

    version: Literal[1] = 1
    spacing: tuple[Length, Length, Length] | None = None
    size: tuple[Count, Count, Count] | None = None
    interpolation: Interpolation = "linear"
    smooth: bool = True

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.spacing is not None and self.size is not None:
            raise ValueError("give spacing or size, not both")
        return self

    def geometry(self, image: MedicalImage) -> VolumeGeometry:
        """Where each point of `image` lies in the resampled grid.

        Raises:
            ImageError: colour, a spacing that the image does not have, or too many voxels.
        """
        name = _name(image)
        if image.units == "rgb":
            raise ImageError(
                "colour is not resampled in mm", remedy="ImageTransform resizes it", file=name
            )
        shape = image.array.shape[::-1]
        if self.spacing is not None:
            ratio = np.array(self.spacing[::-1]) / _spacing(image)[::-1]  # old voxels a new one
            size = _rounded(np.array(shape) / ratio)
        else:
            size = shape if self.size is None else self.size[::-1]
            ratio = np.array(shape) / np.array(size)
        check_size(name or "(not from a file)", *size)
        start = (np.array(shape) - np.array(size) * ratio) / 2  # edges, in old voxels
        matrix = np.eye(4)
        matrix[:3, :3] = np.diag(1 / ratio)
        matrix[:3, 3] = -start / ratio
        return VolumeGeometry(original=shape, view=size, matrix=matrix)

    def apply(self, image: MedicalImage) -> MedicalImage:
        """The image on the new grid.

        Raises:
            ImageError: as `geometry`.
        """
        geometry = self.geometry(image)
        return _resampled(image, geometry, self.interpolation, smooth=self.smooth)


def resample(
    image: MedicalImage,
    *,
    spacing: tuple[float, float, float] | None = None,
    size: tuple[int, int, int] | None = None,
    interpolation: Interpolation = "linear",
    smooth: bool = True,
) -> MedicalImage:
    """`image` with voxels of `spacing` mm or with `size` voxels, each (slice, row, column).

    Boxes follow by `Resampling(...).geometry(image).forward_box(box)`. Masks need
    `interpolation="nearest"`.

    Raises:
        ConfigError: both spacing and size, or one that is not positive.
        ImageError: colour, or spacing asked of an image that has none.
    """
    fields = {"spacing": spacing, "size": size, "interpolation": interpolation, "smooth": smooth}
    return Resampling.parse(fields).apply(image)


def match(
    image: MedicalImage, reference: MedicalImage, *, interpolation: Interpolation = "linear"
) -> MedicalImage:
    """`image` on the grid of `reference`, through both affines (a mask onto its scan).

    What lies outside of `image` is its lowest value. Nothing is smoothed.

    Raises:
        ImageError: colour, or one of them has no affine.
    """
    for one in (image, reference):
        if one.affine is None or one.units == "rgb":
            raise ImageError(
                "to match two grids, both need an affine and grey values", file=_name(one)
            )
    assert image.affine is not None
    assert reference.affine is not None
    to_reference = _HALF @ np.linalg.inv(reference.affine) @ image.affine @ np.linalg.inv(_HALF)
    geometry = VolumeGeometry(
        original=image.array.shape[::-1],
        view=reference.array.shape[::-1],
        matrix=to_reference,
    )
    outside = float(image.array.min())
    return _resampled(image, geometry, interpolation, smooth=False, outside=outside)


def reorient(image: MedicalImage, codes: str = "RAS") -> MedicalImage:
    """`image` with its voxel axes turned; no value changes. `codes` are nibabel's, for (i, j, k).

    "RAS": columns run to the patient's right, rows to the front, slices up. Readers give "LPS".

    Raises:
        ConfigError: `codes` does not name each of R/L, A/P and S/I once.
        ImageError: colour, or the image has no affine.
    """
    turn = _turn(image, codes)
    assert image.affine is not None
    values = image.array.transpose(2, 1, 0)
    affine = image.affine @ inv_ornt_aff(turn, values.shape)
    turned = np.ascontiguousarray(apply_orientation(values, turn).transpose(2, 1, 0))
    return dataclasses.replace(image, array=turned, affine=affine, spacing=spacing_of(affine))


def reorient_geometry(image: MedicalImage, codes: str = "RAS") -> VolumeGeometry:
    """Where each point of `image` lies in `reorient(image, codes)`.

    Raises:
        ConfigError, ImageError: as `reorient`.
    """
    turn = _turn(image, codes)
    shape = image.array.shape[::-1]
    to_original = _HALF @ inv_ornt_aff(turn, shape) @ np.linalg.inv(_HALF)
    axes = np.argsort(turn[:, 0]).astype(int)
    view = tuple(int(shape[axis]) for axis in axes)
    assert len(view) == 3
    return VolumeGeometry(original=shape, view=view, matrix=np.rint(np.linalg.inv(to_original)))


def _turn(image: MedicalImage, codes: str) -> NDArray[np.float64]:
    """nibabel's orientation transform from the image's axes to `codes`."""
    name = _name(image)
    wanted = codes.upper()
    if len(wanted) != 3 or {frozenset("RL"), frozenset("AP"), frozenset("SI")} != {
        side for code in wanted for side in map(frozenset, ("RL", "AP", "SI")) if code in side
    }:
        raise ConfigError(
            f"orientation {codes!r} does not name each of R/L, A/P and S/I once",
            remedy="Write RAS, LPS, ...",
        )
    if image.affine is None or image.units == "rgb":
        raise ImageError(
            "the image does not say where the sides of the patient are, so it cannot be turned",
            remedy="Give an affine (the sidecar of an NPY file, sform of a NIfTI file)",
            file=name,
        )
    stored = orientation_of(image.affine, name or "(not from a file)")
    turn: NDArray[np.float64] = ornt_transform(stored, axcodes2ornt(tuple(wanted)))
    return turn


def _resampled(
    image: MedicalImage,
    geometry: VolumeGeometry,
    interpolation: Interpolation,
    *,
    smooth: bool,
    outside: float | None = None,
) -> MedicalImage:
    """The image at the voxel centres of the view. Outside: the nearest voxel, or `outside`."""
    # new index -> old index; both are centres
    to_old = np.linalg.inv(_HALF) @ np.linalg.inv(geometry.matrix) @ _HALF
    pixels = sitk.GetImageFromArray(np.ascontiguousarray(image.array, dtype=np.float32))
    if smooth and interpolation != "nearest":
        pixels = _smoothed(pixels, np.linalg.norm(to_old[:3, :3], axis=0))
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(to_old[:3, :3].ravel().tolist())
    transform.SetTranslation(to_old[:3, 3].tolist())
    grid = sitk.ResampleImageFilter()
    grid.SetSize([int(length) for length in geometry.view])
    grid.SetInterpolator(_INTERPOLATORS[interpolation])
    grid.SetTransform(transform)
    grid.SetUseNearestNeighborExtrapolator(outside is None)
    grid.SetDefaultPixelValue(outside or 0.0)
    array = sitk.GetArrayFromImage(grid.Execute(pixels))
    affine = None if image.affine is None else image.affine @ to_old
    return dataclasses.replace(
        image, array=array, affine=affine, spacing=_new_spacing(image, affine, to_old)
    )


def _smoothed(pixels: sitk.Image, ratio: NDArray[np.float64]) -> sitk.Image:
    """`pixels` smoothed along the axes on which a new voxel covers more than one old one."""
    variance = np.maximum(ratio**2 - 1, 0) / _WIDTHS**2
    if not variance.any():
        return pixels
    return sitk.DiscreteGaussian(pixels, variance.tolist(), _LONGEST_KERNEL, 0.001, False)


def _new_spacing(
    image: MedicalImage, affine: NDArray[np.float64] | None, to_old: NDArray[np.float64]
) -> tuple[float, float, float] | None:
    if affine is not None:
        return spacing_of(affine)
    if image.spacing is None:
        return None
    depth, row, column = (np.array(image.spacing) * np.diag(to_old)[2::-1]).tolist()
    return depth, row, column


def _rounded(lengths: NDArray[np.float64]) -> tuple[int, int, int]:
    """At least one voxel along each axis; halves go up."""
    width, height, depth = (max(1, math.floor(length + 0.5)) for length in lengths)
    return width, height, depth


def _spacing(image: MedicalImage) -> NDArray[np.float64]:
    """(slice, row, column) in mm."""
    if image.spacing is None or min(image.spacing) <= 0:
        raise ImageError(
            f"the spacing is {image.spacing or 'not known'}, so mm cannot be asked for",
            remedy="Ask for a size, or give the spacing (the sidecar of an NPY file)",
            file=_name(image),
        )
    return np.array(image.spacing)


def _name(image: MedicalImage) -> str | None:
    source: ImageRef | None = image.source
    return source.uri if source else None
