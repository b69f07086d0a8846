"""IU X-ray in the layouts of Open-i and of Kaggle; the reports are made up in their form."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from medloupe.data.dataset import load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import DataError

IU_XRAY = DatasetConfig.parse("iu_xray")
XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
  <meta type="rr"/>
  <uId id="CXR{uid}"/>
  <pmcId id="{uid}"/>
  <MedlineCitation><Article><Abstract>
    <AbstractText Label="COMPARISON">None.</AbstractText>
    <AbstractText Label="INDICATION"/>
    <AbstractText Label="FINDINGS">{findings}</AbstractText>
    <AbstractText Label="IMPRESSION">{impression}</AbstractText>
  </Abstract></Article></MedlineCitation>
  <MeSH><major>Cardiomegaly/mild   </major><major>Lung/clear</major><automatic>heart</automatic></MeSH>
  {images}
</eCitation>
"""
PARENT = (
    '<parentImage id="{id}"><figureId>F1</figureId><caption>PA and lateral</caption></parentImage>'
)
REPORTS = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")


def citation(uid: int, *images: str, findings: str = "Clear\n lungs &amp; XXXX.") -> str:
    parents = "".join(PARENT.format(id=name) for name in images)
    return XML.format(uid=uid, findings=findings, impression="Normal chest.", images=parents)


@pytest.fixture
def open_i(tmp_path: Path, png: Any) -> Any:
    """Writes NLM's two folders: two views, one view, and a report without an image."""

    def write(**files: str) -> Path:
        root = tmp_path / "open-i"
        folder = root / "ecgen-radiology"
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            "1": citation(1, "CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"),
            "2": citation(2, "CXR2_IM-0652-1001", findings=""),
            "10": citation(10),
            **files,
        }
        for name, text in texts.items():
            (folder / f"{name}.xml").write_text(text)
        for seed, name in enumerate(("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001")):
            png(f"open-i/NLMCXR_png/{name}.png", seed=seed)
        png("open-i/NLMCXR_png/CXR2_IM-0652-1001.png", seed=9)
        return root

    return write


@pytest.fixture
def kaggle(tmp_path: Path, png: Any) -> Any:
    """Writes Kaggle's two tables and its folder of images."""

    def write(*projections: tuple[str, str, str]) -> Path:
        root = tmp_path / "kaggle"
        shown = projections or (
            ("1", "1_IM-0001-3001.dcm.png", "Lateral"),
            ("1", "1_IM-0001-4001.dcm.png", "Frontal"),
            ("2", "2_IM-0652-1001.dcm.png", "Frontal"),
        )
        for seed, name in enumerate(("1_IM-0001-3001", "1_IM-0001-4001", "2_IM-0652-1001")):
            png(f"kaggle/images/images_normalized/{name}.dcm.png", seed=seed)
        rows: list[Any] = [
            ("1", "normal", "normal", "Xray Chest", "TB test", "None.", "Lungs clear.", "Normal."),
            ("2", "Cardiomegaly/mild;Lung/clear", "Cardiomegaly", "Chest", "", "", "", ""),
        ]
        for name, header, table in (
            ("indiana_reports", REPORTS, rows),
            ("indiana_projections", ("uid", "filename", "projection"), list(shown)),
        ):
            with (root / f"{name}.csv").open("w", newline="") as stream:
                csv.writer(stream).writerows([header, *table])
        return root

    return write


def test_nlms_folders_are_read(open_i: Any, tmp_path: Path, progress: Any) -> None:
    made = IU_XRAY.prepare(tmp_path / "out", root=open_i(), progress=progress)
    assert made.card.version == "open-i"
    assert made.card.partial == "3 of 3,955 reports, 3 of 7,470 images"
    assert made.card.counts["reports without an image"] == 1
    assert [record.id for record in made.records] == ["iu_xray/CXR1", "iu_xray/CXR2"]
    first = made.records[0]
    assert first.report == {
        "comparison": "None.",
        "findings": "Clear lungs & XXXX.",
        "impression": "Normal chest.",
    }
    assert first.labels == ("Cardiomegaly/mild", "Lung/clear")
    assert first.attributes == {"mesh_automatic": "heart"}
    assert [Path(ref.uri).name for ref in first.images] == [
        "CXR1_1_IM-0001-3001.png",
        "CXR1_1_IM-0001-4001.png",
    ]
    both, one = made.conversations
    assert both.answer is not None
    assert both.answer.text == "Findings: Clear lungs & XXXX.\nImpression: Normal chest."
    assert one.answer is not None
    assert one.answer.text == "Normal chest."
    assert load_dataset(made.root) == made


def test_kaggles_tables_are_read(kaggle: Any, tmp_path: Path, progress: Any) -> None:
    made = IU_XRAY.prepare(tmp_path / "out", root=kaggle(), progress=progress)
    assert made.card.version == "kaggle"
    assert made.card.partial == "2 of 3,955 reports, 3 of 7,470 images"
    assert made.card.counts["reports without these sections"] == 1
    first, second = made.records
    assert first.attributes == {
        "problems": "normal",
        "examination": "Xray Chest",
        "views": "Frontal, Lateral",
    }
    assert Path(first.images[0].uri).name == "1_IM-0001-4001.dcm.png"
    assert second.labels == ("Cardiomegaly/mild", "Lung/clear")
    assert [row.id for row in made.conversations] == ["iu_xray/1/report"]


def test_views_can_be_chosen_where_they_are_known(
    kaggle: Any, open_i: Any, tmp_path: Path, progress: Any
) -> None:
    frontal = DatasetConfig.parse({"name": "iu_xray", "views": ["Frontal"]})
    made = frontal.prepare(tmp_path / "out", root=kaggle(), progress=progress)
    assert [len(record.images) for record in made.records] == [1, 1]
    with pytest.raises(DataError, match="does not say which view"):
        frontal.prepare(tmp_path / "none", root=open_i(), progress=progress)


def test_images_that_are_not_here(open_i: Any, tmp_path: Path, progress: Any) -> None:
    root = open_i()
    (root / "NLMCXR_png/CXR2_IM-0652-1001.png").unlink()
    with pytest.raises(DataError, match="not in this copy") as error:
        IU_XRAY.prepare(tmp_path / "out", root=root, progress=progress)
    assert error.value.fault.row == "CXR2"
    some = DatasetConfig.parse({"name": "iu_xray", "missing_images": "leave_out"})
    made = some.prepare(tmp_path / "out", root=root, progress=progress)
    assert made.card.partial == "3 of 3,955 reports, 2 of 7,470 images"
    assert len(made.records) == 1


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("<eCitation><uId", None, "no readable XML"),
        ("<eCitation/>", "uId", "no uId"),
        (citation(1), "uid", "occurs 2 times"),
        (citation(3).replace("IMPRESSION", "CONCLUSION"), "AbstractText", "'conclusion'"),
        (citation(3, ""), "id", "missing or empty"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><a>&x;</a>', None, "no readable"),
    ],
)
def test_a_faulty_report_is_named(
    open_i: Any, tmp_path: Path, progress: Any, text: str, field: str | None, said: str
) -> None:
    root = open_i(**{"3": text})
    with pytest.raises(DataError, match=said) as error:
        IU_XRAY.prepare(tmp_path / "out", root=root, progress=progress)
    assert error.value.fault.field == field
    assert str(error.value.fault.file).startswith(str(root))


@pytest.mark.parametrize(
    ("projection", "row", "field", "said"),
    [
        (("1", "1_IM-0001-3001.dcm.png", "Oblique"), "line 2", "projection", "'Oblique'"),
        (("9", "1_IM-0001-3001.dcm.png", "Lateral"), "9", "uid", "no report in indiana_reports"),
        (("1", "gone.png", "Lateral"), "1", "image", "not in this copy"),
        (("1", "", "Lateral"), "line 2", "filename", "missing or empty"),
    ],
)
def test_a_faulty_projection_is_named(
    kaggle: Any, tmp_path: Path, progress: Any, projection: Any, row: str, field: str, said: str
) -> None:
    with pytest.raises(DataError, match=said) as error:
        IU_XRAY.prepare(tmp_path / "out", root=kaggle(projection), progress=progress)
    assert (error.value.fault.row, error.value.fault.field) == (row, field)


def test_a_folder_that_is_something_else_is_refused(
    kaggle: Any, tmp_path: Path, progress: Any
) -> None:
    with pytest.raises(DataError, match=r"no copy of IU X-ray.*indiana_reports"):
        IU_XRAY.prepare(tmp_path / "out", root=tmp_path, progress=progress)
    root = kaggle()
    (root / "indiana_projections.csv").unlink()
    with pytest.raises(DataError, match="no such file"):
        IU_XRAY.prepare(tmp_path / "out", root=root, progress=progress)
    (root / "ecgen-radiology").mkdir()
    with pytest.raises(DataError, match="holds no report"):
        IU_XRAY.prepare(tmp_path / "out", root=root, progress=progress)
