"""Planted copies are all found, and films that only look alike are not taken for copies."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom.data import get_testdata_file

from medloupe.data.audit import AuditConfig, AuditReport, GateConfig, audit, gate, read_set
from medloupe.data.audit.hamming import HammingIndex
from medloupe.data.audit.text import normalised
from medloupe.errors import LeakError
from medloupe.imaging.read import read_image
from medloupe.imaging.windows import to_display

Change = Callable[[Image.Image], Image.Image]


def jpeg(quality: int) -> Change:
    def change(picture: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        return Image.open(stream)

    return change


def cropped(left: float, upper: float, right: float, lower: float) -> Change:
    """Shares cut off at each edge."""

    def change(picture: Image.Image) -> Image.Image:
        width, height = picture.size
        box = (width * left, height * upper, width * (1 - right), height * (1 - lower))
        return picture.crop(tuple(round(edge) for edge in box))

    return change


COPIES: dict[str, Change] = {
    "re-encoded": jpeg(60),
    "re-encoded badly": jpeg(20),
    "half": lambda p: p.resize((p.width // 2, p.height // 2), Image.Resampling.BICUBIC),
    "square": lambda p: p.resize((224, 224), Image.Resampling.BILINEAR),
    "brighter": lambda p: p.point(lambda value: min(255, int(value * 0.95 + 8))),
    "gamma": lambda p: p.point(lambda value: round(255 * (value / 255) ** 1.15)),
    "cropped round": cropped(0.01, 0.01, 0.01, 0.01),
    "cropped at a corner": cropped(0.02, 0.02, 0, 0),
    "cropped at the right": cropped(0, 0, 0.02, 0),
    "cropped and small": lambda p: cropped(0.01, 0.0, 0.01, 0.02)(p).resize((256, 256)),
    "mirrored": ImageOps.mirror,
    "mirrored, cropped, re-encoded": lambda p: jpeg(50)(
        cropped(0, 0.01, 0.02, 0.01)(ImageOps.mirror(p))
    ),
    "upside down": ImageOps.flip,
    "turned": lambda p: p.rotate(180),
}


def pydicom_pictures() -> list[Image.Image]:
    """CT, MR, a radiograph-like and two ultrasound pictures that come with pydicom."""
    names = (
        "CT_small",
        "MR_small",
        "693_J2KI",
        "examples_ybr_color",
        "JPEG2000",
        "examples_overlay",
    )
    pictures = []
    for name in names:
        image = read_image(Path(str(get_testdata_file(f"{name}.dcm"))), frame=0)
        pictures.append(Image.fromarray(to_display(image)).convert("L"))
    return pictures


def of_kind(report: AuditReport, kind: str) -> list[Any]:
    return [finding for finding in report.findings if finding.kind == kind]


@pytest.fixture
def planted(
    tmp_path: Path, folder: Any, row: Any
) -> Callable[[list[Image.Image], dict[str, Change]], Path]:
    """A data set of pictures in training, and one changed copy of each and for each change in test."""

    def make(pictures: list[Image.Image], changes: dict[str, Change]) -> Path:
        rows = []
        for number, picture in enumerate(pictures):
            picture.save(tmp_path / f"{number}.png")
            rows.append(row(f"{number}", f"{number}.png", split="train"))
            for name, change in changes.items():
                uri = f"{number}-{name}.png"
                change(picture).convert("L").save(tmp_path / uri)
                rows.append(row(f"{number}/{name}", uri, split="test"))
        root: Path = folder(*rows)
        return root

    return make


def near_pairs(report: AuditReport) -> set[tuple[str, str]]:
    return {(f.places[0].row, f.places[1].row) for f in report.leaks if f.kind == "near"}


def test_every_planted_copy_is_found_and_nothing_else(planted: Any) -> None:
    pictures = pydicom_pictures()
    report = audit([read_set(planted(pictures, COPIES))], workers=1)
    wanted = {(f"{n}", f"{n}/{name}") for n in range(len(pictures)) for name in COPIES}
    assert near_pairs(report) == wanted
    turned = {f.places[1].row: f.how for f in report.leaks}
    assert turned["0/mirrored"] == "mirrored near-duplicate"
    assert turned["0/half"] == "near-duplicate"
    assert "180" in turned["0/turned"]


@pytest.mark.parametrize("cropped_side", ["train", "test"])
def test_either_of_a_pair_may_be_the_cropped_one(
    cropped_side: str, tmp_path: Path, folder: Any, row: Any
) -> None:
    """The larger side is only filed and the smaller one asks: both ways must meet."""
    rows = []
    for number, picture in enumerate(pydicom_pictures()):
        changed = cropped(0.03, 0.03, 0, 0)(picture)
        pair = {"train": picture, "test": changed}
        if cropped_side == "train":
            pair = {"train": changed, "test": picture}
        for split, one in pair.items():
            one.save(tmp_path / f"{number}-{split}.png")
            rows.append(row(f"{number}-{split}", f"{number}-{split}.png", split=split))
    for number in range(3):  # train is the larger side
        noise = np.random.default_rng(number).integers(0, 255, (70, 60), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"noise{number}.png")
        rows.append(row(f"noise{number}", f"noise{number}.png", split="train"))
    report = audit([read_set(folder(*rows))], workers=1)
    assert near_pairs(report) == {(f"{n}-train", f"{n}-test") for n in range(6)}


def test_recall_and_precision_on_chest_radiographs(planted: Any, shared_data: Path) -> None:
    """They all look alike: films of other patients stand beside every copy."""
    files = sorted((shared_data / "cxr_hannover" / "images").glob("*.jpg"))[::24][:6]
    pictures = [Image.open(file).convert("L").reduce(2) for file in files]
    report = audit([read_set(planted(pictures, COPIES))], workers=1)
    wanted = {(f"{n}", f"{n}/{name}") for n in range(len(pictures)) for name in COPIES}
    assert near_pairs(report) == wanted


@pytest.mark.parametrize(
    ("source", "kinds"), [("cxr_hannover", []), ("cxr_covid_cc", ["file"]), ("bccd", ["near"])]
)
def test_real_pictures_that_look_alike_are_no_copies(
    source: str, kinds: list[str], shared_data: Path, folder: Any, row: Any
) -> None:
    """110 and 62 pairs of films follow each other in one patient. One file is there under two names
    (cxr0191, cxr0192), and one field of blood cells was photographed twice (00037, 00038)."""
    files = sorted((shared_data / source / "images").glob("*.jpg"))
    rows = [row(file.stem, str(file), split="train") for file in files]
    report = audit([read_set(folder(*rows))], AuditConfig(within=True))
    assert [finding.kind for finding in report.findings] == kinds
    assert not report.leaks


def test_masks_are_not_compared(tmp_path: Path, folder: Any, row: Any, png: Any) -> None:
    mask = png("mask.png", seed=1)
    records = [
        {
            "id": split,
            "split": split,
            "images": [{"uri": png(f"{split}.png", seed=number)}],
            "masks": [{"uri": mask}],
        }
        for number, split in enumerate(("train", "test"))
    ]
    root = folder(row("a", split="train"), records=records)
    assert audit([read_set(root)], workers=1).findings == ()


def test_the_same_pixels_in_another_container(tmp_path: Path, folder: Any, row: Any) -> None:
    shutil.copy(str(get_testdata_file("MR_small.dcm")), tmp_path / "mr.dcm")
    stored: NDArray[np.float32] = read_image(tmp_path / "mr.dcm").array[0]
    Image.fromarray(stored.astype(np.uint16)).save(tmp_path / "mr.png")
    Image.fromarray(stored.astype(np.uint16)).save(tmp_path / "mr.tif")
    Image.fromarray((stored + 1).astype(np.uint16)).save(tmp_path / "other.png")
    grey = Image.fromarray((stored / stored.max() * 255).astype(np.uint8))
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "rgb.png")
    uris = ("mr.dcm", "mr.png", "mr.tif", "other.png", "grey.png", "rgb.png")
    rows = [row(uri, uri, split="train" if n % 2 == 0 else "test") for n, uri in enumerate(uris)]
    report = audit([read_set(folder(*rows))], AuditConfig(images="pixels"), workers=1)
    found = {tuple(sorted(p.uri for p in f.places)) for f in report.findings}
    assert found == {("mr.dcm", "mr.png", "mr.tif"), ("grey.png", "rgb.png")}
    assert {f.kind for f in report.findings} == {"pixels"}


def test_patients_and_files_on_two_sides(tmp_path: Path, folder: Any, row: Any, png: Any) -> None:
    first = png("a.png", seed=1)
    shutil.copy(tmp_path / first, tmp_path / "copy.png")
    root = folder(
        row("a", first, split="train", patient_id="p"),
        row("b", "copy.png", split="test", patient_id="q"),
        row("c", png("c.png", seed=2), split="test", patient_id="p"),
        row("d", first, split=None, patient_id="q"),
        row("e", png("e.png", seed=3), split="validation", patient_id="r"),
    )
    report = audit([read_set(root)], AuditConfig(images="hash"), workers=1)
    (patient,) = of_kind(report, "patient")
    assert (patient.value, [p.row for p in patient.places]) == ("p", ["a", "c"])
    (file,) = of_kind(report, "file")
    assert {p.row for p in file.places} == {"a", "b", "d"}
    assert report.statement() == "1 patients, 1 identical files"


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("p7", "P7", True),
        ("p7", " p7", True),
        ("P007", "p7", True),
        ("7", "007", True),
        ("p7", "p70", False),
        ("p100", "p10", False),
        ("p7", "q7", False),
    ],
)
def test_patient_ids_that_are_alike(
    folder: Any, row: Any, png: Any, one: str, other: str, alike: bool
) -> None:
    root = folder(
        row("a", png("a.png", seed=1), split="train", patient_id=one),
        row("b", png("b.png", seed=2), split="test", patient_id=other),
        row("c", png("c.png", seed=3), split="test", patient_id=other.upper()),
    )
    report = audit([read_set(root)], AuditConfig(images="hash"), workers=1)
    found = of_kind(report, "similar patient id")
    assert len(found) == len(report.findings) == alike
    if alike:
        assert found[0].leak
        assert repr(one) in found[0].how
        assert report.statement() == "1 similar patient ids"
        assert {place.row for place in found[0].places} == {"a", "b"}


def test_ids_that_are_alike_on_one_side_are_no_leak(folder: Any, row: Any, png: Any) -> None:
    rows = [
        row(name, png(f"{name}.png", seed=n), split="train", patient_id=name)
        for n, name in enumerate(("p1", "P1"))
    ]
    assert audit([read_set(folder(*rows))], AuditConfig(images="hash")).findings == ()


@pytest.fixture
def dicom(tmp_path: Path) -> Callable[..., str]:
    """Writes pydicom's CT with these ids and a pixel of its own."""

    def write(name: str, patient: str, series: str) -> str:
        found = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        found.PatientID, found.SeriesInstanceUID = patient, series
        found.PixelData = bytes([len(name) % 7, ord(name[0])]) + found.PixelData[2:]
        found.save_as(tmp_path / name)
        return name

    return write


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Patient ID, series, patient_id of the row in training; the same of the row in test
        (("A1", "1.2", "p"), ("A1", "1.3", "q"), [("the same DICOM Patient ID", True)]),
        (("A1", "1.2", None), ("A1", "1.3", None), [("the same DICOM Patient ID", True)]),
        (("A1", "1.2", "p"), ("A2", "1.3", "A1"), [("the same DICOM Patient ID", True)]),
        (("A1", "1.2", "p"), ("A2", "1.2", "q"), [("the same DICOM series", True)]),
        (("Anonymous", "1.2", "p"), ("Anonymous", "1.3", "q"), []),
        (("A1", "1.2", "p"), ("A2", "1.3", "q"), []),
    ],
)
@pytest.mark.parametrize("level", ["hash", "pixels"])
def test_what_dicom_headers_say_of_two_sides(
    folder: Any, row: Any, dicom: Any, level: Any, first: Any, second: Any, expected: Any
) -> None:
    rows = [
        row(name, dicom(f"{name}.dcm", patient, series), split=split, patient_id=owner)
        for name, split, (patient, series, owner) in (
            ("a", "train", first),
            ("b", "test", second),
        )
    ]
    report = audit([read_set(folder(*rows))], AuditConfig(images=level), workers=1)
    assert [(f.how, f.leak) for f in report.findings] == expected
    assert all(f.kind == "header" and f.value not in ("A1", "1.2") for f in report.findings)


def test_a_patient_of_two_sides_is_told_once(folder: Any, row: Any, dicom: Any) -> None:
    root = folder(
        row("a", dicom("a.dcm", "A1", "1.2"), split="train", patient_id="p"),
        row("b", dicom("b.dcm", "A1", "1.2"), split="test", patient_id="p"),
    )
    report = audit([read_set(root)], AuditConfig(images="hash"), workers=1)
    assert [finding.kind for finding in report.findings] == ["patient"]


def test_headers_that_contradict_the_rows(folder: Any, row: Any, dicom: Any) -> None:
    root = folder(
        row("a", dicom("a.dcm", "A1", "1.2"), split="train", patient_id="p"),
        row("b", dicom("b.dcm", "A1", "1.3"), split="train", patient_id="q"),
        row("c", dicom("c.dcm", "A2", "1.4"), split="train", patient_id="q"),
    )
    report = audit([read_set(root)], AuditConfig(images="hash"), workers=1)
    assert report.leaks == ()
    assert [(f.kind, f.how, [p.row for p in f.places]) for f in report.findings] == [
        ("header", "the same DICOM Patient ID, but 2 patient_ids", ["a", "b"]),
        ("header", "the same patient_id, but 2 DICOM Patient IDs", ["b", "c"]),
    ]


def test_a_benchmark_against_training_data(tmp_path: Path, png: Any, row: Any) -> None:
    """Test rows of the benchmark against training rows; numbers that both count from are no leak."""

    def write(name: str, *rows: dict[str, Any]) -> Path:
        import json

        root = tmp_path / name
        root.mkdir(exist_ok=True)
        (root / "dataset.json").write_text(json.dumps({"name": name}))
        (root / "conversations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        return root

    for name in ("mine", "theirs"):
        png(f"{name}/own.png", seed=hash(name) % 1000)
    png("mine/shared.png", seed=7)
    shutil.copy(tmp_path / "mine/shared.png", tmp_path / "theirs/other_name.png")
    mine = write(
        "mine",
        row("m1", "shared.png", split="train", patient_id="1"),
        row("m2", "own.png", split="test", patient_id="2"),
    )
    theirs = write(
        "theirs",
        row("t1", "other_name.png", patient_id="1"),  # no split: a benchmark is held out
        row("t2", "own.png", split="train", patient_id="3"),
    )
    sets = [read_set(mine), read_set(theirs, benchmark=True)]
    config = AuditConfig(images="hash")
    report = audit(sets, config, workers=1)
    assert [f.kind for f in report.leaks] == ["file"]
    assert [p.dataset for p in report.leaks[0].places] == ["mine", "theirs"]
    assert any("1 patient ids occur in several data sets" in note for note in report.notes)
    shared = audit(sets, config.model_copy(update={"shared_ids": True}), workers=1)
    assert [f.kind for f in shared.leaks] == ["patient", "file"]
    # the benchmark's own training rows, and test against test, are no leak
    apart = write("theirs", row("t1", "other_name.png", split="train"))
    assert not audit([read_set(mine), read_set(apart, benchmark=True)], config, workers=1).leaks


LONG = "There is a patchy opacity in the left lower lobe with a small effusion; the heart is of normal size."


def test_long_texts_on_two_sides(folder: Any, row: Any, png: Any) -> None:
    uri, shouted = png("a.png"), LONG.upper().replace(";", " ,")
    reports = [
        {"id": "r1", "split": "train", "report": {"findings": LONG}, "images": [{"uri": "1"}]},
        {
            "id": "r2",
            "split": "test",
            "report": {"findings": shouted},
            "images": [{"uri": "2"}],
        },
        {"id": "r3", "split": "test", "report": {"findings": "No acute finding."}},
        {"id": "r4", "split": "train", "report": {"findings": "No acute finding."}},
    ]
    report = audit(
        [read_set(folder(row("a", uri, split="train"), records=reports))],
        AuditConfig(images="hash"),
        workers=1,
    )
    (found,) = of_kind(report, "text")
    assert [p.row for p in found.places] == ["r1", "r2"]


def test_templates_are_no_finding(folder: Any, row: Any) -> None:
    """Sentences that recur on other pictures of the training side mean nothing on the test side."""
    records = [
        {
            "id": f"r{n}",
            "split": "train" if n < 8 else "test",
            "report": {"findings": f"{LONG} Number {n % 4}."},
            "images": [{"uri": f"{n}.png"}],
        }
        for n in range(12)
    ]
    root = folder(row("a", split="train"), records=records)
    config = AuditConfig(images="hash", common=100)
    records_only = audit([read_set(root)], config, workers=1)
    assert of_kind(records_only, "text") == []
    assert any("4 long texts are on two sides" in note for note in records_only.notes)


def test_words_of_two_scripts() -> None:
    assert normalised("Is there a Ｌesion, on the LEFT?") == "is there a lesion on the left"
    assert normalised("右侧有病变吗?") == "右 侧 有 病 变 吗"


def test_blank_pages_and_broken_files(tmp_path: Path, folder: Any, row: Any) -> None:
    for name, value in (("a", 0), ("b", 1)):
        Image.new("L", (40, 30 + value), value).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    report = audit(
        [read_set(folder(row("a", "a.png", split="train"), row("b", "b.png", split="test"),
                         row("c", "c.png", split="test")))],
        workers=1,
    )  # fmt: skip
    assert report.findings == ()
    assert (report.unread, report.compared["images"]) == (1, 3)
    assert any("c.png" in note for note in report.notes)


def test_the_index_finds_what_comparing_all_with_all_finds() -> None:
    rng = np.random.default_rng(3)
    centres = rng.integers(0, 2**64, 60, dtype=np.uint64)
    flips = np.array(
        [[1 << int(b) for b in rng.choice(64, 12)] for _ in range(900)], dtype=np.uint64
    )
    keep = rng.integers(0, 13, 900)
    hashes = np.array(
        [
            centres[n % 60] ^ np.bitwise_xor.reduce(flips[n, : keep[n]], initial=np.uint64(0))
            for n in range(900)
        ],
        dtype=np.uint64,
    )
    for radius in (0, 3, 8):
        index = HammingIndex(hashes, radius)
        found = {
            (int(a), int(b)) for q, f in index.pairs(hashes) for a, b in zip(q, f, strict=True)
        }
        distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
        wanted = {(int(a), int(b)) for a, b in zip(*np.nonzero(distance <= radius), strict=True)}
        assert found == wanted


def test_looking_for_pairs_does_not_grow_with_the_square() -> None:
    """Four times as many images: comparing all with all would be sixteen times the work."""
    rng = np.random.default_rng(0)
    compared = []
    for number in (20_000, 80_000):
        hashes = rng.integers(0, 2**64, number, dtype=np.uint64)
        index = HammingIndex(hashes, 8)
        queries = 0
        for query, _ in index.pairs(hashes[:2000]):
            queries += len(query)
        compared.append(index.compared)
        assert queries >= 2000
    assert compared[1] < 3 * compared[0]
    assert compared[1] < 0.02 * 2000 * 80_000


class TestGate:
    @pytest.fixture
    def leaky(self, tmp_path: Path, folder: Any, row: Any, png: Any) -> Any:
        png("a.png", width=64, height=64, seed=1)
        Image.open(tmp_path / "a.png").save(tmp_path / "a.tif")
        return read_set(folder(row("a", "a.png", split="train"), row("b", "a.tif", split="test")))

    @pytest.fixture
    def alike(self, tmp_path: Path, folder: Any, row: Any) -> Any:
        picture = pydicom_pictures()[0]
        picture.save(tmp_path / "a.png")
        jpeg(70)(picture).save(tmp_path / "b.png")
        return read_set(folder(row("a", "a.png", split="train"), row("b", "b.png", split="test")))

    def test_the_same_pixels_are_refused_unless_allowed_by_name(self, leaky: Any) -> None:
        with pytest.raises(LeakError, match=r"identical pixels.*allow_leak") as caught:
            gate([leaky], GateConfig(), workers=1)
        assert caught.value.fault.row == "b"
        passed = gate([leaky], GateConfig(allow_leak=True), workers=1)
        assert passed.leak == "1 images with identical pixels on two sides"
        assert gate([leaky], GateConfig(), stated="1 image", workers=1).leak == passed.leak

    def test_near_duplicates_warn_unless_they_are_to_be_refused(self, alike: Any) -> None:
        passed = gate([alike], GateConfig(), workers=1)
        assert passed.warnings[0].startswith("warning: 1 near-duplicate images")
        assert passed.leak
        assert gate([alike], GateConfig(near="off"), workers=1).warnings == ()
        with pytest.raises(LeakError, match="near-duplicate"):
            gate([alike], GateConfig(near="refuse"), workers=1)

    def test_hints_at_one_patient_warn(self, folder: Any, row: Any, png: Any) -> None:
        hinted = read_set(
            folder(
                row("a", png("a.png", seed=1), split="train", patient_id="p1"),
                row("b", png("b.png", seed=2), split="test", patient_id="P01"),
            )
        )
        passed = gate([hinted], GateConfig(), workers=1)
        assert passed.leak == "1 similar patient ids on two sides"
        assert passed.warnings[0].startswith("warning: 1 patients may be on two sides")
