"""A whole evaluation of two readers on real slices: one looks, one cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medloupe.data.dataset import Dataset
from medloupe.errors import ConfigError, DataError
from medloupe.evaluate.benchmark import Benchmark, Stratum, digest_rows
from medloupe.evaluate.log import read_log, write_log
from medloupe.evaluate.metrics import find_metric, verdict
from medloupe.evaluate.probes.base import with_images
from medloupe.evaluate.runner import Predictor, rescore, run_benchmark
from medloupe.types import Conversation, EvalLog, Metric, Text

BENCHMARK = Benchmark(
    name="squares", strata=(Stratum(attribute="lesion_width", edges=(4, 8)),), resamples=500
)


@pytest.fixture(scope="module")
def log(squares: Dataset, readers: tuple[type, type]) -> EvalLog:
    looking = readers[0](squares.root)
    return run_benchmark(BENCHMARK, squares, looking, manifest={"model": "reader"}, seed=5)


def metric(log: EvalLog, name: str, arm: str = "model", group: str = "", **at: str) -> Metric:
    kind = {"closed": "closed", "open": "open", "exact": "open", "box": "box"}[name.split("_")[0]]
    found = find_metric(log.metrics, name=name, arm=arm, answer_type=kind, group=group, **at)
    assert found is not None, (name, arm, group, at)
    return found


def test_the_reader_that_looks_beats_its_blind_self_on_every_kind(log: EvalLog) -> None:
    for task in ("presence", "side"):
        assert metric(log, "closed_accuracy.strict", group=task).estimate == 1
        assert verdict(metric(log, "closed_accuracy.strict", "difference", task)) == "yes"
    assert metric(log, "box_iou", group="rec").estimate == pytest.approx(1)
    assert verdict(metric(log, "box_iou", "difference", "rec")) == "yes"
    everything = metric(log, "closed_accuracy.strict", "difference")
    assert verdict(everything) == "yes"
    assert everything.n == metric(log, "closed_accuracy.strict").n
    assert everything.note.startswith("against ")


def test_the_reader_that_cannot_see_does_not(squares: Dataset, guesser: Predictor) -> None:
    log = run_benchmark(BENCHMARK, squares, guesser, manifest={}, seed=5)
    for task in ("presence", "side"):
        difference = metric(log, "closed_accuracy.strict", "difference", task)
        assert difference.estimate is not None
        assert difference.estimate <= 0
        assert verdict(difference) == "no"
        model = metric(log, "closed_accuracy.strict", "model", task)
        assert model.estimate == metric(log, "closed_accuracy.strict", "swapped", task).estimate


def test_the_stronger_arm_is_the_one_compared_with(log: EvalLog) -> None:
    for task in ("presence", "side"):
        own, blind, majority, difference = (
            metric(log, "closed_accuracy.strict", arm, task).estimate
            for arm in ("model", "swapped", "majority", "difference")
        )
        assert own is not None
        assert blind is not None
        assert majority is not None
        assert difference == pytest.approx(own - max(blind, majority))


def test_the_rows_are_the_test_split_with_truths_and_boxes(squares: Dataset, log: EvalLog) -> None:
    truths = {row.id: row for row in squares.split("test")}
    assert {row.id for row in log.rows} == set(truths)
    assert {row.patient_id for row in log.rows}.isdisjoint(
        {row.patient_id for row in squares.split("train")}
    )
    for row in log.rows:
        answer = truths[row.id].answer
        assert answer is not None
        assert row.truth == answer.text
        assert bool(row.truth_boxes) == (row.task == "rec")
        assert row.question == truths[row.id].question


def test_counts_per_metric_and_patients_as_clusters(log: EvalLog) -> None:
    side = [row for row in log.rows if row.task == "side"]
    found = metric(log, "closed_accuracy.strict", group="side")
    assert (found.n, found.unscored) == (len(side), 0)
    assert found.clusters == len({row.patient_id for row in side})
    parts = [
        m for m in log.metrics if m.group == "side" and m.stratum and m.arm == "model"
        and m.name == "closed_accuracy.strict"
    ]  # fmt: skip
    assert [part.stratum for part in parts] == [
        "lesion_width < 4", "4 <= lesion_width < 8", "lesion_width >= 8",
    ]  # fmt: skip
    assert sum(part.n for part in parts) == len(side)


def test_what_a_row_says_of_its_case_reaches_the_log_and_its_stratum(
    squares: Dataset, log: EvalLog
) -> None:
    told = {row.id: row.attributes for row in squares.split("test")}
    assert {row.id: row.attributes for row in log.rows} == told
    planes = BENCHMARK.model_copy(update={"strata": (Stratum(attribute="plane"),)})
    found = metric(
        rescore(log, planes), "closed_accuracy.strict", group="presence", stratum="plane = axial"
    )
    asked = [row.id for row in log.rows if row.task == "presence"]
    assert 0 < found.n == sum("plane" in told[id] for id in asked) < len(asked)


def test_the_flavours_differ_as_published(log: EvalLog) -> None:
    assert metric(log, "closed_accuracy.llava_med", group="side").estimate == 0
    assert metric(log, "closed_accuracy.llava_med", group="presence").estimate == 1


def test_a_log_scored_again_gives_the_same_numbers(log: EvalLog, tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl", log)
    again = rescore(read_log(tmp_path / "log.jsonl"))
    assert again == log


def test_other_scorers_on_the_same_answers(log: EvalLog) -> None:
    closed_only = Benchmark.parse(
        {
            "name": "x",
            "scorers": {"closed": ["exact_match"], "open": ["exact_match"], "box": ["box_iou"]},
        }
    )
    again = rescore(log, closed_only)
    assert again.rows == log.rows
    assert again.version != log.version
    assert {score.scorer for score in again.scores} == {"exact_match", "box_iou"}
    # "Yes." is "yes" word for word, so presence stays perfect.
    found = find_metric(again.metrics, name="exact_match", answer_type="closed", group="presence")
    assert found is not None
    assert found.estimate == 1
    with pytest.raises(ConfigError, match=r"scorers\.\w+': .* no scorer for '\w+' answers"):
        rescore(log, Benchmark.parse({"name": "x", "scorers": {"closed": ["exact_match"]}}))


def test_a_foreign_manifest_is_refused(log: EvalLog) -> None:
    with pytest.raises(ConfigError, match="benchmark"):
        rescore(log.model_copy(update={"manifest": {}}))


def test_partial_copy_and_leak_stand_in_every_metric(squares: Dataset, guesser: Predictor) -> None:
    card = squares.card.model_copy(
        update={"partial": "255 of 315 images", "leak": "9 images shared"}
    )
    part = Dataset(squares.root, card, squares.conversations)
    log = run_benchmark(BENCHMARK, part, guesser, manifest={}, seed=0)
    assert log.metrics
    for found in log.metrics:
        assert "partial copy: 255 of 315 images; leak: 9 images shared" in found.note


def test_without_the_blind_pass_the_model_is_asked_once(
    squares: Dataset, readers: tuple[type, type]
) -> None:
    reader = readers[0](squares.root)
    log = run_benchmark(BENCHMARK, squares, reader, manifest={}, seed=0, probes=())
    assert reader.calls == [len(log.rows)]
    assert not [row for row in log.rows if "swapped" in row.others]
    assert not [m for m in log.metrics if m.arm == "swapped"]
    assert verdict(metric(log, "closed_accuracy.strict", "difference", "side")) == "yes"
    # Boxes have no most frequent answer in words, so there is nothing to compare them with.
    assert not [m for m in log.metrics if m.arm == "difference" and m.answer_type == "box"]


def test_one_patient_alone_is_not_compared(squares: Dataset, guesser: Predictor) -> None:
    kept = next(row.patient_id for row in squares.split("test"))
    rows = tuple(row for row in squares.conversations if row.patient_id == kept)
    log = run_benchmark(
        BENCHMARK, Dataset(squares.root, squares.card, rows), guesser, manifest={}, seed=0
    )
    assert not [row for row in log.rows if row.others]
    assert {m.arm for m in log.metrics} == {"model"}


def test_few_patients_get_no_verdict() -> None:
    few = Metric(name="x", arm="difference", estimate=1, low=1, high=1, n=9, clusters=9)
    assert verdict(few) == "too few patients"
    assert verdict(few.model_copy(update={"clusters": 10})) == "yes"
    assert verdict(few.model_copy(update={"clusters": 10, "low": 0.0})) == "no"
    assert verdict(None) == "not compared"


def test_what_cannot_be_scored_is_counted_and_not_averaged(
    squares: Dataset, readers: tuple[type, type], ask: Callable[..., Conversation]
) -> None:
    odd = ask(
        "odd", [squares.split("test")[0].images[0]], "Which side?", Text(text="above"),
        task="side", answer_type="closed", options=("left", "right"), split="test", patient_id="p01",
    )  # fmt: skip
    data = Dataset(squares.root, squares.card, (*squares.conversations, odd))
    log = run_benchmark(BENCHMARK, data, readers[0](squares.root), manifest={}, seed=0)
    found = metric(log, "closed_accuracy.strict", group="side")
    assert (found.estimate, found.unscored) == (1, 1)
    assert found.n == sum(row.task == "side" for row in log.rows) - 1
    score = next(s for s in log.scores if s.id == "odd" and s.scorer == found.name)
    assert score.value is None
    assert "none of the options" in score.reason


def test_the_version_follows_rows_prompt_decoding_and_scorers(squares: Dataset) -> None:
    rows = BENCHMARK.select(squares)
    version = BENCHMARK.version(digest_rows(rows))
    assert BENCHMARK.version(digest_rows(rows[::-1])) == version
    assert BENCHMARK.version(digest_rows(rows[1:])) != version
    for change in ("instruction=Be brief.", "max_new_tokens=8", "resamples=100"):
        assert BENCHMARK.with_overrides([change]).version(digest_rows(rows)) != version
    assert Benchmark.parse(BENCHMARK.to_dict()).version(digest_rows(rows)) == version


def test_images_kept_elsewhere_count_by_content(squares: Dataset) -> None:
    """The same files under another absolute path are the same rows; other content is not."""
    row = squares.split("test")[0]

    def digest(root: str, sha256: str | None) -> str:
        place = {"uri": f"{root}/{row.images[0].uri}", "sha256": sha256}
        moved = [image.model_copy(update=place) for image in row.images]
        return digest_rows([with_images(row, moved)])

    assert digest("/here", "a" * 64) == digest("/there", "a" * 64) != digest("/here", "b" * 64)
    assert digest("/here", None) != digest("/there", None)
    assert digest("here", "a" * 64) != digest("there", "a" * 64)


def test_the_instruction_follows_the_question(squares: Dataset) -> None:
    brief = BENCHMARK.model_copy(update={"instruction": "One word."})
    row = squares.split("test")[0]
    asked = brief.ask(row)
    assert asked.answer is None
    assert asked.question == f"{row.question}\nOne word."
    assert asked.images == row.images
    assert BENCHMARK.ask(row) == row.without_answer()


def test_a_limit_keeps_the_same_rows_whatever_their_order(squares: Dataset) -> None:
    few = BENCHMARK.model_copy(update={"limit": 5})
    kept = few.select(squares)
    counts = {task: sum(row.task == task for row in kept) for task in {row.task for row in kept}}
    assert counts == dict.fromkeys(("presence", "side", "rec", "report"), 5)
    turned = Dataset(squares.root, squares.card, squares.conversations[::-1])
    assert {row.id for row in few.select(turned)} == {row.id for row in kept}


def test_bad_input_is_named(squares: Dataset, ask: Callable[..., Conversation]) -> None:
    def data(*rows: Conversation) -> Dataset:
        return Dataset(squares.root, squares.card, rows)

    with pytest.raises(DataError, match="nothing to evaluate: the test split has no rows"):
        BENCHMARK.select(data())
    with pytest.raises(DataError, match=r"unknown task 'sides'; did you mean 'side'\?"):
        BENCHMARK.model_copy(update={"tasks": ("sides",)}).select(squares)
    good = squares.split("test")[0]
    with pytest.raises(DataError, match=r"row .*: a row without an answer cannot be scored"):
        BENCHMARK.select(data(good.without_answer()))
    with pytest.raises(DataError, match="two rows have the same id"):
        BENCHMARK.select(data(good, good))
    with pytest.raises(ConfigError, match="edges must increase"):
        Stratum.parse({"attribute": "x", "edges": [4, 2]})


def test_strata_by_number_and_by_value() -> None:
    width = Stratum(attribute="w", edges=(4, 8))
    labels = [width.label({"w": value}) for value in ("3.9", "4", "7.99", "8", "wide")]
    assert labels == ["w < 4", "4 <= w < 8", "4 <= w < 8", "w >= 8", None]
    assert width.label({}) is None
    assert Stratum(attribute="plane").label({"plane": "axial"}) == "plane = axial"
