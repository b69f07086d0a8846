"""Small DICOM files whose every element a test chooses. Loaded by path: test folders are no packages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def real(name: str) -> Path:
    """One of pydicom's test files."""
    path = get_testdata_file(name, download=False)
    assert path is not None
    return Path(path)


def item(**elements: object) -> Dataset:
    """An item of a sequence."""
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def sequence(**elements: object) -> Sequence:
    """A sequence of one item."""
    return Sequence([item(**elements)])


def write(
    folder: Path,
    pixels: np.ndarray,
    *,
    name: str = "made.dcm",
    syntax: str = ExplicitVRLittleEndian,
    data: bytes | None = None,
    streams: list[bytes] | None = None,
    **elements: object,
) -> Path:
    """A file of `pixels` [H, W], [N, H, W] or (with SamplesPerPixel) [H, W, 3] and the elements given.

    `data` replaces the bytes of the pixels, `streams` are compressed frames.
    """
    big = syntax == "1.2.840.10008.1.2.2"
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    uid = generate_uid(entropy_srcs=[str(folder), name])
    dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, uid
    bits = pixels.dtype.itemsize * 8
    colour = elements.get("SamplesPerPixel") == 3
    rows, columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    base = {
        "Modality": "OT",
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **({"NumberOfFrames": len(pixels)} if pixels.ndim == 3 and not colour else {}),
    }
    for keyword, value in (base | elements).items():
        if value is not None:
            setattr(dataset, keyword, value)
    raw = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    raw = raw if data is None else data
    if pixels.dtype.kind == "f":
        del dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
        setattr(dataset, "FloatPixelData" if bits == 32 else "DoubleFloatPixelData", raw)
    else:
        dataset.PixelData = encapsulate(streams) if streams else raw + b"\0" * (len(raw) % 2)
        dataset["PixelData"].VR = "OB" if bits == 8 or streams else "OW"
    path = folder / name
    dataset.save_as(path, enforce_file_format=True)
    return path
