"""Our values beside independent readers, for every format but DICOM (that is `dicom_parity.py`).

    python benchmarks/format_parity.py                      # files that this script writes
    python benchmarks/format_parity.py scan.nii.gz t1.nrrd  # and your own volumes

Volumes are written oblique and in an order that is not ours, so each row also compares places: the
affine of ours against the reference's, as the largest distance of a corner voxel in mm. NIfTI is
read a second time by nibabel alone (no `medloupe.imaging`), everything but NPY by SimpleITK (ITK).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image

from medloupe.imaging.read import read_image
from medloupe.types import MedicalImage

HEAD = ("format", "data type", "reference", "largest difference", "largest distance")
SHAPE = (21, 33, 27)  # i, j, k
SIDES = (37, 53)  # rows, columns of pictures
INTEGERS = ("uint8", "int16", "uint16", "int32")
NUMBERS = (*INTEGERS, "float32", "float64")


@dataclass(frozen=True)
class Row:
    """One comparison. `distance` in mm, None where a format has no places."""

    format: str
    dtype: str
    reference: str
    difference: float
    distance: float | None = None

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        if self.distance is None:
            place = "-"
        else:
            place = "equal" if self.distance < 1e-3 else f"{self.distance:.3g} mm"
        value = f"{self.difference:.3g}" if self.difference else "equal"
        return self.format, self.dtype, self.reference, value, place


def main() -> None:
    """Print the table."""
    wanted = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    wanted.add_argument("files", nargs="*", type=Path, help="NIfTI and NRRD volumes")
    args = wanted.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = list(rows(Path(folder)))
    found += [row for path in args.files for row in compared(path, f"`{path.name}`")]
    print("\n".join(table(found)))


def table(found: list[Row]) -> list[str]:
    """Lines of markdown; data types that fared alike share one."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in found:
        name, dtype, *rest = row.cells()
        alike.setdefault((name, *rest), []).append(dtype)
    lines = [(name, ", ".join(dtypes), *rest) for (name, *rest), dtypes in alike.items()]
    return ["| " + " | ".join(line) + " |" for line in (HEAD, ("---",) * len(HEAD), *lines)]


def rows(folder: Path) -> Iterator[Row]:
    """Every comparison of files written into `folder`."""
    yield from nifti_rows(folder)
    yield from nrrd_rows(folder)
    yield from npy_rows(folder)
    yield from picture_rows(folder)


def nifti_rows(folder: Path) -> Iterator[Row]:
    """`.nii` and `.nii.gz`, plain and with a slope."""
    for ending, dtype in product((".nii", ".nii.gz"), NUMBERS):
        # ITK opens x.nii where both it and the x.nii.gz that is asked for are there
        path = folder / f"{dtype}-{ending.count('.')}{ending}"
        nibabel.save(nibabel.Nifti1Image(volume(dtype), affine()), path)
        yield from compared(path, f"NIfTI `{ending}`", dtype)
    scaled = nibabel.Nifti1Image(volume("float32"), affine())
    scaled.set_data_dtype(np.int16)
    scaled.header.set_slope_inter(0.25, -1024)
    nibabel.save(scaled, folder / "s.nii")
    yield from compared(folder / "s.nii", "NIfTI `.nii`", "int16, slope 0.25, intercept -1024")
    nibabel.save(nibabel.Nifti2Image(volume("int16"), affine()), folder / "two.nii")
    two = read_image(folder / "two.nii", kind="volume")  # ITK 5.4 reads no NIfTI-2
    yield nibabel_row(two, folder / "two.nii", "NIfTI-2 `.nii`", "int16")


def nrrd_rows(folder: Path) -> Iterator[Row]:
    """Attached raw and gzip, and a detached header."""
    for (ending, packed, name), dtype in product(
        (
            (".nrrd", False, "NRRD raw"),
            (".nrrd", True, "NRRD gzip"),
            (".nhdr", True, "NRRD detached, gzip"),
        ),
        NUMBERS,
    ):
        path = folder / f"x{ending}"
        sitk.WriteImage(itk_volume(dtype), path, useCompression=packed)
        yield from compared(path, name, dtype)


def npy_rows(folder: Path) -> Iterator[Row]:
    """`numpy.load` of the same file."""
    for dtype in (*NUMBERS, "float16"):
        path = folder / "x.npy"
        np.save(path, volume(dtype))
        ours = read_image(path, kind="volume").array
        yield Row("NPY", dtype, "numpy", gap(ours, np.load(path)))


def picture_rows(folder: Path) -> Iterator[Row]:
    """PNG, JPEG and TIFF, by Pillow alone and by SimpleITK."""
    random = np.random.default_rng(3)
    smooth = np.add.outer(np.arange(SIDES[0]), np.arange(SIDES[1]))  # JPEG is made for such
    grey8 = (smooth * 2 + random.integers(0, 20, SIDES)).astype(np.uint8)
    grey16 = random.integers(0, 2**16, SIDES).astype(np.uint16)
    colour = np.stack([grey8, grey8[::-1], grey8[:, ::-1]], axis=-1)
    kinds = {
        "uint8 grey": grey8,
        "uint16 grey": grey16,
        "uint8 RGB": colour,
        "float32 grey": random.normal(size=SIDES).astype(np.float32),
    }
    for name, ending, dtypes in (
        ("PNG", ".png", ("uint8 grey", "uint16 grey", "uint8 RGB")),
        ("JPEG", ".jpg", ("uint8 grey", "uint8 RGB")),
        ("TIFF", ".tiff", ("uint8 grey", "uint16 grey", "float32 grey", "uint8 RGB")),
    ):
        for dtype in dtypes:
            path = folder / f"x{ending}"
            Image.fromarray(kinds[dtype]).save(path)
            ours = read_image(path).array
            ours = ours[0] if ours.ndim == 3 and ours.shape[-1] != 3 else ours
            with Image.open(path) as picture:
                yield Row(name, dtype, "Pillow", gap(ours, np.asarray(picture)))
            theirs = sitk.GetArrayFromImage(sitk.ReadImage(path))
            yield Row(name, dtype, "SimpleITK", gap(ours, theirs))


def compared(path: Path, name: str, dtype: str | None = None) -> Iterator[Row]:
    """One volume against SimpleITK and, for NIfTI, against nibabel."""
    ours = read_image(path, kind="volume")
    theirs = sitk.ReadImage(path)
    kind = dtype or theirs.GetPixelIDTypeAsString()
    if ".nii" in path.name:
        yield nibabel_row(ours, path, name, kind)
    turned = sitk.DICOMOrient(theirs, "LPS")
    values = sitk.GetArrayFromImage(turned)
    yield Row(name, kind, "SimpleITK", gap(ours.array, values), distance(ours, itk_affine(turned)))


def nibabel_row(ours: MedicalImage, path: Path, name: str, dtype: str) -> Row:
    """One volume against nibabel."""
    values, places = by_nibabel(path)
    return Row(name, dtype, "nibabel", gap(ours.array, values), distance(ours, places))


def by_nibabel(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`[k, j, i]` and the affine, turned to LPS by nibabel's own canonical order."""
    image = nibabel.as_closest_canonical(nibabel.load(path))  # RAS
    values = np.asarray(image.dataobj, dtype=np.float64)[::-1, ::-1]
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    flip[:2, 3] = np.array(values.shape[:2]) - 1
    return values.transpose(2, 1, 0), image.affine @ flip


def itk_affine(image: sitk.Image) -> NDArray[np.float64]:
    """Voxel indices to RAS+ mm; ITK's own world is LPS."""
    result = np.eye(4)
    turn = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    result[:3, :3], result[:3, 3] = turn, image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ result


def gap(ours: NDArray[np.generic], theirs: NDArray[np.generic]) -> float:
    """The largest absolute difference, in float64."""
    assert ours.shape == theirs.shape, f"{ours.shape} and {theirs.shape}"
    return float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())


def distance(image: MedicalImage, places: NDArray[np.float64]) -> float:
    """How far apart, in mm, both affines place a corner voxel at most."""
    assert image.affine is not None
    ends = product(*((0, length - 1) for length in image.array.shape[::-1]))
    corners = np.array([[*end, 1] for end in ends]).T
    return float(np.linalg.norm(((image.affine - places) @ corners)[:3], axis=0).max())


def volume(dtype: str) -> NDArray[np.generic]:
    """`[i, j, k]`, seeded."""
    random = np.random.default_rng(7)
    if dtype.startswith("float"):
        return (random.integers(-8000, 8000, SHAPE) / 4).astype(dtype)
    limits = np.iinfo(dtype)
    low, high = max(limits.min, -(2**24)), min(limits.max, 2**24)
    return random.integers(low, high, SHAPE, endpoint=True).astype(dtype)


def affine() -> NDArray[np.float64]:
    """Order P, S, R (so that everything has to turn), voxels 0.7 x 1.5 x 0.9 mm, 9 degrees oblique."""
    angle = np.deg2rad(9)
    tilt = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    result = np.eye(4)
    result[:3, :3] = tilt @ np.array([[0, 0, 0.9], [-0.7, 0, 0], [0, 1.5, 0]])
    result[:3, 3] = (12.5, -40.25, 7.0)
    return result


def itk_volume(dtype: str) -> sitk.Image:
    """The same volume at the same place, for ITK to write."""
    image = sitk.GetImageFromArray(volume(dtype).transpose(2, 1, 0))
    world = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine()
    lengths = np.linalg.norm(world[:3, :3], axis=0)
    image.SetSpacing(lengths.tolist())
    image.SetDirection((world[:3, :3] / lengths).ravel().tolist())
    image.SetOrigin(world[:3, 3].tolist())
    return image


if __name__ == "__main__":
    main()
