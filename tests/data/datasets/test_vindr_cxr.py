"""VinDr-CXR in PhysioNet's layout, and LiteGPT's label preparation by hand-computed boxes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.data.datasets.vindr_cxr.labels import (
    GLOBAL_LABELS,
    LABELS,
    LOCAL_LABELS,
    Reader,
    conflicting,
    fuse,
    merged,
    overlap,
)
from medloupe.errors import DataError, ImageError
from medloupe.types import Box

WIDTH, HEIGHT = 60, 50
Reading = tuple[str, str, set[str]]  # image, reader, labels marked with 1
Drawn = tuple[str, str, str, str]  # image, reader, class, "x1 y1 x2 y2" or nothing


def config(**fields: Any) -> DatasetConfig:
    return DatasetConfig.parse({"name": "vindr_cxr", **fields})


def dicom(path: Path, **elements: Any) -> None:
    """A radiograph of 60 x 50 pixels, as the publisher names and tags it."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = HEIGHT, WIDTH
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 7, 0, 1
    dataset.Modality = "DX"
    dataset.PixelSpacing = [0.5, 0.25]
    dataset.PatientSex = "F"
    dataset.PatientAge = "061Y"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    seed = sum(map(ord, path.stem))
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    dataset.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


TRAIN: list[Reading] = [
    ("a", "R1", {"Cardiomegaly", "Pneumonia"}),
    ("a", "R2", {"Cardiomegaly"}),
    ("a", "R3", {"Cardiomegaly", "Nodule/Mass", "Other diseases"}),
    ("b", "R1", {"No finding"}),
    ("b", "R2", {"No finding"}),
    ("b", "R3", {"No finding"}),
    ("c", "R1", {"No finding"}),
    ("c", "R2", {"ILD"}),
    ("c", "R3", {"No finding"}),
]
TEST: list[Reading] = [("t", "", {"Lung Opacity", "Other diseases"}), ("u", "", {"No finding"})]
BOXES: list[Drawn] = [
    ("b", "R1", "No finding", ""),
    ("a", "R1", "Cardiomegaly", "10 10 30 30"),
    ("a", "R2", "Cardiomegaly", "11 10 31 30"),
    ("a", "R3", "Nodule/Mass", "40 5 44 9"),
    ("a", "R3", "Cardiomegaly", "45 35 99 60"),
    ("c", "R2", "ILD", "1 1 9 9"),
]
TEST_BOXES: list[Drawn] = [("t", "", "Lung Opacity", "5.5 6.25 20 30"), ("u", "", "No finding", "")]


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Writes version 1.0.0 with three training and two test images."""

    def write(
        train: list[Reading] = TRAIN,
        boxes: list[Drawn] = BOXES,
        test: list[Reading] = TEST,
        test_boxes: list[Drawn] = TEST_BOXES,
        drop: str = "",
    ) -> Path:
        root = tmp_path / "vindr-cxr"
        for part, readings, drawn in (("train", train, boxes), ("test", test, test_boxes)):
            named = part == "train"
            labels = [
                "Other disease" if name == "Other diseases" and not named else name
                for name in LABELS
            ]
            rad = ["rad_id"] if named else []
            rows = [
                [image, *([reader] if named else []), *(int(name in marked) for name in LABELS)]
                for image, reader, marked in readings
            ]
            header = [name for name in ["image_id", *rad, *labels] if name != drop]
            folder = root / "annotations"
            write_csv(folder / f"image_labels_{part}.csv", header, rows)
            rows = [
                [image, *([reader] if named else []), name, *(edges.split() or [""] * 4)]
                for image, reader, name, edges in drawn
            ]
            header = ["image_id", *rad, "class_name", "x_min", "y_min", "x_max", "y_max"]
            write_csv(folder / f"annotations_{part}.csv", header, rows)
            for image in dict.fromkeys(image for image, _, _ in readings):
                dicom(root / part / f"{image}.dicom")
        return root

    return write


@pytest.fixture
def prepared(source: Any, tmp_path: Path, progress: Any) -> Dataset:
    return config().prepare(tmp_path / "out", root=source(), progress=progress)


def box(*edges: float, label: str = "ILD") -> Box:
    x1, y1, x2, y2 = edges
    return Box(label=label, x1=x1, y1=y1, x2=x2, y2=y2)


def test_the_labels_are_22_findings_and_6_diagnoses() -> None:
    assert (len(LOCAL_LABELS), len(GLOBAL_LABELS), len(set(LABELS))) == (22, 6, 28)


def test_overlap_in_both_conventions() -> None:
    one, other = box(0, 0, 10, 10), box(5, 0, 15, 10)
    assert overlap(one, other) == pytest.approx(50 / 150)
    assert overlap(one, other, margin=1) == pytest.approx(66 / 176)  # 6 x 11 of 2 x 121 - 66
    assert overlap(one, box(11, 0, 20, 10)) == 0
    # One pixel beside the other is no overlap in continuous edges, and none in whole pixels either.
    assert overlap(one, box(11, 0, 20, 10), margin=1) == 0


def test_readers_conflict_when_one_finds_nothing_and_another_something() -> None:
    nothing, something = (
        Reader(name="1", labels=frozenset({"No finding"})),
        Reader(name="2", labels=frozenset({"ILD"})),
    )
    assert conflicting([nothing, something])
    assert conflicting([Reader(name="3", labels=frozenset({"ILD", "No finding"}))])
    assert not conflicting([nothing, nothing])
    assert not conflicting([something, something])
    assert not conflicting([something, Reader(name="4", labels=frozenset())])


def test_repeated_boxes_are_one_and_the_first_is_kept() -> None:
    # 8 wide of 10: IoU 80/120 = 0.67 between neighbours, 60/140 = 0.43 between the outer two.
    chain = [box(0, 0, 10, 10), box(2, 0, 12, 10), box(4, 0, 14, 10), box(40, 0, 50, 10)]
    assert merged(chain, "litegpt", 0.5) == [chain[0], chain[3]]
    assert merged(chain, "greedy", 0.5) == [chain[0], chain[2], chain[3]]
    assert merged(chain, "none", 0.5) == chain
    assert merged(chain[:1], "litegpt", 0.5) == chain[:1]
    assert merged([], "litegpt", 0.5) == []


def test_litegpts_groups_count_whole_pixels_and_take_in_a_box_that_is_still_alone() -> None:
    # Shifted by 3.5 of 10: IoU 6.5 / 13.5 = 0.48, in whole pixels 7.5 / 14.5 = 0.52.
    near = [box(0, 0, 10, 10), box(3.5, 0, 13.5, 10)]
    assert merged(near, "litegpt", 0.5) == near[:1]
    assert merged(near, "greedy", 0.5) == near
    # 0 ~ 2 are a group when 1, which is not like 0, meets 2.
    late = [box(0, 0, 10, 10), box(5, 0, 15, 10), box(2.5, 0, 12.5, 10)]
    assert merged(late, "litegpt", 0.5) == late[:1]


def test_a_box_paired_again_moves_to_the_earlier_ones_group_as_in_litegpts_code() -> None:
    # 0 ~ 3, then 1 ~ 2, then 1 ~ 3: box 3 moves from the group of 0 to that of 1.
    a, b = box(0, 0, 10, 10), box(6, 0, 16, 10)
    c, d = box(8, 0, 18, 10), box(3, 0, 13, 10)
    assert overlap(a, d, margin=1) > 0.5 > overlap(a, b, margin=1)
    assert overlap(b, c, margin=1) > 0.5
    assert overlap(b, d, margin=1) > 0.5 > overlap(c, d, margin=1)
    assert merged([a, b, c, d], "litegpt", 0.5) == [a, b]


def test_labels_need_as_many_readers_as_asked() -> None:
    readers = [
        Reader(name="1", labels=frozenset({"ILD", "Pneumonia"})),
        Reader(name="2", labels=frozenset({"ILD"})),
        Reader(name="3", labels=frozenset({"Edema"})),
    ]
    boxes = [box(0, 0, 5, 5), box(20, 20, 30, 30, label="Edema")]
    one = fuse(readers, boxes)
    assert (one.findings, one.diagnoses) == (("Edema", "ILD"), ("Pneumonia",))
    assert one.boxes == (boxes[1], boxes[0])
    two = fuse(readers, boxes, min_readers=2)
    assert (two.findings, two.diagnoses, two.boxes) == (("ILD",), (), (boxes[0],))
    three = fuse(readers, boxes, min_readers=3)
    assert (three.findings, three.diagnoses) == ((), ("No finding",))
    alone = fuse(readers[2:], boxes[1:], min_readers=3)
    assert alone.findings == ("Edema",)


def test_the_layout_is_read_and_prepared_as_litegpt_does(prepared: Dataset, source: Any) -> None:
    card = prepared.card
    assert (
        card.partial
        == "3 of 15,000 train images, 9 of 45,000 train readings, 2 of 3,000 test images"
    )
    assert card.counts["images on which readers conflict"] == 1
    assert "data use agreement" in card.access
    records = {record.id.removeprefix("vindr_cxr/"): record for record in prepared.records}
    assert set(records) == {"a", "b", "t", "u"}  # c: the readers conflict
    a = records["a"]
    assert a.labels == ("Cardiomegaly", "Nodule/Mass", "Pneumonia", "Other diseases")
    assert a.boxes == (
        # The second reader's box repeats the first's; the last is cut to the image. Spacing is 0.25
        # along x and 0.5 along y.
        box(10, 10, 30, 30, label="Cardiomegaly").model_copy(update={"size_mm": (5.0, 10.0)}),
        box(45, 35, 60, 50, label="Cardiomegaly").model_copy(update={"size_mm": (3.75, 7.5)}),
        box(40, 5, 44, 9, label="Nodule/Mass").model_copy(update={"size_mm": (1.0, 2.0)}),
    )
    assert a.attributes == {"view": "PA", "readers": "R1, R2, R3", "sex": "F", "age": "061Y"}
    assert a.images[0].modality == "DX"
    assert Path(a.images[0].uri).name == "a.dicom"
    assert {name: record.split for name, record in records.items()} == {
        "a": "train",
        "b": "train",
        "t": "test",
        "u": "test",
    }
    assert records["t"].labels == ("Lung Opacity", "Other diseases")
    assert records["t"].boxes[0].x1 == 5.5
    assert load_dataset(prepared.root) == prepared


def test_findings_and_diagnoses_are_asked_for(prepared: Dataset) -> None:
    rows = {row.id.removeprefix("vindr_cxr/"): row for row in prepared.conversations}
    assert set(rows) == {
        "a/findings",
        "a/diagnosis",
        "b/diagnosis",
        "t/findings",
        "t/diagnosis",
        "u/diagnosis",
    }
    boxes = [part for part in rows["a/findings"].parts() if isinstance(part, Box)]
    assert [one.label for one in boxes] == ["Cardiomegaly", "Cardiomegaly", "Nodule/Mass"]
    answers = {name: row.answer.text for name, row in rows.items() if row.answer is not None}
    assert answers["a/diagnosis"] == "Pneumonia, Other diseases"
    assert answers["b/diagnosis"] == "No finding"
    assert "COPD" in rows["a/diagnosis"].question


def test_options_change_what_is_asked(source: Any, tmp_path: Path, progress: Any) -> None:
    every = config(
        tasks=["findings", "identify", "rec", "reg", "diagnosis"],
        conflicts="keep",
        ask_without_finding=True,
        merge="none",
        validation=0.999999,
    )
    made = every.prepare(tmp_path / "out", root=source(), progress=progress)
    rows = {row.id.removeprefix("vindr_cxr/"): row for row in made.conversations}
    answers = {name: row.answer.text for name, row in rows.items() if row.answer is not None}
    assert answers["b/findings"] == answers["b/identify"] == "No finding"
    assert answers["c/identify"] == "ILD"
    assert len([name for name in rows if name.startswith("a/reg")]) == 4
    assert len([name for name in rows if name.startswith("a/rec")]) == 2
    assert {row.split for row in made.records if row.id[-1] in "abc"} == {"validation"}
    assert {row.split for row in made.records if row.id[-1] in "tu"} == {"test"}


def test_litegpts_own_wording(source: Any, tmp_path: Path, progress: Any) -> None:
    own = config(wording="litegpt", litegpt_tag="grounding", ask_without_finding=True)
    made = own.prepare(tmp_path / "out", root=source(), progress=progress)
    rows = {row.id.removeprefix("vindr_cxr/"): row for row in made.conversations}
    found = rows["a/findings"]
    assert found.question.startswith("[grounding] Please describe the critical findings along with")
    assert found.answer is not None
    shown = [part.label if isinstance(part, Box) else part.text for part in found.answer.content]
    assert shown == [
        "Local diseases of this chest radiograph are ",
        "<p>Cardiomegaly</p> ",
        "Cardiomegaly",
        ",<p>Cardiomegaly</p> ",
        "Cardiomegaly",
        ",<p>Nodule/Mass</p> ",
        "Nodule/Mass",
        ".",
    ]
    answers = {name: row.answer.text for name, row in rows.items() if row.answer is not None}
    assert rows["a/diagnosis"].question.startswith("[vqa] Given the provided chest X-ray image")
    assert answers["a/diagnosis"] == (
        "Global diseases of this chest radiograph are Pneumonia, Other diseases."
    )
    assert answers["b/findings"] == "No finding"
    assert answers["b/diagnosis"] == "Global diseases of this chest radiograph are No finding."


def test_images_that_are_not_here(source: Any, tmp_path: Path, progress: Any) -> None:
    root = source()
    (root / "train/b.dicom").unlink()
    with pytest.raises(DataError, match="not in this copy") as error:
        config().prepare(tmp_path / "out", root=root, progress=progress)
    assert error.value.fault.row == "b"
    some = config(missing_images="leave_out")
    made = some.prepare(tmp_path / "out", root=root, progress=progress)
    assert made.card.partial.startswith("2 of 15,000 train images")


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"drop": "ILD"}, "ILD", "no column 'ILD'"),
        ({"boxes": [("a", "R1", "Cardiomegalia", "1 1 2 2")]}, "class_name", "'Cardiomegaly'"),
        ({"boxes": [("a", "R1", "ILD", "1 1 1 2")]}, "x_max, y_max", "no area"),
        ({"boxes": [("a", "R1", "ILD", "1 one 2 2")]}, "y_min", "is no number"),
        ({"boxes": [("a", "R1", "ILD", "")]}, "x_min", "missing or empty"),
        ({"boxes": [("z", "R1", "ILD", "1 1 2 2")]}, "image_id", "no row in image_labels_train"),
        (
            {"boxes": [("a", "R1", "ILD", "61 1 70 2")]},
            "x_min, y_min, x_max, y_max",
            "outside the image of 60 x 50",
        ),
        ({"train": [*TRAIN, TRAIN[0]]}, "rad_id", "'R1' is there twice"),
    ],
)
def test_a_faulty_table_is_named(
    source: Any, tmp_path: Path, progress: Any, fields: Any, field: str | None, said: str
) -> None:
    with pytest.raises(DataError, match=said) as error:
        config().prepare(tmp_path / "out", root=source(**fields), progress=progress)
    assert error.value.fault.field == field


def test_a_value_or_column_that_is_not_published_is_named(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    root = source()
    path = root / "annotations/image_labels_train.csv"
    text = path.read_text()
    path.write_text(text.replace("a,R1,0", "a,R1,2"))
    with pytest.raises(DataError, match="'2' is neither 0 nor 1") as error:
        config().prepare(tmp_path / "out", root=root, progress=progress)
    assert (error.value.fault.row, error.value.fault.field) == ("a", "Aortic enlargement")
    path.write_text(text.replace("Rib fracture", "Rib fractures"))
    with pytest.raises(DataError, match="no column 'Rib fracture'"):
        config().prepare(tmp_path / "out", root=root, progress=progress)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        config().prepare(tmp_path / "out", root=root, progress=progress)


def test_a_header_without_spacing_or_a_broken_file(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    root = source()
    dicom(root / "train/a.dicom", PixelSpacing=None, PatientSex="", PatientAge=None)
    made = config().prepare(tmp_path / "out", root=root, progress=progress)
    a = made.records[0]
    assert a.boxes[0].size_mm == ()
    assert set(a.attributes) == {"view", "readers"}
    for data in (b"", b"no DICOM", (root / "train/a.dicom").read_bytes()[:200]):
        (root / "train/a.dicom").write_bytes(data)
        with pytest.raises(ImageError, match="header cannot be read") as error:
            config().prepare(tmp_path / "out", root=root, progress=progress)
        assert error.value.fault.file == str(root / "train/a.dicom")
