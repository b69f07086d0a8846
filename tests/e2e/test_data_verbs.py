"""audit, stats and convert as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight patients with a picture and two questions each, written by hand; no leak."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(8):
        field = Image.fromarray(rng.integers(0, 255, (9, 8), dtype=np.uint8))
        field.resize((96, 80), Image.Resampling.BICUBIC).save(root / f"images/{number}.png")
        for k in "ab":
            lines.append(
                {
                    "id": f"{number}{k}",
                    "patient_id": f"p{number}",
                    "split": "test" if number > 5 else "train",
                    "task": "presence [1]",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "image", "uri": f"images/{number}.png"},
                                {"type": "text", "text": "Is there a lesion?"},
                            ],
                        },
                        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
                    ],
                }
            )
    (root / "conversations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "dataset.json").write_text(json.dumps({"name": "mine", "licence": "CC0"}))
    return root


def test_an_audit_without_a_leak(data: Path, medloupe: Any) -> None:
    done = medloupe("audit", data)
    assert "no leak found" in done.out
    assert "16 rows, 8 images, 8 patients" in done.out


def test_a_planted_leak_is_shown_written_and_exits_with_2(
    data: Path, medloupe: Any, tmp_path: Path
) -> None:
    with Image.open(data / "images/0.png") as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(data / "images/7.png")
    shutil.copy(data / "images/1.png", data / "images/6.png")
    done = medloupe("audit", data, "--out", tmp_path / "deep/leaks.jsonl", code=2)
    assert "1 identical files, 1 near-duplicate images on two sides" in done.err
    assert "mirrored near-duplicate in mine/train row '0a' (images/0.png)" in done.out
    found = [json.loads(line) for line in (tmp_path / "deep/leaks.jsonl").read_text().splitlines()]
    assert [f["kind"] for f in found] == ["file", "near"]
    quick = medloupe("audit", data, "--images", "hash", code=2)
    assert "1 identical files on two sides" in quick.err


def test_an_audit_that_could_not_read_everything(data: Path, medloupe: Any) -> None:
    (data / "images/3.png").write_bytes((data / "images/3.png").read_bytes()[:50])
    done = medloupe("audit", data, code=2)
    assert "no leak found among 7 of 8 images; 1 could not be read" in done.err
    assert "not compared" in done.out
    assert "3.png" in done.out


def test_a_folder_prepared_twice(medloupe: Any, tmp_path: Path) -> None:
    root, out = tmp_path / "mine", tmp_path / "out"
    root.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    table = "image,label,sex,split\n0.png,x,F,test\n1.png,y,M,test\n2.png,y,M,test\n"
    (root / "t.csv").write_text(table)
    words = ("prepare", "folder", "--root", root, "--out", out)
    done = medloupe(*words)
    assert "t.csv: used as image, split, label; as attributes: sex" in done.out
    assert "no row trains" in done.out
    assert "already prepared, nothing read again" in medloupe(*words).out
    (root / "t.csv").write_text(table.replace("F", "M"))
    assert f"files in {root} were changed" in medloupe(*words, code=2).err
    other = ("prepare", "folder", "--root", tmp_path / "nowhere", "--out", out)
    assert f"prepared from {root}, not from {tmp_path}/nowhere" in medloupe(*other, code=2).err
    inside = ("prepare", "folder", "--root", root, "--out", root / "data")
    assert "lie inside each other" in medloupe(*inside, code=2).err


def test_training_on_shards_names_the_way_back(data: Path, medloupe: Any, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    medloupe("convert", data, shards)
    refused = medloupe("train", "starter", "--data", shards, "--out", tmp_path / "run", code=2)
    assert "these are shards" in refused.err
    assert f"medloupe convert {shards} FOLDER --unpack" in refused.err


def test_a_benchmark_against_training_data(data: Path, medloupe: Any, tmp_path: Path) -> None:
    benchmark = tmp_path / "benchmark"
    shutil.copytree(data, benchmark)
    card = json.dumps({"name": "benchmark"})
    (benchmark / "dataset.json").write_text(card)
    rows = (benchmark / "conversations.jsonl").read_text().splitlines()
    kept = [row.replace('"split": "train", ', "") for row in rows[:2]]
    (benchmark / "conversations.jsonl").write_text("\n".join(kept) + "\n")
    done = medloupe("audit", data, "--against", benchmark, "--images", "hash", code=2)
    assert "benchmark/no split row '0a'" in done.out
    assert "patient ids occur in several data sets" in done.out


def test_stats_write_a_page_and_numbers(data: Path, medloupe: Any, tmp_path: Path) -> None:
    done = medloupe("stats", data, "--json", tmp_path / "stats.json")
    assert "train 12, test 4" in done.out
    assert f"page: {data}/stats.html" in done.out
    assert "presence [1]" in (data / "stats.html").read_text("utf-8")
    numbers = json.loads((tmp_path / "stats.json").read_text("utf-8"))
    assert numbers["images"]["sizes"] == {"96 x 80": 8}
    missing = medloupe("stats", data, "--tokenizer", tmp_path / "none", code=2)
    assert "no tokenizer can be loaded" in missing.err


def test_convert_and_back(data: Path, medloupe: Any, tmp_path: Path) -> None:
    words = ("convert", data, tmp_path / "shards", "--workers", "2")
    assert "2 shards with 16 conversations, 0 records, 8 images" in medloupe(*words).out
    assert "0 made now, 2 were there" in medloupe(*words).out
    back = medloupe("convert", tmp_path / "shards", tmp_path / "back", "--unpack")
    assert "16 conversations" in back.out
    assert "no faults" in medloupe("check", tmp_path / "back").out
    (tmp_path / "shards/train-00000.tar").write_bytes(b"short")
    broken = medloupe("convert", tmp_path / "shards", tmp_path / "again", "--unpack", code=2)
    assert "train-00000.tar" in broken.err
    assert "Traceback" not in broken.err


def test_mistakes_are_named(data: Path, medloupe: Any, tmp_path: Path) -> None:
    for words, complaint in (
        (("audit", tmp_path / "nothing"), "the card is missing"),
        (("stats", tmp_path / "nothing"), "the card is missing"),
        (("convert", tmp_path / "nothing", tmp_path / "out"), "the card is missing"),
        (("convert", data, "nosuch://x"), "nosuch"),
        (("audit", data, "--similarity", "2"), "similarity"),
    ):
        refused = medloupe(*words, code=2)
        assert complaint in refused.err
        assert "Traceback" not in refused.err
