"""Is a CT in Hounsfield units? The two faults that nothing else shows: rescaled twice, or never.

The rule looks at the means of blocks of 4 x 4 pixels, where noise hardly counts. Blocks are left
out that hold padding (declared, or a constant at or below -1000 HU such as -1024, -2000, -2048 or
-3024) or lie beside such a block, since resampling smears padding into its neighbours.

- Rescaled twice: air is -1000 HU, and nothing in a patient is below. 2 % of the blocks or more
  average below -1100 (fat has become -1124, lung -1870, air -2024), 5 % or more lie at -1174 to
  -874 (soft tissue less 1024), and where soft tissue should be (-200 to 200 HU) lie less than a
  sixth as many as of both together. Or 95 % are below -1100 (an intercept of -8192).
- Never rescaled: fewer than 1 in 200 blocks are below -100 HU (no air, lung or fat), a quarter or
  more are above 500, and of these 65 % or more are at 874 to 1174: water, muscle and fat plus 1024.
  Bone, contrast and metal spread over more: at most 60 % in 6,000 crops of five real CTs.

What it cannot know and lets pass: fewer than 256 blocks (64 x 64 pixels), crops of one tissue (a
brain without skull, rescaled twice, looks like air), windowed copies (0 to 80), and wrong slopes. A
phantom of one material near 1000 HU is refused: read it with `check_units=False`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medloupe.errors import ImageError
from medloupe.imaging.windows import PADDING
from medloupe.types import MedicalImage

_SIDE: Final = 4  # pixels of a block
_FEWEST: Final = 256  # blocks that are enough to judge by
_SLICES: Final = 16  # of a volume, evenly spread
_AIR: Final = -1000.0
_IMPOSSIBLE: Final = -1100.0
_OFFSET: Final = 1024.0
_SOFT: Final = (-150.0, 150.0)
_AS_IS: Final = (
    "a NIfTI, NRRD or NPY file whose modality the table leaves empty is read as it is, in Python any "
    "file with check_units=False"
)


def check_hounsfield(image: MedicalImage, name: str) -> None:
    """Refuse a CT whose values cannot be Hounsfield units; other units and localizers pass.

    Raises:
        ImageError: it was rescaled twice, or never; says what was found and what to do.
    """
    if image.units != "HU" or image.attributes.get("localizer") == "true":
        return
    means = _block_means(image)
    if means.size < _FEWEST:
        return
    fault = _twice(means) or _never(means)
    if fault is not None:
        rule, remedy = fault
        raise ImageError(rule, remedy=remedy, file=name, field="units")


def looks_rescaled_twice(image: MedicalImage) -> bool:
    """Whether grey values of unknown modality look like those of a CT that was rescaled twice."""
    means = _block_means(image)
    return means.size >= _FEWEST and _twice(means) is not None


def _twice(means: NDArray[np.float64]) -> tuple[str, str] | None:
    impossible = float((means < _IMPOSSIBLE).mean())
    soft = _share(means, -200, 200)
    shifted = _share(means, _SOFT[0] - _OFFSET, _SOFT[1] - _OFFSET)
    plausible = impossible < 0.02 or shifted < 0.05 or soft >= (impossible + shifted) / 6
    if plausible and impossible < 0.95:
        return None
    return (
        f"{impossible:.0%} of the image is below {_IMPOSSIBLE:g} HU, less dense than air, and "
        f"{soft:.1%} is soft tissue: the CT seems to have been rescaled twice (its intercept, "
        "usually -1024, was applied to values that are HU already)",
        f"Export it again from the source, or set Rescale Intercept (NIfTI: scl_inter) to 0; {_AS_IS}",
    )


def _never(means: NDArray[np.float64]) -> tuple[str, str] | None:
    light = float((means < -100).mean())
    dense = means[means > 500]
    if light >= 0.005 or dense.size < means.size / 4:
        return None
    shifted = _share(dense, _SOFT[0] + _OFFSET, _SOFT[1] + _OFFSET)
    if shifted < 0.65:
        return None
    return (
        f"nothing in the image is air, lung or fat, and {dense.size / means.size:.0%} of it is "
        "denser than 500 HU, nearly all of it near 1024: the CT seems never to have been rescaled "
        "(stored values instead of HU)",
        f"Export it again from the source, or subtract 1024; {_AS_IS}",
    )


def _share(values: NDArray[np.float64], low: float, high: float) -> float:
    return float(((values >= low) & (values < high)).mean())


def _block_means(image: MedicalImage) -> NDArray[np.float64]:
    """`[N]`: the mean of every block of 4 x 4 pixels that is measured, of up to 16 slices."""
    depth, rows, columns = image.array.shape
    high, wide = rows // _SIDE, columns // _SIDE
    planes = image.array[:, : high * _SIDE, : wide * _SIDE]
    if depth > _SLICES:
        planes = planes[np.linspace(0, depth - 1, _SLICES).round().astype(int)]
    if planes.size == 0:
        return np.empty(0)
    lowest = _by_block(np.minimum, planes)
    constant = (lowest == _by_block(np.maximum, planes)) & (lowest <= _AIR)
    sums = _by_block(np.add, planes)
    unmeasured: NDArray[np.bool_] = ~np.isfinite(sums)
    if PADDING in image.attributes:
        low, top = (float(value) for value in image.attributes[PADDING].split())
        unmeasured |= _by_block(np.logical_or, (planes >= low) & (planes <= top))
    values = np.unique(lowest[constant])
    if values.size:
        unmeasured |= _by_block(np.logical_or, np.isin(planes, values))
    kept = ~_grown(unmeasured)
    means: NDArray[np.float64] = sums[kept] / np.float64(_SIDE * _SIDE)
    return means


def _by_block(reduce: np.ufunc, planes: NDArray[Any]) -> NDArray[Any]:
    """`[slices, high, wide]`: blocks of `[slices, 4 high, 4 wide]`, reduced.

    Whole rows first: an order of magnitude faster than a reduction over axes of length 4.
    """
    rows = reduce(
        reduce(planes[:, 0::4], planes[:, 1::4]), reduce(planes[:, 2::4], planes[:, 3::4])
    )
    blocks: NDArray[Any] = reduce(
        reduce(rows[:, :, 0::4], rows[:, :, 1::4]), reduce(rows[:, :, 2::4], rows[:, :, 3::4])
    )
    return blocks


def _grown(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`[slices, high, wide]`: marked blocks and their neighbours in the plane."""
    padded = np.pad(marked, ((0, 0), (1, 1), (1, 1)))
    _, high, wide = marked.shape
    grown = np.zeros_like(marked)
    for row in range(3):
        for column in range(3):
            grown |= padded[:, row : row + high, column : column + wide]
    return grown
