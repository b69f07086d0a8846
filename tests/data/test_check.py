"""`check` sees everything that is wrong in one run, and names it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from medloupe.data.check import check_dataset
from medloupe.errors import Fault


def rules(faults: tuple[Fault, ...], row: str) -> str:
    return "\n".join(str(fault) for fault in faults if fault.row == row)


@pytest.fixture
def ct(tmp_path: Path) -> str:
    """A real CT slice of 128 x 128 pixels."""
    shutil.copy(str(get_testdata_file("CT_small.dcm")), tmp_path / "ct.dcm")
    return "ct.dcm"


def test_a_sound_data_set_has_no_fault(folder: Any, row: Any, png: Any, ct: str) -> None:
    volume = nibabel.Nifti1Image(np.zeros((5, 6, 7), np.float32), np.eye(4))
    root = folder(
        row("a", png("a.png", seed=1), ct, patient_id="p", split="train"),
        row("b", png("b.png", seed=2), patient_id="q", split="test"),
        records=[{"id": "r", "images": [{"uri": "v.nii.gz", "kind": "volume"}]}],
    )
    nibabel.save(volume, root / "v.nii.gz")
    report = check_dataset(root)
    assert report.faults == ()
    assert report.notes == ()
    assert (report.rows, report.images) == (3, 4)


def test_every_fault_is_reported_in_one_run(
    folder: Any, row: Any, png: Any, ct: str, tmp_path: Path
) -> None:
    good = png("good.png")
    truncated = tmp_path / png("truncated.png", seed=1)
    truncated.write_bytes(truncated.read_bytes()[:600])
    (tmp_path / "cut.dcm").write_bytes((tmp_path / ct).read_bytes()[:20000])
    (tmp_path / "page.png").write_text("<html>404</html>")
    outside = {"type": "box", "label": "ring", "x1": 30, "y1": 0, "x2": 41, "y2": 5}
    flat = {"type": "box", "label": "flat", "x1": 3, "y1": 3, "x2": 3, "y2": 5}
    beyond = {"type": "box", "label": "far", "x1": 0, "y1": 0, "x2": 1, "y2": 1, "image": 1}
    boxed = row("boxes", good)
    boxed["messages"][1]["content"] = [outside, beyond, flat]
    changed = row("changed", png("changed.png", seed=3))
    changed["messages"][0]["content"][0]["sha256"] = "0" * 64
    silent = row("silent", good)
    silent["messages"][0]["content"] = [{"type": "text", "text": " "}]
    typed = row("typed", good, patient=3)
    shutil.copy(tmp_path / good, tmp_path / "copy.png")
    root = folder(
        row("missing", "nowhere.png"),
        row("missing-too", "nowhere.png"),
        row("truncated", "truncated.png"),
        row("cut", "cut.dcm"),
        row("page", "page.png"),
        row("sound", ct),
        changed,
        '{"id": "broken", "messages": [',
        row("answerless", good, answer=None),
        row("empty", good, answer=" "),
        silent,
        typed,
        row("twice", good),
        row("twice", good),
        boxed,
        row("option", good, answer="perhaps", options=["yes", "no"]),
        row("split", good, split="dev"),
        row("p-train", png("p1.png", seed=5), patient_id="p", split="train"),
        row("p-test", png("p2.png", seed=6), patient_id="p", split="test"),
        row("i-train", "good.png", patient_id="x", split="train"),
        row("i-test", "copy.png", patient_id="y", split="test"),
        records=[
            {"id": "r", "prior": "gone", "images": [{"uri": "nowhere-either.png"}]},
            {"id": "r"},
            {
                "id": "r-box",
                "images": [{"uri": ct}],
                "boxes": [{"label": "deep", "x1": 0, "y1": -1, "x2": 9, "y2": 9}],
            },
        ],
    )
    report = check_dataset(root)
    expected = {
        "missing": "nowhere.png', row 'missing', field 'messages.0.content.0': no such image file "
        "(used by 1 more row)",
        "truncated": "truncated.png",
        "cut": "cut.dcm",
        "page": "page.png",
        "changed": "sha256",
        "answerless": "the row has no answer",
        "empty": "the answer is empty",
        "silent": "field 'messages.0.content': the user message is empty",
        "typed": "field 'patient': unknown field. Did you mean 'patient_id'",
        "twice": "the id occurs 2 times",
        "option": "names none of the options. Options: yes, no",
        "split": "field 'split': ",
        "p-test": "patient 'p' is in train (row 'p-train') and test (row 'p-test')",
        "i-test": "image 'good.png' is in train (row 'i-train') and test (row 'i-test')",
        "r-box": "spans y -1 to 9, but its image 'ct.dcm' only 0 to 128",
    }
    for name, text in expected.items():
        assert text in rules(report.faults, name), name
    boxes = rules(report.faults, "boxes")
    assert "spans x 30 to 41, but its image 'good.png' only 0 to 40" in boxes
    assert "box 'far' is on image 1, but the row has 1" in boxes
    assert "box 'flat' has no area" in boxes
    record = rules(report.faults, "r")
    assert "the earlier study 'gone' is not among the records" in record
    assert "the id occurs 2 times" in record
    assert "no such image file" in record
    assert any("line 8 is not JSON" in fault.rule for fault in report.faults)
    # Nothing else is wrong: the faults counted one by one.
    assert len(report.faults) == 22


def test_the_order_of_faults_and_the_report_do_not_hang_on_the_workers(
    folder: Any, row: Any, png: Any
) -> None:
    uris = [png(f"{i}.png", seed=i, width=4, height=3) for i in range(70)]
    root = folder(*(row(f"row-{i}", uri) for i, uri in enumerate([*uris, "gone.png"])))
    for number in (40, 3, 66):
        (root / f"{number}.png").write_bytes((root / f"{number}.png").read_bytes()[:50])
    steps: list[tuple[str, int, int]] = []
    alone = check_dataset(root, workers=1)
    together = check_dataset(root, workers=2, progress=lambda *step: steps.append(step))
    assert together == alone
    assert [fault.row for fault in alone.faults] == ["row-3", "row-40", "row-66", "row-70"]
    assert steps == [("images", done, 71) for done in range(1, 72)]


@pytest.mark.parametrize("lines", ["", "\n\n"])
def test_an_empty_data_set_is_a_fault(folder: Any, lines: str) -> None:
    report = check_dataset(folder(lines))
    assert [fault.rule for fault in report.faults] == [
        "the data set is empty: it has no conversation"
    ]


def test_a_missing_row_file_and_a_missing_card_are_both_reported(tmp_path: Path) -> None:
    faults = check_dataset(tmp_path).faults
    files = [Path(str(fault.file)).name for fault in faults]
    assert files == ["dataset.json", "conversations.jsonl"]


def test_the_sha256_of_the_right_file_is_accepted(folder: Any, row: Any, png: Any) -> None:
    good = row("a", png("a.png"))
    root = folder(good)
    sha256 = hashlib.sha256((root / "a.png").read_bytes()).hexdigest()
    good["messages"][0]["content"][0]["sha256"] = sha256.upper()
    (root / "conversations.jsonl").write_text(json.dumps(good))
    assert check_dataset(root).faults == ()


def test_a_leak_that_the_card_states_is_a_note(folder: Any, row: Any, png: Any) -> None:
    rows = [
        row("a", png("a.png"), patient_id="p", split="train"),
        row("b", png("a.png"), patient_id="p", split="test"),
    ]
    report = check_dataset(folder(*rows, leak="1 image is in both"))
    assert report.faults == ()
    assert report.notes == ("allowed by the card: 1 image is in both",)
    kinds = [fault.field for fault in check_dataset(folder(*rows)).faults]
    assert kinds == ["patient_id", "images"]


def test_rows_without_patient_or_split_are_noted(
    folder: Callable[..., Path], row: Any, png: Any
) -> None:
    report = check_dataset(folder(row("a", png("a.png"))))
    assert len(report.notes) == 2
    assert "1 rows have no patient_id" in report.notes[0]


def test_a_volume_box_is_held_against_the_depth(folder: Any, row: Any) -> None:
    box = {"type": "box", "label": "b", "x1": 0, "y1": 0, "x2": 5, "y2": 6, "z1": 0, "z2": 8}
    bad = row("a")
    ref = {"type": "image", "uri": "v.nii", "kind": "volume"}
    bad["messages"][0]["content"] = [ref, {"type": "text", "text": "Where?"}]
    bad["messages"][1]["content"] = [box]
    root = folder(bad)
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 6, 7), np.float32), np.eye(4)), root / "v.nii")
    (fault,) = check_dataset(root).faults
    assert "spans z 0 to 8, but its image 'v.nii' only 0 to 7" in fault.rule


def volume(path: Path, values: np.ndarray, *, oriented: bool = True) -> dict[str, Any]:
    """A NIfTI file and the record that uses it."""
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if oriented else None), path)
    return {"id": path.name, "images": [{"uri": path.name, "kind": "volume"}]}


def test_images_without_values_are_faults_and_gaps_in_values_are_notes(
    folder: Any, row: Any, png: Any, tmp_path: Path
) -> None:
    nothing = np.full((4, 5, 6), np.nan, np.float32)
    nothing[0] = np.inf
    holes = np.zeros((4, 5, 6), np.float32)
    holes[0, 0, :3] = (np.nan, np.inf, -np.inf)
    records = [volume(tmp_path / "no.nii", nothing), volume(tmp_path / "holes.nii", holes)]
    report = check_dataset(folder(row("a", png("a.png")), records=records))
    assert "every one is NaN or infinite" in rules(report.faults, "no.nii")
    assert len(report.faults) == 1
    (note,) = [note for note in report.notes if "rows" not in note]
    assert note.startswith(
        "1 images hold NaN or infinite values, up to 2.50% of one (holes.nii)"
    )  # 3 of 120


def test_volumes_without_orientation_are_noted(
    folder: Any, row: Any, png: Any, tmp_path: Path
) -> None:
    plain = np.zeros((4, 5, 6), np.float32)
    records = [
        volume(tmp_path / "a.nii", plain),
        volume(tmp_path / "b.nii", plain, oriented=False),
    ]
    report = check_dataset(folder(row("a", png("a.png")), records=records))
    (note,) = [note for note in report.notes if "rows" not in note]
    assert note.startswith("1 volumes have no orientation (first: b.nii)")
    assert report.faults == ()


def test_a_ct_that_nobody_calls_one_is_noted_when_it_was_rescaled_twice(
    folder: Any, tmp_path: Path
) -> None:
    soft = np.random.default_rng(0).normal(40, 20, (96, 96, 2)).astype(np.float32)
    soft[:24] = -1000  # air
    noise = np.random.default_rng(1).normal(0, 5, soft.shape)
    twice = (soft + noise - 1024).astype(np.float32)
    records = [volume(tmp_path / "once.nii", soft), volume(tmp_path / "twice.nii", twice)]
    (note,) = check_dataset(folder(records=records)).notes
    assert "no modality, so HU was not checked" in note
    assert "(first: twice.nii)" in note
    records[1]["images"][0]["modality"] = "CT"
    report = check_dataset(folder(records=records))
    assert report.notes == ()
    assert "rescaled twice" in rules(report.faults, "twice.nii")
