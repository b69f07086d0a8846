"""NumPy's NPY files, with a JSON file of the same stem that says what the numbers are.

An NPY file knows only shape and type. `case.json` beside `case.npy` may hold the fields of
`Sidecar`; without it an array is `[D, H, W]` or `[H, W]` in "stored" values, or `[H, W, 3]` colour
where it is uint8. Arrays of Python objects are refused: reading them would run code (pickle).
A float32 file in that order is not copied: its array is a view of the (memory-mapped) file.
An `ImageRef.sha256` covers the NPY file only.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from pydantic import Field, model_validator

from medloupe.config import Config
from medloupe.errors import ConfigError, ImageError
from medloupe.imaging.limits import check_size, choose_frame, exact_float32
from medloupe.imaging.orientation import spacing_of, to_display_order
from medloupe.types import ImageRef, MedicalImage, Units

# What numpy raises for a broken header, by experiment with cut and altered files.
_BROKEN: Final = (
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)
_LARGEST_HEADER: Final = 10_000  # bytes; numpy's own limit for headers that are not trusted
_IDENTITY_WINDOW: Final = (128.0, 256.0)  # 8 bits are shown as they are, as in `raster`
_HEADERS: Final[dict[tuple[int, int], Callable[..., Any]]] = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}
Row = tuple[float, float, float, float]


class Sidecar(Config):
    """What `case.json` may say about `case.npy`.

    `axes` names the array's axes: slices D, rows H, columns W. `spacing` is (slice, row, column) in
    mm, whatever `axes` says. `affine` maps voxel indices (column i, row j, slice k) to RAS+ mm; an
    array saved from nibabel has `axes: WHD` and nibabel's own affine. With an affine the volume is
    turned into the order of `orientation`, and the affine gives the spacing. A modality of CT means
    HU, unless `units` says "stored" (a CT scaled to 0..1).
    """

    axes: Literal["DHW", "HWD", "WHD"] = "DHW"
    units: Units | None = None
    modality: str | None = None
    spacing: tuple[float, float, float] | None = None
    affine: tuple[Row, Row, Row, Row] | None = None
    window: tuple[float, float] | None = Field(default=None, description="centre and width")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.spacing is not None and min(self.spacing) <= 0:
            raise ValueError(f"spacing must be positive millimetres: {self.spacing}")
        if self.spacing is not None and self.affine is not None:
            raise ValueError("give spacing or affine: the affine holds the spacing")
        if self.affine is not None and self.affine[3] != (0, 0, 0, 1):
            raise ValueError(f"the last row of an affine is 0 0 0 1, not {self.affine[3]}")
        if self.window is not None and self.window[1] < 1:
            raise ValueError("window width must be at least 1 (DICOM PS3.3 C.11.2.1.2.1)")
        return self


def decode_npy(
    data: bytes | mmap.mmap, name: str, frame: int | None, kind: Literal["image", "volume"]
) -> MedicalImage:
    """Decode an NPY file; see `read_image`.

    Raises:
        ImageError: broken, truncated, objects or numbers that are not real, a shape that is no
            image, several slices where one is asked for, or a wrong sidecar (which is then named).
    """
    sidecar = read_sidecar(name)
    stored = _stored(data, name)
    while stored.ndim > 3 and stored.shape[0] == 1:  # a channel axis of one, as M3D saves volumes
        stored = stored[0]
    units = sidecar.units or _units(stored, sidecar.modality)
    source = ImageRef(uri=name, kind=kind, frame=frame, modality=sidecar.modality)
    if units == "rgb":
        return _colour(stored, name, frame, source)
    if stored.ndim not in (2, 3):
        raise ImageError(
            f"an array of shape {stored.shape} is neither a plane nor a volume",
            remedy="Save [H, W] or [D, H, W], one array a file",
            file=name,
        )
    volume = _slices_first(stored, sidecar.axes)
    volume, affine = _placed(volume, sidecar, name)
    if kind == "image":
        index = choose_frame(name, frame, volume.shape[0], what="slices")
        volume = volume[index : index + 1]
        if affine is not None:
            affine = affine.copy()
            affine[:3, 3] += index * affine[:3, 2]
    else:
        choose_frame(name, frame, 1, what="volumes")
    window = _IDENTITY_WINDOW if stored.dtype == np.uint8 else None
    return MedicalImage(
        array=exact_float32(volume, name),
        units=units,
        affine=affine,
        spacing=spacing_of(affine) if affine is not None else sidecar.spacing,
        window=sidecar.window or window,
        source=source,
        attributes={"format": "NPY"}
        | ({"orientation": "unknown"} if affine is None else {})
        | ({"units": "given"} if sidecar.units else {}),
    )


def read_sidecar(name: str) -> Sidecar:
    """What the JSON file of the same stem says; the defaults where there is none.

    Raises:
        ImageError: it is not JSON, or has fields or values that `Sidecar` does not.
    """
    path = Path(name).with_suffix(".json")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Sidecar()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"cannot be read: {error}", file=str(path)) from None
    remedy = f"It describes {Path(name).name}; rename it if it is another file"
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"not valid JSON: {error}", remedy=remedy, file=str(path)) from None
    try:
        return Sidecar.parse(fields)
    except ConfigError as error:
        raise ImageError(error.fault.rule, remedy=remedy, file=str(path)) from None


def _stored(data: bytes | mmap.mmap, name: str) -> NDArray[Any]:
    """The array as a read-only view of `data`."""
    start = io.BytesIO(data[: _LARGEST_HEADER + 64])
    try:
        version = npy_format.read_magic(start)
        if version not in _HEADERS:
            raise ImageError(
                f"NPY version {version} is not read", remedy="numpy.save it again", file=name
            )
        shape, columns_first, dtype = _HEADERS[version](start, max_header_size=_LARGEST_HEADER)
    except ImageError:
        raise
    except _BROKEN as error:
        raise ImageError(
            f"broken or truncated NPY: {str(error).strip() or type(error).__name__}",
            remedy="Fetch the file or numpy.save it again",
            file=name,
        ) from error
    if dtype.hasobject:
        raise ImageError(
            "an array of Python objects; reading it would run code (pickle), so it is not read",
            remedy="Save one numeric array: numpy.save(path, array, allow_pickle=False)",
            file=name,
        )
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ImageError(
            f"numbers of type {dtype} are not read",
            remedy="Save integers or float16 to float64",
            file=name,
        )
    check_size(name, *_extent(shape))
    size = math.prod(shape) * dtype.itemsize
    found = len(data) - start.tell()
    if found != size:
        raise ImageError(
            f"the header says {size} bytes of numbers, and there are {found}",
            remedy="Fetch the file or numpy.save it again",
            file=name,
        )
    array = np.frombuffer(data, dtype, offset=start.tell())
    return array.reshape(shape, order="F" if columns_first else "C")


def _extent(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(width, height, depth) for the size check."""
    *rest, rows, columns = (1, 1, *shape)
    return columns, rows, math.prod(rest)


def _units(stored: NDArray[Any], modality: str | None) -> Units:
    """What the numbers are, where the sidecar does not say it."""
    if modality == "CT":
        return "HU"
    return "rgb" if _looks_coloured(stored) else "stored"


def _looks_coloured(stored: NDArray[Any]) -> bool:
    return stored.dtype == np.uint8 and stored.ndim == 3 and stored.shape[-1] == 3


def _colour(stored: NDArray[Any], name: str, frame: int | None, source: ImageRef) -> MedicalImage:
    if not _looks_coloured(stored):
        raise ImageError(
            f"colour must be [H, W, 3] of uint8, not {stored.shape} of {stored.dtype}", file=name
        )
    choose_frame(name, frame, 1, what="slices")
    return MedicalImage(array=stored, units="rgb", source=source, attributes={"format": "NPY"})


def _slices_first(stored: NDArray[Any], axes: str) -> NDArray[Any]:
    """`[D, H, W]`, a view; a plane of `axes` without D is one slice."""
    if stored.ndim == 2:
        return (stored.T if axes == "WHD" else stored)[None]
    return stored.transpose([axes.index(axis) for axis in "DHW"])


def _placed(
    volume: NDArray[Any], sidecar: Sidecar, name: str
) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    """The volume in display order with its affine, if it has one."""
    if sidecar.affine is None:
        return volume, None
    return to_display_order(volume.transpose(2, 1, 0), np.array(sidecar.affine), name)
