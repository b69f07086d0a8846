"""The papers' tables: printed numbers, what answers them, and how both are shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from typer.testing import CliRunner

from medloupe.cli.app import app
from medloupe.data.dataset import Dataset, DatasetCard, Progress, load_dataset
from medloupe.errors import ConfigError, DataError, PromptError
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.benchmarks import named_benchmark
from medloupe.evaluate.runner import run_benchmark
from medloupe.evaluate.scorers.base import Scorer
from medloupe.evaluate.statistics import Estimate
from medloupe.recipes import RECIPES, recipe
from medloupe.reproduce import Grid, grids
from medloupe.reproduce.papers import PAPERS, Asked, answer, find
from medloupe.reproduce.papers.base import (
    Column,
    GridAnswer,
    Line,
    PageAnswer,
    Paper,
    PaperTable,
    ScoredAnswer,
    SettingsAnswer,
    lines,
)
from medloupe.reproduce.papers.docs import benchmarks_table, marked, papers_table
from medloupe.reproduce.papers.index import all_grids, made_grid
from medloupe.reproduce.papers.scored import direction, directions, over_seeds, scored_sheet
from medloupe.reproduce.sidebyside import Speaker, choose_rows, model_specs, render
from medloupe.types import (
    Box,
    Conversation,
    EvalLog,
    EvalRow,
    Generation,
    ImageRef,
    Message,
    Metric,
    Text,
)

ALL = [asked for name in PAPERS for asked in find(name)]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def of(name: str) -> PaperTable:
    return find(name)[0].table


def printed(name: str) -> dict[str, tuple[Any, ...]]:
    return {line.label: line.cells for line in of(name).lines}


def test_every_table_and_figure_has_an_entry() -> None:
    names = {paper: {table.name for table in PAPERS[paper].tables} for paper in PAPERS}
    assert names == {
        "hia": {"1", "2", "3", "4a", "4b", "fig1", "fig2", "fig3"},
        "llama3_med": {*map(str, range(1, 11)), "fig1", "fig2"},
        "litegpt": {*map(str, range(1, 14)), "fig1", "fig2", "fig3"},
        "medm_vl": {*map(str, range(1, 6)), "fig1", "fig2", "fig3a", "fig3b", "fig3c"},
    }


def test_hias_averages_are_means_of_their_eight_scores() -> None:
    for label, cells in printed("hia.1").items():
        assert fmean(cells[:8]) == pytest.approx(cells[8], abs=0.11), label


def test_llama3_meds_averages_are_means_of_their_six_scores() -> None:
    for label, cells in printed("llama3_med.3").items():
        assert fmean(cells[:6]) == pytest.approx(cells[6], abs=0.0051), label
    questions, open_, closed = (printed("llama3_med.2")[n] for n in ("questions", "open", "closed"))
    # of SLAKE's and PathVQA's printed counts all add up
    assert [a + b for a, b in zip(open_, closed, strict=True)] == list(questions)


@pytest.mark.parametrize("number", ["8", "9", "10", "11", "12", "13"])
def test_litegpts_reports_add_up(number: str) -> None:
    found = printed(f"litegpt.{number}")
    labels = {name: cells for name, cells in found.items() if not name.endswith(" avg")}
    support = sum(cells[3] for cells in labels.values())
    assert len(labels) == (22 if int(number) < 11 else 6)
    assert {cells[3] for name, cells in found.items() if name.endswith(" avg")} == {support}
    macro = [fmean(cells[place] for cells in labels.values()) for place in range(3)]
    assert macro == pytest.approx(list(found["macro avg"][:3]), abs=0.0101)


def test_litegpts_pooled_f1_fits_its_second_table() -> None:
    """Micro-F1 over the labels of both stages, from the printed micro averages."""
    for label, local, global_ in (
        ("BiomedCLIP + PubMedCLIP - Llama 2", "8", "11"),
        ("BiomedCLIP - Llama 2", "9", "12"),
        ("PubMedCLIP - Llama 2", "10", "13"),
    ):
        hit = said = true = 0.0
        for number in (local, global_):
            precision, recall, _, support = printed(f"litegpt.{number}")["micro avg"]
            hit += recall * support
            said += recall * support / precision
            true += support
        f1 = 100 * 2 * hit / (said + true)
        assert f1 == pytest.approx(printed("litegpt.2")[label][0], abs=1.5)


@pytest.mark.parametrize("asked", ALL, ids=lambda asked: asked.name)
def test_what_a_table_names_exists(asked: Asked) -> None:
    tiny = asked.table.tiny
    if isinstance(tiny, GridAnswer):
        known = {row.label for row in made_grid(tiny.grid).rows}
        assert {line.ours for line in asked.table.lines if line.ours} <= known
    if isinstance(tiny, ScoredAnswer):
        grid = made_grid(tiny.grid)
        benchmark = grid.base.evaluate.benchmark
        rows = {line.ours for line in asked.table.lines if line.ours} | {tiny.parts} - {""}
        assert rows
        assert rows <= {row.label for row in grid.rows}
        for column in tiny.columns:
            scorers = {scorer.name for scorer in benchmark.scorers_of(column.answer_type)}
            assert column.scorer in scorers
            assert column.of in asked.table.columns
    if isinstance(tiny, PageAnswer):
        grid = made_grid(tiny.grid)
        assert set(tiny.rows) <= {row.label for row in grid.rows}
        assert set(tiny.tasks) <= set(grid.base.data.to_dict()["tasks"])


@pytest.mark.parametrize("asked", ALL, ids=lambda asked: asked.name)
def test_full_commands_name_what_exists(asked: Asked) -> None:
    for line in asked.table.full:
        verb, *rest = shlex.split(line.removeprefix("medloupe "), comments=True)
        assert verb in {
            "train",
            "evaluate",
            "benchmarks",
            "plan",
            "prepare",
            "stats",
            "sidebyside",
            "recipe",
            "synthesize",
        }
        if verb in ("train", "plan") and not rest[0].endswith(".yaml"):
            assert rest[0] in RECIPES
            changes = [after for flag, after in pairwise(rest) if flag == "--set"]
            recipe(rest[0]).with_overrides(changes)
        if "--benchmark" in rest:
            named_benchmark(rest[rest.index("--benchmark") + 1])


@pytest.mark.parametrize("asked", ALL, ids=lambda asked: asked.name)
def test_what_is_trained_at_full_size_has_its_own_folder_and_is_scored(asked: Asked) -> None:
    words = [line.split() for line in asked.table.full]
    outs = [one[one.index("--out") + 1] for one in words if one[1] in ("train", "evaluate")]
    assert len(set(outs)) == len(outs)
    trained = {one[one.index("--out") + 1] for one in words if one[1] == "train"}
    assert trained == {one[one.index("--model") + 1] for one in words if one[1] == "evaluate"}


@pytest.mark.parametrize("asked", ALL, ids=lambda asked: asked.name)
def test_benchmarks_are_asked_on_rows_that_the_lines_above_made_for_them(asked: Asked) -> None:
    made: dict[str, str] = {}
    for line in asked.table.full:
        words = shlex.split(line, comments=True)
        if words[1:3] == ["benchmarks", "prepare"]:
            made[words[words.index("--out") + 1]] = words[3]
        if words[1] == "evaluate":
            asked_of = words[words.index("--data") + 1]
            assert made[asked_of] == words[words.index("--benchmark") + 1]


@pytest.mark.parametrize("asked", ALL, ids=lambda asked: asked.name)
def test_a_page_asks_models_and_rows_that_the_lines_above_made(asked: Asked) -> None:
    made: set[str] = {"models/qilin_med_vl", "DATA"}  # `needs` tells of the first; DATA is prepared
    for line in asked.table.full:
        verb, *rest = line.removeprefix("medloupe ").split()
        if verb == "sidebyside":
            folders = [word for word in rest[: rest.index("--rows")] if ":" not in word]
            named = {word for word in folders if "@" not in word}
            assert named | {rest[rest.index("--rows") + 1]} <= made
        elif "--out" in rest:
            made.add(rest[rest.index("--out") + 1])


@pytest.mark.parametrize("name", [a.name for a in ALL if isinstance(a.table.tiny, SettingsAnswer)])
def test_recipes_have_the_printed_settings(name: str) -> None:
    table = of(name)
    assert isinstance(table.tiny, SettingsAnswer)
    rows = answer.settings_sheet(table.tiny).rows
    assert [row[-1] for row in rows] == ["same"] * len(rows)


def test_a_setting_that_differs_is_shown() -> None:
    fields = (("Epochs", 2.0, "llama3_med", "train.stages.align.epochs"),)
    assert answer.settings_sheet(SettingsAnswer(fields=fields)).rows[0][-1] == "OTHER"


def test_the_small_runs_are_scored_as_the_frozen_benchmark_is() -> None:
    grid = made_grid("litegpt_tables")
    named = named_benchmark("starter_findings").benchmark
    assert grid.base.evaluate.benchmark.model_copy(update={"limit": named.limit}) == named
    assert grid.base.data.tasks == named.tasks
    encoders = made_grid("encoders")
    for row in grid.rows:
        same = encoders.config(row.label, 0).model
        assert grid.config(row.label, 0).model == same


def test_a_grid_with_a_papers_name_is_one_of_its_tables() -> None:
    for name in set(PAPERS) & set(all_grids()):
        tiny = [asked.table.tiny for asked in find(name)]
        assert any(isinstance(one, GridAnswer) and name == one.grid for one in tiny)


def test_unknown_papers_and_tables_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'litegpt'"):
        find("litegtp")
    with pytest.raises(ConfigError, match="did you mean 'litegpt_tables'"):
        find("litegpt_table")
    with pytest.raises(ConfigError, match="has no table '14'"):
        find("litegpt.14")


def test_lines_are_numbers_words_and_gaps() -> None:
    (line,) = lines("a | 1e-3 | 3/1 | -", ours={"a": "b"})
    assert line == Line(label="a", cells=(0.001, "3/1", None), ours="b")
    with pytest.raises(ConfigError, match="3 cells for 1 columns"):
        PaperTable.parse(
            {
                "name": "1",
                "shows": "x",
                "columns": ("one",),
                "lines": [line.to_dict()],
                "tiny": {"kind": "none", "why": "x"},
            }
        )


@pytest.mark.parametrize(
    ("paper", "first", "second", "said"),
    [
        (1.0, (0.5, 0.6), (0.2, 0.4), "agrees"),
        (-1.0, (0.5, 0.6), (0.2, 0.4), "differs"),
        (-1.0, (0.1, 0.2), (0.3, 0.4), "agrees"),
        (1.0, (0.1, 0.2), (0.3, 0.4), "differs"),
        (1.0, (0.1, 0.35), (0.3, 0.4), "undecided"),
        (0.0, (0.5, 0.6), (0.2, 0.4), "undecided"),
    ],
)
def test_a_direction_needs_intervals_that_do_not_meet(
    paper: float, first: tuple[float, float], second: tuple[float, float], said: str
) -> None:
    ends = [Estimate(sum(one) / 2, *one) for one in (first, second)]
    assert direction(paper, *ends) == said
    assert direction(paper, ends[0], Estimate(0.9, None, None)) == "undecided"


def metric(estimate: float, low: float | None, high: float | None, **fields: Any) -> Metric:
    base = {"name": "s", "answer_type": "closed", "n": 9}
    return Metric.parse({**base, "estimate": estimate, "low": low, "high": high, **fields})


def test_seeds_give_their_mean_and_the_widest_interval() -> None:
    found = over_seeds([metric(0.2, 0.1, 0.3), metric(0.4, 0.2, 0.6)])
    assert found == Estimate(pytest.approx(0.3), 0.1, 0.6)  # type: ignore[arg-type]
    assert over_seeds([metric(0.2, 0.1, 0.3), metric(0.4, None, None)]).low is None
    assert over_seeds([]) == Estimate(None, None, None)


def scored_table(*, parts: str = "") -> PaperTable:
    return PaperTable(
        name="1",
        shows="x",
        columns=("F1",),
        lines=() if parts else lines("A | 3\nB | 2\nC | 1", ours={"A": "a", "B": "b"}),
        tiny=ScoredAnswer(
            grid="g",
            parts=parts,
            columns=(
                Column(title="f1", scorer="label_f1_macro.litegpt", answer_type="closed", of="F1"),
            ),
        ),
    )


def scored_log(estimate: float) -> EvalLog:
    scorer = Scorer.parse("label_f1_macro.litegpt")
    rows = [("ring", "ring"), ("wedge", "ring"), ("wedge", "wedge")]
    name = scorer.name
    return EvalLog(
        benchmark="b",
        version="v",
        manifest={"benchmark": Benchmark(name="b", scorers={"closed": (scorer,)}).to_dict()},
        rows=tuple(
            EvalRow(
                id=str(number),
                patient_id=None,
                task="t",
                template="",
                answer_type="closed",
                images=(),
                question="?",
                truth=truth,
                prediction=said,
                options=("ring", "wedge"),
            )
            for number, (truth, said) in enumerate(rows)
        ),
        metrics=(
            metric(estimate, estimate - 0.01, estimate + 0.01, name=name),
            metric(0.5, 0.4, 0.6, name=name, stratum="finding = ring"),
        ),
    )


def test_runs_stand_in_the_columns_of_the_table() -> None:
    table = scored_table()
    assert isinstance(table.tiny, ScoredAnswer)
    logs = {("a", 0): scored_log(0.8), ("b", 0): scored_log(0.5), ("a", 1): scored_log(0.82)}
    sheet = scored_sheet(table, table.tiny, logs)
    assert sheet.rows == (
        ("A", "a", "81.0 (79.0 to 83.0)"),
        ("B", "b", "50.0 (49.0 to 51.0)"),
    )
    found = directions(table, table.tiny, logs)
    assert found is not None
    assert found.rows == (("f1", "1", "0", "0"),)


def test_labels_stand_one_by_one_with_their_support() -> None:
    table = scored_table(parts="a")
    assert isinstance(table.tiny, ScoredAnswer)
    sheet = scored_sheet(table, table.tiny, {("a", 0): scored_log(0.8), ("b", 0): scored_log(0.1)})
    assert sheet.rows[0] == ("ring", "50.0 (40.0 to 60.0)", "1")
    assert sheet.rows[1][0] == "wedge"
    assert sheet.rows[1][2] == "2"
    assert [row[0] for row in sheet.rows[2:]] == [
        f"{average} avg" for average in ("micro", "macro", "weighted", "samples")
    ]


def perfect_log() -> EvalLog:
    """The truth as the answer, to twelve rows as the starter asks them."""
    rows = []
    for number, diagnosis in enumerate(("normal", "neoplastic", "vascular") * 2):
        image = ImageRef(uri=f"{number}.png")
        box = Box(label="ring", x1=1, y1=2, x2=9, y2=8)
        answers: dict[str, tuple[Text | Box, ...]] = {
            "diagnosis": (Text(text=diagnosis),),
            "findings": (Text(text="ring "), box)
            if diagnosis != "normal"
            else (Text(text="no finding"),),
        }
        for task, answer_ in answers.items():
            messages = (
                Message(role="user", content=(image, Text(text="?"))),
                Message(role="assistant", content=answer_),
            )
            rows.append(
                Conversation(
                    id=f"{number}/{task}",
                    messages=messages,
                    patient_id=str(number),
                    split="test",
                    task=task,
                    answer_type="closed" if task == "diagnosis" else "open",
                    options=("normal", "neoplastic", "vascular") if task == "diagnosis" else (),
                    # there is no file to read
                    attributes={"image_width": "16", "image_height": "16"},
                )
            )
    truths = {row.id: row.answer for row in rows}

    def predict(conversations: Sequence[Conversation], *, progress: Progress) -> list[Generation]:
        del progress
        said = [truths[row.id] for row in conversations]
        return [
            Generation(text=m.text, boxes=tuple(p for p in m.content if isinstance(p, Box)))
            for m in said
            if m is not None
        ]

    asked = named_benchmark("starter_findings").benchmark.model_copy(update={"resamples": 100})
    data = Dataset(Path(), DatasetCard(name="d"), tuple(rows))
    return run_benchmark(asked, data, predict, manifest={}, seed=0, probes=())


@pytest.fixture(scope="module")
def perfect() -> EvalLog:
    return perfect_log()


@pytest.mark.parametrize("number", ["1", "2", "3", "8", "11"])
def test_a_perfect_answer_scores_full_in_every_column_of_litegpts(
    number: str, perfect: EvalLog
) -> None:
    table = of(f"litegpt.{number}")
    assert isinstance(table.tiny, ScoredAnswer)
    logs = {(row, 0): perfect for row in ("both", "larger view", "smaller view")}
    sheet = scored_sheet(table, table.tiny, logs)
    named = {"ring", "normal", "neoplastic", "vascular", "micro avg"}
    for row in sheet.rows:
        if table.tiny.parts and row[0] not in named:
            continue  # labels that no row has
        cells = row[1:-1] if table.tiny.parts else row[2:]
        assert all(cell.startswith("100.0") for cell in cells), row


def test_a_table_is_answered_by_a_grids_finished_runs(
    tiny_grid: Grid, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    out = shutil.copytree(begun, tmp_path / "out")
    monkeypatch.setattr(grids, "GRIDS", {"tiny": lambda: tiny_grid})
    table = PaperTable(
        name="1",
        shows="one against two",
        columns=("score",),
        lines=lines("One | 1\nTwo | 2", ours={"One": "one", "Two": "two"}),
        tiny=GridAnswer(grid="tiny"),
        differs="All of it.",
    )
    page = PaperTable(
        name="fig1",
        shows="examples",
        tiny=PageAnswer(grid="tiny", rows=("one", "two"), tasks=("plane", "rec")),
    )
    small = Paper(name="small", title="A small paper", tables=(table, page))
    monkeypatch.setattr("medloupe.reproduce.papers.index.PAPERS", {"small": small})
    typed = ["reproduce", "small", "--seeds", "1", "--out", str(out)]
    found = CliRunner().invoke(app, typed, env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.exception
    assert "two above one" in found.stdout
    sheet = (out / "papers" / "small.1.md").read_text(encoding="utf-8")
    assert "| One | 1 |" in sheet
    assert "| two | Two |" in sheet
    assert "Not as in the paper: All of it." in sheet
    assert "most frequent training answer" in sheet
    shown = (out / "papers" / "small.fig1.html").read_text(encoding="utf-8")
    assert "<h3>two</h3>" in shown
    again = CliRunner().invoke(app, typed, env={"COLUMNS": "200"})
    assert again.stdout.count("finished before") == 4


def test_full_scale_prints_commands_and_runs_nothing(tmp_path: Path) -> None:
    typed = ["reproduce", "litegpt.8", "--scale", "full", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, typed, env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.exception
    assert "medloupe train litegpt --root VINDR" in found.stdout
    assert "physionet.org" in found.stdout
    assert not (tmp_path / "out").exists()


def test_papers_and_tables_are_listed() -> None:
    found = CliRunner().invoke(app, ["reproduce", "--list"], env={"COLUMNS": "250"})
    assert found.exit_code == 0, found.exception
    for asked in ALL:
        assert asked.name in found.stdout


def test_the_document_says_what_the_code_says() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name, made in (("tables", papers_table()), ("benchmarks", benchmarks_table())):
        assert marked(name, made) in text, (
            f"docs/benchmarks.md is not what the code says of {name}: "
            "python -m medloupe.reproduce.papers.docs docs/benchmarks.md"
        )


def test_rows_of_a_page_spread_over_tasks_and_stay_the_same(begun: Path) -> None:
    (data,) = (begun / "data").iterdir()
    dataset = load_dataset(data)
    rows = choose_rows(dataset, limit=4)
    assert len(rows) == 4
    assert {row.task for row in rows[:3]} == {"plane", "presence", "rec"}
    assert choose_rows(dataset, limit=4) == rows
    assert choose_rows(dataset, ids=[rows[2].id]) == (rows[2],)
    with pytest.raises(DataError, match="did you mean 'plane'"):
        choose_rows(dataset, tasks=["plan"])
    with pytest.raises(DataError, match="no such row"):
        choose_rows(dataset, ids=["none"])


def test_a_page_shows_answers_boxes_and_errors(begun: Path) -> None:
    import numpy as np

    (data,) = (begun / "data").iterdir()
    rows = choose_rows(load_dataset(data), tasks=["rec"], limit=1)
    box = Box(label="<mass>", x1=3, y1=4, x2=20, y2=30)
    speakers = [
        Speaker(name="a & b", said=(Generation(text="", boxes=(box,), log_probs=(-0.5,)),)),
        Speaker(name="gone", said=(PromptError("too long for the model"),)),
    ]
    page = render(rows, speakers, lambda _: np.zeros((64, 64), np.uint8), title="T")
    assert "<h3>a &amp; b</h3>" in page
    assert page.count('class="box predicted"') == 1
    assert page.count('class="box truth"') == len(rows[0].answer.content)  # type: ignore[union-attr]
    assert "&lt;mass&gt;" in page
    assert "probability 0.61" in page
    assert "no answer: too long for the model" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    with pytest.raises(ConfigError, match="no model was named"):
        render(rows, [], lambda _: np.zeros((4, 4), np.uint8), title="T")


def test_models_are_named_by_folder_hub_and_url() -> None:
    specs = model_specs(["runs/a", "hf:llava", "qwen@http://127.0.0.1:8000/v1"], max_new_tokens=8)
    assert [spec.model for spec in specs.values()] == [
        "runs/a",
        "hf:llava",
        "http://127.0.0.1:8000/v1",
    ]
    assert specs["qwen@http://127.0.0.1:8000/v1"].endpoint_model == "qwen"
    with pytest.raises(ConfigError, match="MODEL@URL"):
        model_specs(["http://127.0.0.1:8000/v1"], max_new_tokens=8)
    with pytest.raises(ConfigError, match="named twice"):
        model_specs(["a", "a"], max_new_tokens=8)
