"""`medloupe deidentify` as a hospital engineer types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file


@pytest.fixture
def export(tmp_path: Path) -> Path:
    root = tmp_path / "export"
    root.mkdir()
    for name in ("CT_small.dcm", "MR_small.dcm", "test-SR.dcm"):
        source = get_testdata_file(name, download=False)
        assert source is not None
        shutil.copy(source, root / name)
    (root / "report.txt").write_text("Dr. Lee, 2021-03-05", encoding="utf-8")
    return root


def test_one_command(medloupe: Any, export: Path, tmp_path: Path) -> None:
    done = medloupe(
        *("deidentify", export, tmp_path / "safe", "--dates", "shift"),
        *("--keep-characteristics", "--text", "mask"),
    )
    assert "3 written, 1 refused" in done.out
    assert "refused test-SR.dcm: a structured report" in done.err
    assert "PatientName" in done.out
    assert "safe.sources.jsonl" in done.out
    files = [pydicom.dcmread(path) for path in (tmp_path / "safe").glob("*.dcm")]
    assert {file.PatientIdentityRemoved for file in files} == {"YES"}
    assert {len(file.DeidentificationMethodCodeSequence) for file in files} == {3}
    rows = (tmp_path / "safe" / "deidentification.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(row)["status"] for row in rows] == ["written"] * 3 + ["refused"]


def test_a_bad_file_gives_exit_code_2_and_the_rest_is_done(
    medloupe: Any, export: Path, tmp_path: Path
) -> None:
    content = (export / "CT_small.dcm").read_bytes()
    (export / "cut.dcm").write_bytes(content[:3000])
    done = medloupe("deidentify", export, tmp_path / "safe", code=2)
    assert "failed cut.dcm: the image ends before its pixels" in done.err
    assert "1 files could not be processed" in done.err
    assert len(list((tmp_path / "safe").glob("*.dcm"))) == 2


def test_strict_counts_refused_files_as_failures(
    medloupe: Any, export: Path, tmp_path: Path
) -> None:
    dataset = pydicom.dcmread(export / "CT_small.dcm")
    dataset.BurnedInAnnotation = "YES"
    dataset.save_as(export / "burned.dcm")
    words = ("deidentify", export, tmp_path / "safe")
    counts = "2 written, 2 refused (1 withheld for text in the pixels), 0 failed, 1 listed and not"
    assert counts in medloupe(*words).out
    strict = medloupe(*words, "--strict", code=2)
    assert counts in strict.out
    assert "2 files were refused" in strict.err


def test_a_folder_is_prepared_after_it_was_deidentified(
    medloupe: Any, export: Path, tmp_path: Path
) -> None:
    table = "image,patient_id,question,answer\nCT_small.dcm,1CT1,A nodule?,no\n"
    table += "MR_small.dcm,4MR1,A cyst?,yes\n"
    (export / "labels.csv").write_text(table, encoding="utf-8")
    medloupe("deidentify", export, tmp_path / "safe", "--text", "mask")
    assert (tmp_path / "safe" / "table-1.csv").is_file()
    (tmp_path / "safe" / "note.txt").write_text("passed on", encoding="utf-8")
    done = medloupe("prepare", "folder", "--root", tmp_path / "safe", "--out", tmp_path / "mine")
    assert "2 images read, no faults" in done.out


def test_mistakes_are_said_in_one_line(medloupe: Any, export: Path, tmp_path: Path) -> None:
    inside = medloupe("deidentify", export, export / "safe", code=2)
    assert "lie inside each other" in inside.err
    assert "Traceback" not in inside.err
    (tmp_path / "short.key").write_text("abc")
    short = medloupe(
        "deidentify", export, tmp_path / "safe", "--key", tmp_path / "short.key", code=2
    )
    assert "could be guessed" in short.err
    assert "medloupe deidentify" in medloupe("deidentify", "--help").out
