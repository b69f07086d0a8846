"""Clinical metrics: radeval itself, on tiny checkpoints in the places where it keeps the large ones."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_logs import made_row

from medloupe.errors import MissingExtraError
from medloupe.evaluate.scorers import clinical
from medloupe.evaluate.scorers.base import Scorer
from medloupe.types import EvalRow

KEYS = {
    "radgraph_f1.simple": "radgraph_simple",
    "radgraph_f1.partial": "radgraph_partial",
    "radgraph_f1.complete": "radgraph_complete",
    "chexbert_accuracy_5": "chexbert_5",
    "chexbert_accuracy_14": "chexbert_14",
}
NAMES = [name for name, path in Scorer.table.items() if "scorers.clinical" in path]
PAIRS = [
    ("the left lung is clear .", "the right lung is clear ."),
    ("no effusion .", "the left lung is clear ."),
    ("the heart is large .", "the heart is large ."),
    ("no effusion . the heart is large .", "the heart is large . no effusion ."),
    ("the left lung is clear .", "effusion"),
]
SUPPORT = Path(__file__).parents[1] / "support"
# a process reads once where its caches are, so the scores are asked for in one of its own
SCORE = """
import json, sys
from made_logs import made_row
from medloupe.evaluate.scorers.base import Scorer

names, pairs = json.load(sys.stdin)
scorers = {name: Scorer.parse(name) for name in names}
for scorer in scorers.values():
    scorer.require()
rows = [made_row(n, said, truth, answer_type="open") for n, (truth, said) in enumerate(pairs)]
print("found", json.dumps([{n: s.judge(row) for n, s in scorers.items()} for row in rows]))
"""

needs_radeval = pytest.mark.skipif(
    importlib.util.find_spec("radeval") is None, reason="radeval is not installed"
)


def row(truth: str, answer: str) -> EvalRow:
    return made_row(0, answer, truth, answer_type="open")


def run(*words: str | Path, caches: Path, given: str = "") -> str:
    """Python, with the caches in a folder and no network."""
    places = {
        "HF_HOME": str(caches / "hf"),
        "XDG_CACHE_HOME": str(caches / "xdg"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(SUPPORT),
    }
    done = subprocess.run(
        [sys.executable, *words],
        input=given,
        env=os.environ | places,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def fresh() -> Iterator[None]:
    clinical._scores.cache_clear()
    clinical._reader.cache_clear()
    yield
    clinical._scores.cache_clear()
    clinical._reader.cache_clear()


@needs_radeval
def test_clinical_scores_are_radeval_s(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps(PAIRS), encoding="utf-8")
    run(SUPPORT / "tiny_radeval.py", tmp_path, pairs, caches=tmp_path)
    expected = json.loads((tmp_path / "expected.json").read_text(encoding="utf-8"))
    said = run("-c", SCORE, caches=tmp_path, given=json.dumps([list(KEYS), PAIRS]))
    (line,) = (line for line in said.splitlines() if line.startswith("found "))
    found: list[dict[str, Any]] = json.loads(line.removeprefix("found "))
    assert len(found) == len(PAIRS)
    for scores, numbers in zip(found, expected, strict=True):
        assert {KEYS[name]: value for name, (value, _) in scores.items()} == pytest.approx(numbers)
    same = PAIRS.index(("the heart is large .",) * 2)
    assert all(found[same][name][0] == 1 for name in KEYS)
    for name in KEYS:  # and they tell texts apart, and each other
        assert any(0 < scores[name][0] < 1 for scores in found), name
    columns = {tuple(round(scores[name][0], 9) for scores in found) for name in KEYS}
    assert len(columns) == len(KEYS)


@needs_radeval
def test_models_that_are_not_to_be_had_are_named_before_a_row(tmp_path: Path) -> None:
    names = ["radgraph_f1.partial", "chexbert_accuracy_5", "ratescore"]
    code = f"""
from medloupe.errors import MissingExtraError
from medloupe.evaluate.scorers.base import Scorer

for name in {names}:
    try:
        Scorer.parse(name).require()
    except MissingExtraError as error:
        print(name, "said", error)
"""
    said = run("-c", code, caches=tmp_path)
    for name, metric, needed in zip(
        names,
        ("radgraph", "chexbert", "ratescore"),
        ("radgraph-xl", "chexbert.pth", "medspacy"),
        strict=True,
    ):
        assert f"{name} said radeval's {metric} cannot be loaded: " in said
        assert f" It needs {needed}" in said


@pytest.mark.parametrize("name", NAMES)
def test_radeval_is_named_where_it_is_missing(
    name: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "radeval", None)
    scorer = Scorer.parse(name)
    for ask in (scorer.require, lambda: scorer.judge(row("a", "b"))):
        with pytest.raises(MissingExtraError, match=r'radeval is not.*"medloupe\[clinical\]"'):
            ask()


def test_rows_that_no_model_is_asked_about(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clinical, "_reader", lambda _: None)
    scorer = Scorer.parse("ratescore")
    assert scorer.judge(row("左肺", "左肺")) == (
        None,
        "the truth is Chinese; radeval's models read English",
    )
    assert scorer.judge(row("...", "left")) == (None, "the truth has no words")
    assert scorer.judge(row("left", "")) == (0.0, "the answer has no words")
