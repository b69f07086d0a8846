"""MIMIC-CXR in PhysioNet's layout; reports are made up, in the form that the publisher shows."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest

from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.data.datasets.mimic_cxr import LABELS, parse_report, section_name
from medloupe.errors import DataError

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___ year old woman with ?pleural effusion  // ?pleural effusion
 
 COMPARISON:  ___
 
 FINDINGS: 
 
 Cardiac size cannot be evaluated.  Large left pleural effusion is new.  NOTE: the
 upper lungs are clear.
 
 IMPRESSION: 
 
 Large left pleural effusion
"""
METADATA = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
# dicom_id, subject, study, view, date, time, split
IMAGES = [
    ("d1", "10000032", "50000003", "LATERAL", "21800506", "213014.531", "train"),
    ("d2", "10000032", "50000003", "PA", "21800506", "213015.0", "train"),
    ("d3", "10000032", "50000001", "AP", "21800516", "91500.0", "train"),
    ("d4", "10000032", "50000002", "", "21800626", "0.0", "train"),
    ("d5", "10000764", "50000004", "AP", "21321015", "101010.0", "validate"),
    ("d6", "11000011", "50000005", "PA", "21321015", "101010.0", "test"),
]


def config(**fields: Any) -> DatasetConfig:
    return DatasetConfig.parse({"name": "mimic_cxr", **fields})


def packed(path: Path, header: Any, rows: list[Any]) -> None:
    stream = io.StringIO()
    csv.writer(stream).writerows([header, *rows])
    path.write_bytes(gzip.compress(stream.getvalue().encode()))


def labels(**marked: str) -> list[str]:
    return [marked.get(name.replace(" ", "_"), "") for name in LABELS]


@pytest.fixture
def source(tmp_path: Path, png: Any) -> Any:
    """Writes five studies of three patients with reports and CheXpert labels."""

    def write(images: list[Any] = IMAGES, **reports: str) -> Path:
        root = tmp_path / "mimic"
        for number, (dicom, patient, study, *_) in enumerate(images):
            folder = f"files/p{patient[:2]}/p{patient}"
            png(f"mimic/{folder}/s{study}/{dicom}.png", seed=number)
            path = root / folder / f"s{study}/{dicom}.png"
            path.rename(path.with_suffix(".jpg"))
            text = reports.get(f"s{study}", REPORT)
            (root / folder / f"s{study}.txt").write_text(text)
        rows = [
            [dicom, patient, study, "CHEST", view, 3056, 2544, date, time, "", "", "Erect"]
            for dicom, patient, study, view, date, time, _ in images
        ]
        packed(root / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, rows)
        rows = [[dicom, study, patient, split] for dicom, patient, study, *_, split in images]
        header = ("dicom_id", "study_id", "subject_id", "split")
        packed(root / "mimic-cxr-2.0.0-split.csv.gz", header, rows)
        marked = [
            [
                "10000032",
                "50000003",
                *labels(Pleural_Effusion="1.0", Edema="0.0", Pneumonia="-1.0"),
            ],
            ["10000032", "50000001", *labels(No_Finding="1.0")],
            ["10000032", "50000002", *labels()],
            ["10000764", "50000004", *labels(Fracture="1.0", Edema="1.0")],
        ]
        header = ("subject_id", "study_id", *LABELS)
        packed(root / "mimic-cxr-2.0.0-chexpert.csv.gz", header, marked)
        return root

    return write


@pytest.fixture
def prepared(source: Any, tmp_path: Path, progress: Any) -> Dataset:
    return config().prepare(tmp_path / "out", root=source(), progress=progress)


def test_the_layout_is_read_by_study(prepared: Dataset) -> None:
    card = prepared.card
    assert card.partial == "6 of 377,110 images, 5 of 227,835 studies, 3 of 65,379 patients"
    assert "data use agreement" in card.access
    assert card.leak == ""
    records = {record.id.removeprefix("mimic_cxr/"): record for record in prepared.records}
    both = records["s50000003"]
    assert [Path(ref.uri).name for ref in both.images] == ["d2.jpg", "d1.jpg"]  # frontal first
    assert both.images[0].study == "50000003"
    assert both.attributes == {
        "views": "PA, LATERAL",
        "site": "BIDMC",
        "uncertain": "Pneumonia",
        "absent": "Edema",
        "labeler": "chexpert",
    }
    assert both.labels == ("Pleural Effusion",)
    assert records["s50000002"].attributes["views"] == "unknown"
    assert (records["s50000005"].labels, records["s50000005"].split) == ((), "test")
    assert records["s50000004"].split == "validation"
    assert load_dataset(prepared.root) == prepared


def test_priors_follow_the_date_and_not_the_identifier(prepared: Dataset) -> None:
    records = {record.id.removeprefix("mimic_cxr/"): record for record in prepared.records}
    assert records["s50000003"].prior is None
    assert records["s50000001"].prior == "mimic_cxr/s50000003"
    assert records["s50000002"].prior == "mimic_cxr/s50000001"
    assert records["s50000004"].prior is None
    assert records["s50000003"].date_offset_days == 0
    # 6 May 21:30:14 to 16 May 09:15:00, and to 26 June 00:00:00.
    first = 10 - (12 * 3600 + 15 * 60 + 14) / 86400
    assert records["s50000001"].date_offset_days == pytest.approx(first)
    assert records["s50000002"].date_offset_days == pytest.approx(51 - (21.5 * 3600 + 14) / 86400)


def test_reports_are_asked_for_with_the_sections_that_they_have(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    only = " FINAL REPORT\n IMPRESSION:  No acute disease.\n"
    none = " FINAL REPORT\n INDICATION:  Cough.\n"
    root = source(s50000001=only, s50000002=none)
    made = config().prepare(tmp_path / "out", root=root, progress=progress)
    answers = {
        row.study_id: row.answer.text for row in made.conversations if row.answer is not None
    }
    assert set(answers) == {"50000003", "50000001", "50000004", "50000005"}
    assert answers["50000001"] == "No acute disease."
    assert answers["50000003"] == (
        "Findings: Cardiac size cannot be evaluated. Large left pleural effusion is new. NOTE: the "
        "upper lungs are clear.\nImpression: Large left pleural effusion"
    )
    assert made.card.counts["studies without these sections"] == 1
    impression = config(sections=["impression"])
    made = impression.prepare(tmp_path / "short", root=root, progress=progress)
    answer = made.conversations[0].answer
    assert answer is not None
    assert answer.text == "Large left pleural effusion"


@pytest.mark.parametrize(
    ("uncertain", "said"),
    [
        ("leave_out", {"50000001", "50000002", "50000004"}),
        ("absent", {"50000001", "50000002", "50000003", "50000004"}),
        ("present", {"50000001", "50000002", "50000003", "50000004"}),
    ],
)
def test_uncertain_labels_follow_the_named_rule(
    source: Any, tmp_path: Path, progress: Any, uncertain: str, said: set[str]
) -> None:
    asked = config(tasks=["labels"], uncertain=uncertain)
    made = asked.prepare(tmp_path / "out", root=source(), progress=progress)
    answers = {
        row.study_id: row.answer.text for row in made.conversations if row.answer is not None
    }
    assert set(answers) == said  # study 5 has no row in the label table
    assert answers["50000004"] == "Edema, Fracture"
    assert answers["50000002"] == "None of these"
    if uncertain != "leave_out":
        more = {"absent": "Pleural Effusion", "present": "Pleural Effusion, Pneumonia"}
        assert answers["50000003"] == more[uncertain]
    assert all(record.report == {} for record in made.records)


def test_views_can_be_chosen(source: Any, tmp_path: Path, progress: Any) -> None:
    frontal = config(views=["PA", "AP"])
    made = frontal.prepare(tmp_path / "out", root=source(), progress=progress)
    assert [len(record.images) for record in made.records] == [1, 1, 1, 1]
    assert made.card.partial.startswith("6 of 377,110 images, 5 of 227,835")


def test_dicom_unpacked_tables_and_reports_elsewhere_are_found(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    root = source()
    for path in root.rglob("*.jpg"):
        path.rename(path.with_suffix(".dcm"))
    for path in root.glob("*.csv.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    for path in list(root.rglob("*.txt")):
        target = root / "mimic-cxr-reports" / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    with pytest.raises(DataError, match="report cannot be read") as error:
        config().prepare(tmp_path / "out", root=root, progress=progress)
    assert error.value.fault.row == "50000003"
    elsewhere = config(reports="mimic-cxr-reports")
    made = elsewhere.prepare(tmp_path / "out", root=root, progress=progress)
    assert made.conversations[0].images[0].uri.endswith(".dcm")


def test_images_that_are_not_here(source: Any, tmp_path: Path, progress: Any) -> None:
    root = source()
    next(root.rglob("d2.jpg")).unlink()
    next(root.rglob("d4.jpg")).unlink()
    with pytest.raises(DataError, match="not in this copy") as error:
        config().prepare(tmp_path / "out", root=root, progress=progress)
    assert error.value.fault.row == "files/p10/p10000032/s50000003/d2"
    some = config(missing_images="leave_out")
    made = some.prepare(tmp_path / "out", root=root, progress=progress)
    assert made.card.partial.startswith("4 of 377,110 images, 4 of 227,835 studies")


def changed(index: int, place: int, value: str) -> list[Any]:
    rows = [list(row) for row in IMAGES]
    rows[index][place] = value
    return rows


@pytest.mark.parametrize(
    ("images", "row", "field", "said"),
    [
        (changed(0, 6, "val"), "d1", "split", "unknown value 'val'"),
        (changed(0, 5, "late"), "d1", "StudyTime", "no date or time"),
        (changed(0, 4, "21801306"), "d1", "StudyDate, StudyTime", "no date and time"),
        (changed(1, 0, "d1"), "d1", "dicom_id", "occurs 2 times"),
        (changed(0, 6, "test"), "50000003", "split", "in two splits"),
        (changed(0, 2, ""), "d1", "study_id", "missing or empty"),
    ],
)
def test_a_faulty_row_is_named(
    source: Any, tmp_path: Path, progress: Any, images: Any, row: str, field: str, said: str
) -> None:
    with pytest.raises(DataError, match=said) as error:
        config().prepare(tmp_path / "out", root=source(images), progress=progress)
    assert (error.value.fault.row, error.value.fault.field) == (row, field)


def test_a_faulty_label_or_a_missing_table_is_named(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    root = source()
    path = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    header = ("subject_id", "study_id", *LABELS)
    packed(path, header, [["10000032", "50000003", *labels(Edema="2.0")]])
    with pytest.raises(DataError, match=r"'2\.0' is none of 1\.0") as error:
        config().prepare(tmp_path / "out", root=root, progress=progress)
    assert (error.value.fault.row, error.value.fault.field) == ("50000003", "Edema")
    with pytest.raises(DataError, match="no such file"):
        config(tasks=["labels"], labeler="negbio").prepare(
            tmp_path / "out", root=root, progress=progress
        )
    packed(root / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "split"), [])
    with pytest.raises(DataError, match="no column 'subject_id'"):
        config().prepare(tmp_path / "out", root=root, progress=progress)


def test_a_report_is_cut_at_its_headers() -> None:
    assert parse_report(REPORT) == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___ year old woman with ?pleural effusion // ?pleural effusion",
        "comparison": "___",
        "findings": "Cardiac size cannot be evaluated. Large left pleural effusion is new. NOTE: the "
        "upper lungs are clear.",
        "impression": "Large left pleural effusion",
    }


def test_of_several_sections_the_last_that_says_something_counts() -> None:
    text = " WET READ: ___\n FINDINGS:  One.\n IMPRESSION:\n FINDINGS:  Two.\n FINDINGS: \n"
    assert parse_report(text) == {"wet read": "___", "findings": "Two."}


def test_a_header_is_indented_in_capitals_and_alone() -> None:
    text = " FINDINGS:  Tube:\nTIP: high.\n Heart: large. PA:ok\n 12:30 NOTE: x\n"
    assert parse_report(text) == {"findings": "Tube: TIP: high. Heart: large. PA:ok 12:30 NOTE: x"}


def test_without_findings_and_impression_the_last_paragraph_is_taken() -> None:
    text = " FINAL REPORT\n HISTORY:  Cough.\n \n Lungs are clear.\n \n No effusion.\n"
    assert parse_report(text) == {
        "history": "Cough.",
        "last_paragraph": "Lungs are clear. No effusion.",
    }
    assert parse_report("Lungs are clear.\n") == {"full report": "Lungs are clear."}
    assert parse_report("") == {}


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("CHEST, TWO VIEWS", "findings"),
        ("PA AND LATERAL", "findings"),
        ("FINDINDGS", "findings"),
        ("FINDINGS/IMPRESSION", "impression"),
        ("IMPRESSOIN", "impression"),
        ("CONCLUSION", "impression"),
        ("REASON FOR EXAM", "indication"),
        ("CLINICAL HISTORY", "history"),
        ("COMPARISIONS", "comparison"),
        ("NOTIFICATION", "notification"),
        ("WET READ", "wet read"),
    ],
)
def test_headers_have_one_name(header: str, name: str) -> None:
    assert section_name(header) == name
