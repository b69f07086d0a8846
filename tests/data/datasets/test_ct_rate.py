"""CT-RATE in the publisher's tree: scans kept together, HU once, published questions as they are."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medloupe.data.check import check_dataset
from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.data.datasets.ct_rate import LABELS, write_rescaled
from medloupe.errors import ConfigError, DataError
from medloupe.imaging.read import read_ref
from medloupe.types import Record

Row = dict[str, Any]
AFFINE = np.diag(np.array([0.7, 0.8, 1.5, 1.0], np.float32))
# Columns of llava/train/validation_metadata.csv in the official repository, shortened to those that
# are read and two that are not.
METADATA = (
    "VolumeName",
    "Manufacturer",
    "SeriesDescription",
    "ManufacturerModelName",
    "PatientSex",
    "PatientAge",
    "ConvolutionKernel",
    "PatientPosition",
    "XYSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "NumberofSlices",
    "ZSpacing",
    "StudyDate",
)
REPORT = (
    "VolumeName",
    "ClinicalInformation_EN",
    "Technique_EN",
    "Findings_EN",
    "Impressions_EN",
)
VOLUMES = ("train_1_a_1", "train_1_a_2", "train_1_b_1", "train_2_a_1", "valid_1_a_1")
DATES = {"train_1_a": "20210427", "train_1_b": "20210507", "valid_1_a": "20221108"}


def stored(seed: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Voxels as the scanner stores them."""
    return np.random.default_rng(seed).integers(0, 3000, (6, 5, 4), dtype=np.int16)


def write_nifti(path: Path, seed: int, slope: float | None, intercept: float | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(stored(seed), AFFINE)
    image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, path)
    assert nibabel.load(path).dataobj.slope == (1 if slope is None else slope)


def metadata(name: str, **change: str) -> Row:
    row = dict.fromkeys(METADATA, "")
    return row | {
        "VolumeName": f"{name}.nii.gz",
        "Manufacturer": "Siemens Healthineers",
        "SeriesDescription": "Thorax 1,50 Br40 S3",
        "ManufacturerModelName": "SOMATOM go.All",
        "PatientSex": "F",
        "PatientAge": "060Y",
        "ConvolutionKernel": "['Br40f', '3']",
        "XYSpacing": "[0.7, 0.8]",
        "RescaleIntercept": "-8192",
        "RescaleSlope": "1",
        "NumberofSlices": "4",
        "ZSpacing": "1.5",
        "StudyDate": DATES.get(name.rpartition("_")[0], ""),
        **change,
    }


def report(name: str, **change: str) -> Row:
    return {
        "VolumeName": f"{name}.nii.gz",
        "ClinicalInformation_EN": "Not given.",
        "Technique_EN": "1.5 mm, non-contrast.",
        "Findings_EN": f"Findings of {name}, normal.",
        "Impressions_EN": "",
        **change,
    }


def labels(name: str, *present: str, **change: str) -> Row:
    marks = {label: "1" if label in present else "0" for label in LABELS}
    return {"VolumeName": f"{name}.nii.gz", **marks, **change}


def asked(name: str, kind: str, number: int, *said: str, tag: bool = True) -> Row:
    """A row of train_vqa.json."""
    sign = f"<{kind}>" if tag else ""
    turns = [
        {"from": "gpt", "value": text}
        if place % 2
        else {"from": "human", "value": text + sign, "type": kind}
        for place, text in enumerate(said)
    ]
    return {"id": f"{kind}_{number}", "image": f"{name}.nii.gz", "conversations": turns}


VQA = {
    "train": [
        asked(
            "train_1_a_1",
            "long_answer",
            0,
            "<image>\nAre the bronchi open?",
            "Yes, both.",
            "Why?",
            "So.",
        ),
        asked("train_1_a_1", "short_answer", 0, "<image>\nWhere?", "lung", tag=False),
        asked(
            "train_1_b_1",
            "multiple_choice",
            7,
            "<image>\nWhat is seen? (a) Nodule, (b) Effusion (c) None",
            "(b) Effusion",
        ),
        asked("train_99_a_1", "long_answer", 1, "<image>\nNot here?", "No."),
    ],
    "valid": [asked("valid_1_a_1", "report_generation", 0, "<image> Write the report.", "Normal.")],
}


def write_csv(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def ct_rate(tmp_path: Path) -> Callable[..., Path]:
    """Writes the tree of the data set; `v2` chooses the corrected folders."""

    def write(
        *, v2: bool = True, volumes: tuple[str, ...] = VOLUMES, change: dict[str, Row] | None = None
    ) -> Path:
        change = change or {}
        base = tmp_path / "CT-RATE" / "dataset"
        for seed, name in enumerate(volumes):
            group, patient, scan, _ = name.split("_")
            folder = f"{group}{'_fixed' if v2 else ''}/{group}_{patient}/{group}_{patient}_{scan}"
            scaling = (1.0, -8192.0) if v2 else (None, None)
            write_nifti(base / folder / f"{name}.nii.gz", seed, *scaling)
        for group, long in (("train", "train"), ("valid", "validation")):
            # every table also has rows of volumes that are not here
            names = [name for name in (*VOLUMES, f"{group}_77_a_1") if name.startswith(group)]
            write_csv(
                base / "radiology_text_reports" / f"{long}_reports.csv",
                [report(name, **change.get(f"report {name}", {})) for name in names],
            )
            write_csv(
                base / "multi_abnormality_labels" / f"{group}_predicted_labels.csv",
                [labels(name, "Emphysema", **change.get(f"labels {name}", {})) for name in names],
            )
            write_csv(
                base / "metadata" / f"{long}_metadata.csv",
                [metadata(name, **change.get(f"metadata {name}", {})) for name in names],
            )
            (base / "vqa").mkdir(exist_ok=True)
            rows = change.get("vqa", VQA)[group]
            (base / "vqa" / f"{group}_vqa.json").write_text(json.dumps(rows))
        return tmp_path / "CT-RATE"

    return write


def prepare(root: Path, **fields: Any) -> Dataset:
    config = DatasetConfig.parse({"name": "ct_rate", "validation": 0, **fields})
    return config.prepare(root.parent / "out", root=root, progress=lambda *_: None)


def by_id(dataset: Dataset) -> dict[str, Record]:
    return {record.id: record for record in dataset.records}


def test_scans_reconstructions_and_patients_stay_together(ct_rate: Callable[..., Path]) -> None:
    dataset = prepare(ct_rate())
    records = by_id(dataset)
    assert list(records) == list(VOLUMES)
    assert dataset.card.partial == "5 of 50,188 volumes, 4 of 25,692 scans, 3 of 21,304 patients"
    assert {r.patient_id for r in records.values()} == {"train_1", "train_2", "valid_1"}
    assert records["train_1_a_1"].study_id == records["train_1_a_2"].study_id == "train_1_a"
    assert records["train_1_b_1"].prior == "train_1_a_1"
    assert records["train_1_b_1"].date_offset_days == 10
    assert records["train_1_a_2"].prior is None
    assert records["train_2_a_1"].date_offset_days is None
    assert [r.split for r in records.values()] == ["train"] * 4 + ["test"]
    assert load_dataset(dataset.root) == dataset
    assert check_dataset(dataset.root).faults == ()


def test_report_labels_and_attributes(ct_rate: Callable[..., Path]) -> None:
    text = {"Impressions_EN": "No pathology, stable."}
    root = ct_rate(
        change={"report train_1_a_1": text, "labels train_1_a_1": {"Lung nodule": "1.0"}}
    )
    dataset = prepare(root, tasks=["report", "labels"])
    record = by_id(dataset)["train_1_a_1"]
    assert record.report == {
        "technique": "1.5 mm, non-contrast.",
        "findings": "Findings of train_1_a_1, normal.",
        "impression": "No pathology, stable.",
    }
    assert record.labels == ("Emphysema", "Lung nodule")
    assert record.attributes == {
        "sex": "F",
        "age": "60",
        "manufacturer": "Siemens Healthineers",
        "scanner": "SOMATOM go.All",
        "protocol": "Thorax 1,50 Br40 S3",
        "kernel": "['Br40f', '3']",
        "pixel_spacing_mm": "[0.7, 0.8]",
        "slice_spacing_mm": "1.5",
    }
    rows = {row.id: row for row in dataset.conversations}
    written = rows["train_1_a_1/report"].answer
    assert written is not None
    assert written.text == (
        "Findings: Findings of train_1_a_1, normal.\nImpression: No pathology, stable."
    )
    named = rows["train_1_a_1/labels"].answer
    assert named is not None
    assert named.text == "Emphysema, Lung nodule"


def test_published_questions(ct_rate: Callable[..., Path]) -> None:
    rows = {row.id: row for row in prepare(ct_rate(), tasks=["vqa"]).conversations}
    assert list(rows) == [
        "train_1_a_1/long_answer/long_answer_0",
        "train_1_a_1/short_answer/short_answer_0",
        "train_1_b_1/multiple_choice/multiple_choice_7",
        "valid_1_a_1/report_generation/report_generation_0",
    ]
    long, short, choice, _ = rows.values()
    assert [m.text for m in long.messages] == ["Are the bronchi open?", "Yes, both.", "Why?", "So."]
    assert short.question == "Where?"
    assert choice.answer_type == "closed"
    assert choice.options == ("(a) Nodule", "(b) Effusion", "(c) None")
    single = prepare(ct_rate(), tasks=["vqa"], turns="single", kinds=["long_answer"])
    assert [row.question for row in single.conversations] == ["Are the bronchi open?", "Why?"]


def test_volumes_of_v2_are_hu_as_they_are(ct_rate: Callable[..., Path]) -> None:
    dataset = prepare(ct_rate())
    ref = dataset.records[0].images[0]
    assert Path(ref.uri).is_absolute()
    image = read_ref(ref, dataset.root)
    assert image.units == "HU"
    assert sorted(image.array.ravel()) == sorted(stored(0).ravel().astype(float) - 8192)


def test_volumes_of_v1_get_their_scaling_into_the_header(ct_rate: Callable[..., Path]) -> None:
    other = {"metadata train_2_a_1": {"RescaleSlope": "2", "RescaleIntercept": "-1024"}}
    dataset = prepare(ct_rate(v2=False, change=other))
    assert dataset.card.version.startswith("v1")
    for name, seed, slope, intercept in (
        ("train_1_a_1", 0, 1, -8192),
        ("train_2_a_1", 3, 2, -1024),
    ):
        ref = by_id(dataset)[name].images[0]
        written = nibabel.load(dataset.root / ref.uri)
        assert np.array_equal(written.dataobj.get_unscaled(), stored(seed))
        assert np.array_equal(written.affine, AFFINE)
        assert np.array_equal(written.get_fdata(), stored(seed) * float(slope) + intercept)
        assert read_ref(ref, dataset.root).units == "HU"
    assert check_dataset(dataset.root).faults == ()


def test_nothing_but_the_scaling_is_changed(tmp_path: Path) -> None:
    source, target = tmp_path / "a.nii.gz", tmp_path / "sub" / "b.nii.gz"
    write_nifti(source, 0, None, None)
    write_rescaled(source, target, 1.0, -1024.0)
    before, after = (gzip.decompress(path.read_bytes()) for path in (source, target))
    assert [at for at, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert before[:112] + before[120:] == after[:112] + after[120:]  # scl_slope, scl_inter
    first = target.read_bytes()
    write_rescaled(source, target, 1.0, -1024.0)
    assert target.read_bytes() == first
    write_rescaled(target, tmp_path / "c.nii.gz", 1.0, -1024.0)  # has them already
    assert nibabel.load(tmp_path / "c.nii.gz").dataobj.inter == -1024


def test_a_volume_is_never_rescaled_twice_or_half_written(tmp_path: Path) -> None:
    source, target = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    write_nifti(source, 0, 1.0, -1024.0)
    with pytest.raises(
        DataError, match="the header says 1 x \\+ -1024, the metadata 1 x \\+ -8192"
    ):
        write_rescaled(source, target, 1.0, -8192.0)
    source.write_bytes(source.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be rewritten"):
        write_rescaled(source, target, 1.0, -1024.0)
    source.write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be rewritten"):
        write_rescaled(source, target, 1.0, -1024.0)
    source.write_bytes(gzip.compress(b"x" * 400))
    with pytest.raises(DataError, match="cannot be rewritten"):
        write_rescaled(source, target, 1.0, -1024.0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_fewer_volumes_by_choice(ct_rate: Callable[..., Path]) -> None:
    root = ct_rate()
    first = prepare(root, reconstructions="first")
    assert list(by_id(first)) == ["train_1_a_1", "train_1_b_1", "train_2_a_1", "valid_1_a_1"]
    (root / "dataset" / "metadata" / "no_chest_train.txt").write_text(
        "train/train_1/train_1_a/train_1_a_1.nii.gz\ntrain/train_1/train_1_b/train_1_b_1.nii.gz\n"
    )
    chest = prepare(root)
    assert list(by_id(chest)) == ["train_1_a_2", "train_2_a_1", "valid_1_a_1"]
    assert chest.card.partial.startswith("5 of 50,188 volumes")
    assert len(prepare(root, no_chest="keep").records) == 5
    assert (
        by_id(prepare(root, published_validation="validation"))["valid_1_a_1"].split == "validation"
    )


def test_the_held_out_patients_are_training_patients(ct_rate: Callable[..., Path]) -> None:
    splits = [
        {r.patient_id: r.split for r in prepare(ct_rate(), validation=0.5, seed=seed).records}
        for seed in range(8)
    ]
    assert {found["valid_1"] for found in splits} == {"test"}
    assert {found["train_1"] for found in splits} == {"train", "validation"}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"labels train_1_a_1": {"Emphysema": "2"}}, "neither 0 nor 1"),
        ({"labels train_1_a_1": {"Emphysema": ""}}, "missing or empty"),
        ({"report train_1_a_1": {"VolumeName": "train_5_a_1.nii.gz"}}, "no row for this volume"),
        ({"report train_1_a_1": {"VolumeName": "train_2_a_1.nii.gz"}}, "occurs 2 times"),
        (
            {"vqa": {**VQA, "train": [asked("train_1_a_1", "essay", 0, "<image>?", "a")]}},
            "of 0 kinds",
        ),
        (
            {"vqa": {**VQA, "train": [asked("train_1_a_1", "long_answer", 0, "<image>?")]}},
            "do not take turns",
        ),
        (
            {"vqa": {**VQA, "train": [asked("train_1_a_1", "long_answer", 0, "<image>?", "")]}},
            "says nothing",
        ),
        (
            {
                "vqa": {
                    **VQA,
                    "train": [asked("train_1_a_1", "long_answer", 0, "a <short_answer>", "b")],
                }
            },
            "of 2 kinds",
        ),
    ],
)
def test_faulty_rows_are_named(
    ct_rate: Callable[..., Path], change: dict[str, Row], rule: str
) -> None:
    with pytest.raises(DataError, match=rule) as caught:
        prepare(ct_rate(change=change))
    assert caught.value.fault.file is not None
    assert caught.value.fault.row is not None


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"tasks": []}, "no task"),
        ({"kinds": ["essay"]}, "unknown kind"),
        ({"kinds": []}, "no kind|no task"),
    ],
)
def test_a_choice_of_nothing_is_refused(
    ct_rate: Callable[..., Path], fields: Row, rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        prepare(ct_rate(), **fields)


def test_copies_that_are_something_else_are_refused(
    ct_rate: Callable[..., Path], tmp_path: Path
) -> None:
    root = ct_rate()
    table = root / "dataset" / "radiology_text_reports" / "train_reports.csv"
    table.write_text(table.read_text().replace("Findings_EN", "Findings"))
    with pytest.raises(DataError, match="no column 'Findings_EN'"):
        prepare(root)
    table.unlink()
    with pytest.raises(DataError, match="no such file"):
        prepare(root)
    odd = root / "dataset" / "train_fixed" / "train_1" / "train_1_a" / "scan.nii.gz"
    odd.write_bytes(b"")
    with pytest.raises(DataError, match="the name is not one"):
        prepare(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no volume of CT-RATE"):
        prepare(tmp_path / "empty")


def test_a_slope_of_zero_is_refused(ct_rate: Callable[..., Path]) -> None:
    root = ct_rate(v2=False, change={"metadata train_1_a_1": {"RescaleSlope": "0"}})
    with pytest.raises(DataError, match="a slope of 0") as caught:
        prepare(root)
    assert caught.value.fault.row == "train_1_a_1.nii.gz"
