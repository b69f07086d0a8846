"""Source rows out of files of other people's making, and out of prepared data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medloupe.errors import ConfigError, DataError
from medloupe.synthesis.sources import SourceConfig
from medloupe.synthesis.types import SourceRow


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def rows(path: Path, **fields: Any) -> list[SourceRow]:
    return list(SourceConfig.parse({"path": str(path)} | fields).rows())


def test_a_stated_mapping(tmp_path: Path) -> None:
    figure = {
        "pmid": 17,
        "figure": {"caption": "T2 image of the knee.", "file": "a/1.jpg"},
        "in_text_mention": ["See Fig. 1."],
        "kind_of_image": "MRI",
        "unused": {"x": 1},
    }
    path = lines(tmp_path / "in/figures.jsonl", figure)
    fields = {
        "id": "pmid",
        "text": "figure.caption",
        "images": "figure.file",
        "mentions": "in_text_mention",
        "modality": "kind_of_image",
    }
    images = tmp_path / "pictures"
    (row,) = rows(path, fields=fields, images=str(images), licence="CC-BY-4.0", domain="MRI")
    assert (row.id, row.kind, row.text) == ("17", "caption", "T2 image of the knee.")
    assert row.mentions == ("See Fig. 1.",)
    assert row.images[0].uri == str(images / "a/1.jpg")
    assert (row.modality, row.domain, row.licence) == ("MRI", "MRI", "CC-BY-4.0")
    assert row.dataset == "figures"


def test_what_rows_say_goes_before_what_the_config_says(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "f.jsonl",
        {"id": "a", "text": "肺部纹理增粗。", "modality": "CT", "licence": "CC0", "kind": "report"},
        {"id": "b", "text": "A band.", "split": "test"},
    )
    first, second = rows(path, modality="X-ray", language=None)
    assert (first.modality, first.language, first.kind, first.licence) == (
        "CT",
        "zh",
        "report",
        "CC0",
    )
    assert (second.modality, second.language, second.split) == ("X-ray", "en", "test")
    assert rows(path, licence="own", kind="caption")[0].licence == "own"
    assert rows(path, kind="caption")[0].kind == "caption"
    assert [row.id for row in rows(path, splits=["test"])] == ["b"]
    assert [row.id for row in rows(path, limit=1)] == ["a"]


def test_captions_of_a_prepared_set(tmp_path: Path) -> None:
    image = {"type": "image", "uri": "i/1.png", "modality": "CT"}
    box = {"type": "box", "label": "cyst", "x1": 1, "y1": 2, "x2": 3, "y2": 4}

    def said(name: str, task: str, *parts: dict[str, Any]) -> dict[str, Any]:
        asked = {"role": "user", "content": [image, {"type": "text", "text": "Describe it."}]}
        return {
            "id": name,
            "task": task,
            "messages": [asked, {"role": "assistant", "content": list(parts)}],
        }

    text = {"type": "text", "text": "A cyst."}
    lines(
        tmp_path / "conversations.jsonl", said("a", "caption", text, box), said("b", "side", text)
    )
    card = {"name": "mine", "licence": "CC0", "access": "none needed"}
    (tmp_path / "dataset.json").write_text(json.dumps(card))
    (row,) = rows(tmp_path, tasks=["caption"])
    assert (row.id, row.kind, row.text, row.dataset) == ("a", "caption", "A cyst.", "mine")
    assert row.boxes[0].label == "cyst"
    assert row.images[0].uri == str(tmp_path / "i/1.png")
    assert (row.modality, row.licence, row.access) == ("CT", "CC0", "none needed")
    assert len(rows(tmp_path)) == 2


def test_a_pair_has_both_texts_and_its_boxes_on_the_later_images(tmp_path: Path) -> None:
    box = {"label": "cyst", "x1": 1, "y1": 2, "x2": 3, "y2": 4}
    earlier = {"id": "a", "images": [{"uri": "a.png"}], "report": {"findings": "Small cyst."}}
    later = {
        "id": "b",
        "images": [{"uri": "b.png"}],
        "report": {"findings": "Larger cyst."},
        "boxes": [box],
        "prior": "a",
    }
    (tmp_path / "dataset.json").write_text('{"name": "mine"}')
    lines(tmp_path / "records.jsonl", later, earlier)
    pair, alone = rows(tmp_path, pairs=True)
    assert (pair.kind, alone.kind) == ("pair", "report")
    assert (pair.text, pair.sections["prior"]) == ("Larger cyst.", "Small cyst.")
    assert [Path(ref.uri).name for ref in pair.images] == ["a.png", "b.png"]
    assert pair.boxes[0].image == 1
    assert [row.kind for row in rows(tmp_path)] == ["report", "report"]
    lines(tmp_path / "records.jsonl", later)
    with pytest.raises(DataError, match="earlier study 'a' is not among the records"):
        rows(tmp_path, pairs=True)


def test_faults_are_placed(tmp_path: Path) -> None:
    path = lines(tmp_path / "f.jsonl", {"id": "a", "text": "x"}, {"text": "no id"})
    with pytest.raises(DataError, match=r"f\.jsonl.*row 'line 2'.*field 'id'"):
        rows(path)
    path.write_text('{"id": "a"\n')
    with pytest.raises(DataError, match="line 1 is not JSON"):
        rows(path)
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(DataError, match="line 1 is not UTF-8"):
        rows(path)
    with pytest.raises(ConfigError, match="did you mean 'text'"):
        rows(path, fields={"txt": "caption"})
    with pytest.raises(ConfigError, match="no such file"):
        rows(tmp_path / "gone.jsonl")


def test_chinese_is_seen_in_any_part_of_a_row_that_states_no_language(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "f.jsonl",
        {"id": "section", "kind": "report", "sections": {"findings": "肺部纹理增粗。"}},
        {"id": "label", "kind": "labels", "labels": ["胸腔积液"]},
        {"id": "stated", "text": "The sign reads 胸.", "language": "en"},
        {"id": "neither", "text": "A band."},
    )
    assert [row.language for row in rows(path)] == ["zh", "zh", "en", "en"]
    assert [row.language for row in rows(path, language="zh")] == ["zh"] * 4
    image = {"type": "image", "uri": "a.png"}
    said = {"role": "assistant", "content": [{"type": "text", "text": "胸片。"}]}
    asked = {"role": "user", "content": [image]}
    row = {"id": "a", "messages": [asked, said]}
    (tmp_path / "dataset.json").write_text('{"name": "mine"}')
    lines(tmp_path / "conversations.jsonl", row, row | {"id": "b", "language": "en"})
    assert [row.language for row in rows(tmp_path)] == ["zh", "en"]
