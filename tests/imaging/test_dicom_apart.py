"""Decoders that are called past pydicom: JPEG-LS directly, GDCM in a process of its own."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import pixel_array
from pydicom.uid import JPEGLSLossless

from medloupe.errors import ImageError
from medloupe.imaging.dicom.apart import decode_apart
from medloupe.imaging.read import read_image

TYPES = {(8, 0): "u1", (8, 1): "i1", (16, 0): "<u2", (16, 1): "<i2"}


def sample(name: str) -> pydicom.Dataset:
    return pydicom.dcmread(get_testdata_file(name, download=False))


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize(("stored", "allocated"), [(8, 8), (9, 16), (12, 16), (15, 16), (16, 16)])
def test_grey_jpeg_ls_is_what_was_compressed(tmp_path, stored, allocated, signed):
    low = -(1 << (stored - 1)) if signed else 0
    pixels = np.random.default_rng(stored).integers(low, low + (1 << stored), (64, 48))
    dataset = sample("CT_small.dcm")
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
    dataset.PixelRepresentation = signed
    for keyword in ("RescaleSlope", "RescaleIntercept", "PixelPaddingValue"):
        del dataset[keyword]
    dataset.PixelData = pixels.astype(TYPES[allocated, signed]).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.compress(JPEGLSLossless, encoding_plugin="pyjpegls")
    dataset.save_as(tmp_path / "a.dcm")
    image = read_image(tmp_path / "a.dcm")
    assert np.array_equal(image.array[0], pixels)


def test_a_jpeg_ls_stream_of_another_size_is_refused(tmp_path):
    dataset = sample("MR_small_jpeg_ls_lossless.dcm")
    dataset.Rows = 32
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(ImageError, match="stream says 64 x 64") as caught:
        read_image(tmp_path / "a.dcm")
    assert caught.value.fault.file == str(tmp_path / "a.dcm")


def test_gdcm_ends_a_process_that_is_not_this_one(tmp_path):
    pytest.importorskip("gdcm")
    good = get_testdata_file("SC_rgb_jpeg_gdcm.dcm", download=False)
    assert good is not None
    broken = pydicom.dcmread(good)
    broken.BitsStored = 3  # GDCM throws what its Python wrapper does not catch
    broken.save_as(tmp_path / "a.dcm")
    reference = pixel_array(good, decoding_plugin="gdcm")
    for _ in range(2):
        assert np.array_equal(read_image(Path(good)).array, reference)
        with pytest.raises(ImageError, match="ended its process") as caught:
            read_image(tmp_path / "a.dcm")
        assert caught.value.fault.file == str(tmp_path / "a.dcm")


def test_what_gdcm_says_comes_back(tmp_path):
    pytest.importorskip("gdcm")
    dataset = sample("SC_rgb_jpeg_gdcm.dcm")
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no picture"])
    stream = io.BytesIO()
    dataset.save_as(stream)
    stream.seek(0)
    with pytest.raises(ValueError, match=r".") as caught:
        decode_apart(pydicom.dcmread(stream), 0, "gdcm")
    assert "ended its process" not in str(caught.value)
