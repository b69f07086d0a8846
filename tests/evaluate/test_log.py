"""A log comes back equal, and whatever is wrong with it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_logs import made_log, made_row

from medloupe.errors import DataError
from medloupe.evaluate.log import RECOVERED, noted, read_log, recover_log, write_log
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


def row_line(lines: list[dict[str, object]]) -> dict[str, object]:
    return lines[1]


def rules(path: Path) -> dict[str, int]:
    """What recovering a file says of it."""
    return recover_log(path).counted


def test_a_whole_log_is_recovered_as_it_is(log: EvalLog, path: Path) -> None:
    found = recover_log(path)
    assert (found.log, found.faults) == (log, ())


def test_a_log_cut_anywhere_is_read_as_far_as_it_goes(log: EvalLog, path: Path) -> None:
    """Every length of the file after its header: no crash, and nothing silently missing."""
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    for length in range(head, len(whole) - 1, 17):
        path.write_bytes(whole[:length])
        found = recover_log(path)
        assert len(found.log.rows) + found.counted.get("missing rows", 0) == 2
        lasting = found.log.manifest.get(RECOVERED, {})
        assert ("missing rows" in lasting) == (len(found.log.rows) < 2)
        assert found.log.rows == log.rows[: len(found.log.rows)]
        assert (found.log.scores, found.log.metrics) == ((), ())


def test_probabilities_that_are_no_numbers_leave_their_row(path: Path) -> None:
    def spoil(lines: list[dict[str, object]]) -> None:
        row_line(lines).update(confidence=float("nan"), option_probs=[0.5, float("inf")])
        lines[2]["others"] = {"swapped": {"text": "x", "confidence": float("-inf")}}

    edited(path, spoil)
    assert "NaN" in path.read_text(encoding="utf-8")
    with pytest.raises(DataError, match=r"finite number.*--recover"):
        read_log(path)
    first, second = recover_log(path).log.rows
    assert (first.confidence, first.option_probs, first.error) == (None, (), "")
    assert second.others["swapped"].text == "x"
    assert rules(path) == {"probabilities that are no numbers": 3}


def test_malformed_boxes_leave_their_row(log: EvalLog, path: Path) -> None:
    good = {"label": "", "x1": 1, "y1": 1, "x2": 2, "y2": 2}
    bad = [
        {"label": "", "x1": 5, "y1": 1, "x2": 2, "y2": 2},
        {"label": "", "x1": float("nan"), "y1": 1, "x2": 2, "y2": 2},
        {"label": ""},
        "box",
    ]
    edited(path, lambda lines: row_line(lines).update(predicted_boxes=[*bad[:2], good, *bad[2:]]))
    (first, second) = recover_log(path).log.rows
    assert first.predicted_boxes == (Box(label="", x1=1, y1=1, x2=2, y2=2),)
    assert (first.error, second) == ("", log.rows[1])
    assert rules(path) == {"malformed boxes": 4}


def test_a_malformed_truth_makes_a_row_unscored(path: Path) -> None:
    edited(path, lambda lines: row_line(lines).update(truth_boxes=[{"label": ""}]))
    first, _ = recover_log(path).log.rows
    assert first.error == "its boxes are malformed"
    assert rules(path) == {"malformed boxes": 1}


def _twice_alike(lines: list[dict[str, object]]) -> None:
    lines.insert(3, dict(lines[1]))


def _twice_otherwise(lines: list[dict[str, object]]) -> None:
    lines.insert(3, dict(lines[1]) | {"prediction": "another"})


@pytest.mark.parametrize(
    ("edit", "counted", "rows"),
    [
        (_twice_alike, {"rows that stand there twice": 1}, 2),
        (_twice_otherwise, {"ids with two different rows": 1}, 2),
        (_foreign_score, {"scores of unknown rows": 1}, 2),
        (_score_twice, {"scores that stand there twice": 1, "missing scores": 1}, 2),
        (lambda lines: lines[3].update(value="x"), {"scores that cannot be read": 1, "missing scores": 1}, 2),
        (lambda lines: lines[1].pop("truth"), {"rows that cannot be read": 1, "missing rows": 1,
                                              "scores of unknown rows": 1}, 1),
        (lambda lines: lines[1].update(type="x"), {"lines of an unknown type": 1, "missing rows": 1,
                                                  "scores of unknown rows": 1}, 1),
    ],
)  # fmt: skip
def test_what_is_wrong_is_counted(
    path: Path,
    edit: Callable[[list[dict[str, object]]], object],
    counted: dict[str, int],
    rows: int,
) -> None:
    edited(path, edit)
    assert rules(path) == counted
    assert len(recover_log(path).log.rows) == rows


def test_of_two_answers_with_one_id_neither_counts(path: Path) -> None:
    edited(path, _twice_otherwise)
    found = {row.id: row.error for row in recover_log(path).log.rows}
    assert found == {"a": "lines 2 and 4 differ", "b": ""}


def test_no_header_no_log(path: Path) -> None:
    edited(path, lambda lines: lines.pop(0))
    with pytest.raises(DataError, match="the first line is no header"):
        recover_log(path)


def test_what_a_reader_must_know() -> None:
    rows = [made_row(n, "yes", confidence=0.5) for n in range(4)]
    rows += [
        made_row(4, " "),
        made_row(5, "", error="the image cannot be read"),
        made_row(6, "y", finish_reason="length"),
    ]
    log = made_log(rows)
    assert noted(log) == {
        "rows without an answer": 1,
        "empty answers": 1,
        "answers cut at the longest length": 1,
        "answers without a probability": 2,
        "rows that some scorer could not score": 1,
    }
    assert noted(made_log(rows[:4])) == {}
    assert noted(made_log(rows[:4], **{RECOVERED: {"missing rows": 7}})) == {"missing rows": 7}


def test_a_row_without_an_answer_is_unscored_and_an_empty_answer_is_wrong() -> None:
    log = made_log([made_row(0, "yes", error="refused"), made_row(1, ""), made_row(2, "yes")])
    values = {s.id: s.value for s in log.scores if s.scorer == "closed_accuracy.strict"}
    assert values == {"r0000": None, "r0001": 0.0, "r0002": 1.0}
    (reason,) = {s.reason for s in log.scores if s.id == "r0000"}
    assert reason == "no answer: refused"
    (metric,) = (
        m for m in log.metrics if (m.name, m.group) == ("closed_accuracy.strict", "presence")
    )
    assert (metric.estimate, metric.n, metric.unscored) == (0.5, 2, 1)
