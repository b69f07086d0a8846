"""One DICOM file to a `MedicalImage`: a frame, or all of its frames as a volume.

Rescaling is applied once, here (PS3.3 C.11.1); the VOI window and MONOCHROME1 are left to
`windows`, which shows. Overlays are not drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medloupe.errors import ImageError, MedLoupeError
from medloupe.imaging.dicom.arrange import (
    Arrangement,
    Finding,
    Plane,
    SeriesPolicy,
    arrange,
)
from medloupe.imaging.dicom.decoding import GREY, decode_frame
from medloupe.imaging.dicom.geometry import plane_geometry
from medloupe.imaging.dicom.parse import BROKEN, broken, frame_count, group, parse, text
from medloupe.imaging.dicom.values import (
    is_localizer,
    modality_values,
    padding_of,
    rescale_of,
    units_of,
)
from medloupe.imaging.dicom.voi import Voi, voi_of
from medloupe.imaging.limits import check_size, choose_frame
from medloupe.imaging.windows import INVERTED, PADDING
from medloupe.types import ImageRef, MedicalImage

LOCALIZER = "localizer"  # key of `attributes`: "true" for a CT localizer
Read = Callable[[Plane], MedicalImage]


def decode_dicom(
    data: bytes, name: str, frame: int | None, kind: Literal["image", "volume"]
) -> MedicalImage:
    """Decode the bytes of a DICOM file; see `read_image`.

    The frames of a volume are sorted by place where they have one, else they stay in file order.
    Where several lie at each place (echoes, time points), `frame` chooses with `kind="volume"`.

    Raises:
        ImageError: broken, without pixels, several frames where one is asked for, deep colour, or
            frames that form no volume.
        MissingExtraError: no decoder of its transfer syntax is installed.
    """
    try:
        dataset = parse(data, name)
        count = frame_count(dataset)
        check_size(name, int(dataset.Columns), int(dataset.Rows), count)
        if kind == "volume" and count > 1:
            return _volume(dataset, name, frame)
        chosen = choose_frame(name, frame, count, what="frames")
        return frame_image(dataset, chosen, name)
    except MedLoupeError:
        raise
    except BROKEN as error:
        raise broken(error, name) from error


def planes_of(dataset: Dataset, name: str) -> list[Plane]:
    """The frames of a data set (its pixels need not be there)."""
    count = frame_count(dataset)
    return [
        Plane(
            file=name,
            frame=frame,
            frames=count,
            size=(int(dataset.Columns), int(dataset.Rows)),
            affine=plane_geometry(dataset, frame, count)[0],
            localizer=is_localizer(dataset),
            header=dataset,
        )
        for frame in range(count)
    ]


def frame_image(dataset: Dataset, frame: int, name: str) -> MedicalImage:
    """One frame."""
    count = frame_count(dataset)
    photometric = str(dataset.PhotometricInterpretation)
    pixels = decode_frame(dataset, frame, name)
    affine, spacing = plane_geometry(dataset, frame, count)
    attributes = {"format": "DICOM", "photometric": photometric}
    if is_localizer(dataset):
        attributes[LOCALIZER] = "true"
    source = ImageRef(
        uri=name,
        modality=text(dataset, "Modality"),
        study=text(dataset, "StudyInstanceUID"),
        series=text(dataset, "SeriesInstanceUID"),
        frame=frame if count > 1 else None,
    )
    if photometric not in GREY:
        return MedicalImage(
            array=np.ascontiguousarray(pixels, dtype=np.uint8),
            units="rgb",
            affine=affine,
            spacing=spacing,
            source=source,
            attributes=attributes,
        )
    if photometric == "MONOCHROME1":
        attributes[INVERTED] = "true"
    transformation = group(dataset, frame, "PixelValueTransformationSequence")
    values = modality_values(pixels, dataset, transformation, name)
    voi = _voi(dataset, frame, transformation, name)
    attributes |= voi.attributes | padding_of(dataset, transformation, name)
    return MedicalImage(
        array=values[None],
        units=units_of(dataset, transformation),
        affine=affine,
        spacing=spacing,
        window=voi.window,
        voi_table=voi.table,
        source=source,
        attributes=attributes,
    )


def _voi(dataset: Dataset, frame: int, transformation: Dataset, name: str) -> Voi:
    signed = bool(dataset.get("PixelRepresentation")) or rescale_of(transformation)[1] < 0
    little = bool(dataset.original_encoding[1])
    return voi_of(
        group(dataset, frame, "FrameVOILUTSequence"), signed=signed, little=little, name=name
    )


def _volume(dataset: Dataset, name: str, repeat: int | None) -> MedicalImage:
    """All frames; those without a place in the order of the file."""

    def read(plane: Plane) -> MedicalImage:
        return frame_image(dataset, plane.frame, name)

    planes = planes_of(dataset, name)
    source = ImageRef(uri=name, kind="volume", modality=text(dataset, "Modality"), frame=repeat)
    if all(plane.affine is None for plane in planes):
        if repeat is not None:
            raise ImageError(
                "with kind='volume', frame chooses between images of one place, and these frames "
                "say no place",
                remedy="Leave frame out, or read one frame with kind='image'",
                file=name,
                field="frame",
            )
        return stack(planes, read, None, name, source)
    found = arrange(planes, name, SeriesPolicy(), repeat, lambda a, b: equal_pixels(read, a, b))
    return stack(found.planes, read, found, name, source)


def equal_pixels(read: Read, one: Plane, other: Plane) -> bool:
    """Whether two planes show the same values."""
    a, b = read(one), read(other)
    return a.units == b.units and np.array_equal(a.array, b.array, equal_nan=a.units != "rgb")


def stack(
    planes: Sequence[Plane], read: Read, found: Arrangement | None, name: str, source: ImageRef
) -> MedicalImage:
    """Planes as one volume `[D, H, W]`; window and VOI table are those of the middle one.

    Raises:
        ImageError: colour, or planes that differ in units.
    """
    columns, rows = planes[0].size
    check_size(name, columns, rows, len(planes))
    array: NDArray[np.float32] = np.empty((len(planes), rows, columns), dtype=np.float32)
    middle, paddings = None, []
    units: dict[str, str] = {}
    for index, plane in enumerate(planes):
        image = read(plane)
        if image.units == "rgb":
            raise ImageError(
                f"the {len(planes)} images are colour, not a volume",
                remedy="Read one with frame= (of one file) or by its own path",
                file=name,
            )
        if image.array.shape[1:] != (rows, columns):
            raise ImageError(
                f"{plane} is {image.size[0]} x {image.size[1]} pixels, not {columns} x {rows}",
                file=name,
            )
        array[index] = image.array[0]
        paddings.append(image.attributes.get(PADDING))
        units.setdefault(image.units, str(plane))
        if index == len(planes) // 2:
            middle = image
    assert middle is not None
    if len(units) > 1:
        said = ", ".join(f"{unit} ({file})" for unit, file in units.items())
        raise ImageError(
            f"the images are in different units: {said}", remedy="Split the series", file=name
        )
    affine = found.grid.affine if found is not None else None
    return dataclasses.replace(
        middle,
        array=array,
        affine=affine,
        spacing=_spacing(middle, affine, found),
        source=source,
        attributes=_attributes(middle, paddings, found.findings if found is not None else ()),
    )


def _spacing(
    middle: MedicalImage, affine: NDArray[np.float64] | None, found: Arrangement | None
) -> tuple[float, float, float] | None:
    """(slice, row, column); between the slices as they lie, where that is known."""
    if middle.spacing is None or found is None:
        return middle.spacing
    between = found.grid.step if affine is None else float(np.linalg.norm(affine[:3, 2]))
    return (between or middle.spacing[0], *middle.spacing[1:])


def _attributes(
    middle: MedicalImage, paddings: Sequence[str | None], findings: Iterable[Finding]
) -> dict[str, str]:
    """Those of the middle plane; padding only where it is the same in all; what was found."""
    attributes = dict(middle.attributes)
    if len(set(paddings)) > 1:
        attributes.pop(PADDING, None)
        attributes["padding_differs"] = "true"
    for finding in findings:
        attributes[f"series_{finding.kind}"] = finding.message
    return attributes
