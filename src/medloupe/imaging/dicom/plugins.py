"""Calls into the decoders behind pydicom: its plugins, and GDCM where the plugin refuses.

What stands in `APART` runs in a process of its own, see `apart`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder

from medloupe.imaging.dicom.parse import frame_count

Attempt = Callable[[Dataset, int], tuple[NDArray[Any], str]]
"""A frame of a data set as (pixels, photometric interpretation after decoding)."""


def plugin(label: str) -> Attempt:
    """Decode through one of pydicom's plugins."""

    def attempt(dataset: Dataset, frame: int) -> tuple[NDArray[Any], str]:
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
        try:
            pixels, properties = decoder.as_array(dataset, index=frame, decoding_plugin=label)
        except BaseException as error:
            # pylibjpeg-rle is written in Rust; its panics are no Exception, and no class to import
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError("the run lengths do not fit the image") from None
        return pixels, str(properties["photometric_interpretation"])

    return attempt


def _gdcm_12_bit(dataset: Dataset, frame: int) -> tuple[NDArray[Any], str]:
    """JPEG Extended of 12 bits, grey, through GDCM itself."""
    import gdcm

    if int(dataset.SamplesPerPixel) != 1:
        raise ValueError("12-bit JPEG of more than one sample a pixel")
    stream = get_frame(dataset.PixelData, frame, number_of_frames=frame_count(dataset))
    if precision(stream) != 12:  # GDCM would decode it all the same, to nonsense
        raise ValueError(f"the JPEG has {precision(stream)} bits a sample, not 12")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    photometric = str(dataset.PhotometricInterpretation)
    kind = gdcm.PhotometricInterpretation.GetPIType(photometric)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    syntax = gdcm.TransferSyntax.GetTSType(str(dataset.file_meta.TransferSyntaxUID))
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    # 12 bits "allocated" make GDCM start with its 12-bit decoder; it returns 16-bit words
    image.SetPixelFormat(gdcm.PixelFormat(1, 12, 12, 11, 0))
    words = image.GetBuffer().encode("utf-8", "surrogateescape")
    if len(words) != rows * columns * 2:
        raise ValueError(f"{len(words)} bytes for {columns} x {rows} pixels")
    pixels = np.frombuffer(words, "<u2").reshape(rows, columns)
    if dataset.get("PixelRepresentation"):
        pixels = (pixels << 4).view(np.int16) >> 4
    return pixels, photometric


def precision(stream: bytes) -> int:
    """Bits a sample by the first frame header of a JPEG (SOF0 or SOF1, T.81 B.2.2); 0 without."""
    header = re.search(rb"\xff[\xc0\xc1]..(.)", stream, re.DOTALL)
    return header[1][0] if header else 0


# What `apart` runs in its process.
APART: Final[dict[str, Attempt]] = {"gdcm": plugin("gdcm"), "gdcm, 12 bit": _gdcm_12_bit}
