"""Two logs side by side: what is paired, what is left out, and what the numbers are."""

from __future__ import annotations

import numpy as np
import pytest
from made_logs import BENCHMARK, answers, made_log, made_row
from scipy import stats

from medloupe.errors import DataError
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.metrics import score_rows
from medloupe.evaluate.paired import (
    Comparison,
    PairedLine,
    compare_logs,
    differences,
    version_differences,
)
from medloupe.evaluate.statistics import Estimate, paired_difference
from medloupe.types import EvalLog, EvalRow

STRICT = "closed_accuracy.strict"


def line(
    found: Comparison, scorer: str = STRICT, group: str = "presence", value: str = ""
) -> PairedLine:
    lines = found.subgroups if value else found.lines
    (one,) = (
        one
        for one in lines
        if (one.scorer, one.value) == (scorer, value) and (value or one.group == group)
    )
    return one


def test_one_answer_a_patient_is_mcnemar_s_table() -> None:
    # 60 patients: both right in 20, the second alone in 25, the first alone in 5, none in 10.
    first = made_log(answers(60, lambda n: n < 25))
    second = made_log(answers(60, lambda n: n < 20 or 25 <= n < 50))
    found = line(compare_logs(first, second))
    assert (found.n, found.patients, found.unscored) == (60, 60, 0)
    assert (found.first, found.second) == (25 / 60, 45 / 60)
    gaps = np.array([0.0] * 20 + [-1] * 5 + [1] * 25 + [0] * 10)
    names = [f"patient p{n:04d}" for n in range(60)]
    assert found.difference == paired_difference(gaps, gaps * 0, names, resamples=200, seed=5)
    assert found.p == pytest.approx(stats.binomtest(25, 30).pvalue, abs=1e-12)
    assert found.visible == pytest.approx(2.801585 * stats.sem(gaps), rel=1e-9)
    assert found.winner == "second"
    assert found.note == ""


def test_p_is_corrected_over_tasks_and_scorers() -> None:
    rows = [*answers(30, lambda n: n < 20)]
    rows += [made_row(n, "yes", task="side") for n in range(30, 60)]
    better = [*answers(30, lambda n: n < 29)]
    better += [made_row(n, "yes", task="side") for n in range(30, 60)]
    found = compare_logs(made_log(rows), made_log(better))
    names = [(one.group, one.scorer) for one in found.lines]
    assert names == [
        (group, f"closed_accuracy.{flavour}")
        for group in ("", "presence", "side")
        for flavour in ("strict", "llava_med")
    ]
    one = line(found)
    assert one.p == pytest.approx(2 * 0.5**9)
    assert one.holm == pytest.approx(4 * one.p + 2 * one.p)  # the smallest of six
    assert line(found, group="side").p == 1.0
    assert line(found, group="side").winner == "neither"


def test_what_cannot_be_compared_is_left_out_and_counted() -> None:
    rows = [made_row(n, "yes") for n in range(20)]

    def edited(number: int, **fields: object) -> EvalRow:
        return rows[number].model_copy(update=fields)

    other = [
        edited(0, question="Is there none?"),
        edited(1, truth="no"),
        edited(2, patient_id="another"),
        edited(3, error="the image cannot be read", prediction=""),
        edited(4, images=()),
        *rows[6:],
        made_row(99, "no"),
    ]
    found = compare_logs(made_log(rows), made_log(other), names=("A", "B"))
    assert found.left_out == {
        "another image": ("r0004",),
        "another patient": ("r0002",),
        "another question": ("r0000",),
        "another truth": ("r0001",),
        "no answer of B": ("r0003",),
        "only in A": ("r0005",),
        "only in B": ("r0099",),
    }
    assert len(found.pairs) == 14
    assert line(found).n == 14


def test_rows_that_one_run_could_not_be_scored_on_are_counted() -> None:
    rows = answers(30, lambda n: n % 2 == 0)
    log = made_log(rows)
    scores = tuple(
        score.model_copy(update={"value": None, "reason": "?"}) if score.id == "r0007" else score
        for score in log.scores
    )
    found = line(compare_logs(log, log.model_copy(update={"scores": scores})))
    assert (found.n, found.unscored) == (29, 1)
    assert found.difference == Estimate(0.0, 0.0, 0.0)
    assert found.p == 1.0
    assert found.visible is None


def test_few_patients_come_with_what_could_have_been_seen() -> None:
    first, second = made_log(answers(8, lambda n: n < 4)), made_log(answers(8, lambda n: n < 6))
    found = line(compare_logs(first, second))
    assert found.note.startswith("fewer than 10 patients; differences below 0.")
    one = [made_row(n, "yes", patient_id="p") for n in range(4)]
    alone = line(compare_logs(made_log(one), made_log(one)))
    assert (alone.p, alone.note) == (None, "one patient: no interval and no test")
    assert alone.difference == Estimate(0.0, None, None)


def test_versions_must_agree_unless_they_may_differ() -> None:
    rows = answers(20, lambda n: n < 10)
    other = Benchmark(name="made", resamples=200, instruction="Answer yes or no.")
    first, second = made_log(rows), made_log(rows, other, rows_digest="f" * 16)
    assert version_differences(first, first) == ()
    with pytest.raises(DataError) as error:
        compare_logs(first, second, names=("A", "B"))
    for part in ("A and B", "benchmark.instruction:  and Answer yes or no.", f"and {'f' * 16}"):
        assert part in str(error.value)
    assert "--allow-different-versions" in str(error.value)
    found = compare_logs(first, second, allow_different_versions=True)
    assert len(found.versions) == 3
    assert line(found).n == 20


def test_other_versions_are_scored_alike() -> None:
    """The second run's own scorers are not the first's: its answers are scored by the first's."""
    rows = answers(20, lambda n: n < 10)
    exact = BENCHMARK.with_overrides(["scorers.closed=[exact_match]"])
    second = made_log(rows, exact)
    assert {score.scorer for score in second.scores} == {"exact_match"}
    found = line(compare_logs(made_log(rows), second, allow_different_versions=True))
    assert (found.n, found.difference.estimate) == (20, 0.0)


def test_nothing_in_common() -> None:
    with pytest.raises(DataError, match="no question in common"):
        compare_logs(made_log([made_row(1, "yes")]), made_log([made_row(2, "yes")]))


def test_subgroups_are_compared_within_and_corrected_apart() -> None:
    # The second is better on MR (even numbers) alone.
    first = made_log(answers(60, lambda n: n < 30))
    second = made_log(answers(60, lambda n: n < 30 or n % 2 == 0))
    found = compare_logs(first, second)
    assert [(one.dimension, one.value) for one in found.subgroups] == [
        ("modality", "CT"),
        ("modality", "MR"),
    ]
    mr, ct = line(found, value="MR"), line(found, value="CT")
    assert (mr.n, mr.first, mr.second) == (30, 0.5, 1.0)
    assert (ct.n, ct.difference.estimate, ct.p) == (30, 0.0, 1.0)
    assert mr.p == pytest.approx(2 * 0.5**15)
    assert mr.holm == pytest.approx(2 * mr.p)


def test_scores_of_all_rows_together_are_tested_by_exchanging_answers() -> None:
    benchmark = Benchmark(name="made", resamples=200).with_overrides(
        ["scorers.open=[bleu_1.sacrebleu]"]
    )
    words = ("a large mass in the left lung", "no mass is seen in the lung", "small effusion")

    def rows(right: int) -> list[EvalRow]:
        return [
            made_row(
                n,
                words[n % 3] if n < right else "something else was said here",
                truth=words[n % 3],
                answer_type="open",
                task="report",
                options=(),
            )
            for n in range(30)
        ]

    found = compare_logs(made_log(rows(12), benchmark), made_log(rows(24), benchmark))
    (one,) = found.lines
    assert one.scorer == "bleu_1.sacrebleu"
    assert one.p is not None
    assert one.p < 0.005
    assert one.difference.low is not None
    assert one.difference.low > 0
    alike = compare_logs(made_log(rows(12), benchmark), made_log(rows(12), benchmark)).lines[0]
    assert (alike.p, alike.difference) == (1.0, Estimate(0.0, 0.0, 0.0))


def test_scores_of_the_logs_are_used_as_they_stand() -> None:
    log = made_log(answers(20, lambda n: n < 10))
    bare = log.model_copy(update={"scores": ()})
    assert compare_logs(bare, log).lines == compare_logs(log, log).lines
    assert score_rows(log.rows, BENCHMARK) == log.scores


def test_differences_of_nested_values() -> None:
    first = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": None}
    second = {"a": 1, "b": {"c": [1], "d": "x"}, "f": "new"}
    assert list(differences(first, second)) == [
        ("b.c", "[1, 2]", "[1]"),
        ("e", "null", "-"),
        ("f", "-", "new"),
    ]


def test_of_a_score_where_lower_is_better_the_lower_wins() -> None:
    benchmark = Benchmark(name="made", resamples=200).with_overrides(
        ["scorers.closed=[brier.binary]"]
    )

    def log(sure: float) -> EvalLog:
        rows = [made_row(n, "yes", option_probs=(sure, 1 - sure)) for n in range(30)]
        return made_log(rows, benchmark)

    (found,) = compare_logs(log(0.6), log(0.9)).lines
    assert found.difference.estimate == pytest.approx(0.01 - 0.16)
    assert found.lower_is_better
    assert found.winner == "second"
