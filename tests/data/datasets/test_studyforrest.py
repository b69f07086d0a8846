"""studyforrest: a series folder as one volume, slices in space, and a NIfTI header that is wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from medloupe.data.check import check_dataset
from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import DataError
from medloupe.imaging.read import read_image, read_ref
from medloupe.types import Conversation

CONFIG = DatasetConfig.parse("studyforrest")


@pytest.fixture(scope="module")
def prepared(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("studyforrest")
    return CONFIG.prepare(out, root=shared_data / "studyforrest_t1", progress=lambda *_: None)


def write(root: Path, heights: list[float], series: str = "1.2.3", position: bool = True) -> Path:
    """Axial MR slices of 6 x 5 pixels, named in the order given, at `heights` mm."""
    (root / "dicom_series").mkdir(parents=True, exist_ok=True)
    for number, height in enumerate(heights):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series}.{number + 1}"
        item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        item.SOPClassUID, item.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        item.Modality, item.StudyInstanceUID, item.SeriesInstanceUID = "MR", "1.2", series
        item.InstanceNumber, item.PatientID = number + 1, "02"
        item.Rows, item.Columns, item.SamplesPerPixel = 6, 5, 1
        item.PhotometricInterpretation = "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 0
        item.PixelSpacing, item.SliceThickness = [1.0, 1.0], 2.0
        if position:
            item.ImagePositionPatient = [-2.0, -3.0, height]
            item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        pixels = np.full((6, 5), int(height) + 100, np.uint16)
        pixels[number % 6, 0] = number
        item.PixelData = pixels.tobytes()
        item.save_as(root / "dicom_series" / f"{series}-{number:03d}.dcm")
    return root


def shown(row: Conversation, root: Path) -> list[float]:
    """The heights (mm) of the slices of a question, in their order."""
    return [float(read_ref(ref, root).affine[2, 3]) for ref in row.images]  # type: ignore[index]


def test_the_real_copy_is_partial_and_passes_the_check(prepared: Dataset) -> None:
    assert prepared.card.partial == "24 of 384 slices"
    assert load_dataset(prepared.root) == prepared
    assert check_dataset(prepared.root, workers=1).faults == ()
    assert {row.split for row in (*prepared.records, *prepared.conversations)} == {
        prepared.records[0].split
    }


def test_the_real_series_is_one_volume_in_the_order_of_space(prepared: Dataset) -> None:
    series = next(record for record in prepared.records if record.id.endswith("-series"))
    volume = read_ref(series.images[0], prepared.root)
    assert volume.array.shape == (24, 384, 274)
    assert volume.spacing == pytest.approx((0.6667, 0.6667, 0.7), abs=1e-3)
    folder = prepared.root / series.images[0].uri
    files = [pydicom.dcmread(file) for file in folder.iterdir()]
    files.sort(key=lambda item: item.ImagePositionPatient[2])
    for number, item in enumerate(files):
        assert np.array_equal(volume.array[number], item.pixel_array)


def test_the_real_nifti_is_turned_by_half_against_the_series(prepared: Dataset) -> None:
    """What the docstring and the card say of its header."""
    by_id = {record.id: record for record in prepared.records}
    nifti = by_id["sub-02-t1-half"]
    whole = read_ref(nifti.images[0], prepared.root).array
    series = read_ref(by_id["sub-02-series"].images[0], prepared.root).array
    # every second slice of the series, at half the size; slice 180 of 384 is the first
    half = series[::2].reshape(12, 192, 2, 137, 2).mean((2, 4))
    there = whole[90:102]
    turned = there[:, ::-1, ::-1]
    assert np.corrcoef(turned.ravel(), half.ravel())[0, 1] > 0.97
    assert np.corrcoef(there.ravel(), half.ravel())[0, 1] < 0.7
    assert "180 degrees" in nifti.attributes["orientation"]
    assert not any("left" in row.question for row in prepared.conversations)


def test_real_answers_about_height_are_true_and_balanced(prepared: Dataset) -> None:
    rows = [row for row in prepared.conversations if row.task == "higher_slice"]
    assert Counter(row.answer.text for row in rows if row.answer) == {"first": 6, "second": 6}
    for row in rows:
        first, second = shown(row, prepared.root)
        assert row.answer is not None
        assert row.answer.text == ("first" if first > second else "second")
        assert abs(first - second) > 7.5


def test_a_small_copy_goes_all_the_way(tmp_path: Path, progress: Any) -> None:
    heights = [2.0 * (number * 5 % 14) for number in range(14)]  # names say nothing of places
    made = CONFIG.prepare(tmp_path / "out", root=write(tmp_path / "in", heights), progress=progress)
    assert check_dataset(made.root, workers=1).faults == ()
    assert made.card.partial == "14 of 384 slices"
    rows = [row for row in made.conversations if row.task == "higher_slice"]
    assert [shown(row, made.root) for row in rows] == [[0.0, 24.0], [26.0, 2.0]]
    assert [row.answer.text for row in rows if row.answer] == ["second", "first"]
    assert "sex" not in made.records[0].attributes


def test_two_series_and_slices_without_a_place_are_refused(tmp_path: Path, progress: Any) -> None:
    two = write(write(tmp_path / "two", [0.0, 2.0]), [4.0], series="1.2.4")
    with pytest.raises(DataError, match="holds 2 series"):
        CONFIG.prepare(tmp_path / "out", root=two, progress=progress)
    lost = write(tmp_path / "lost", [0.0], position=False)
    with pytest.raises(DataError, match="no position"):
        CONFIG.prepare(tmp_path / "out", root=lost, progress=progress)
    with pytest.raises(DataError, match="no DICOM slice"):
        CONFIG.prepare(tmp_path / "out", root=tmp_path, progress=progress)
    assert read_image(two / "dicom_series" / "1.2.4-000.dcm").array.shape == (1, 6, 5)
