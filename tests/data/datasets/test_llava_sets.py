"""LLaVA-Pretrain and LLaVA-Med in their publishers' form, misspelt key and missing figures included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets import llava_med
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import DataError, MedLoupeError
from medloupe.types import ImageRef

Row = dict[str, Any]
LONG = "word " * 30


def prepare(root: Path, name: str, **fields: Any) -> Dataset:
    config = DatasetConfig.parse({"name": name, **fields})
    return config.prepare(root.parent / f"out-{name}", root=root, progress=lambda *_: None)


def turns(*said: str) -> list[Row]:
    return [
        {"from": "gpt" if number % 2 else "human", "value": text}
        for number, text in enumerate(said)
    ]


@pytest.fixture
def pretrain(tmp_path: Path, png: Callable[..., str]) -> Callable[..., Path]:
    def write(rows: list[Row], folder: str = "images/") -> Path:
        for number, row in enumerate(rows):
            if "absent" not in row["image"]:
                png(f"pretrain/{folder}{row['image']}", seed=number)
        path = tmp_path / "pretrain" / "blip_laion_cc_sbu_558k.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows))
        return path.parent

    return write


def pair(name: str, *said: str) -> Row:
    """A row of blip_laion_cc_sbu_558k.json."""
    said = said or ("Render a clear summary of the photo.\n<image>", "a select luxury furniture")
    return {"id": name, "image": f"00453/{name}.jpg", "conversations": turns(*said)}


@pytest.mark.parametrize("folder", ["images/", ""])
def test_llava_pretrain(pretrain: Callable[..., Path], folder: str) -> None:
    rows = [pair("004539375"), pair("004539376", "<image>\nWhat is it?", "a chair")]
    dataset = prepare(pretrain(rows, folder), "llava_pretrain")
    assert dataset.card.partial == "2 of 558,128 image-text pairs"
    assert {row.split for row in dataset.conversations} == {"train"}
    first = dataset.conversations[0]
    assert first.id == "llava_pretrain/004539375"
    assert first.question == "Render a clear summary of the photo."
    assert first.answer is not None
    assert first.answer.text == "a select luxury furniture"
    assert Path(first.images[0].uri).is_absolute()
    assert load_dataset(dataset.root) == dataset


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (pair("absent"), "no such image"),
        (pair("1", "<image>a", "b", "c", "d"), "1 images and 4 messages"),
        (pair("1", "no image", "b"), "holds 0 <image>"),
        ({"id": "1", "image": "1.jpg"}, "no LLaVA row"),
    ],
)
def test_faulty_rows_of_llava_pretrain(pretrain: Callable[..., Path], row: Row, rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        prepare(pretrain([row]), "llava_pretrain")


@pytest.fixture
def llava_med_copy(
    tmp_path: Path, png: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Writes one of the files; its own size counts as the published one, less `lost` bytes."""

    def write(path: str, rows: list[Row], *, lost: int = 0) -> Path:
        for number, row in enumerate(rows):
            if "absent" not in row.get("image", "absent"):
                png(f"llava_med/images/{row['image']}", seed=number)
        file = tmp_path / "llava_med" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows))
        published = {**llava_med.BYTES, file.name: file.stat().st_size + lost}
        monkeypatch.setattr(llava_med, "BYTES", published)
        return tmp_path / "llava_med"

    return write


def figure(name: str, *said: str, key: str = "conversatons", **fields: Any) -> Row:
    """A row of LLaVA-Med; `key` is misspelt as in the published files."""
    domain = {
        "chest_xray": False,
        "ct_scan": True,
        "gross": False,
        "histology": False,
        "mri": False,
    }
    return {"id": name, "image": f"{name}.jpg", "domain": domain, key: turns(*said), **fields}


ALIGNMENT = "alignment/llava_med_alignment_500k.json"
CAPTIONS = [
    figure("18627621_F2", "Give a terse account of the image.\n<image>", "Chest X-ray."),
    figure("18627621_F3", "<image>\nExplain it in detail.", LONG, key="conversations"),
    figure("31312549_FIG1", "<image>\nSay what it shows.", "CT of the head."),
]


def test_captions_as_published(llava_med_copy: Callable[..., Path]) -> None:
    dataset = prepare(llava_med_copy(ALIGNMENT, CAPTIONS), "llava_med_alignment")
    assert dataset.card.partial == ""
    assert [row.template for row in dataset.conversations] == [
        "caption/brief/en",
        "caption/detailed/en",
        "caption/brief/en",
    ]
    first = dataset.conversations[0]
    assert first.question == "Give a terse account of the image."
    assert [type(part) is ImageRef for part in first.messages[0].content] == [False, True]
    assert first.patient_id == "pmid-18627621"
    assert first.attributes == {"domain": "ct_scan"}
    assert first.images[0].modality == "CT"
    assert load_dataset(dataset.root) == dataset


def test_captions_under_our_own_instructions(llava_med_copy: Callable[..., Path]) -> None:
    root = llava_med_copy(ALIGNMENT, CAPTIONS)
    rows = prepare(root, "llava_med_alignment", instructions="own").conversations
    published = prepare(root, "llava_med_alignment").conversations
    assert [row.template for row in rows] == [row.template for row in published]
    assert [row.answer for row in rows] == [row.answer for row in published]
    assert all("wording" in row.attributes for row in rows)
    assert rows[0].question != published[0].question


def test_instructions_keep_their_turns_and_the_place_of_the_image(
    llava_med_copy: Callable[..., Path],
) -> None:
    said = ("What is this?\n<image>", "A CT.", "Of what?", "The head.")
    rows = [figure("1_F1", *said, key="conversations"), figure("2_F1", "<image>\nWhat?", "A CT.")]
    for name in ("60k_inline_mention", "10k"):
        path = f"instruct/llava_med_instruct_{name}.json"
        dataset = prepare(llava_med_copy(path, rows), "llava_med_instruct", file=name)
        first = dataset.conversations[0]
        assert [message.text for message in first.messages] == [
            "What is this?",
            "A CT.",
            "Of what?",
            "The head.",
        ]
        assert first.images == first.messages[0].content[1:]
        assert first.task == "conversation"


def test_figures_of_an_article_stay_together(llava_med_copy: Callable[..., Path]) -> None:
    rows = [
        figure(f"{article}_F{number}", "<image>\nWhat?", "A CT.")
        for article in range(30)
        for number in range(2)
    ]
    root = llava_med_copy("llava_med_alignment_500k.json", rows)  # beside the folders
    shares = {"train": 0.5, "validation": 0.5}
    dataset = prepare(root, "llava_med_alignment", fractions=shares)
    splits: dict[str | None, set[str | None]] = {}
    for row in dataset.conversations:
        splits.setdefault(row.patient_id, set()).add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    assert len(set.union(*splits.values())) == 2


def test_a_partial_file_and_missing_figures_are_named(llava_med_copy: Callable[..., Path]) -> None:
    rows = [*CAPTIONS, figure("absent_F1", "<image>\nWhat?", "A CT.")]
    root = llava_med_copy(ALIGNMENT, rows, lost=1000)
    size = (root / ALIGNMENT).stat().st_size
    with pytest.raises(DataError, match="missing_images=leave_out"):
        prepare(root, "llava_med_alignment")
    dataset = prepare(root, "llava_med_alignment", missing_images="leave_out")
    assert dataset.card.partial == (
        f"3 of 4 rows with their image, {size:,} of {size + 1000:,} bytes of {Path(ALIGNMENT).name}"
    )
    root = llava_med_copy(ALIGNMENT, CAPTIONS, lost=-1)
    with pytest.raises(DataError, match="was published with"):
        prepare(root, "llava_med_alignment")


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (figure("1_F1", "<image>a", "b", "c", "d"), "2 turns; expected one"),
        (figure("1_F1", "<image>a", "b", "c"), "a question has no answer"),
        (figure("1_F1", "a", "b"), "does not stand once"),
        (figure("1_F1", "a", "<image>b"), "does not stand once"),
        (figure("1_F1", "<image><image>a", "b"), "does not stand once"),
        (figure("1_F1", "<image>a", ""), "missing or empty"),
        (figure("1_F1", "<image>a", "b", domain={"ct_scann": True}), "did you mean 'ct_scan'"),
        (figure("1_F1", "<image>a", "b", image=None), "missing or empty"),
        (figure("1_F1", key="conversations"), "missing or empty"),
        (figure("1_F1", "<image>a", "b", conversatons=[{"from": "bot"}]), "expected 'human'"),
    ],
)
def test_faulty_rows_of_llava_med(llava_med_copy: Callable[..., Path], row: Row, rule: str) -> None:
    row = {key: value for key, value in row.items() if value is not None}
    with pytest.raises(MedLoupeError, match=rule) as caught:
        prepare(llava_med_copy(ALIGNMENT, [row]), "llava_med_alignment")
    assert caught.value.fault.file is not None
    assert "1_F1" in str(caught.value)


def test_ids_that_repeat_are_refused(llava_med_copy: Callable[..., Path]) -> None:
    root = llava_med_copy(ALIGNMENT, [CAPTIONS[0], CAPTIONS[0]])
    with pytest.raises(DataError, match="occurs 2 times"):
        prepare(root, "llava_med_alignment")
