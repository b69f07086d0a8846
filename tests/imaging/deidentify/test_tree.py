"""Whole folders: nothing written where it must not be, names gone, bad files alone, runs resumed."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import (
    EncapsulatedPDFStorage,
    SecondaryCaptureImageStorage,
)

from medloupe.errors import ConfigError, DataError
from medloupe.imaging.deidentify import DeidentifyConfig, PseudonymKey, deidentify
from medloupe.imaging.dicom.series import find_series


def _ct(
    path: Path,
    *,
    patient: str = "MRN0099887",
    study: str = "1.2.826.0.1.3",
    number: int = 1,
    **more,
) -> Path:
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    dataset.PatientName, dataset.PatientID = "Doe^Jane", patient
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, f"{study}.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{study}.1.{number}"
    dataset.ImagePositionPatient = [0, 0, number]
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """What a hospital's archive might hand over."""
    root = tmp_path / "export"
    for number in (1, 2, 3):
        _ct(root / "Doe_Jane" / "1.2.826.0.1.3" / f"DOE{number}.dcm", number=number)
    _ct(root / "images" / "later.dcm", study="1.2.826.0.1.4")
    _ct(
        root / "images" / "other.dcm", study="1.2.826.0.1.5", patient="MRN7", PatientName="Roe^Rick"
    )
    (root / "MRN0099887.txt").write_text("Doe, seen by Dr. Lee on 2021-03-05. Roe not.", "utf-8")
    (root / "Thumbs.db").write_bytes(b"Doe^Jane")
    return root


def _hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def _rows(out: Path) -> list[dict]:
    return [
        json.loads(line)
        for line in (out / "deidentification.jsonl").read_text("utf-8").splitlines()
    ]


def _files(out: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(out.rglob("*.dcm"))]


def test_originals_stay_and_nothing_personal_comes_out(export, tmp_path):
    before = _hashes(export)
    out = tmp_path / "safe"
    found = deidentify(export, out, DeidentifyConfig(text="mask"))
    assert _hashes(export) == before
    assert found.statuses == {"written": 6, "listed": 1}
    assert found.listed == ("Thumbs.db",)
    for path in out.rglob("*"):
        assert not {"doe", "jane", "mrn", "roe"} & set(
            path.name.lower().replace("_", ".").split(".")
        )
        if path.is_file():
            content = path.read_bytes()
            for word in (
                b"Doe",
                b"Jane",
                b"MRN0099887",
                b"Roe",
                b"1.2.826.0.1.3.1",
                b"DOE1",
                b"Lee",
            ):
                assert word not in content, (path, word)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("export", "safe", "safe.key", "safe.sources.jsonl"),
    }
    assert not list(out.rglob(".*"))


def test_a_series_stays_a_series_and_a_patient_a_patient(export, tmp_path):
    out = tmp_path / "safe"
    deidentify(export, out)
    files = _files(out)
    assert len({file.PatientID for file in files}) == 2
    assert len({file.StudyInstanceUID for file in files}) == 3
    assert len({file.SOPInstanceUID for file in files}) == 5
    key = PseudonymKey.load(tmp_path / "safe.key")
    series = find_series(out / key.name("Doe_Jane") / key.uid("1.2.826.0.1.3"))
    assert [(one.uid, len(one.files)) for one in series] == [(key.uid("1.2.826.0.1.3.1"), 3)]
    jane = {file.PatientID for file in files if file.StudyInstanceUID != key.uid("1.2.826.0.1.5")}
    assert jane == {key.patient("MRN0099887")}


def test_names_that_say_nothing_stay_and_reports_keep_their_patient(export, tmp_path):
    out = tmp_path / "safe"
    deidentify(export, out, DeidentifyConfig(text="mask"))
    key = PseudonymKey.load(tmp_path / "safe.key")
    assert (out / "images" / f"{key.uid('1.2.826.0.1.4.1.1')}.dcm").is_file()
    report = out / f"{key.patient('MRN0099887')}.txt"
    assert report.read_text("utf-8") == "[NAME], seen by Dr. [NAME] on [DATE]. [NAME] not."


def test_the_same_key_gives_the_same_files_and_another_key_others(export, tmp_path):
    key = tmp_path / "keys" / "site.key"
    deidentify(export, tmp_path / "one", key=key)
    deidentify(export, tmp_path / "two", key=key)
    deidentify(export, tmp_path / "three")
    assert _hashes(tmp_path / "one") == _hashes(tmp_path / "two")
    others = {file.SOPInstanceUID for file in _files(tmp_path / "three")}
    assert not others & {file.SOPInstanceUID for file in _files(tmp_path / "one")}


def test_reports_are_listed_copied_or_masked(export, tmp_path):
    text = (export / "MRN0099887.txt").read_bytes()
    listed = deidentify(export, tmp_path / "a")
    assert not list((tmp_path / "a").rglob("*.txt"))
    assert listed.listed == ("MRN0099887.txt", "Thumbs.db")
    copied = deidentify(export, tmp_path / "b", DeidentifyConfig(text="copy"))
    assert [path.read_bytes() for path in (tmp_path / "b").rglob("*.txt")] == [text]
    assert copied.findings == {"name": 3, "date": 1}
    assert copied.warnings == {"copied with its identifiers": 1}
    (row,) = [row for row in _rows(tmp_path / "b") if row["kind"] == "text"]
    assert [(f["kind"], f["start"], f["end"]) for f in row["findings"]] == [
        *(("name", 0, 3), ("name", 17, 20), ("date", 24, 34), ("name", 36, 39)),
    ]


def test_a_bad_file_does_not_stop_the_others(export, tmp_path):
    content = (export / "images" / "later.dcm").read_bytes()
    (export / "images" / "cut.dcm").write_bytes(content[:3000])
    (export / "images" / "empty_dicom.dcm").write_bytes(b"\0" * 128 + b"DICM")
    found = deidentify(export, tmp_path / "safe")
    assert found.statuses == {"written": 5, "failed": 2, "listed": 2}
    assert [name for name, _ in found.failed] == ["images/cut.dcm", "images/empty_dicom.dcm"]
    assert "failed" in {row["status"] for row in _rows(tmp_path / "safe")}
    assert "cut.dcm" not in (tmp_path / "safe" / "deidentification.jsonl").read_text()


def test_pixels_that_are_cut_off_fail_and_are_not_written(export, tmp_path):
    whole = export / "images" / "later.dcm"
    dataset = pydicom.dcmread(whole)
    dataset.PixelData = dataset.PixelData[:-2]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.4.1.2"
    dataset.save_as(export / "images" / "short.dcm")
    (export / "images" / "cut.dcm").write_bytes(whole.read_bytes()[:-5000])
    found = deidentify(export, tmp_path / "safe")
    assert found.statuses == {"written": 5, "failed": 2, "listed": 2}
    assert [name for name, _ in found.failed] == ["images/cut.dcm", "images/short.dcm"]
    assert "the pixels are cut off: 32,766 of 32,768 bytes" in found.failed[1][1]
    for name in ("SC_ybr_full_422_uncompressed.dcm", "liver_1frame.dcm", "rtdose_1frame.dcm"):
        shutil.copy(get_testdata_file(name, download=False), tmp_path / name)
        assert not deidentify(tmp_path / name, tmp_path / f"{name}-safe").failed


def test_a_masked_table_names_the_new_files_and_can_be_prepared(export, tmp_path):
    folder = export / "Doe_Jane"
    (folder / "labels.csv").write_text(
        "image,volume,question,answer\n"
        "1.2.826.0.1.3/DOE1.dcm,,Is there a nodule?,no\n"
        "../images/later.dcm,,Is there a nodule?,yes\n"
        "Doe_Jane/1.2.826.0.1.3/DOE2.dcm,,Is there a cyst?,yes\n"
        "other.dcm,,Seen by Doe?,no\n"
        ",1.2.826.0.1.3,How many?,three\n"
        "gone.dcm,,A?,images\n"
        "x.dcm,,Who?,Doe_Jane\n",
        "utf-8",
    )
    (folder / "2021-03-05.csv").write_text("a\n1\n", "utf-8")
    out = tmp_path / "safe"
    deidentify(export, out, DeidentifyConfig(text="mask"))
    key = PseudonymKey.load(tmp_path / "safe.key")
    new = out / key.name("Doe_Jane")
    rows = list(csv.reader((new / "table-2.csv").read_text("utf-8").splitlines()))
    cells = [row[0] or row[1] for row in rows[1:7]]
    assert [row[3] for row in rows[6:]] == ["images", "[NAME]_[NAME]"]  # no folders, but words
    assert cells[0] == f"{key.uid('1.2.826.0.1.3')}/{key.uid('1.2.826.0.1.3.1.1')}.dcm"
    assert cells[2:] == [
        f"{key.name('Doe_Jane')}/{key.uid('1.2.826.0.1.3')}/{key.uid('1.2.826.0.1.3.1.2')}.dcm",
        f"images/{key.uid('1.2.826.0.1.5.1.1')}.dcm",
        key.uid("1.2.826.0.1.3"),
        "gone.dcm",
    ]
    assert (new / cells[1]).is_file()
    assert cells[1].startswith("../images/")
    assert all((new / cells[n]).exists() or (out / cells[n]).exists() for n in range(5))
    assert rows[4][2] == "Seen by [NAME]?"
    assert (new / f"{key.name('2021-03-05')}.csv").is_file()


def _refused(export: Path, out: Path, **more) -> list[tuple[str, str]]:
    _ct(export / "images" / "odd.dcm", study="1.2.826.0.1.9", **more)
    return list(deidentify(export, out).refused)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize(
    ("elements", "why"),
    [
        ({"BurnedInAnnotation": "YES"}, "Burned In Annotation"),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "secondary capture"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen shot"),
        ({"SOPClassUID": EncapsulatedPDFStorage}, "encapsulated document"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33"}, "structured report"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66"}, "raw data"),
        ({"ScanOptions": "DOE^JANE", "PatientName": "DOE^JANE"}, None),
        ({"FrameLaterality": "DOE^JANE'S", "PatientName": "DOE^JANE"}, "still stands"),
    ],
)
def test_what_cannot_be_cleaned_stays_behind_and_is_named(export, tmp_path, elements, why):
    refused = _refused(export, tmp_path / "safe", **elements)
    if why is None:
        assert refused == []
        return
    ((name, reason),) = refused
    assert name == "images/odd.dcm"
    assert why in reason
    key = PseudonymKey.load(tmp_path / "safe.key")
    assert not list((tmp_path / "safe").rglob(f"{key.uid('1.2.826.0.1.9.1.1')}*"))


def test_burned_in_text_is_passed_on_only_when_asked(export, tmp_path):
    _ct(export / "images" / "odd.dcm", study="1.2.826.0.1.9", BurnedInAnnotation="YES")
    found = deidentify(export, tmp_path / "safe", DeidentifyConfig(burned_in="copy"))
    assert found.refused == ()
    assert found.warnings == {"Burned In Annotation is YES": 1}


@pytest.mark.parametrize(
    ("elements", "warning"),
    [
        ({"Modality": "US"}, "burned-in text is likely (ultrasound) and not declared"),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, None),
        ({"BodyPartExamined": "HEAD"}, "a head: the face may be recognisable in a 3D rendering"),
        ({"SegmentDescription": "a lesion"}, "free text is kept: SegmentDescription"),
    ],
)
def test_what_a_person_must_look_at(export, tmp_path, elements, warning):
    _ct(export / "images" / "odd.dcm", study="1.2.826.0.1.9", **elements)
    found = deidentify(export, tmp_path / "safe")
    assert list(found.warnings) == ([warning] if warning else [])


def test_a_killed_run_goes_on_where_it_was(export, tmp_path):
    out, journal = tmp_path / "safe", tmp_path / "safe.sources.jsonl"
    deidentify(export, out)
    whole = _hashes(out)
    lines = journal.read_text("utf-8").split("\n")
    # as if killed: two rows are known, one of their files is lost, the third row is half written
    journal.write_text("\n".join([*lines[:3], lines[3][:40]]), "utf-8")
    done = [json.loads(line)["row"]["file"] for line in lines[1:3]]
    (out / done[1]).unlink()
    kept = (out / done[0]).stat().st_ino
    (out / "deidentification.jsonl").unlink()
    deidentify(export, out)
    assert _hashes(out) == whole
    assert (out / done[0]).stat().st_ino == kept
    assert journal.read_text("utf-8").split("\n")[0] == lines[0]


def test_a_source_that_changed_is_done_again(export, tmp_path):
    out = tmp_path / "safe"
    deidentify(export, out)
    _ct(export / "images" / "later.dcm", study="1.2.826.0.1.4", KVP="77.125")
    deidentify(export, out)
    key = PseudonymKey.load(tmp_path / "safe.key")
    files = [file for file in _files(out) if file.StudyInstanceUID == key.uid("1.2.826.0.1.4")]
    assert 77.125 in [file.KVP for file in files]


def test_two_instances_of_one_uid_are_both_kept(export, tmp_path):
    _ct(export / "images" / "again.dcm", study="1.2.826.0.1.4", KVP="77.125")
    shutil.copy(export / "images" / "again.dcm", export / "images" / "copy.dcm")
    found = deidentify(export, tmp_path / "safe")
    assert found.statuses["written"] == 7
    same = [file for file in _files(tmp_path / "safe") if file.KVP in (77.125, 120.0)]
    assert sorted(file.KVP for file in same).count(77.125) == 1  # equal copies are one file


def test_workers_give_the_same_files(export, tmp_path):
    for number in range(4, 70):
        _ct(export / "images" / f"{number}.dcm", number=number)
    key = tmp_path / "k"
    deidentify(export, tmp_path / "one", key=key, workers=1)
    deidentify(export, tmp_path / "two", key=key, workers=2)
    assert _hashes(tmp_path / "one") == _hashes(tmp_path / "two")


def test_one_file_is_enough(export, tmp_path):
    seen = []
    found = deidentify(
        export / "images" / "later.dcm", tmp_path / "safe", progress=lambda *args: seen.append(args)
    )
    assert found.statuses == {"written": 1}
    assert len(_files(tmp_path / "safe")) == 1
    assert seen == [("DICOM files", 1, 1)]


def test_places_that_would_harm_the_originals_are_refused(export, tmp_path):
    for out in (export, export / "safe", tmp_path, export / "images" / ".." / "x"):
        with pytest.raises(ConfigError, match="inside each other"):
            deidentify(export, out)
    with pytest.raises(ConfigError, match="inside each other"):
        deidentify(export / "images" / "later.dcm", export / "images")
    with pytest.raises(ConfigError, match="is a file"):
        deidentify(export, export / "Thumbs.db")
    with pytest.raises(DataError, match="no such"):
        deidentify(tmp_path / "nowhere", tmp_path / "safe")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file"):
        deidentify(tmp_path / "empty", tmp_path / "safe")
    for key in (export / "k", tmp_path / "safe" / "k"):
        with pytest.raises(ConfigError, match="key lies in"):
            deidentify(export, tmp_path / "safe", key=key)
    assert not (tmp_path / "safe").exists()
    assert not (export / "k").exists()


def test_a_folder_of_something_else_or_of_other_settings_is_refused(export, tmp_path):
    out = tmp_path / "safe"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not empty"):
        deidentify(export, out)
    (out / "mine.txt").unlink()
    deidentify(export, out)
    with pytest.raises(ConfigError, match="other settings"):
        deidentify(export, out, DeidentifyConfig(dates="shift"))
    with pytest.raises(ConfigError, match="other settings"):
        deidentify(export, out, key=tmp_path / "another.key")


def test_links_are_not_followed_out_of_the_folder(export, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    _ct(elsewhere / "secret.dcm", study="1.2.826.0.1.8")
    (export / "link").symlink_to(elsewhere)
    (export / "dangling.dcm").symlink_to(tmp_path / "nothing")
    found = deidentify(export, tmp_path / "safe")
    assert found.statuses == {"written": 5, "listed": 3, "failed": 1}
    assert [name for name, _ in found.failed] == ["dangling.dcm"]
