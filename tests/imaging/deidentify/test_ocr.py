"""Text in pixels, drawn and read back; skips where the extra `ocr` is not installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian

from medloupe.errors import MissingExtraError
from medloupe.imaging.deidentify import DeidentifyConfig, deidentify

MISSING = [name for name in ("rapidocr", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_ocr = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def _image(path: Path, *texts: tuple[tuple[int, int], str], frames: int = 1) -> Path:
    """A noisy image with these texts in its last frame."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    dataset.PatientName, dataset.PatientID = "Quillfeather^Jane", "MRN0099887"
    pixels = np.random.default_rng(0).integers(0, 60, (frames, 256, 256), dtype=np.uint8)
    drawn = Image.fromarray(pixels[-1])
    for place, words in texts:
        ImageDraw.Draw(drawn).text(place, words, fill=255)
    pixels[-1] = np.asarray(drawn)
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 256, 256, frames
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.Modality, dataset.BurnedInAnnotation = "US", "NO"
    for keyword in ("PixelPaddingValue", "RescaleSlope", "RescaleIntercept"):
        if keyword in dataset:
            del dataset[keyword]
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB"
    path.parent.mkdir(exist_ok=True)
    dataset.save_as(path)
    return path


def _rows(out: Path) -> list[dict]:
    return [
        json.loads(line)
        for line in (out / "deidentification.jsonl").read_text("utf-8").splitlines()
    ]


@needs_ocr
def test_a_name_in_the_pixels_keeps_the_image_back(tmp_path):
    _image(
        tmp_path / "in" / "a.dcm", ((8, 8), "QUILLFEATHER  JANE"), ((200, 230), "Liver"), frames=4
    )
    found = deidentify(tmp_path / "in", tmp_path / "out", DeidentifyConfig(ocr=True))
    assert found.statuses == {"refused": 1}
    (row,) = _rows(tmp_path / "out")
    name = next(box for box in row["text_boxes"] if box["personal"])
    assert name["frame"] == 3
    # the default font is 6 pixels wide a letter and 11 high
    assert abs(name["x1"] - 8) < 4
    assert abs(name["y1"] - 9) < 4
    assert 80 < name["x2"] < 130
    assert 14 < name["y2"] < 24
    assert "QUILL" not in json.dumps(row).upper()


@needs_ocr
def test_text_that_names_nobody_is_only_flagged(tmp_path):
    _image(tmp_path / "in" / "a.dcm", ((8, 8), "Liver sagittal"))
    found = deidentify(tmp_path / "in", tmp_path / "out", DeidentifyConfig(ocr=True))
    assert found.warnings == {"text was read in the pixels": 1}
    (row,) = _rows(tmp_path / "out")
    assert [(box["letters"], box["personal"]) for box in row["text_boxes"]] == [(13, False)]


@needs_ocr
def test_no_text_no_flag(tmp_path):
    _image(tmp_path / "in" / "a.dcm")
    found = deidentify(tmp_path / "in", tmp_path / "out", DeidentifyConfig(ocr=True))
    assert found.warnings == {}


@pytest.mark.skipif(not MISSING, reason="the extra ocr is installed")
def test_without_the_extra_its_pip_line_is_named_before_anything_is_written(tmp_path):
    _image(tmp_path / "in" / "a.dcm")
    with pytest.raises(MissingExtraError, match=r"medloupe\[ocr\]"):
        deidentify(tmp_path / "in", tmp_path / "out", DeidentifyConfig(ocr=True))
    assert not (tmp_path / "out").exists()
