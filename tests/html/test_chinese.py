"""Chinese in a report, seen through a real browser: each character is drawn, and none is a box."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medloupe.data.dataset import DatasetCard
from medloupe.data.datasets.starter.words import CHINESE
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.report import render_report
from medloupe.evaluate.runner import rescore
from medloupe.html.markup import Html, tag
from medloupe.html.page import document
from medloupe.types import EvalLog, EvalRow, ImageRef

NO_FONT_HAS = "\u0378"  # not assigned: whatever the browser draws for it is its missing-glyph box
LARGEST = 32  # glyphs are compared on a grid of this side
APART = 0.08  # mean difference of two glyphs' ink: above it they are two characters


def row(number: int, question: str, truth: str, said: str) -> EvalRow:
    return EvalRow.parse(
        {
            "id": f"row{number}",
            "patient_id": f"p{number}",
            "task": "comparison",
            "template": "comparison/zh",
            "answer_type": "open",
            "images": (ImageRef(uri="a.png"), ImageRef(uri="b.png")),
            "question": question,
            "truth": truth,
            "prediction": said,
        }
    )


@pytest.fixture(scope="module")
def page() -> str:
    """A report with every kind of Chinese text: questions, answers, and what no font has."""
    names = [name for name in CHINESE.names.values() if not name.isdigit()]
    rows = [
        row(number, question.format(kind="环形", options="囊性或靶形", first="第一次", last="第二次"),
            "、".join(names[number::4]), "，".join(names[1 + number :: 5]))
        for number, question in enumerate(list(CHINESE.questions.values())[:6])
    ]  # fmt: skip
    rows.append(
        row(99, "手术前（12天前）：手术后：比较这两次检查。", f"无{NO_FONT_HAS}病灶", "新发")
    )
    manifest = {
        "benchmark": Benchmark(name="中文", resamples=100).to_dict(),
        "dataset": DatasetCard(name="few").to_dict(),
        "rows_digest": "0",
        "evaluation_seed": 0,
    }
    log = rescore(EvalLog(benchmark="中文", version="v", manifest=manifest, rows=tuple(rows)))
    return render_report(log, lambda _: np.full((40, 60), 30, dtype=np.uint8))


def grid(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    image = Image.fromarray((ink * 255).astype(np.uint8))
    small = image.resize((LARGEST, LARGEST), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).mean())


def characters(glyphs: Sequence[Any]) -> dict[str, list[NDArray[np.float32]]]:
    """Chinese characters and the missing one -> how each was drawn, wherever it stands."""
    found: defaultdict[str, list[NDArray[np.float32]]] = defaultdict(list)
    for glyph in glyphs:
        if "一" <= glyph.character <= "\u9fff" or glyph.character == NO_FONT_HAS:
            found[glyph.character].append(
                grid(glyph.ink) if glyph.ink.size else np.zeros((LARGEST, LARGEST), np.float32)
            )
    return dict(found)


def alike(drawn: dict[str, list[NDArray[np.float32]]]) -> list[tuple[str, str]]:
    """The pairs of different characters that look the same."""
    return [(a, b) for a, b in combinations(drawn, 2) if distance(drawn[a][0], drawn[b][0]) < APART]


def fonts(query: str) -> set[str]:
    if shutil.which("fc-list") is None:
        pytest.skip("fc-list, which names the installed fonts, is not here")
    listed = subprocess.run(
        ["fc-list", query, "file"], capture_output=True, text=True, check=True, timeout=60
    )
    return {line.split(":")[0] for line in listed.stdout.splitlines()}


def test_each_character_is_drawn_and_none_is_a_box(
    page: str, look: Callable[..., Any], tmp_path: Path
) -> None:
    if not fonts(":lang=zh-cn"):
        pytest.skip("no Chinese font is installed (Debian: fonts-noto-cjk)")
    drawn = characters(look(page, tmp_path / "page.png"))
    missing = drawn.pop(NO_FONT_HAS)[0]
    assert len(drawn) > 60
    for name, pictures in drawn.items():
        assert pictures[0].mean() > 0.05, f"{name} is blank"
        assert distance(pictures[0], missing) > APART, f"{name} is the missing-glyph box"
    assert alike(drawn) == []


def test_characters_take_their_chinese_form(look: Callable[..., Any], tmp_path: Path) -> None:
    """The pages are marked as English, and these look otherwise in Japanese fonts."""
    if not (fonts("Noto Sans CJK SC") and fonts("Noto Sans CJK JP")):
        pytest.skip("Noto Sans CJK is not installed (Debian: fonts-noto-cjk)")
    own, *named = [
        tag("p", "骨直述", style=f"font-size: 3rem; {family}")
        for family in ("", "font-family: Noto Sans CJK SC", "font-family: Noto Sans CJK JP")
    ]
    drawn = characters(look(document("forms", own, *named, style=Html("")), tmp_path / "forms.png"))
    for name, (as_shown, chinese, japanese) in drawn.items():
        assert distance(as_shown, chinese) < 0.01 < distance(chinese, japanese), name


def test_without_a_chinese_font_the_same_look_finds_boxes(
    page: str, look: Callable[..., Any], tmp_path: Path
) -> None:
    """Proof that the test above would see them."""
    latin = sorted(fonts(":lang=en") - fonts(":lang=zh-cn") - fonts(":lang=ja"))
    if not latin:
        pytest.skip("no Latin font is installed")
    folder = tmp_path / "fonts"
    folder.mkdir()
    shutil.copy(latin[0], folder)
    config = tmp_path / "fonts.conf"
    config.write_text(
        f"<fontconfig><dir>{folder}</dir><cachedir>{tmp_path / 'cache'}</cachedir></fontconfig>"
    )
    environment = os.environ | {"FONTCONFIG_FILE": str(config)}
    drawn = characters(look(page, tmp_path / "page.png", environment))
    assert len(alike(drawn)) > 1000
