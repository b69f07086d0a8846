"""NRRD: the header through pynrrd, the voxels by the header's own size.

pynrrd inflates whatever a stream holds; here the header says how much may come out, so a small file
cannot fill the memory. A detached header (`.nhdr`) names one file of voxels beside it, and nothing
outside its folder; an `ImageRef.sha256` covers the header only. The array order is that of
`orientation`; without a named anatomical space the sides are unknown and the affine is None.
Definition: teem.sourceforge.net/nrrd/format.html, whose fields are named in the errors.
"""

from __future__ import annotations

import bz2
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import nrrd
import numpy as np
from numpy.typing import NDArray

from medloupe.errors import ImageError
from medloupe.imaging.limits import check_size, choose_frame, choose_volume, exact_float32
from medloupe.imaging.orientation import spacing_of, to_display_order
from medloupe.types import ImageRef, MedicalImage

# What pynrrd and numpy raise for a broken header, by experiment with cut and altered files.
_BROKEN: Final = (
    nrrd.NRRDError,
    ArithmeticError,
    AssertionError,
    LookupError,
    MemoryError,
    OSError,
    TypeError,
    ValueError,
    zlib.error,
)
_LARGEST_HEADER: Final = 2**20
_BLANK_LINE: Final = re.compile(rb"\r?\n[ \t]*\r?\n")
# Signs of (x, y, z) that turn a space of patient coordinates into RAS.
_SPACES: Final = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_MM: Final = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "μm": 0.001, "µm": 0.001}
_COLOURS: Final = ("rgb-color", "3-color")


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """The axes that lie in space, and those of them that the header places."""

    axes: tuple[int, ...]
    directions: NDArray[np.float64] | None  # [axes, 3] RAS mm
    origin: NDArray[np.float64]  # [3] RAS mm, the centre of the first voxel
    spacing: tuple[float, ...]  # mm, one per axis in `axes`


def decode_nrrd(
    data: bytes, name: str, frame: int | None, kind: Literal["image", "volume"]
) -> MedicalImage:
    """Decode the bytes of a `.nrrd` or `.nhdr`; see `read_image`.

    With `kind="image"`, `frame` is a slice of the reoriented volume. With `kind="volume"`, it is an
    entry of the one axis that does not lie in space (time, components), where there is one.

    Raises:
        ImageError: broken, a size that is not that of the voxels, an encoding other than raw, gzip
            and bzip2, voxels outside the header's folder, or several slices where one is asked for.
    """
    try:
        header, start = _header(data, name)
        values = _values(header, data, start, name)
        grid = _grid(header, values.ndim, name)
        if _is_colour(header, values, grid):
            return _colour(values, grid, name, frame)
        return _grey(values, grid, name, frame, kind)
    except ImageError:
        raise
    except _BROKEN as error:
        raise ImageError(
            f"broken or truncated NRRD: {str(error).strip() or type(error).__name__}",
            remedy="Fetch or export the file again",
            file=name,
        ) from error


def _header(data: bytes, name: str) -> tuple[dict[str, Any], int]:
    """The fields by name without spaces, and where the voxels of an attached header start."""
    blank = _BLANK_LINE.search(data[:_LARGEST_HEADER])
    start = blank.end() if blank else len(data)
    if start > _LARGEST_HEADER:
        raise ImageError("an NRRD header without the blank line that ends it", file=name)
    lines = data[:start].decode("utf-8", "replace").splitlines()
    # names of fields are case-insensitive; pynrrd knows them in lower case
    fields = [re.sub(r"^[^:=]+(?=:(?!=))", lambda m: m.group().lower(), line) for line in lines]
    header = {key.replace(" ", ""): value for key, value in nrrd.read_header(fields).items()}
    for required in ("type", "dimension", "sizes", "encoding"):
        if required not in header:
            raise ImageError("the NRRD header lacks this field", field=required, file=name)
    return header, start


def _values(header: dict[str, Any], data: bytes, start: int, name: str) -> NDArray[Any]:
    """The array in the header's axis order, fastest axis first."""
    sizes = tuple(int(size) for size in header["sizes"])
    if len(sizes) != header["dimension"]:
        raise ImageError(
            f"{len(sizes)} sizes for dimension {header['dimension']}", field="sizes", file=name
        )
    columns, rows, *rest = (*sizes, 1, 1)
    check_size(name, columns, rows, math.prod(rest))
    dtype = _dtype(header, name)
    stored, file = data[start:], name
    if "datafile" in header:
        stored, file = _detached(str(header["datafile"]), name)
    size = math.prod(sizes) * dtype.itemsize
    voxels = _decoded(header, stored, size, file)
    return np.frombuffer(voxels, dtype).reshape(sizes, order="F")


def _dtype(header: dict[str, Any], name: str) -> np.dtype[Any]:
    kinds = nrrd.reader._TYPEMAP_NRRD2NUMPY
    code = kinds.get(str(header["type"]).lower())
    if code is None or code == "V":
        raise ImageError(
            f"voxels of type {header['type']!r} are not real numbers", field="type", file=name
        )
    dtype = np.dtype(code)
    endian = str(header.get("endian", "")).lower()
    if dtype.itemsize > 1 and endian not in ("little", "big"):
        raise ImageError(
            f"the byte order is {endian or 'not given'!r}; it must be little or big",
            field="endian",
            file=name,
        )
    ordered: np.dtype[Any] = dtype.newbyteorder("<" if endian == "little" else ">")
    return ordered


def _detached(file: str, name: str) -> tuple[bytes, str]:
    """The content of the file that a detached header names, and its path."""
    if file.upper().startswith("LIST") or "%" in file:
        raise ImageError(
            "the voxels are spread over several files",
            remedy="Save them as one file: unu save -f nrrd",
            field="data file",
            file=name,
        )
    folder = Path(name).resolve().parent
    path = (folder / file).resolve()
    if not path.is_relative_to(folder):
        raise ImageError(
            f"the header names voxels outside its folder: {file!r}",
            remedy="Put both into one folder and correct the field",
            field="data file",
            file=name,
        )
    try:
        return path.read_bytes(), str(path)
    except OSError as error:
        raise ImageError(
            f"the file of voxels {file!r} cannot be read: {error.strerror}",
            remedy="Put it beside its header",
            field="data file",
            file=name,
        ) from None


def _decoded(header: dict[str, Any], stored: bytes, size: int, name: str) -> bytes:
    """Exactly `size` bytes of voxels; a compressed stream is inflated no further than that."""
    for _ in range(int(header.get("lineskip", 0))):
        stored = stored[stored.index(b"\n") + 1 :]
    skip = int(header.get("byteskip", 0))
    encoding = str(header["encoding"]).lower()
    if skip < -1 or (skip == -1 and encoding != "raw"):
        raise ImageError(f"byte skip {skip} means nothing here", field="byte skip", file=name)
    if encoding == "raw":
        voxels = stored[-size:] if skip == -1 else stored[skip:]
    elif encoding in ("gzip", "gz", "bzip2", "bz2"):
        voxels = _inflated(encoding, stored, skip + size, name)[skip:]
    else:
        raise ImageError(
            f"encoding {encoding!r} is not read",
            remedy="Save the file as raw or gzip: unu save -e gzip",
            field="encoding",
            file=name,
        )
    if len(voxels) != size:
        raise ImageError(
            f"the header says {size} bytes of voxels, and there are {len(voxels)}",
            remedy="Fetch or export the file again",
            file=name,
        )
    return voxels


def _inflated(encoding: str, stored: bytes, size: int, name: str) -> bytes:
    # one byte more than wanted shows a longer stream, and lets zlib compare the checksum
    if encoding.startswith("g"):
        stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        voxels = stream.decompress(stored, size + 1)
        complete = stream.eof
    else:
        bzip = bz2.BZ2Decompressor()
        voxels = bzip.decompress(stored, size + 1)
        complete = bzip.eof
    if not complete and len(voxels) <= size:
        raise ImageError(
            "the compressed voxels are truncated", remedy="Fetch the file again", file=name
        )
    return voxels


def _grid(header: dict[str, Any], dimension: int, name: str) -> _Grid:
    """Where the axes lie, in RAS+ mm as far as the header says."""
    unit = _unit(header, name)
    if "spacedirections" not in header:
        given = np.asarray(header.get("spacings", [np.nan] * dimension), dtype=np.float64)
        placed = ~np.isnan(given) if not np.isnan(given).all() else np.arange(dimension) < 3
        axes = tuple(np.flatnonzero(placed).tolist())
        lengths = np.where(np.isnan(given), 1.0, np.abs(given))[list(axes)] * unit
        spacing = tuple(float(length) for length in lengths)
        return _Grid(axes=axes, directions=None, origin=np.zeros(3), spacing=spacing)
    vectors = np.asarray(header["spacedirections"], dtype=np.float64) * unit
    if vectors.ndim != 2 or len(vectors) != dimension or vectors.shape[-1] not in (2, 3):
        raise ImageError(
            f"{dimension} axes with space directions of shape {vectors.shape}",
            field="space directions",
            file=name,
        )
    axes = tuple(np.flatnonzero(np.isfinite(vectors).all(axis=1)).tolist())
    spacing = tuple(float(x) for x in np.linalg.norm(vectors[list(axes)], axis=1))
    signs = _SPACES.get(str(header.get("space", "")).lower())
    if signs is None or vectors.shape[1] != 3:
        return _Grid(axes=axes, directions=None, origin=np.zeros(3), spacing=spacing)
    origin = np.asarray(header.get("spaceorigin", np.zeros(3)), dtype=np.float64)
    return _Grid(
        axes=axes,
        directions=vectors[list(axes)] * signs,
        origin=origin.reshape(3) * signs * unit,
        spacing=spacing,
    )


def _unit(header: dict[str, Any], name: str) -> float:
    """Millimetres per unit of the header's lengths."""
    field = "spaceunits" if "spacedirections" in header else "units"
    named = {str(unit).strip().lower() for unit in header.get(field, ())}
    lengths = named - {"", "none", "???", "s", "sec", "ms"}
    if not lengths:
        return 1.0
    if len(lengths) > 1 or not lengths <= _MM.keys():
        raise ImageError(
            f"lengths in {', '.join(sorted(lengths))} are not understood",
            remedy=f"One of: {', '.join(_MM)}",
            field="space units" if field == "spaceunits" else field,
            file=name,
        )
    return _MM[lengths.pop()]


def _is_colour(header: dict[str, Any], values: NDArray[Any], grid: _Grid) -> bool:
    kinds = [str(kind).lower() for kind in header.get("kinds", ())]
    colour = [axis for axis, kind in enumerate(kinds) if kind in _COLOURS]
    return (
        colour == [0]
        and len(values) == 3
        and values.dtype == np.uint8
        and math.prod(values.shape[3:]) == 1
        and 0 not in grid.axes
    )


def _colour(values: NDArray[Any], grid: _Grid, name: str, frame: int | None) -> MedicalImage:
    """A plane of 8-bit colour `[3, i, j]`, as it is stored."""
    choose_frame(name, frame, 1, what="slices")
    picture = values.reshape(values.shape[:3], order="F").transpose(2, 1, 0)
    return MedicalImage(
        array=np.ascontiguousarray(picture),
        units="rgb",
        spacing=_spacing(grid),
        source=ImageRef(uri=name, frame=frame),
        attributes={"format": "NRRD", "orientation": "unknown"},
    )


def _grey(
    values: NDArray[Any],
    grid: _Grid,
    name: str,
    frame: int | None,
    kind: Literal["image", "volume"],
) -> MedicalImage:
    values = _volume(values, grid, name, frame if kind == "volume" else None)
    array: NDArray[Any]
    if grid.directions is None:
        array, affine, spacing = values.transpose(2, 1, 0), None, _spacing(grid)
    else:
        array, affine = to_display_order(values, _affine(grid), name)
        spacing = spacing_of(affine)
    if kind == "image":
        index = choose_frame(name, frame, array.shape[0], what="slices")
        array = array[index : index + 1]
        if affine is not None:
            affine = affine.copy()
            affine[:3, 3] += index * affine[:3, 2]
    return MedicalImage(
        array=exact_float32(array, name),
        units="stored",
        affine=affine,
        spacing=spacing,
        source=ImageRef(uri=name, kind=kind, frame=frame),
        attributes={"format": "NRRD"} | ({"orientation": "unknown"} if affine is None else {}),
    )


def _volume(values: NDArray[Any], grid: _Grid, name: str, entry: int | None) -> NDArray[Any]:
    """`[i, j, k]`: one entry of the axis that lies in no space, and three axes that do."""
    outside = [axis for axis in range(values.ndim) if axis not in grid.axes]
    if not 1 <= len(grid.axes) <= 3 or len(outside) > 1:
        raise ImageError(
            f"{len(grid.axes)} axes in space and {len(outside)} others are not a volume", file=name
        )
    if outside:
        count = values.shape[outside[0]]
        if count > 1 and entry is None:
            raise ImageError(
                f"the file holds {count} volumes (times or components), and one is asked for",
                remedy=choose_volume(count),
                file=name,
                field="frame",
            )
        values = values.take(choose_frame(name, entry, count, what="volumes"), axis=outside[0])
    else:
        choose_frame(name, entry, 1, what="volumes")
    return values.reshape((*values.shape, 1, 1)[:3])


def _affine(grid: _Grid) -> NDArray[np.float64]:
    """`[4, 4]` voxel indices to RAS+ mm; a plane gets the direction across it, 1 mm long."""
    assert grid.directions is not None
    affine = np.eye(4)
    affine[:3, 3] = grid.origin
    affine[:3, : len(grid.axes)] = grid.directions.T
    if len(grid.axes) == 2:
        across = np.cross(*grid.directions)
        length = np.linalg.norm(across)
        affine[:3, 2] = across / length if length > 0 else 0  # parallel: refused as not invertible
    elif len(grid.axes) == 1:
        affine[:3, 1:3] = 0
    return affine


def _spacing(grid: _Grid) -> tuple[float, float, float]:
    """(slice, row, column) in mm; 1 where the header says nothing."""
    column, row, depth = (*grid.spacing, 1.0, 1.0)[:3]
    return depth, row, column
