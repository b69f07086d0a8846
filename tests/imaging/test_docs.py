"""docs/imaging.md: its Python runs, and its table of formats is what the script finds."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import get_args

import nibabel
import numpy as np
import pydicom
import pytest
from by_path import loaded
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from medloupe.imaging.npy import Sidecar
from medloupe.imaging.windows import HU_WINDOWS, Mode

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "imaging.md").read_text(encoding="utf-8")


@pytest.fixture
def patient(tmp_path) -> Path:
    """A folder with the files that the guide speaks of."""
    source = get_testdata_file("CT_small.dcm", download=False)
    assert source is not None
    (tmp_path / "scan.dcm").write_bytes(Path(source).read_bytes())
    (tmp_path / "series").mkdir()
    for k in range(8):  # named against their order
        dataset = pydicom.dcmread(source)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, float(z) + 2.5 * k]
        dataset.save_as(tmp_path / "series" / f"{9 - k}.dcm")
    random = np.random.default_rng(0)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    brain = nibabel.Nifti1Image(random.normal(size=(30, 36, 20)).astype(np.float32), affine)
    nibabel.save(brain, tmp_path / "brain.nii.gz")
    mask = nibabel.Nifti1Image(random.integers(0, 2, (30, 30, 9)).astype(np.uint8), affine)
    nibabel.save(mask, tmp_path / "mask.nii.gz")
    picture = random.integers(0, 256, (400, 600)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "chest.png")
    return tmp_path


def test_every_block_of_the_guide_runs(patient, monkeypatch):
    monkeypatch.chdir(patient)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(blocks) >= 10
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"docs/imaging.md, block {number}", "exec"), names)
    assert any((patient / "cache").iterdir())  # the last block filled it


def test_what_the_first_block_prints(patient, monkeypatch, capsys):
    monkeypatch.chdir(patient)
    block = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[0]
    (said,) = re.findall(r"print\(.*\)  # (.*)", block)
    exec(compile(block, "docs/imaging.md", "exec"), {})
    assert capsys.readouterr().out.strip() == said


def test_every_window_stands_in_the_guide_with_its_numbers():
    for mode in get_args(Mode):
        assert f"| `{mode}`" in GUIDE, mode
    for name, (centre, width) in HU_WINDOWS.items():
        assert f"| `{name}` | {centre:g}, {width:g} |" in GUIDE, name


def test_every_field_of_the_sidecar_stands_in_the_guide():
    for field in Sidecar.model_fields:
        assert f"| `{field}` |" in GUIDE, field


@pytest.fixture(scope="module")
def format_parity() -> ModuleType:
    return loaded(ROOT / "benchmarks" / "format_parity.py")


def test_our_values_are_those_of_independent_readers(format_parity, tmp_path):
    found = list(format_parity.rows(tmp_path))
    assert len(found) > 60
    for row in found:
        colour_jpeg = (row.format, row.dtype, row.reference) == ("JPEG", "uint8 RGB", "SimpleITK")
        assert row.difference <= (8 if colour_jpeg else 0), row
        assert (row.distance or 0) < 1e-3, row
    for line in format_parity.table([row for row in found if row.format != "JPEG"]):
        assert line in GUIDE
