"""A user's own images beside a table, or in one folder per class."""

from __future__ import annotations

import hashlib
import json
import unicodedata
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom.data
import pytest
from PIL import Image

from medloupe.data.check import check_dataset
from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.data.datasets.folder.columns import ROLES, find_columns
from medloupe.errors import ConfigError, DataError, Fault, LeakError
from medloupe.imaging.read import read_ref
from medloupe.types import Box, Conversation

Make = Callable[..., Path]


@pytest.fixture
def source(tmp_path: Path) -> Make:
    """Writes images of their own content and text files below `tmp_path/mine`."""

    def write(*images: str, **texts: str) -> Path:
        root = tmp_path / "mine"
        root.mkdir(exist_ok=True)
        for name in images:
            pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(
                0, 256, (30, 40), dtype=np.uint8
            )
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / name)
        for name, text in texts.items():
            (root / name.replace("__", ".")).write_text(text, encoding="utf-8")
        return root

    return write


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Dataset]:
    def run(root: Path, **fields: Any) -> Dataset:
        config = DatasetConfig.parse({"name": "folder", **fields})
        made = config.prepare(tmp_path / "out", root=root, progress=lambda *_: None)
        assert load_dataset(tmp_path / "out") == made
        return made

    return run


@pytest.fixture
def refused(prepared: Callable[..., Dataset]) -> Callable[..., Fault]:
    def run(root: Path, kind: type[DataError] = DataError, **fields: Any) -> Fault:
        with pytest.raises(kind) as caught:
            prepared(root, **fields)
        assert caught.value.fault.remedy
        return caught.value.fault

    return run


def tasks_of(made: Dataset) -> dict[str, list[Conversation]]:
    found: dict[str, list[Conversation]] = {}
    for row in made.conversations:
        found.setdefault(row.task, []).append(row)
    assert made.card.tasks == tuple(found)
    return found


def answers(rows: list[Conversation]) -> list[str]:
    return [row.answer.text for row in rows if row.answer is not None]


def test_the_smallest_folder(source: Make, prepared: Any, tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(12)]
    lines = [f"{name},{'nodule' if n % 2 else 'normal'}\n" for n, name in enumerate(names)]
    made = prepared(source(*names, labels__csv="image,label\n" + "".join(lines)))
    rows = tasks_of(made)["classification"]
    assert answers(rows) == ["normal", "nodule"] * 6
    assert {row.options for row in rows} == {("nodule", "normal")}
    assert made.records[1].labels == ("nodule",)
    assert (made.card.name, made.card.partial) == ("mine", "")
    assert made.card.counts["images"] == 12
    assert {row.split for row in rows} <= {"train", "validation", "test"}
    assert check_dataset(tmp_path / "out").faults == ()


def test_columns_that_play_no_role_become_attributes(source: Make, prepared: Any) -> None:
    table = "Patient ID,Image Path,Label,sex,age,split\np1,a.png,x,F,61,train\np2,b.png,y,M,,val\n"
    made = prepared(source("a.png", "b.png", rows__csv=table))
    first, second = made.records
    assert (first.patient_id, first.split, first.attributes) == (
        "p1",
        "train",
        {"sex": "F", "age": "61"},
    )
    assert (second.patient_id, second.split, second.attributes) == (
        "p2",
        "validation",
        {"sex": "M"},
    )
    assert made.card.splits.startswith("given for 2 of 2 rows")


def test_column_names_of_ones_own(source: Make, prepared: Any, refused: Any) -> None:
    root = source("a.png", "b.png", rows__csv="Bild,Klasse\na.png,x\nb.png,y\n")
    fault = refused(root)
    assert (fault.file, "no column names the images" in fault.rule) == (
        str(root / "rows.csv"),
        True,
    )
    assert "columns.image=" in fault.remedy
    fault = refused(root, columns={"image": "Bilt"})
    assert "did you mean 'Bild'" in fault.rule
    made = prepared(root, columns={"image": "Bild", "label": "Klasse"})
    assert answers(list(made.conversations)) == ["x", "y"]


def test_columns_are_set_one_by_one_on_the_command_line() -> None:
    config = DatasetConfig.parse("folder").with_overrides(
        ["columns.image=Bild", "columns.label=Klasse"]
    )
    assert config.to_dict()["columns"]["image"] == "Bild"
    with pytest.raises(ConfigError, match="did you mean 'label'"):
        config.with_overrides(["columns.lable=x"])


def test_every_role_is_found_by_each_of_its_names() -> None:
    every = [name for names in ROLES.values() for name in names]
    assert len(every) == len(set(every))
    boxes = {"x1": "x1", "y1": "y1", "x2": "x2", "y2": "y2"}
    extent = {"x": "x", "y": "y", "width": "width", "height": "height"}
    for role, names in ROLES.items():
        for name in names:
            if role in extent:
                need: Mapping[str, str] = extent
            else:
                need = boxes
            others = [column for key, column in need.items() if key != role]
            pictures = [] if role in ("image", "volume") else ["image"]
            header = [name.upper().replace("_", " "), *others, *pictures]
            assert find_columns(header, {}, Path("t.csv"))[role] == header[0]


def test_several_questions_about_one_image_share_a_record(source: Make, prepared: Any) -> None:
    table = (
        "image,question,answer,options,split,organ,kind\n"
        "a.png,Is there a mass?,yes,,train,lung,presence\n"
        "a.png,Which side?,left,left;right,train,lung,side\n"
        "b.png,What is it?,A cyst.,,test,liver,\n"
    )
    made = prepared(source("a.png", "b.png", rows__csv=table))
    yes_no, side, cyst = tasks_of(made)["vqa"]
    assert (yes_no.answer_type, yes_no.options) == ("closed", ("yes", "no"))
    assert side.question == "Which side?\nOptions: left, right."
    assert (cyst.answer_type, cyst.split) == ("open", "test")
    assert [len(record.questions) for record in made.records] == [2, 1]
    # what differs between the rows of one image belongs to the question
    assert made.records[0].attributes == {"organ": "lung"}
    assert made.records[0].questions[1].attributes == {"kind": "side"}
    assert side.attributes == {"organ": "lung", "kind": "side"}


def test_labels_in_one_cell(source: Make, prepared: Any) -> None:
    made = prepared(
        source(
            "a.png", "b.png", "c.png", t__csv="image,labels\na.png,mass;cyst\nb.png,cyst\nc.png,\n"
        )
    )
    rows = tasks_of(made)["labels"]
    assert answers(rows) == ["cyst, mass", "cyst", "None of these"]
    assert [record.labels for record in made.records] == [("mass", "cyst"), ("cyst",), ()]


def test_reports_and_captions(source: Make, prepared: Any) -> None:
    table = (
        "image,findings,impression,caption\n"
        'a.png,"Clear lungs,\nno effusion.",Normal.,A chest film.\n'
        "b.png,,Effusion.,\n"
    )
    made = prepared(source("a.png", "b.png", t__csv=table))
    found = tasks_of(made)
    assert answers(found["report"]) == [
        "Findings: Clear lungs,\nno effusion.\nImpression: Normal.",
        "Effusion.",
    ]
    assert answers(found["caption"]) == ["A chest film."]


def test_boxes_give_findings_rec_and_reg(source: Make, prepared: Any, tmp_path: Path) -> None:
    table = (
        "image_id,class_name,x_min,y_min,x_max,y_max\n"
        "a,nodule,1,2,11,12\n"
        "a,nodule,20,2,30,12\n"
        "a,mass,5,15,10,20\n"
        "b,,,,,\n"
    )
    made = prepared(source("a.png", "b.png", t__csv=table))
    found = tasks_of(made)
    assert set(found) == {"findings", "rec", "reg"}
    assert len(found["rec"]) == 2
    assert len(found["reg"]) == 3
    none = found["findings"][1]
    assert (none.id, answers([none])) == ("b.png/findings", ["No finding"])
    assert made.records[0].boxes[2] == Box(label="mass", x1=5, y1=15, x2=10, y2=20)
    assert check_dataset(tmp_path / "out").faults == ()


def test_a_box_with_two_labels_is_not_asked_about(source: Make, prepared: Any) -> None:
    table = "image,label,x1,y1,x2,y2\na.png,m,1,2,9,9\na.png,n,1,2,9,9\na.png,m,20,2,25,9\n"
    found = tasks_of(prepared(source("a.png", t__csv=table)))
    assert [row.id for row in found["reg"]] == ["a.png/reg/0:20,2,25,9"]
    assert len(found["rec"]) == 2


def test_boxes_by_width_and_height(source: Make, prepared: Any) -> None:
    made = prepared(source("a.png", t__csv="image,label,x,y,width,height\na.png,m,1,2,10,5\n"))
    assert made.records[0].boxes == (Box(label="m", x1=1, y1=2, x2=11, y2=7),)


def test_a_width_alone_is_an_attribute(source: Make, prepared: Any) -> None:
    table = "image,label,width\na.png,x,512\nb.png,y,512\n"
    made = prepared(source("a.png", "b.png", t__csv=table))
    assert made.records[0].attributes == {"width": "512"}


def test_priors_by_record_study_or_image(source: Make, prepared: Any) -> None:
    table = (
        "image,patient_id,study_id,date,prior,comparison,change\n"
        "a.png,p1,s1,2020-01-01,,,\n"
        "b.png,p1,s2,2020-01-13,s1,The effusion is larger.,worse\n"
        "c.png,p1,s3,20200114,b.png,,better\n"
    )
    made = prepared(source("a.png", "b.png", "c.png", t__csv=table))
    found = tasks_of(made)
    (row,) = found["comparison"]
    assert [image.uri for image in row.images] == ["images/a.png", "images/b.png"]
    assert "(12 days later)" in row.messages[0].text
    assert [row.options for row in found["change"]] == [("better", "worse")] * 2
    assert [record.date_offset_days for record in made.records] == [0, 12, 13]
    assert [record.prior for record in made.records] == [None, "a.png", "b.png"]
    assert "2020" not in "".join(row.to_json() for row in (*made.conversations, *made.records))


@pytest.mark.parametrize(
    ("rows", "rule", "line", "field"),
    [
        ("a.png,p1,2020-01-02,zz,x", "'zz' is not in the table", 3, "prior"),
        ("a.png,p2,2020-01-02,b.png,x", "is of patient 'p1', this one of 'p2'", None, "prior"),
        ("a.png,p1,2019-01-02,b.png,x", "days later than this one", None, "prior"),
        ("a.png,p1,2020-01-02,,x", "the earlier study is missing", None, "prior"),
        ("a.png,p1,yesterday,,", "'yesterday' cannot be read", 3, "date"),
    ],
)
def test_priors_that_are_none(
    source: Make, refused: Any, rows: str, rule: str, line: int | None, field: str
) -> None:
    table = f"image,patient_id,date,prior,comparison\nb.png,p1,2020-01-01,,\n{rows}\n"
    fault = refused(source("a.png", "b.png", t__csv=table))
    assert rule in fault.rule
    assert fault.file is not None
    assert fault.file.endswith("t.csv")
    assert fault.field == field
    assert fault.row == (f"line {line}" if line else "a.png")


def test_jsonl_lists_numbers_and_chinese(source: Make, prepared: Any) -> None:
    rows = [
        {
            "images": ["a.png", "b.png"],
            "question": "哪一侧？",
            "answer": "左侧",
            "language": "zh",
            "age": 61,
        },
        {"images": "c.png", "question": "Two?", "answer": 2, "options": [1, 2]},
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    made = prepared(source("a.png", "b.png", "c.png", t__jsonl=text))
    chinese, english = made.conversations
    assert [image.uri for image in chinese.images] == ["images/a.png", "images/b.png"]
    assert (chinese.language, chinese.attributes) == ("zh", {"age": "61"})
    assert (english.options, answers([english])) == (("1", "2"), ["2"])
    assert made.card.languages == ("en", "zh")


def test_semicolon_and_tab_tables(source: Make, prepared: Any) -> None:
    root = source("a.png", "b.png", t__csv="image;label\na.png;x, y\nb.png;z\n")
    assert answers(list(prepared(root).conversations)) == ["x, y", "z"]
    (root / "t.csv").rename(root / "t.tsv")
    (root / "t.tsv").write_text("image\tlabel\na.png\tx\nb.png\ty\n")
    assert answers(list(prepared(root).conversations)) == ["x", "y"]


def test_one_table_per_split(source: Make, prepared: Any) -> None:
    root = source(
        "a.png", "b.png", train__csv="image,label\na.png,x\n", val__csv="image,label\nb.png,y\n"
    )
    assert [row.split for row in prepared(root).conversations] == ["train", "validation"]


def test_a_folder_per_class(source: Make, prepared: Any) -> None:
    made = prepared(source("cyst/1.png", "cyst/2.png", "mass/left/3.png"))
    assert answers(list(made.conversations)) == ["cyst", "cyst", "mass"]
    assert {row.options for row in made.conversations} == {("cyst", "mass")}


def test_a_folder_per_class_below_one_per_split(source: Make, prepared: Any) -> None:
    made = prepared(source("train/cyst/1.png", "train/mass/2.png", "test/mass/3.png"))
    assert [(row.split, *answers([row])) for row in made.conversations] == [
        ("test", "mass"),
        ("train", "cyst"),
        ("train", "mass"),
    ]


def test_volumes_and_dicom_files(source: Make, prepared: Any, tmp_path: Path) -> None:
    root = source(t__csv="image,label,modality\nct.dcm,a,CT\nvol.nii.gz,b,MR\n")
    (root / "ct.dcm").write_bytes(Path(pydicom.data.get_testdata_file("CT_small.dcm")).read_bytes())
    nibabel.save(
        nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4)),
        root / "vol.nii.gz",
    )
    made = prepared(root)
    ct, volume = (row.images[0] for row in made.conversations)
    assert (ct.kind, ct.modality) == ("image", "CT")
    assert (volume.kind, volume.modality) == ("volume", "MR")
    assert made.records[0].attributes == {"modality": "CT"}
    assert check_dataset(tmp_path / "out").faults == ()


def test_a_slice_of_a_volume(source: Make, prepared: Any, tmp_path: Path) -> None:
    root = source(t__csv="image,frame,label\nvol.nii,0,a\nvol.nii,2,b\n")
    nibabel.save(
        nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 4, 3), np.eye(4)),
        root / "vol.nii",
    )
    made = prepared(root)
    assert [(row.images[0].kind, row.images[0].frame) for row in made.conversations] == [
        ("image", 0),
        ("image", 2),
    ]
    assert [record.id for record in made.records] == ["vol.nii#0", "vol.nii#2"]
    assert check_dataset(tmp_path / "out").faults == ()


def write_series(folder: Path, *, positions: tuple[float, ...], uid: str = "1.2.3") -> None:
    """Slices of pydicom's CT at these heights (mm), named so that names sort the other way round."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, height in enumerate(positions):
        slice_ = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
        slice_.SeriesInstanceUID = uid
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{number}"
        slice_.ImagePositionPatient = [-158, -179, height]
        slice_.InstanceNumber = number + 1
        slice_.save_as(folder / f"{uid}-{9 - number}.dcm")


def test_a_series_by_its_folder(source: Make, prepared: Any, tmp_path: Path) -> None:
    root = source(t__csv="image,label,modality\nscans/ct1,a,CT\nct2,b,CT\n")
    write_series(root / "scans" / "ct1", positions=(0, 5, 10))
    write_series(root / "ct2", positions=(0, 5), uid="1.2.4")
    made = prepared(root)
    first = made.conversations[0].images[0]
    assert (first.uri, first.kind) == ("images/scans/ct1", "volume")
    assert made.card.partial == ""
    assert made.card.counts["image files"] == 5
    assert check_dataset(tmp_path / "out").faults == ()
    volume = read_ref(first, tmp_path / "out")
    assert (volume.array.shape, volume.units) == ((3, 128, 128), "HU")


def test_series_that_share_a_folder(source: Make, prepared: Any, tmp_path: Path) -> None:
    root = source(t__csv="image,series_uid,label\nct,1.2.3,a\nct,1.2.4,b\n")
    write_series(root / "ct", positions=(0, 5, 10))
    write_series(root / "ct", positions=(0, 5), uid="1.2.4")
    made = prepared(root)
    assert [record.id for record in made.records] == ["ct/1.2.3", "ct/1.2.4"]
    depths = [read_ref(r.images[0], tmp_path / "out").array.shape[0] for r in made.records]
    assert depths == [3, 2]
    assert check_dataset(tmp_path / "out").faults == ()


def test_names_without_folder_or_extension(source: Make, prepared: Any, refused: Any) -> None:
    root = source("x/a.png", "y/b.png", t__csv="image,label\na,x\nb.png,y\n")
    made = prepared(root)
    assert [record.id for record in made.records] == ["x/a.png", "y/b.png"]
    source("y/a.png")
    fault = refused(root)
    assert "'a' is the name of 2 files: x/a.png, y/a.png" in fault.rule
    assert (fault.row, fault.field) == ("line 2", "image")
    made = prepared(root, image_folder="y")
    assert [record.id for record in made.records] == ["y/a.png", "y/b.png"]


def test_rows_without_their_image_are_counted(source: Make, prepared: Any, refused: Any) -> None:
    table = "image,label\na.png,x\nb.png,y\ncase_c2.png,x\n,x\n"
    root = source("a.png", "b.png", "case_c1.png", "x.png", t__csv=table)
    fault = refused(root)
    assert fault.rule.startswith("there is no image 'case_c2.png'; did you mean 'case_c1.png'")
    assert fault.rule.endswith("(2 of 4 rows have no image)")
    assert (fault.row, fault.field) == ("line 4", "image")
    made = prepared(root, missing_images="leave_out")
    assert len(made.conversations) == 2
    assert made.card.partial == "2 of 4 rows, 2 of 4 image files"


def test_images_that_nobody_names_are_counted(source: Make, prepared: Any) -> None:
    root = source("a.png", "b.png", "c.png", t__csv="image,label\na.png,x\nb.png,y\n")
    assert prepared(root).card.partial == "2 of 2 rows, 2 of 3 image files"


def test_what_was_prepared_below_the_root_is_no_image_of_it(source: Make) -> None:
    root = source("a.png", "b.png", t__csv="image,label\na.png,x\nb.png,y\n")
    config = DatasetConfig.parse("folder")
    for name in ("first", "first", "second"):
        made = config.prepare(root / name, root=root, progress=lambda *_: None)
        assert made.card.partial == ""


def test_a_patient_in_two_splits_is_refused(source: Make, refused: Any, prepared: Any) -> None:
    table = "image,label,patient_id,split\na.png,x,p,train\nb.png,y,p,test\n"
    root = source("a.png", "b.png", t__csv=table)
    refused(root, LeakError)
    assert prepared(root, allow_leak=True).card.leak == "1 patients are in more than one split"


def test_only_the_tasks_that_are_wanted(source: Make, prepared: Any) -> None:
    root = source("a.png", "b.png", t__csv="image,label,caption\na.png,x,One.\nb.png,y,Two.\n")
    assert set(tasks_of(prepared(root, tasks=["caption"]))) == {"caption"}
    with pytest.raises(ConfigError, match="did you mean 'caption'"):
        prepared(root, tasks=["captions"])


def test_many_classes_are_not_listed(source: Make, prepared: Any) -> None:
    names = [f"{n}.png" for n in range(31)]
    root = source(*names, t__csv="image,label\n" + "".join(f"{n},class {n}\n" for n in names))
    rows = prepared(root).conversations
    assert len(rows[0].options) == 31
    assert "Options" not in rows[0].question


@pytest.mark.parametrize(
    ("table", "rule", "line", "field"),
    [
        ("image,label\na.png\n", "has 1 cells, the header 2", 2, None),
        ("image,label,label\na.png,x,y\n", "two columns are named 'label'", 1, None),
        ("image,question,answer\na.png,What?,\n", "the answer is missing", 2, "answer"),
        ("image,question,answer\n\na.png,,x\n", "the question is missing", 3, "question"),
        ("image,label,split\na.png,x,tset\n", "did you mean 'test'", 2, "split"),
        ("image,label,language\na.png,x,fr\n", "unknown language 'fr'", 2, "language"),
        ("image,label,x1,y1,x2,y2\na.png,x,1,2,3,four\n", "'four' is no number", 2, "y2"),
        ("image,label,x1,y1,x2,y2\na.png,x,1,2,,4\n", "part of the box is missing", 2, "x2"),
        ("image,label,x1,y1,x2,y2\na.png,x,9,2,3,4\n", "has no area", 2, "x2"),
        ("image,label,x1,y1,x2,y2\na.png,,1,2,3,4\n", "without a label", 2, "label"),
        ("image,label,x1,y1,x2,y2\na.png,x,.1,.2,.3,.4\n", "shares of the image", None, "x1"),
        ("image,label,x1,y1,x2\na.png,x,1,2,3\n", "not complete: no y2", None, "x1, y1, x2"),
        ("image,caption\na.png,One.\na.png,Two.\n", "line 2 about the same images", 3, "caption"),
        (
            "image,question,answer,options\na.png,?,up,left;right\n",
            "'up' is none of the options",
            None,
            "answer",
        ),
        ("image,label\na.png,x\n", "all labels are 'x'", None, None),
        ("image,sex\na.png,F\n", "give no question", None, None),
        ("image,label\n", "the table has no rows", None, None),
        ('image,label\n"a.png,x\n', "is no table", 2, None),
    ],
)
def test_faults_name_file_line_and_column(
    source: Make, refused: Any, table: str, rule: str, line: int | None, field: str | None
) -> None:
    root = source("a.png", t__csv=table)
    fault = refused(root)
    assert rule in fault.rule
    assert fault.file == str(root / "t.csv")
    assert fault.field == field
    if line is not None:
        assert fault.row == f"line {line}"


def test_tables_that_cannot_be_chosen_or_read(source: Make, refused: Any) -> None:
    root = source("a.png", one__csv="image,label\na.png,x\n", two__csv="image,label\na.png,x\n")
    assert "several tables: one.csv, two.csv" in refused(root).rule
    assert "did you mean 'one.csv'" in refused(root, file="once.csv").rule
    (root / "two.csv").unlink()
    (root / "one.csv").write_bytes("image,label\na.png,größe\n".encode("latin-1"))
    assert "not UTF-8" in refused(root).rule
    (root / "one.csv").rename(root / "one.jsonl")
    (root / "one.jsonl").write_text('{"image": "a.png"}\n[1]\n')
    assert refused(root).row == "line 2"
    (root / "one.jsonl").write_text('{"image": "a.png"}\n{"image"\n')
    assert (refused(root).row, "is not JSON" in refused(root).rule) == ("line 2", True)


def test_a_folder_of_loose_images_says_what_is_missing(source: Make, refused: Any) -> None:
    assert "1 images do not lie in one folder per class" in refused(source("a.png")).rule
    assert "no table here, and 2 images" in refused(source("x/b.png")).rule


def test_what_became_of_every_column_is_noted(source: Make, prepared: Any) -> None:
    root = source("a.png", "b.png", t__csv="Image Path,label,sex,age\na.png,x,F,6\nb.png,y,M,7\n")
    assert prepared(root).card.notes == (
        "t.csv: used as image (column 'Image Path'), label; as attributes: sex, age",
    )
    assert prepared(source("x/1.png", "y/2.png"), file="t.csv").card.notes
    (root / "t.csv").unlink()
    (root / "a.png").unlink()
    (root / "b.png").unlink()
    (root / "more.xlsx").touch()
    assert prepared(root).card.notes == ("more.xlsx was not read: save it as CSV UTF-8",)


@pytest.mark.parametrize(
    ("column", "meant", "role"),
    [
        ("patiant_id", "patient_id", "patient_id"),
        ("Pateint ID", "patient_id", "patient_id"),
        ("splt", "split", "split"),
        ("lable", "label", "label"),
        ("fndings", "findings", "findings"),
        ("sha_256", "sha256", "sha256"),
    ],
)
def test_a_misspelt_column_is_no_attribute(
    source: Make, refused: Any, column: str, meant: str, role: str
) -> None:
    root = source("a.png", "b.png", t__csv=f"image,caption,{column}\na.png,x,p\nb.png,y,q\n")
    fault = refused(root)
    assert (fault.file, fault.field) == (str(root / "t.csv"), column)
    assert f"did you mean '{meant}'?" in fault.rule
    assert f"columns.{role}={column}" in fault.remedy


def test_other_columns_may_be_a_little_like_known_ones(source: Make, prepared: Any) -> None:
    rest = "weight,folder,class_id,rad_id,patient_age,height_cm,width,stage"
    table = f"image,label,{rest}\na.png,x,1,2,3,4,5,6,7,8\nb.png,y,1,2,3,4,5,6,7,8\n"
    made = prepared(source("a.png", "b.png", t__csv=table))
    assert sorted(made.records[0].attributes) == sorted(rest.split(","))
    named = prepared(
        source("a.png", "b.png", t__csv="image,lable\na.png,x\nb.png,y\n"),
        columns={"label": "lable"},
    )
    assert answers(list(named.conversations)) == ["x", "y"]


def test_a_box_in_one_column_is_refused(source: Make, refused: Any) -> None:
    fault = refused(source("a.png", t__csv='image,label,bbox\na.png,x,"1 2 3 4"\n'))
    assert (fault.field, "a column of its own" in fault.rule) == ("bbox", True)
    assert "x1, y1, x2, y2" in fault.remedy
    assert "x, y, width, height" in fault.remedy


def test_hashes_of_the_table_are_compared(source: Make, prepared: Any, refused: Any) -> None:
    root = source("a.png", "b.png")
    right = hashlib.sha256((root / "a.png").read_bytes()).hexdigest()
    table = "image,label,sha256\na.png,x,{}\nb.png,y,\n"
    source(t__csv=table.format(right.upper()))
    assert prepared(root).records[0].images[0].sha256 == right
    source(t__csv=table.format("0" * 64))
    fault = refused(root)
    assert "'a.png' is not the one that is meant" in fault.rule
    assert (fault.row, fault.field) == ("line 2", "sha256")
    source(t__csv=table.format(f"{right};{right}"))
    assert refused(root).rule == "2 hashes of 1 images"


def test_the_report_of_a_deidentification_is_no_table(source: Make, prepared: Any) -> None:
    root = source("a.png", "b.png", t__csv="image,label\na.png,x\nb.png,y\n")
    (root / "deidentification.jsonl").write_text('{"kind": "header"}\n')
    assert answers(list(prepared(root).conversations)) == ["x", "y"]
    (root / "t.csv").unlink()
    for name in ("a.png", "b.png"):
        (root / name).unlink()
    source("x/1.png", "y/2.png")
    assert answers(list(prepared(root).conversations)) == ["x", "y"]


def test_one_id_for_two_cases_is_refused(source: Make, prepared: Any, refused: Any) -> None:
    root = source("a.png", "b.png", t__csv="id,image,label\nk1,a.png,x\nk1,b.png,y\n")
    fault = refused(root)
    assert "'k1' is that of line 2" in fault.rule
    assert (fault.row, fault.field) == ("line 3", "id")
    # questions are numbered anew for every image, and an id may be that of the image
    for column in ("qid", "id"):
        second = "b.png,Why?,no" if column == "qid" else "a.png,Why?,no"
        source(t__csv=f"{column},image,question,answer\n1,a.png,What?,yes\n1,{second}\n")
        assert len(prepared(root).conversations) == 2


def test_two_labels_need_a_column_of_labels(source: Make, prepared: Any, refused: Any) -> None:
    root = source("a.png", "b.png", t__csv="image,label\na.png,x\nb.png,y\na.png,y\n")
    fault = refused(root)
    assert fault.rule == "says 'y', line 2 about the same images says 'x'"
    assert (fault.row, fault.field) == ("line 4", "label")
    assert "columns.labels=label" in fault.remedy
    made = prepared(root, columns={"labels": "label"})
    assert made.records[0].labels == ("x", "y")


@pytest.mark.parametrize("name", ["NaN", "nan", "None", "null", "a\x00b", "a\x1bb"])
@pytest.mark.parametrize("column", ["label", "labels"])
def test_what_is_no_class(source: Make, refused: Any, column: str, name: str) -> None:
    fault = refused(source("a.png", "b.png", t__csv=f"image,{column}\na.png,x\nb.png,{name}\n"))
    assert repr(name) in fault.rule
    assert (fault.row, fault.field) == ("line 3", column)


def test_a_missing_number_in_json_is_no_class(source: Make, refused: Any) -> None:
    rows = '{"image": "a.png", "label": "x"}\n{"image": "b.png", "label": NaN}\n'
    assert refused(source("a.png", "b.png", t__jsonl=rows)).row == "line 2"


@pytest.mark.parametrize(
    ("box", "rule", "field"),
    [
        ("1,2,41,12", "x 1 to 41, but its image only 0 to 40", "x2"),
        ("1,2,11,32", "y 2 to 32, but its image only 0 to 30", "y2"),
        ("-3,2,11,12", "x -3 to 11", "x2"),
    ],
)
def test_a_box_outside_its_image(
    source: Make, refused: Any, tmp_path: Path, box: str, rule: str, field: str
) -> None:
    table = f"image,label,x1,y1,x2,y2\na.png,m,0,0,40,30\na.png,n,{box}\n"
    fault = refused(source("a.png", t__csv=table))
    assert rule in fault.rule
    assert (fault.row, fault.field) == ("line 3", field)
    assert not (tmp_path / "out").exists()


def test_an_image_with_a_box_that_cannot_be_read(source: Make, refused: Any) -> None:
    root = source("a.png", t__csv="image,label,x,y,width,height\na.png,m,1,2,3,4\n")
    (root / "a.png").write_bytes((root / "a.png").read_bytes()[:60])
    fault = refused(root)
    assert fault.rule.startswith("the image 'a.png' cannot be read: ")
    assert (fault.file, fault.row, fault.field) == (str(root / "t.csv"), "line 2", "image")


@pytest.mark.parametrize("first", ["sep=;\n", '"sep=;"\r\n', "SEP=;\r\n"])
def test_the_separator_that_a_spreadsheet_names(
    source: Make, prepared: Any, refused: Any, first: str
) -> None:
    root = source("a.png", "b.png", t__csv=f"{first}image;label\na.png;x, y\nb.png;z\n")
    assert answers(list(prepared(root).conversations)) == ["x, y", "z"]
    source(t__csv=f"{first}image;label\na.png;x\nb.png;nan\n")
    assert refused(root).row == "line 4"


def test_a_spreadsheet_alone_is_named(source: Make, refused: Any) -> None:
    root = source("a.png", "b.png")
    (root / "cases.xlsx").touch()
    fault = refused(root)
    assert "cases.xlsx is a spreadsheet" in fault.rule
    assert "CSV UTF-8" in fault.remedy


def test_an_accent_may_be_written_in_two_ways(source: Make, prepared: Any) -> None:
    whole, apart = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    names = [f"1/{apart}", f"2/{whole}".replace("é", "ü")]
    table = f"image,label\n1/{whole},x\n{unicodedata.normalize('NFD', 'ü')},y\n"
    made = prepared(source(*names, t__csv=table))
    assert [row.images[0].uri for row in made.records] == [f"images/{name}" for name in names]


def test_only_what_is_alike_is_suggested(source: Make, refused: Any) -> None:
    root = source("abcd.png", "scans/patient7.png", t__csv="image,label\nwxyz.png,x\n")
    assert "2 image files are here" in refused(root).rule
    source(t__csv="image,label\npatient17.png,x\n")
    assert "did you mean 'scans/patient7.png'?" in refused(root).rule


def test_links_in_circles_are_not_walked(source: Make, prepared: Any) -> None:
    root = source("a.png", "b.png", t__csv="image,label\na.png,x\nb.png,y\n")
    (root / "again").symlink_to(root)
    assert prepared(root).card.partial == ""
