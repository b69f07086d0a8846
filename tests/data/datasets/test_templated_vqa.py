"""Templated questions: pairs share picture and split, and both follow the picture's own set."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medloupe.data.check import check_dataset
from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import DataError

CONFIG = DatasetConfig.parse({"name": "templated_vqa", "images": "reference"})
NEIGHBOURS = {
    "bccd": "bccd",
    "cxr_covid_cc": "covid_chestxray",
    "radiomics_ct_mr": "pyradiomics",
}


@pytest.fixture(scope="module")
def prepared(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("templated_vqa")
    source = shared_data / "templated_bilingual_vqa"
    return CONFIG.prepare(out, root=source, progress=lambda *_: None)


def question(number: int, language: str, image: str = "bccd/images/a.jpg", **fields: Any) -> Any:
    texts = {"en": ("Is it red?", "yes"), "zh": ("是红色吗？", "是")}
    text, answer = texts[language]
    return {
        "qid": f"t{number}-{language}",
        "pair": f"t{number}",
        "image": image,
        "lang": language,
        "question": text,
        "answer": answer,
        "answer_type": "CLOSED",
        "content_type": "presence",
        "origin": "templated_from_annotations",
    } | fields


def write(root: Path, *rows: Any, split: str = "test") -> Path:
    """The rows, and a neighbouring BCCD of one picture."""
    (root / "bccd" / "images").mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "bccd" / "images" / "a.jpg")
    boxes = [{"label": "RBC", "box": [1, 1, 9, 9]}]
    picture = {"id": "a", "image": "images/a.jpg", "split": split, "boxes": boxes}
    (root / "bccd" / "annotations.json").write_text(json.dumps([picture]))
    (root / "templated").mkdir(exist_ok=True)
    (root / "templated" / "rows.json").write_text(json.dumps(rows))
    return root / "templated"


def test_the_real_copy_is_complete_and_passes_the_check(prepared: Dataset) -> None:
    assert prepared.card.partial == ""
    assert prepared.card.counts["questions"] == 2800
    assert prepared.card.languages == ("en", "zh")
    assert load_dataset(prepared.root) == prepared
    assert check_dataset(prepared.root, workers=1).faults == ()


def test_real_pairs_share_picture_and_split(prepared: Dataset) -> None:
    pairs = defaultdict(list)
    for row in prepared.conversations:
        pairs[row.attributes["pair"]].append(row)
    assert len(pairs) == 1400
    for first, second in pairs.values():
        assert {first.language, second.language} == {"en", "zh"}
        assert first.images == second.images
        assert first.split == second.split
        assert bool(first.options) == bool(second.options)


def test_real_splits_are_those_of_the_pictures_own_sets(
    prepared: Dataset, shared_data: Path, tmp_path: Path, progress: Any
) -> None:
    splits = {}
    for folder, name in NEIGHBOURS.items():
        config = DatasetConfig.parse({"name": name, "images": "reference"})
        made = config.prepare(tmp_path / name, root=shared_data / folder, progress=progress)
        splits |= {ref.uri: r.split for r in made.records for ref in r.images}
    for row in prepared.conversations:
        assert row.split == splits[row.images[0].uri], row.id


def test_a_small_copy_follows_its_neighbour(tmp_path: Path, progress: Any) -> None:
    rows = [question(1, language) for language in ("en", "zh")]
    made = CONFIG.prepare(tmp_path / "out", root=write(tmp_path, *rows), progress=progress)
    assert check_dataset(made.root, workers=1).faults == ()
    assert made.card.partial == "2 of 2,800 questions"
    english, chinese = made.conversations
    assert (english.split, chinese.split) == ("test", "test")
    assert (english.options, chinese.options) == (("yes", "no"), ("是", "否"))
    assert (english.language, chinese.language) == ("en", "zh")
    assert english.licence == "MIT"
    assert english.template == "presence/Is it red?"
    assert english.dataset == "templated_vqa"
    assert made.records[0].boxes == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([question(1, "en")], "one question in English and in Chinese"),
        (
            [question(1, "en"), question(1, "zh", "bccd/images/b.jpg")],
            "one question in English and in Chinese",
        ),
        ([question(1, "en", lang="de"), question(1, "zh")], "in English and in Chinese"),
        (
            [question(1, lang, "bccd/images/b.jpg") for lang in ("en", "zh")],
            "its set has no such picture",
        ),
        (
            [question(1, lang, "mimic/images/b.jpg") for lang in ("en", "zh")],
            "an unknown set 'mimic'",
        ),
        (
            [question(1, lang, "radiomics_ct_mr/slices/b.png") for lang in ("en", "zh")],
            "Put the set 'radiomics_ct_mr' beside",
        ),
        ([question(1, lang, answer="") for lang in ("en", "zh")], "missing or empty"),
    ],
)
def test_broken_pairs_and_missing_neighbours_are_named(
    tmp_path: Path, progress: Any, rows: list[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        CONFIG.prepare(tmp_path / "out", root=write(tmp_path, *rows), progress=progress)
