"""Numbers counted by hand, and a page that is one file with everything escaped."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from medloupe.data.dataset import load_dataset
from medloupe.data.stats import DataStats, describe, write_stats_page
from medloupe.data.stats.numbers import Spread
from medloupe.data.stats.page import render

HOSTILE = "<script>alert('x')</script> & \"q\""


@pytest.fixture
def described(tmp_path: Path, folder: Any, row: Any, png: Any) -> DataStats:
    """Six closed questions, one of two turns in Chinese, a CT slice and a volume."""
    shutil.copy(str(get_testdata_file("CT_small.dcm")), tmp_path / "ct.dcm")
    volume = nibabel.Nifti1Image(np.zeros((6, 5, 4), np.float32), np.diag([2.0, 2.0, 3.0, 1.0]))
    nibabel.save(volume, tmp_path / "v.nii.gz")
    png("a.png", width=40, height=30, seed=1)
    png("b.png", width=40, height=30, seed=2)
    closed: dict[str, Any] = {"answer_type": "closed", "task": "presence", "template": "t1"}
    rows = [
        row("1", "a.png", answer="no", split="train", patient_id="p", **closed),
        row("2", "a.png", answer="No.", split="train", patient_id="p", **closed),
        row("3", "b.png", answer="yes", split="train", patient_id="q", **closed),
        row("4", "ct.dcm", answer="no", split="test", patient_id="r", **closed),
        row("5", "ct.dcm", answer="yes", split="test", patient_id="r", **closed),
        row("6", "ct.dcm", answer="NO", split="test", patient_id="r", **closed),
    ]
    talk = row("7", answer="左侧", split="test", task=HOSTILE, language="zh")
    talk["messages"] += [
        {"role": "user", "content": [{"type": "text", "text": "病变在哪里"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
    ]
    records = [
        {
            "id": "r1",
            "split": "train",
            "labels": ["mass", "mass2"],
            "attributes": {"sex": "F", "age": "41"},
            "report": {"findings": "A small mass. No effusion."},
        },
        {"id": "r2", "split": "test", "labels": ["mass"], "attributes": {"sex": "M", "age": "60"}},
        {"id": "r3", "images": [{"uri": "v.nii.gz", "kind": "volume", "modality": "MR"}]},
    ]
    root = folder(*rows, talk, records=records, licence=HOSTILE, partial="7 of 9 rows")
    return describe(load_dataset(root), workers=1)


def test_counts_by_split(described: DataStats) -> None:
    assert described.counts["conversations"] == {"train": 3, "test": 4}
    assert described.counts["records"] == {"train": 1, "test": 1, "no split": 1}
    assert described.counts["patients"] == {"train": 2, "test": 1}
    assert described.counts["images"] == {"train": 2, "test": 1, "no split": 1}
    assert described.tasks["presence"] == {"train": 3, "test": 3}
    assert described.languages == {"en": {"train": 3, "test": 3}, "zh": {"test": 1}}
    assert described.turns == {"1": {"train": 3, "test": 3}, "2": {"test": 1}}
    assert described.images_per_row == {"1": {"train": 3, "test": 3}, "0": {"test": 1}}
    assert described.labels == {"mass": {"train": 1, "test": 1}, "mass2": {"train": 1}}
    assert described.attributes["sex"] == {"F": {"train": 1}, "M": {"test": 1}}
    assert described.modalities["MR"] == {"no split": 1}


def test_lengths_in_words_and_characters(described: DataStats) -> None:
    answers = described.lengths["answers, words"]
    assert (answers.n, answers.lowest, answers.median, answers.highest) == (8, 1, 1, 2)
    asked = described.lengths["questions, words"]
    assert (asked.n, asked.lowest, asked.highest) == (8, 4, 5)  # "Is there a lesion?", 病变在哪里
    assert described.lengths["report: findings, words"].highest == 5
    assert described.lengths["report: findings, characters"].highest == 26


def test_the_best_constant_answer_is_learned_on_train_and_scored_held_out(
    described: DataStats,
) -> None:
    balance = next(b for b in described.answers if b.task == "presence")
    assert (balance.constant, balance.answers, balance.n, balance.scored) == ("no", 2, 6, 3)
    assert balance.share == pytest.approx(2 / 3, abs=1e-4)
    assert balance.top == (("no", 4), ("yes", 2))


def test_a_constant_learned_on_train_may_fail_held_out(folder: Any, row: Any) -> None:
    """Test says yes three times; training, which decides, says no twice."""
    said = [("train", "no"), ("train", "no"), ("train", "yes")] + [("test", "yes")] * 3
    rows = [row(f"{n}", answer=answer, split=split) for n, (split, answer) in enumerate(said)]
    (balance,) = describe(load_dataset(folder(*rows)), images=False).answers
    assert (balance.constant, balance.share, balance.scored) == ("no", 0.0, 3)


def test_what_two_splits_share(described: DataStats) -> None:
    (overlap,) = described.overlaps
    assert (overlap.one, overlap.other) == ("train", "test")
    assert (overlap.patients, overlap.images) == (0, 0)
    assert (overlap.questions, overlap.question_answers, overlap.distinct_questions) == (1, 2, 2)


def test_images_are_measured(described: DataStats) -> None:
    images = described.images
    assert images is not None
    assert images.sizes == {"40 x 30": 2, "128 x 128": 1, "6 x 5 x 4": 1}
    assert images.spacings["3 x 2 x 2"] == 1
    assert images.units == {"stored": 3, "HU": 1}
    assert images.slices == (1, 1, 4)
    assert images.unreadable == ()


def test_tokens_and_no_images(described: DataStats, folder: Any, row: Any) -> None:
    root = folder(row("a", "missing.png", answer="yes it is", split="train"))
    found = describe(load_dataset(root), images=False, tokens=lambda text: len(text.split()))
    assert found.images is None
    assert found.tokens["its answers"].highest == 3
    assert found.tokens["all text of a row"].highest == 7
    missing = describe(load_dataset(root), workers=1)
    assert missing.images is not None
    assert "missing.png" in missing.images.unreadable[0]


@pytest.mark.parametrize(
    "values",
    [[3.0], [1.0, 1.0], [1.0, 2.0, 100.0], [0.5, 0.25, 7.125], list(map(float, range(1000)))],
)
def test_a_histogram_holds_every_value(values: list[float]) -> None:
    spread = Spread.of(values)
    assert sum(spread.counts) == spread.n == len(values)
    assert len(spread.edges) == len(spread.counts) + 1 <= 27
    assert spread.edges[0] <= min(values)
    assert spread.edges[-1] >= max(values)
    whole = all(value == int(value) for value in values)
    assert not whole or all(edge % 1 == 0.5 for edge in spread.edges)


def test_stats_come_back_from_json(described: DataStats) -> None:
    assert DataStats.parse(json.loads(described.to_json())) == described


class Page(HTMLParser):
    """What a page is made of, parsed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "input", "br", "img", "hr"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_one_file_and_everything_is_text(described: DataStats, tmp_path: Path) -> None:
    write_stats_page(tmp_path / "deep/stats.html", described)
    text = (tmp_path / "deep/stats.html").read_text("utf-8")
    assert text == render(described)
    page = Page(text)
    assert page.open == []
    assert page.links == []
    assert "script" not in page.tags
    assert page.tags.count("svg") > 10
    assert any(HOSTILE in said for said in page.texts)
    assert "http" not in text.replace("http-equiv", "")
    said = " ".join(page.texts)
    for words in ("7 of 9 rows", "No patient and no image is in two splits", "67%", "presence"):
        assert words in said
    for rule in ("@media print", "@media screen and (max-width", "prefers-color-scheme"):
        assert rule in text
    assert 'name="viewport"' in text


def test_shared_patients_are_the_headline(folder: Any, row: Any) -> None:
    rows = [row(s, split=s, patient_id="p") for s in ("train", "test")]
    found = describe(load_dataset(folder(*rows, leak="1 patients")), images=False)
    said = " ".join(Page(render(found)).texts)
    assert "1 of 1 pairs of splits share patients or images" in said
    assert "1 patients" in said


def test_the_starter_and_real_data(tmp_path: Path, shared_data: Path, progress: Any) -> None:
    from medloupe.data.datasets.vqa_rad import VqaRadConfig

    data = VqaRadConfig().prepare(tmp_path, root=shared_data / "vqa_rad", progress=progress)
    found = describe(data, images=False)
    assert sum(found.counts["conversations"].values()) == 2879
    assert sum(found.answer_types["closed"].values()) == 1689
    assert Page(render(found)).open == []


def test_a_colour_image_is_measured(tmp_path: Path, folder: Any, row: Any) -> None:
    Image.new("RGB", (9, 8), (1, 2, 3)).save(tmp_path / "c.png")
    found = describe(load_dataset(folder(row("a", "c.png", split="train"))), workers=1)
    assert found.images is not None
    assert (found.images.sizes, found.images.units) == ({"9 x 8": 1}, {"rgb": 1})
