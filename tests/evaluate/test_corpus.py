"""Scores of all rows together through a whole evaluation: estimate, interval, difference, log, page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from medloupe.data.dataset import Dataset
from medloupe.evaluate.benchmark import Benchmark, cluster_of
from medloupe.evaluate.log import read_log, write_log
from medloupe.evaluate.metrics import find_metric, score_rows, summarise
from medloupe.evaluate.pools import Means, Place, Totals
from medloupe.evaluate.report import render_report
from medloupe.evaluate.runner import rescore, run_benchmark
from medloupe.evaluate.scorers.bleu import SacrebleuBleu1
from medloupe.evaluate.statistics import bootstrap_mean, paired_difference
from medloupe.imaging.read import read_ref
from medloupe.imaging.windows import Window, to_display
from medloupe.types import EvalLog, EvalRow, Metric

NAMES = ("bleu_4.sacrebleu", "bleu_1.nltk", "bleu_4.coco", "meteor.exact_stem")
BENCHMARK = Benchmark(name="squares", resamples=100).with_overrides(
    [f"scorers.open=[{', '.join(NAMES)}]", "tasks=[report, presence]"]
)
REFERENCE = BLEU(tokenize="13a")


@pytest.fixture(scope="module")
def log(squares: Dataset, readers: tuple[type, type]) -> EvalLog:
    return run_benchmark(BENCHMARK, squares, readers[0](squares.root), manifest={}, seed=5)


@pytest.fixture(scope="module")
def rows(log: EvalLog) -> list[EvalRow]:
    return [row for row in log.rows if row.task == "report"]


def metric(log: EvalLog, name: str, arm: str = "model") -> Metric:
    found = find_metric(log.metrics, name=name, arm=arm, answer_type="open", group="report")
    assert found is not None
    return found


def corpus(rows: list[EvalRow], arm: str = "model") -> float:
    """By sacrebleu, 0 to 1."""
    said = [answered.prediction for row in rows if (answered := row.under(arm)) is not None]
    return REFERENCE.corpus_score(said, [[row.truth for row in rows]]).score / 100


def test_the_estimate_of_every_arm_is_sacrebleu_s(log: EvalLog, rows: list[EvalRow]) -> None:
    assert len(rows) > 10
    for arm in ("model", "majority"):
        assert metric(log, "bleu_4.sacrebleu", arm).estimate == pytest.approx(
            corpus(rows, arm), abs=1e-9
        )
    answered = [row for row in rows if "swapped" in row.others]
    found = metric(log, "bleu_4.sacrebleu", "swapped")
    assert found.estimate == pytest.approx(corpus(answered, "swapped"), abs=1e-9)
    assert (found.n, found.unscored) == (len(answered), len(rows) - len(answered))


def test_the_interval_is_that_of_resampled_corpora(log: EvalLog, rows: list[EvalRow]) -> None:
    of: dict[str, list[EvalRow]] = {}
    for row in rows:
        of.setdefault(cluster_of(row.id, row.patient_id, []), []).append(row)
    names = sorted(of)
    drawn = np.random.default_rng(5).integers(0, len(names), size=(100, len(names)))
    resampled = [[row for index in one for row in of[names[index]]] for one in drawn]
    own = metric(log, "bleu_4.sacrebleu")
    ends = np.quantile([corpus(some) for some in resampled], [0.025, 0.975])
    assert (own.low, own.high) == pytest.approx(tuple(ends), abs=1e-9)
    assert own.clusters == len(names)
    gains = [corpus(some) - corpus(some, "majority") for some in resampled]
    difference = metric(log, "bleu_4.sacrebleu", "difference")
    assert difference.note.startswith("against the most frequent training answer")
    assert difference.estimate == pytest.approx(corpus(rows) - corpus(rows, "majority"), abs=1e-9)
    ends = np.quantile(gains, [0.025, 0.975])
    assert (difference.low, difference.high) == pytest.approx(tuple(ends), abs=1e-9)


def test_a_corpus_score_is_no_mean_and_a_mean_is(log: EvalLog) -> None:
    for name in NAMES:
        values = [
            score.value
            for score in log.scores
            if (score.scorer, score.arm) == (name, "model") and score.value is not None
        ]
        mean = float(np.mean(values))
        together = metric(log, name).estimate
        corpus = name in {"bleu_4.sacrebleu", "bleu_4.coco"}
        assert (together == pytest.approx(mean, abs=1e-6)) != corpus, name


def test_a_stored_log_scores_the_same_to_the_last_digit(log: EvalLog, tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl", log)
    again = rescore(read_log(tmp_path / "log.jsonl"))
    assert again == log
    turned = again.model_copy(update={"rows": again.rows[::-1]})
    assert {repr(m) for m in rescore(turned).metrics if m.name.startswith("bleu_4")} == {
        repr(m) for m in log.metrics if m.name.startswith("bleu_4")
    }


def test_an_unscored_row_is_counted_and_left_out(log: EvalLog, rows: list[EvalRow]) -> None:
    silent = rows[0].model_copy(update={"id": "silent", "truth": " "})
    more = rescore(log.model_copy(update={"rows": (*log.rows, silent)}))
    before, after = metric(log, "bleu_4.sacrebleu"), metric(more, "bleu_4.sacrebleu")
    assert (after.estimate, after.low, after.n) == (before.estimate, before.low, before.n)
    assert (before.unscored, after.unscored) == (0, 1)


def test_each_metric_and_the_page_say_what_was_counted(log: EvalLog, squares: Dataset) -> None:
    scorers = BENCHMARK.scorers_of("open")
    page = render_report(log, lambda ref: to_display(read_ref(ref, squares.root), Window()))
    for scorer in scorers:
        assert {scorer.stated in m.note for m in log.metrics if m.name == scorer.name} == {True}
        assert page.count(scorer.name) > 4
    assert f"<p><small>{scorers[0].stated}</small></p>" in page
    others = [m for m in log.metrics if m.name == "closed_accuracy.strict" and m.arm == "model"]
    assert {m.note for m in others} == {BENCHMARK.primary()["closed"].stated}


def test_open_answers_can_be_named_in_yaml(tmp_path: Path) -> None:
    text = "name: reports\nscorers:\n  open: [bleu_4.sacrebleu, meteor.exact_stem, open_recall.strict]\n"
    (tmp_path / "benchmark.yaml").write_text(text)
    found = Benchmark.from_yaml(tmp_path / "benchmark.yaml")
    assert [scorer.name for scorer in found.scorers_of("open")] == [
        "bleu_4.sacrebleu", "meteor.exact_stem", "open_recall.strict",
    ]  # fmt: skip


def test_a_pool_scores_what_it_is_asked_for() -> None:
    # bleu_1 of (words said, words true, correct 1..4, total 1..4): 1 of 2, and 4 of 4.
    places: list[Place] = [("a", "model"), ("b", "model"), ("c", "model")]
    few, many = (2, 2, 1, 0, 0, 0, 2, 1, 0, 0), (4, 4, 4, 3, 2, 1, 4, 3, 2, 1)
    values = dict(zip(places, (0.5, 1.0, None), strict=True))
    totals = Totals(
        values=values,
        scorer=SacrebleuBleu1(),
        counts={places[0]: few, places[1]: many},
        resamples=100,
        seed=0,
    )
    means = Means(values=values, resamples=100, seed=0)
    for pool, both in ((totals, 5 / 6), (means, 3 / 4)):
        assert [pool.answered(place) for place in (*places, ("a", "swapped"))] == [
            True,
            True,
            True,
            False,
        ]
        assert [pool.scored(place) for place in places] == [True, True, False]
        assert pool.point(places[:2]) == pytest.approx(both)
        assert pool.point(places[:1]) == pytest.approx(1 / 2)
        assert pool.estimate(places[:2], ["p", "q"]).estimate == pytest.approx(both)
        apart = pool.difference(places[1:2], places[:1], ["p"])
        assert apart == (pytest.approx(1 / 2), None, None)


def test_a_pool_draws_by_its_own_seed() -> None:
    own: list[Place] = [(str(n), "model") for n in range(30)]
    other: list[Place] = [(str(n), "swapped") for n in range(30)]
    values = {place: float(int(place[0]) % 3 == 0) for place in own}
    values |= {place: float(int(place[0]) % 4 == 0) for place in other}
    clusters = [place[0] for place in own]
    means = Means(values=values, resamples=200, seed=7)
    a, b = ([values[place] for place in arm] for arm in (own, other))
    assert means.difference(own, other, clusters) == paired_difference(
        a, b, clusters, resamples=200, seed=7
    )
    assert means.estimate(own, clusters) == bootstrap_mean(a, clusters, resamples=200, seed=7)


@pytest.mark.parametrize("name", ["bleu_4.sacrebleu", "meteor.exact_stem"])
def test_only_rows_with_both_scores_are_compared(
    name: str, log: EvalLog, rows: list[EvalRow]
) -> None:
    scores = [
        score.model_copy(update={"value": None, "reason": "lost"})
        if (score.id, score.scorer, score.arm) == (rows[0].id, name, "model")
        else score
        for score in score_rows(log.rows, BENCHMARK)
    ]
    lost = log.model_copy(update={"metrics": summarise(log.rows, scores, BENCHMARK, seed=5)})
    before, after = metric(log, name, "difference"), metric(lost, name, "difference")
    assert (after.n, after.unscored) == (before.n - 1, before.unscored + 1)
