"""`medloupe compare`, `rescore` and `card` as a user runs them: stored answers, no model, no images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_logs import answers, made_log, made_row

from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.log import read_log, write_log
from medloupe.types import Answer, EvalLog

RIGHT = {"first": 18, "second": 33}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs over 40 patients, their folders named `first` and `second`."""
    for name, right in RIGHT.items():
        write_log(tmp_path / name / "eval.jsonl", made_log(answers(40, lambda n: n < right)))  # noqa: B023
    return tmp_path


def test_two_runs(medloupe: Callable[..., Any], runs: Path) -> None:
    page = runs / "page.html"
    done = medloupe("compare", runs / "first", runs / "second" / "eval.jsonl", "--out", page)
    assert "40 questions in common" in done.out
    assert "first: first" in done.out
    assert "closed_accuracy.strict" in done.out
    assert "0.45    0.82" in done.out
    assert f"page: {page}" in done.out
    assert "This image could not be read" in page.read_text(encoding="utf-8")


def test_three_runs_each_with_the_first(medloupe: Callable[..., Any], runs: Path) -> None:
    write_log(runs / "third" / "eval.jsonl", made_log(answers(39, lambda n: n < 20)))
    done = medloupe("compare", *(runs / name for name in (*RIGHT, "third")))
    assert done.out.count("questions in common") == 2
    assert "left out: 1 only in first" in done.out


def test_mistakes(medloupe: Callable[..., Any], runs: Path) -> None:
    other = Benchmark(name="made", resamples=200, max_new_tokens=8)
    write_log(runs / "other" / "eval.jsonl", made_log(answers(40, lambda n: n < 9), other))
    first = runs / "first"
    done = medloupe("compare", first, runs / "other", code=2)
    assert "benchmark.max_new_tokens: 64 and 8" in done.err
    done = medloupe("compare", first, runs / "other", "--allow-different-versions")
    assert "versions differ: benchmark.max_new_tokens: 64 and 8" in done.out
    assert "one run cannot be compared" in medloupe("compare", first, code=2).err
    assert "the same log is named twice" in medloupe("compare", first, first, code=2).err
    assert "no such evaluation log" in medloupe("compare", first, runs / "none", code=2).err


def test_a_log_cut_short(medloupe: Callable[..., Any], runs: Path) -> None:
    file, mended = runs / "first" / "eval.jsonl", runs / "mended.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:31]) + lines[31][:50])
    done = medloupe("rescore", file, code=2)
    assert "row 'line 32': not JSON" in done.err
    assert "medloupe rescore FILE --recover" in done.err
    done = medloupe("rescore", file, "--recover", "--out", mended)
    assert "10 missing rows" in done.err
    assert "note: 10 missing rows" in done.out
    log = read_log(mended)
    assert len(log.rows) == 30
    assert log.manifest["recovered"] == {"lines that are no JSON": 1, "missing rows": 10}
    assert "left out: 10 only in second" in medloupe("compare", runs / "second", mended).out


def test_a_log_may_not_name_code(medloupe: Callable[..., Any], runs: Path) -> None:
    file = runs / "first" / "eval.jsonl"
    text = file.read_text(encoding="utf-8")
    foreign = '"closed": [{"name": "os:path"}], "spare": ['
    file.write_text(text.replace('"closed": [', foreign, 1), encoding="utf-8")
    done = medloupe("rescore", file, code=2)
    assert "code outside MedLoupe: scorer 'os:path'" in done.err


def test_the_card(medloupe: Callable[..., Any], runs: Path) -> None:
    done = medloupe("card", runs / "first")
    assert f"card: {runs / 'first' / 'MODEL_CARD.md'}" in done.out
    text = (runs / "first" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| presence | closed\\_accuracy.strict | 40 | 40 | 0 | 0.450" in text


def varied_log() -> EvalLog:
    """Every way of making one number of many: means, a corpus score, a score of a whole set."""
    benchmark = Benchmark(name="made", resamples=300).with_overrides(
        ["scorers.open=[bleu_4.sacrebleu, meteor.exact_stem, open_recall.strict]",
         "scorers.closed=[closed_accuracy.strict, brier.binary, ece.options, auroc.macro]"]
    )  # fmt: skip
    words = ("a large mass in the left lung", "no mass is seen", "there is a small effusion")
    rows = [
        made_row(
            n,
            "yes" if n % 3 else "no",
            truth="yes" if n % 4 else "no",
            patient_id=f"p{n // 3}",
            option_probs=((n % 7 + 1) / 9, 1 - (n % 7 + 1) / 9),
            confidence=(n % 11 + 1) / 13,
            others={"swapped": Answer(text="no"), "majority": Answer(text="yes")},
        )
        for n in range(60)
    ]
    rows += [
        made_row(
            n,
            f"{words[n % 3]} and {words[n % 2]}",
            truth=words[n % 3],
            answer_type="open",
            task="report",
            options=(),
            patient_id=f"p{n // 3 % 20}",
            others={"majority": Answer(text=words[0])},
        )
        for n in range(100, 145)
    ]
    return made_log(rows, benchmark)


def test_scored_again_elsewhere_the_numbers_are_the_same_to_the_last_digit(tmp_path: Path) -> None:
    """Other hashes, other numbers of threads, no vector instructions where numpy has a choice."""
    file = tmp_path / "eval.jsonl"
    write_log(file, varied_log())
    for number, other in enumerate(
        (
            {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            {"PYTHONHASHSEED": "4242", "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2",
             "OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL"},
        )
    ):  # fmt: skip
        out = tmp_path / f"again{number}.jsonl"
        done = subprocess.run(
            [sys.executable, "-c", "from medloupe.cli import main; main()",
             "rescore", str(file), "--out", str(out)],
            capture_output=True,
            text=True,
            env=os.environ | other,
            timeout=300,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert out.read_bytes() == file.read_bytes()
    assert any(m.name == "ece.options" and m.low is not None for m in read_log(file).metrics)
