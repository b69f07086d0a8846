"""The form assumed for Chili-Joint: interleaved Chinese rows, four tasks, nobody in two splits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import DataError
from medloupe.types import ImageRef

Row = dict[str, Any]


def row(name: str, task: str, images: list[str], text: str, **fields: Any) -> Row:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "骨折线较前模糊。"}]
    patient = images[0].partition("_")[0] if images else "p0"
    return {
        "id": name,
        "patient_id": patient,
        "task": task,
        "image": images,
        "conversations": turns,
        **fields,
    }


def four(patient: str) -> list[Row]:
    before, after = f"{patient}_a.png", f"{patient}_b.png"
    return [
        row(f"{patient}-1", "Description", [before], "<image>请描述这张X光片。", sex="F"),
        row(f"{patient}-2", "Disease", [before], "<image>这是什么病？"),
        row(f"{patient}-3", "Location", [after], "<image>病变在哪里？"),
        row(
            f"{patient}-4",
            "Comparative",
            [before, after],
            "<image>和<image>分别是手术前后，请比较。",
        ),
    ]


@pytest.fixture
def chili(tmp_path: Path, png: Callable[..., str]) -> Callable[..., Path]:
    def write(rows: list[Row]) -> Path:
        root = tmp_path / "chili"
        names = sorted({name for one in rows for name in one["image"] if "absent" not in name})
        for number, name in enumerate(names):
            png(f"chili/images/{name}", seed=number, width=8, height=8)
        root.mkdir(exist_ok=True)
        (root / "chili_joint.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
        return root

    return write


def prepare(root: Path, **fields: Any) -> Dataset:
    config = DatasetConfig.parse({"name": "chili_joint", **fields})
    return config.prepare(root.parent / "out", root=root, progress=lambda *_: None)


def test_the_four_tasks_interleaved(chili: Callable[..., Path]) -> None:
    dataset = prepare(chili(four("p1")), licence="ours")
    assert [r.task for r in dataset.conversations] == [
        "description",
        "disease",
        "location",
        "comparison",
    ]
    assert {r.language for r in dataset.conversations} == {"zh"}
    assert {r.licence for r in dataset.conversations} == {"ours"}
    assert dataset.conversations[0].attributes == {"sex": "F"}
    compared = dataset.conversations[3].messages[0].content
    kinds = [part.uri if isinstance(part, ImageRef) else part.text for part in compared]
    assert kinds == ["images/p1_a.png", "和", "images/p1_b.png", "分别是手术前后，请比较。"]
    assert dataset.card.published == {}
    assert "14K" in dataset.card.description
    assert load_dataset(dataset.root) == dataset


def test_patients_are_split_7_to_15_to_15(chili: Callable[..., Path]) -> None:
    rows = [one for number in range(200) for one in four(f"p{number}")]
    dataset = prepare(chili(rows), images="reference")
    splits: dict[str | None, set[str | None]] = {}
    for one in dataset.conversations:
        splits.setdefault(one.patient_id, set()).add(one.split)
    assert all(len(found) == 1 for found in splits.values())
    counts = Counter(found.pop() for found in splits.values())
    # binomial: 140 +- 4 standard deviations of 6.5, 30 +- 4 of 5
    assert 114 <= counts["train"] <= 166
    assert 10 <= counts["validation"] <= 50
    assert 10 <= counts["test"] <= 50


@pytest.mark.parametrize(
    ("changed", "rule", "field"),
    [
        (row("1", "Diagnosis", ["p_a.png"], "<image>?"), "unknown task 'Diagnosis'", "task"),
        (row("1", "Comparative", ["p_a.png"], "<image>?"), "needs 2 images", "image"),
        (row("1", "Disease", [], "没有图像？"), "needs 1 images", "image"),
        (row("1", "Disease", ["p_a.png"], "没有图像？"), "holds 0 <image>", "image"),
        (
            row("1", "Disease", ["p_a.png"], "<image>?", patient_id=None),
            "its patient",
            "patient_id",
        ),
        (row("1", "Disease", ["absent.png"], "<image>?"), "no such image", None),
    ],
)
def test_what_is_wrong_is_named(
    chili: Callable[..., Path], changed: Row, rule: str, field: str | None
) -> None:
    with pytest.raises(DataError, match=rule) as caught:
        prepare(chili([changed]))
    assert caught.value.fault.row == "1"
    assert caught.value.fault.field == field
