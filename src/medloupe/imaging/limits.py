"""Rules that every image format shares: how large a file may be, which frame is meant, what fits."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medloupe.errors import ImageError

# A plane of 2^27 pixels is 11,585 x 11,585; a volume of 2^30 voxels is 4 GiB as float32. A header
# that claims more is refused before anything is allocated (decompression bombs).
MAX_PIXELS: Final = 2**27
MAX_VOXELS: Final = 2**30
_EXACT_IN_FLOAT32: Final = 2**24  # integers up to here are float32 numbers


def check_size(name: str, width: int, height: int, depth: int = 1) -> None:
    """Refuse an empty or an excessive image by what its header claims.

    Raises:
        ImageError: a side is not positive, or there are more than `MAX_PIXELS` in a plane or
            `MAX_VOXELS` in all.
    """
    size = f"{width} x {height}" + (f" x {depth}" if depth != 1 else "")
    if min(width, height, depth) < 1:
        raise ImageError(f"the image is empty: its header says {size} pixels", file=name)
    if width * height > MAX_PIXELS or width * height * depth > MAX_VOXELS:
        raise too_large(name, f"{size} pixels")


def too_large(name: str, size: str) -> ImageError:
    """The error for a sound file that is over the limits, whoever notices it first."""
    return ImageError(
        f"the image is too large: its header says {size}",
        remedy=f"At most {MAX_PIXELS} pixels a plane and {MAX_VOXELS} in all; cut it into tiles, or "
        "save a smaller copy",
        file=name,
    )


def choose_frame(name: str, frame: int | None, count: int, *, what: str) -> int:
    """The frame meant: `frame`, or the only one.

    Args:
        name: the file.
        frame: counted from 0, or None.
        count: how many there are.
        what: what this format calls them ("frames", "pages", "slices").

    Raises:
        ImageError: there are several and none is named, or there is no such frame.
    """
    if frame is None and count > 1:
        raise ImageError(
            f"the file holds {count} {what}, and one is asked for",
            remedy=f"Choose one with frame=0 to frame={count - 1}, or read all with kind='volume' "
            "(in a table: the column frame; or name the file in a column volume. On the command "
            "line: --frame, --volume)",
            file=name,
            field="frame",
        )
    chosen = frame or 0
    if not 0 <= chosen < count:
        raise ImageError(
            f"there is no frame {chosen}: the file holds {count} {what}, counted from 0",
            file=name,
            field="frame",
        )
    return chosen


def choose_volume(count: int) -> str:
    """The remedy where a file or series holds several volumes, in Python and in a table."""
    return (
        f"Choose one with kind='volume' and frame=0 to frame={count - 1} "
        "(in a table: the columns volume and frame)"
    )


def exact_float32(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    """`values` as contiguous float32, without a copy where they are that already.

    Raises:
        ImageError: they are no real numbers, or integers that float32 would merge.
    """
    if values.dtype.kind not in "biuf":
        raise ImageError(
            f"pixels of type {values.dtype} are not real numbers",
            remedy="Convert the file to one real number a pixel",
            file=name,
        )
    if values.dtype.kind in "iu" and values.dtype.itemsize > 2 and values.size:
        lowest, highest = int(values.min()), int(values.max())
        if max(-lowest, highest) > _EXACT_IN_FLOAT32:
            raise ImageError(
                f"integers from {lowest} to {highest} do not fit float32 without loss",
                remedy="Rescale them below 2^24 and keep the factor",
                file=name,
            )
    return np.ascontiguousarray(values, dtype=np.float32)
