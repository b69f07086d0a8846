"""Named benchmarks: frozen, complete, and the same as when they were pinned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medloupe.cli.app import app
from medloupe.data.dataset import Dataset, load_dataset
from medloupe.errors import ConfigError
from medloupe.evaluate.benchmark import Benchmark, digest_rows
from medloupe.evaluate.benchmarks import BENCHMARKS, NamedBenchmark, named_benchmark
from medloupe.evaluate.benchmarks.lock import (
    SHARED,
    deviation,
    deviation_of,
    pin,
    prepared,
    read_pins,
    refuse_unraised,
    renewed,
)
from medloupe.evaluate.scorers.base import Scorer
from medloupe.types import Conversation, EvalLog

# Seconds to prepare; the others are pinned by the same code and take minutes.
QUICK = (
    *("vqa_rad", "vqa_rad_official", "covid_chestxray", "bccd"),
    *("covid_image_repository", "pyradiomics", "studyforrest", "openslide_regions"),
)
ASKED = (
    *("vqa_rad", "slake_en", "slake_zh", "path_vqa", "medmnist_2d", "medmnist_3d", "mimic_cxr"),
    *("vindr_cxr_findings", "vindr_cxr_diagnosis", "mpx_single", "medpix", "sa_med2d_rec"),
    *("sa_med2d_reg", "ct_rate_long", "ct_rate_short", "ct_rate_choice", "ct_rate_report"),
    *("chili_joint", "starter", *SHARED),
)


def test_what_the_papers_and_the_real_sets_ask_has_a_name() -> None:
    assert set(ASKED) <= set(BENCHMARKS)
    assert all(name == named.name for name, named in BENCHMARKS.items())


def test_unknown_names_answer_with_near_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'vqa_rad'"):
        named_benchmark("vqarad")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_nothing_has_changed_since_it_was_frozen(name: str) -> None:
    named = BENCHMARKS[name]
    pinned = read_pins()[name]
    assert (pinned.release, pinned.spec) == (named.release, named.spec()), (
        f"{name} is not what it was: raise its release and write the lock again, "
        "see medloupe.evaluate.benchmarks.lock"
    )


def test_the_lock_pins_all_of_them_and_no_others() -> None:
    assert set(read_pins()) == set(BENCHMARKS)
    for name in SHARED:
        assert read_pins()[name].version, name


@pytest.mark.parametrize("name", QUICK)
def test_the_real_sets_still_give_the_pinned_rows(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    named = BENCHMARKS[name]
    assert pin(named, prepared(named, shared_data, tmp_path / "data")) == read_pins()[name]


CHANGES: dict[str, Callable[[Benchmark], Benchmark]] = {
    "prompt": lambda one: one.model_copy(update={"instruction": "Answer in one word."}),
    "decoding": lambda one: one.model_copy(update={"max_new_tokens": one.max_new_tokens + 1}),
    "scorer": lambda one: one.model_copy(
        update={"scorers": {**one.scorers, "closed": (Scorer.parse("exact_match"),)}}
    ),
    "order of scorers": lambda one: one.model_copy(
        update={"scorers": {kind: tuple(reversed(all_)) for kind, all_ in one.scorers.items()}}
    ),
    "split": lambda one: one.model_copy(update={"split": "train"}),
    "rows": lambda one: one.model_copy(update={"limit": 1}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_gives_another_version(what: str, squares: Dataset) -> None:
    named = BENCHMARKS["bccd"]
    before = pin(_on(named, tasks=("presence", "side")), squares)
    changed = CHANGES[what](named.benchmark)
    after = pin(
        _on(named.model_copy(update={"benchmark": changed}), tasks=("presence", "side")), squares
    )
    assert after.version != before.version
    assert after.spec != before.spec


def test_a_changed_row_gives_another_version(squares: Dataset) -> None:
    named = _on(BENCHMARKS["bccd"], tasks=("presence", "side"))
    rows = named.benchmark.select(squares)
    other = rows[0].model_copy(update={"template": "another"})
    version = named.benchmark.version
    assert version(digest_rows(rows)) == version(digest_rows(tuple(reversed(rows))))
    assert version(digest_rows(rows)) != version(digest_rows((other, *rows[1:])))
    assert version(digest_rows(rows)) != version(digest_rows(rows[1:]))


def test_a_scorer_has_one_config_in_a_benchmark() -> None:
    one, other = (
        Scorer.parse({"name": "label_f1_micro.strict", "labels": labels}) for labels in ([], ["a"])
    )
    named = BENCHMARKS["bccd"].to_dict()
    named["benchmark"]["scorers"] = {"open": [one.to_dict()], "closed": [other.to_dict()]}
    with pytest.raises(ConfigError, match="stands here with two configs"):
        NamedBenchmark.parse(named)


def test_renewing_the_lock_changes_nothing_where_nothing_changed() -> None:
    pins = read_pins()
    assert renewed(pins) == pins
    stale = pins["bccd"].model_copy(update={"spec": "0", "version": "0"})
    assert renewed({**pins, "bccd": stale})["bccd"] == pins["bccd"]


def test_a_change_needs_another_release_before_it_is_locked() -> None:
    pins = read_pins()
    refuse_unraised(pins, pins)
    changed = pins["bccd"].model_copy(update={"spec": "0"})
    with pytest.raises(ConfigError, match=r"'bccd' is not what was locked as release 1"):
        refuse_unraised({**pins, "bccd": changed}, pins)
    refuse_unraised({"bccd": changed.model_copy(update={"release": 2})}, pins)


def test_other_rows_are_told_of() -> None:
    pinned = read_pins()["bccd"]
    named = BENCHMARKS["bccd"]
    assert deviation(named, pinned.version, pinned.count) == ""
    told = deviation(named, "0123456789ab", 7)
    assert "0123456789ab with 7 rows is not the pinned" in told
    assert "306 of 364 images" in told
    assert "no version of mimic_cxr is pinned" in deviation(BENCHMARKS["mimic_cxr"], "0", 1)


def test_an_evaluation_says_that_its_rows_are_others() -> None:
    benchmark = BENCHMARKS["bccd"].benchmark
    log = EvalLog(
        benchmark="bccd", version="0", manifest={"benchmark": benchmark.to_dict()}, rows=()
    )
    assert "version 0 with 0 rows is not the pinned" in deviation_of(log)
    assert deviation_of(log.model_copy(update={"version": read_pins()["bccd"].version})) == ""
    own = benchmark.model_copy(update={"max_new_tokens": 1}).to_dict()
    assert deviation_of(log.model_copy(update={"manifest": {"benchmark": own}})) == ""


def test_the_verbs_list_and_show() -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["benchmarks", "list"])
    assert listed.exit_code == 0, listed.exception
    for name in BENCHMARKS:
        assert name in listed.stdout
    shown = runner.invoke(app, ["benchmarks", "show", "vindr_cxr_findings"])
    assert "localisation_0.5.litegpt_paper" in shown.stdout
    assert "physionet.org" in shown.stdout


def test_the_verb_prepares_the_frozen_rows(tmp_path: Path) -> None:
    runner, out = CliRunner(), tmp_path / "data"
    made = runner.invoke(
        app, ["benchmarks", "prepare", "starter_tiny", "--out", str(out), "--no-check"]
    )
    assert made.exit_code == 0, made.exception
    named = BENCHMARKS["starter_tiny"]
    assert pin(named, load_dataset(out)).count == read_pins()["starter_tiny"].count


def test_rows_of_another_data_set_are_refused_before_a_model_is_opened(
    squares: Dataset, tmp_path: Path
) -> None:
    said = ["--predictions", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out")]
    asked = ["--data", str(squares.root), "--benchmark", "path_vqa"]
    done = CliRunner().invoke(app, ["evaluate", *said, *asked])
    with pytest.raises(ConfigError, match="asks rows of the data set 'path_vqa', this is") as told:
        raise done.exception or AssertionError(done.stdout)
    assert "medloupe benchmarks prepare path_vqa" in str(told.value)
    card = squares.card.model_copy(update={"name": "path_vqa"})
    BENCHMARKS["path_vqa"].refuse_others(card, squares.root)


def test_a_benchmark_is_written_and_read_back(tmp_path: Path) -> None:
    for named in BENCHMARKS.values():
        path = tmp_path / f"{named.name}.yaml"
        path.write_text(named.to_yaml(), encoding="utf-8")
        assert NamedBenchmark.from_yaml(path) == named


def _on(named: NamedBenchmark, **changes: object) -> NamedBenchmark:
    """The benchmark asked of another data set's tasks."""
    return named.model_copy(update={"benchmark": named.benchmark.model_copy(update=changes)})


def test_rows_of_a_pinned_set_have_answers_and_scorers(shared_data: Path, tmp_path: Path) -> None:
    named = BENCHMARKS["slake_text_zh"]
    data = prepared(named, shared_data, tmp_path / "data")
    assert pin(named, data) == read_pins()["slake_text_zh"]
    rows: tuple[Conversation, ...] = named.benchmark.select(data)
    assert {row.language for row in rows} == {"zh"}
    assert not any(row.images for row in rows)
