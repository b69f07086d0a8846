"""What predict is pointed at: every file and line becomes a row, an error, or a count."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from medloupe.errors import DataError
from medloupe.recipes.asked import read_input


def real(name: str) -> Path:
    found = get_testdata_file(name, download=False)
    assert isinstance(found, str)
    return Path(found)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A picture, a volume, a text, and DICOM: a series of three slices in two folders, two frames, a cut
    file."""
    root = tmp_path / "tree"
    (root / "ct/b").mkdir(parents=True)
    Image.fromarray(np.eye(8, dtype=np.uint8) * 200).save(root / "eye.png")
    (root / "head.nii").write_bytes(b"no volume, but named so")
    (root / "notes.txt").write_text("hello")
    uid = generate_uid()
    for number, folder in enumerate(("ct", "ct", "ct/b")):
        one = pydicom.dcmread(real("CT_small.dcm"))
        one.SeriesInstanceUID, one.SOPInstanceUID = uid, generate_uid()
        one.ImagePositionPatient = [0, 0, 5.0 * number]
        one.save_as(root / folder / f"{number}")
    shutil.copy(real("SC_rgb_rle_2frame.dcm"), root / "two.dcm")
    (root / "cut.dcm").write_bytes(real("MR_small.dcm").read_bytes()[:3000])
    return root


def test_every_frame_or_every_volume(tree: Path) -> None:
    flat = read_input(tree, ["Plane?"], options=["axial", "coronal"])
    assert [item.id for item in flat.items] == [
        "ct/0", "ct/1", "ct/b/2", "cut.dcm", "eye.png", "head.nii", "two.dcm#0", "two.dcm#1",
    ]  # fmt: skip
    assert flat.skipped == 1
    assert all(row.options == ("axial", "coronal") for row in flat.asked)
    assert {row.images[0].kind for row in flat.asked} == {"image"}
    assert flat.asked[6].images[0].frame == 0
    deep = read_input(tree, ["Plane?", "Side?"], volumes=True)
    kinds = {row.images[0].uri: row.images[0].kind for row in deep.asked}
    assert kinds == {
        "ct": "volume", "cut.dcm": "image", "eye.png": "image", "head.nii": "volume",
        "two.dcm": "volume",
    }  # fmt: skip
    assert len(deep.items) == 2 * len(kinds)
    assert deep.items[0].id.startswith("ct#")
    assert deep.items[0].id.endswith(" question 1")
    assert deep.asked[0].images[0].series is not None
    alone = read_input(tree / "eye.png", ["Plane?"])
    assert [item.id for item in alone.items] == ["eye.png"]
    assert alone.root == tree


def test_lines_in_both_forms_and_what_is_wrong_with_some(tmp_path: Path) -> None:
    native = {
        "id": "n",
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "uri": "a.png"}, {"type": "text", "text": "Mass?"}],
            }
        ],
    }
    lines = [
        {"id": "a", "image": "a.png", "question": "Side?", "options": ["left", "right"]},
        native,
        {"id": "two", "images": ["a.png", "b.png"], "question": "What changed?"},
        {"id": "v", "volume": "ct", "modality": "CT", "question": "Effusion?"},
        {"id": "text", "question": "What is a mass?"},
        {"id": "a", "image": "b.png", "question": "Side?"},
        {"id": "none", "image": "a.png"},
        {"id": "odd", "image": "a.png", "question": "x", "imgae": "b"},
    ]
    path = tmp_path / "q.jsonl"
    text = "".join(json.dumps(line) + "\n\n" for line in lines) + '{"id": "cut'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = read_input(path)
    assert [row.id for row in found.asked] == ["a", "n", "two", "v", "text"]
    assert found.asked[0].options == ("left", "right")
    assert [len(row.images) for row in found.asked] == [1, 1, 2, 1, 0]
    assert found.asked[3].images[0].kind == "volume"
    errors = {item.id: item.error for item in found.items if item.asked is None}
    assert "same id" in errors["a"]
    assert "question" in errors["none"]
    assert "missing" in errors["none"]
    assert "unknown field" in errors["odd"]
    assert "not JSON" in errors["line 17"]
    assert len(found.items) == 9


def test_a_line_that_is_not_utf_8_is_an_error_and_is_not_asked_garbled(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    latin = '{"id": "b", "question": "Lésion?"}\n'.encode("latin-1")
    path.write_bytes('{"id": "a", "question": "Lésion?"}\n'.encode() + latin)
    good, bad = read_input(path).items
    assert good.asked is not None
    assert good.asked.question == "Lésion?"
    assert bad.asked is None
    assert bad.id == "line 2"
    for said in (str(path), "line 2 is not UTF-8", "Save the file as UTF-8"):
        assert said in bad.error


def test_what_cannot_be_asked_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "a", "question": "x"}\n')
    (tmp_path / "empty").mkdir()
    for source, questions, words in [
        (tmp_path / "nowhere", ["x"], "no such file"),
        (tree, [], "need a question"),
        (tmp_path / "q.jsonl", ["x"], "bring their questions"),
        (tmp_path / "empty", ["x"], "nothing to ask"),
    ]:
        with pytest.raises(DataError, match=words):
            read_input(source, questions)
    with pytest.raises(DataError, match="Leave out --option"):
        read_input(tmp_path / "q.jsonl", options=["yes", "no"])
