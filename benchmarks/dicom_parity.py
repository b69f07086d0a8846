"""Our DICOM values beside two independent readers, for every image among pydicom's test files.

    python benchmarks/dicom_parity.py > table.md

The references are GDCM (through its own reader, so with its own parser and decoders) and SimpleITK
(ITK, which bundles another build of GDCM). Compared are modality values of grey and RGB of colour.
A row shows the largest absolute difference; where it is not 0, or a reference cannot read the file,
`EXPLAINED` says why, and a test fails on every difference that is not explained.
"""

from __future__ import annotations

import base64
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pydicom.data
import SimpleITK as sitk
from numpy.typing import NDArray

from medloupe.errors import MedLoupeError
from medloupe.imaging.dicom.decoding import DECODERS
from medloupe.imaging.read import read_image

# file -> why our values are not those of a reference (or of none)
_INVERTS = "ITK turns MONOCHROME1 over; ours keeps values and shows them inverted"
_ROUNDS = "slope 0.6: GDCM computes in float64, ours rounds to float32"
_DOSE = "GDCM multiplies by Dose Grid Scaling; ours keeps stored values"
_BITS = "ITK gives 0 and 255, ours 0 and 1; Python-gdcm has no array of bits"
_DEEP = "refused: more than 8 bits a channel would be lost"
_NO_PIXELS = "holds no image: a test of headers"
_CR = "dicomdirtests/77654033/CR"
EXPLAINED: dict[str, str] = {
    f"{_CR}1/6154": f"{_INVERTS}; {_ROUNDS}",
    f"{_CR}2/6247": f"{_INVERTS}; {_ROUNDS}",
    f"{_CR}3/6278": f"{_INVERTS}; {_ROUNDS}",
    "J2K_pixelrep_mismatch.dcm": "codestream unsigned, header signed: GDCM keeps the codestream's",
    "JPEG2000-embedded-sequence-delimiter.dcm": "its codestream is damaged on purpose",
    "MR_truncated.dcm": "cut off on purpose",
    "SC_rgb_rle_16bit.dcm": _DEEP,
    "SC_rgb_rle_16bit_2frame.dcm": _DEEP,
    "SC_rgb_rle_32bit.dcm": _DEEP,
    "SC_rgb_rle_32bit_2frame.dcm": _DEEP,
    "badVR.dcm": "Number of Frames is '1A'",
    "liver_1frame.dcm": _BITS,
    "liver_expb_1frame.dcm": _BITS,
    "meta_missing_tsyntax.dcm": _NO_PIXELS,
    "nested_priv_SQ.dcm": _NO_PIXELS,
    "rtdose.dcm": _DOSE,
    "rtdose_rle.dcm": _DOSE,
    "rtdose_expb.dcm": f"{_DOSE}; ITK does not swap the bytes of 32-bit pixels",
}
# Python-gdcm 3.2.6 ends the whole process with a C++ exception on these.
ABORTS_GDCM = ("rtdose_1frame.dcm", "rtdose_expb_1frame.dcm", "rtdose_rle_1frame.dcm")
FOLDER = Path(pydicom.data.__file__).parent / "test_files"
Difference = float | str
"""The largest absolute difference, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file; `ours` is "" or our error."""

    file: str
    syntax: str
    photometric: str
    bits: str
    decoder: str
    ours: str
    gdcm: Difference
    sitk: Difference

    @property
    def equal(self) -> bool:
        """No reference differs."""
        numbers = [d for d in (self.gdcm, self.sitk) if not isinstance(d, str)]
        return not self.ours and all(difference == 0 for difference in numbers)


# Syntaxes (GDCM's names) that GDCM writes, and what from: lossless of 16 bits signed and of colour,
# JPEG of 8 bits. Every image of a syntax is compared with both references.
MADE: dict[str, tuple[str, ...]] = {
    "RLELossless": ("CT_small.dcm", "examples_rgb_color.dcm"),
    "JPEGLosslessProcess14": ("CT_small.dcm", "examples_rgb_color.dcm"),
    "JPEGLosslessProcess14_1": ("CT_small.dcm",),
    "JPEGLSLossless": ("CT_small.dcm", "examples_rgb_color.dcm"),
    "JPEGLSNearLossless": ("CT_small.dcm",),
    "JPEG2000Lossless": ("CT_small.dcm", "examples_rgb_color.dcm"),
    "JPEG2000": ("CT_small.dcm",),
    "JPEGBaselineProcess1": ("image_dfl.dcm",),
    "JPEGExtendedProcess2_4": ("image_dfl.dcm",),
}
# High-throughput JPEG 2000, lossless, written by OpenJPH from (100 row + 37 column) mod 4096.
HTJ2K_SHAPE = (16, 12)
HTJ2K_STREAM = base64.b64decode(
    "/0//UQApQAAAAAAMAAAAEAAAAAAAAAAAAAAADAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB"
    "/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAHsAAf+TwAAmOfsFB3QA"
    "AMAAE0AAEoB4/gIHdAAiAod0AMAAE0AAE4Bz/gDLdACOO/4Ag1QAwAAVMAAFSKQkEumX4Qt1AMCBgcAYwIy2AMAAK6AA"
    "FeAIgiAIgiDeCnp6cIJ4AMZGo9Fo/PwAEPYhAey5AP/Z"
)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        compared = [*rows(), *made_rows(Path(folder)), htj2k_row(Path(folder))]
    sys.stdout.write(table(compared))


def made_rows(folder: Path) -> Iterator[Row]:
    """pydicom's test files written in another transfer syntax by GDCM."""
    for syntax, names in MADE.items():
        for name in names:
            path = transcode(FOLDER / name, syntax, folder)
            row = compare(path, pydicom.dcmread(path))
            yield replace(row, file=f"{name}, written by GDCM")


def transcode(source: Path, syntax: str, folder: Path) -> Path:
    """The image of a file in another transfer syntax."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read(), source
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetForce(True)
    change.SetInput(reader.GetImage())
    assert change.Change(), (source, syntax)
    path = folder / f"{source.stem}_{syntax}.dcm"
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write(), path
    return path


def htj2k_row(folder: Path) -> Row:
    """Compared with what the stream was made from, too."""
    rows, columns = HTJ2K_SHAPE
    dataset = pydicom.dcmread(FOLDER / "CT_small.dcm")
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless
    dataset.Rows, dataset.Columns, dataset.BitsStored, dataset.HighBit = rows, columns, 16, 15
    dataset.PixelRepresentation, dataset.RescaleIntercept = 0, 0
    dataset.PixelData = pydicom.encaps.encapsulate([HTJ2K_STREAM])
    path = folder / "htj2k.dcm"
    dataset.save_as(path)
    original = np.add.outer(np.arange(rows) * 100, np.arange(columns) * 37) % 4096
    row = compare(path, dataset)
    difference = _difference(read_image(path).array[0].astype(np.float64), lambda: original * 1.0)
    return replace(row, file=f"made by OpenJPH; its original: {_said(difference)}")


def image_files() -> Iterator[Path]:
    """pydicom's test files that have pixels; of the small series of its DICOMDIR, one each."""
    seen = set()
    for path in sorted(FOLDER.rglob("*")):
        if not path.is_file():
            continue
        dataset = pydicom.dcmread(path, force=True)
        series = (path.parent, dataset.get("SeriesInstanceUID"))
        nested = path.parent != FOLDER
        if "PixelData" in dataset and not (nested and series in seen):
            seen.add(series)
            yield path


def rows() -> Iterator[Row]:
    """One row a file; of a file of several frames the first is compared."""
    for path in image_files():
        dataset = pydicom.dcmread(path, force=True)
        yield compare(path, dataset)


def compare(path: Path, dataset: pydicom.Dataset) -> Row:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    ours: NDArray[np.float64] | None = None
    said = ""
    try:
        image = read_image(path, frame=0)
        ours = image.array.astype(np.float64)
        ours = ours[0] if image.units != "rgb" else ours
    except MedLoupeError as error:
        said = error.fault.rule
    signed = "s" if dataset.get("PixelRepresentation") else "u"
    return Row(
        file=path.relative_to(FOLDER).as_posix() if path.is_relative_to(FOLDER) else path.name,
        syntax=syntax.name.partition(",")[0] if syntax else "none given",
        photometric=str(dataset.get("PhotometricInterpretation")),
        bits=f"{dataset.get('BitsStored')}/{dataset.get('BitsAllocated')} {signed}",
        decoder=_decoder(dataset),
        ours=said,
        gdcm=_difference(ours, lambda: by_gdcm(path)),
        sitk=_difference(ours, lambda: by_sitk(path)),
    )


def _decoder(dataset: pydicom.Dataset) -> str:
    """The first decoder that is tried."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax == pydicom.uid.JPEGExtended12Bit and dataset.BitsStored > 8:
        return "gdcm"
    return DECODERS.get(syntax, ("native",))[0]


def _difference(
    ours: NDArray[np.float64] | None, read: Callable[[], NDArray[np.float64] | str]
) -> Difference:
    theirs = read()
    if isinstance(theirs, str):
        return theirs
    if ours is None:
        return "ours refuses"
    if ours.shape != theirs.shape:
        return f"shape {theirs.shape}, ours {ours.shape}"
    return float(np.abs(ours - theirs).max())


def by_gdcm(path: Path) -> NDArray[np.float64] | str:
    """The first frame through GDCM's reader: stored values, palette, colour space, rescale."""
    if path.name in ABORTS_GDCM:
        return "ends the process"
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        return "does not read it"
    image = reader.GetImage()
    slope, intercept = image.GetSlope(), image.GetIntercept()
    photometric = str(image.GetPhotometricInterpretation()).strip()
    if photometric == "PALETTE COLOR":
        lut = gdcm.ImageApplyLookupTable()
        lut.SetInput(image)
        if not lut.Apply():
            return "cannot apply the palette"
        image = lut.GetOutput()
    elif photometric.startswith("YBR_FULL"):
        return "does not turn YBR into RGB"
    if image.GetPlanarConfiguration() == 1:
        planar = gdcm.ImageChangePlanarConfiguration()
        planar.SetInput(image)
        planar.SetPlanarConfiguration(0)
        planar.Change()
        image = planar.GetOutput()
    return _array(image, slope, intercept)


def _array(image: gdcm.Image, slope: float, intercept: float) -> NDArray[np.float64] | str:
    types = {
        gdcm.PixelFormat.UINT8: np.uint8,
        gdcm.PixelFormat.INT8: np.int8,
        gdcm.PixelFormat.UINT12: np.uint16,
        gdcm.PixelFormat.INT12: np.int16,
        gdcm.PixelFormat.UINT16: np.uint16,
        gdcm.PixelFormat.INT16: np.int16,
        gdcm.PixelFormat.UINT32: np.uint32,
        gdcm.PixelFormat.INT32: np.int32,
        gdcm.PixelFormat.FLOAT32: np.float32,
        gdcm.PixelFormat.FLOAT64: np.float64,
    }
    pixel = image.GetPixelFormat()
    if pixel.GetScalarType() not in types:
        return f"pixels of {pixel.GetScalarTypeAsString()}"
    buffer = image.GetBuffer()
    if buffer is None:
        return "does not decode it"
    data = buffer.encode("utf-8", "surrogateescape")
    values = np.frombuffer(data, types[pixel.GetScalarType()])
    columns, rows = image.GetDimension(0), image.GetDimension(1)
    samples = pixel.GetSamplesPerPixel()
    shape = (rows, columns, samples) if samples > 1 else (rows, columns)
    first = values[: int(np.prod(shape))].reshape(shape)
    return first.astype(np.float64) * slope + intercept


def by_sitk(path: Path) -> NDArray[np.float64] | str:
    """The first frame through ITK."""
    try:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError:
        return "does not read it"
    array = sitk.GetArrayFromImage(image).astype(np.float64)
    frames = image.GetDimension() == 3
    return array[0] if frames else array


def table(compared: list[Row]) -> str:
    """GitHub markdown."""
    head = "| transfer syntax | photometric | bits stored/allocated | file | our decoder | GDCM | "
    lines = [head + "SimpleITK | note |", "|---|---|---|---|---|---|---|---|"]
    for row in sorted(compared, key=lambda row: (row.syntax, row.file)):
        cells = (
            row.syntax,
            row.photometric,
            row.bits,
            row.file,
            row.decoder,
            _said(row.gdcm),
            _said(row.sitk),
            EXPLAINED.get(row.file, "") or row.ours,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _said(difference: Difference) -> str:
    if isinstance(difference, str):
        return difference
    return "equal" if difference == 0 else f"{difference:g}"


if __name__ == "__main__":
    main()
