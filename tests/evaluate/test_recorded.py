"""Files of answers that something else wrote, with everything that can be wrong in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medloupe.data.dataset import Dataset
from medloupe.errors import DataError, MedLoupeError
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.predictors.recorded import RecordedPredictor
from medloupe.evaluate.runner import run_benchmark
from medloupe.types import Conversation, Generation, Message, Text


def row(name: str, *options: str) -> Conversation:
    message = Message(role="user", content=(Text(text="?"),))
    return Conversation(id=name, messages=(message,), options=options)


def recorded(path: Path, *lines: Any) -> RecordedPredictor:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text))
    return RecordedPredictor(path)


def test_answers_by_id_with_all_they_say(tmp_path: Path) -> None:
    box = {"label": "mass", "x1": 1, "y1": 2, "x2": 3, "y2": 4, "score": 0.5}
    other = {"label": "mass", "image": 0, "pixels": [1, 2, 3, 4], "score": 0.5, "mm": None}
    predict = recorded(
        tmp_path / "p.jsonl",
        {"id": "b", "prediction": "no", "option_probs": [0.2, 0.8]},
        {"id": "a", "answer": "yes", "confidence": 0.25, "boxes": [box, other]},
        {"id": "c", "answer": "", "option_probs": {"no": 0.75, "yes": 0.25}, "confidence": 0},
        {"id": "d", "answer": "x", "finish_reason": "length"},
    )
    rows = [row("a"), row("b", "yes", "no"), row("c", "yes", "no"), row("d")]
    a, b, c, d = predict(rows, progress=lambda *_: None)
    assert (a.text, a.confidence) == ("yes", pytest.approx(0.25))
    assert a.boxes[0] == a.boxes[1]
    assert b.option_probs == (0.2, 0.8)
    assert (c.text, c.option_probs, c.confidence) == ("", (0.25, 0.75), 0)
    assert d.finish_reason == "length"
    assert not predict.faults


def test_what_is_wrong_is_told_or_counted(tmp_path: Path) -> None:
    predict = recorded(
        tmp_path / "p.jsonl",
        {"id": "twice", "answer": "yes"},
        {"id": "twice", "answer": "no"},
        {"id": "unknown", "answer": "yes"},
        {"id": "failed", "answer": None, "error": "the image is cut"},
        {"id": "number", "answer": 3},
        '{"id": "nan", "answer": "yes", "confidence": NaN, "option_probs": [NaN, 0.5]}',
        {
            "id": "box",
            "answer": "a",
            "boxes": [{"label": "x", "x1": 5, "y1": 0, "x2": 1, "y2": 1}, 3],
        },
        {"id": "box2", "answer": "a", "boxes": "none", "option_probs": [0.1]},
        {"answer": "nobody's"},
        "[]",
        '{"id": "cut',
    )
    names = ("twice", "missing", "failed", "number", "nan", "box", "box2")
    rows = [row(name, "yes", "no") for name in names]
    heard: dict[int, Any] = {}
    predict.answer_each(rows, heard.__setitem__, progress=lambda *_: None)
    told = {names[n]: str(x) for n, x in heard.items() if isinstance(x, MedLoupeError)}
    assert set(told) == {"twice", "missing", "failed", "number"}
    assert "2 answers" in told["twice"]
    assert "no answers" in told["missing"]
    assert "the image is cut" in told["failed"]
    answered = {names[n]: x for n, x in heard.items() if isinstance(x, Generation)}
    assert answered["nan"].confidence is None
    assert answered["nan"].option_probs == ()
    assert answered["box"].boxes == answered["box2"].boxes == ()
    assert predict.count_unknown(rows) == 1
    assert predict.faults == {
        "lines without an id": 2,
        "lines that are not JSON": 1,
        "probabilities that are none": 2,
        "malformed boxes": 3,
        "option_probs of other options": 1,
        "ids of no row": 1,
    }
    with pytest.raises(DataError):
        predict(rows, progress=lambda *_: None)


def test_a_file_without_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no line is an answer"):
        recorded(tmp_path / "p.jsonl", "nothing")
    with pytest.raises(DataError, match="cannot be read"):
        RecordedPredictor(tmp_path / "absent.jsonl")


def test_a_benchmark_scores_a_file(squares: Dataset, tmp_path: Path) -> None:
    benchmark = Benchmark(name="squares", tasks=("presence",), resamples=100)
    rows = benchmark.select(squares)
    lines = [{"id": one.id, "answer": one.answer.text} for one in rows[1:] if one.answer]
    predict = recorded(tmp_path / "p.jsonl", *lines)
    log = run_benchmark(benchmark, squares, predict, manifest={}, seed=0, probes=())
    (found,) = [
        m
        for m in log.metrics
        if (m.name, m.arm, m.group) == ("closed_accuracy.strict", "model", "presence")
    ]
    assert (found.estimate, found.n, found.unscored) == (1, len(rows) - 1, 1)
