"""A log comes back equal, and whatever is wrong with it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medloupe.errors import DataError
from medloupe.evaluate.log import read_log, write_log
from medloupe.types import Box, EvalLog, EvalRow, ImageRef, Metric, Score


@pytest.fixture
def log() -> EvalLog:
    rows = tuple(
        EvalRow(
            id=id,
            patient_id=None,
            task="side",
            template="t",
            answer_type="closed",
            images=(ImageRef(uri="a.png"),),
            question="哪一侧？",
            truth="左",
            truth_boxes=(Box(label="环", x1=0.1, y1=1 / 3, x2=2, y2=3),),
            prediction="line one\nline two\u2028three",
        )
        for id in ("a", "b")
    )
    scores = (Score(id="a", scorer="exact_match", value=0.1 + 0.2),)
    metrics = (Metric(name="exact_match", estimate=None, n=0, unscored=2),)
    return EvalLog(
        benchmark="b", version="v", manifest={"seed": 1}, rows=rows, scores=scores, metrics=metrics
    )


@pytest.fixture
def path(log: EvalLog, tmp_path: Path) -> Path:
    write_log(tmp_path / "runs" / "log.jsonl", log)
    return tmp_path / "runs" / "log.jsonl"


def edited(path: Path, edit: Callable[[list[dict]], object]) -> Path:  # type: ignore[type-arg]
    lines = [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]
    edit(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_round_trip_and_equal_bytes(log: EvalLog, path: Path, tmp_path: Path) -> None:
    assert read_log(path) == log
    write_log(tmp_path / "again.jsonl", read_log(path))
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["log.jsonl"]  # no temporary is left


def test_a_log_without_rows(tmp_path: Path) -> None:
    empty = EvalLog(benchmark="b", version="v", manifest={}, rows=())
    write_log(tmp_path / "empty.jsonl", empty)
    assert read_log(tmp_path / "empty.jsonl") == empty


def test_rows_meet_their_scores_by_id_not_by_place(log: EvalLog, path: Path) -> None:
    again = read_log(edited(path, lambda lines: lines.insert(1, lines.pop(2))))
    assert [row.id for row in again.rows] == ["b", "a"]
    assert again.scores == log.scores


def _repeat_row(lines: list[dict[str, object]]) -> None:
    lines[2]["id"] = "a"


def _foreign_score(lines: list[dict[str, object]]) -> None:
    lines[3]["id"] = "z"


def _score_twice(lines: list[dict[str, object]]) -> None:
    lines.append(dict(lines[3]))
    lines[0]["counts"] = {"row": 2, "score": 2, "metric": 1}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_repeat_row, "row 'a': two rows have the same id"),
        (_foreign_score, "row 'z': a score of a row that is not there"),
        (_score_twice, "row 'a': scored twice by 'exact_match'"),
        (lambda lines: lines.pop(), "the header counts 1 metric lines, the file has 0"),
        (lambda lines: lines.pop(0), "the first line is no header"),
        (lambda lines: lines[1].pop("truth"), "row 'line 2', field 'truth': Field required"),
        (lambda lines: lines[1].update(tipe="x"), "field 'tipe'"),
        (lambda lines: lines[1].update(type="sample"), "unknown line type 'sample'"),
    ],
)
def test_faults_are_named(
    path: Path, edit: Callable[[list[dict[str, object]]], object], message: str
) -> None:
    with pytest.raises(DataError) as error:
        read_log(edited(path, edit))
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_cut_in_a_line(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="row 'line 5': not JSON"):
        read_log(path)


@pytest.mark.parametrize("content", [b"", b"[]\n", b"\xff\xfe\x00", b'{"type": "header"}\n'])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="not a"):
        read_log(tmp_path / "x.jsonl")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such evaluation log"):
        read_log(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no such evaluation log"):
        read_log(tmp_path)
