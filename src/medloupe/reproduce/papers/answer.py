"""A paper's table beside ours: from runs that are there, or that are run now.

OUT/papers/PAPER.TABLE.md      the sheet
OUT/papers/PAPER.TABLE.html    of examples, the page
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from medloupe.data.dataset import Dataset, Progress, load_dataset
from medloupe.evaluate.log import read_log
from medloupe.html.page import write_page
from medloupe.recipes import recipe
from medloupe.recipes.predict import ModelSpec
from medloupe.recipes.run import EVALUATION_FILE, MANIFEST_FILE, MODEL_FOLDER
from medloupe.reproduce.compare import Comparison
from medloupe.reproduce.grid import Grid
from medloupe.reproduce.page import summary
from medloupe.reproduce.papers.base import (
    CommandAnswer,
    GridAnswer,
    NoAnswer,
    PageAnswer,
    PaperTable,
    Printed,
    ScoredAnswer,
    SettingsAnswer,
)
from medloupe.reproduce.papers.index import Asked, made_grid
from medloupe.reproduce.papers.scored import directions, scored_sheet
from medloupe.reproduce.papers.sheets import Sheet, claims_sheet, grid_sheet, paper_sheet, printed
from medloupe.reproduce.runner import RESULTS_FILE
from medloupe.reproduce.sidebyside import ask_and_render, choose_rows

FOLDER: Final = "papers"
EXAMPLES: Final = 6
RunGrid = Callable[[Grid], Comparison]


@dataclass(kw_only=True)
class Result:
    """What is shown of a table: sheets, lines of text below them, and the files that were written."""

    asked: Asked
    sheets: list[Sheet] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def markdown(self) -> str:
        table = self.asked.table
        parts = [
            f"# {self.asked.paper.title}: {table.title}",
            f"{table.shows[0].upper()}{table.shows[1:]}.",
        ]
        parts += [sheet.markdown() for sheet in self.sheets]
        parts += [note.strip() for note in self.notes]
        return "\n\n".join(parts) + "\n"


def full(asked: Asked) -> Result:
    """The commands at published size and what they need; nothing is run."""
    result = Result(asked=asked, sheets=_paper(asked.table))
    lines = "\n".join(f"    {line}" for line in asked.table.full)
    result.notes.append(f"At published size:\n\n{lines}" if lines else "Nothing to run.")
    result.notes += _needs(asked.table)
    return result


def tiny(
    asked: Asked, out: Path, seeds: tuple[int, ...], run: RunGrid, progress: Progress
) -> Result:
    """The table beside ours, written below `out`. `run` runs what a grid has not run yet."""
    result = Result(asked=asked, sheets=_paper(asked.table))
    answer = asked.table.tiny
    if isinstance(answer, GridAnswer):
        _add_grid(result, run(made_grid(answer.grid)), out)
    elif isinstance(answer, ScoredAnswer):
        _add_scored(result, answer, run(made_grid(answer.grid)), out, seeds)
    elif isinstance(answer, SettingsAnswer):
        result.sheets.append(settings_sheet(answer))
    elif isinstance(answer, PageAnswer):
        grid = made_grid(answer.grid)
        run(grid)
        result.files.append(_page(asked, answer, grid, out, seeds[0], progress))
    elif isinstance(answer, CommandAnswer):
        lines = "\n".join(f"    {line}" for line in answer.lines)
        result.notes.append(f"Type:\n\n{lines}")
    elif isinstance(answer, NoAnswer):
        result.notes.append(f"Not on a CPU: {answer.why}.")
        result.notes += _needs(asked.table)
    if asked.table.differs:
        result.notes.append(f"Not as in the paper: {asked.table.differs}")
    return _written(result, out)


def settings_sheet(answer: SettingsAnswer) -> Sheet:
    """Printed settings beside those of the recipes."""
    rows = []
    for what, value, name, path in answer.fields:
        ours = setting(name, path)
        same = "same" if _equal(value, ours) else "OTHER"
        rows.append((what, printed(value), printed(ours), f"{name}: {path}", same))
    return Sheet(
        title="The recipe",
        header=("setting", "paper", "recipe", "field", ""),
        rows=tuple(rows),
    )


def setting(name: str, path: str) -> Printed:
    """A field of a recipe, or the product of several joined by "*"."""
    data = recipe(name).to_dict()
    values = [_value(data, part.split(".")) for part in path.split("*")]
    if len(values) == 1 and (values[0] is None or isinstance(values[0], str)):
        return values[0]
    return float(math.prod(float(value) for value in values))


def _value(data: Any, steps: list[str]) -> Any:
    """A stage stands in a list and is found by its name."""
    for step in steps:
        named = isinstance(data, list)
        data = next(item for item in data if item["name"] == step) if named else data[step]
    return data


def _equal(one: Printed, other: Printed) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other


def _paper(table: PaperTable) -> list[Sheet]:
    sheet = paper_sheet(table)
    return [] if sheet is None else [sheet]


def _needs(table: PaperTable) -> list[str]:
    if not table.needs:
        return []
    return ["It needs:\n\n" + "\n".join(f"- {need}" for need in table.needs)]


def _add_grid(result: Result, found: Comparison, out: Path) -> None:
    result.sheets.append(grid_sheet(result.asked.table, found))
    _add_claims(result, found, out)


def _add_scored(
    result: Result, answer: ScoredAnswer, found: Comparison, out: Path, seeds: tuple[int, ...]
) -> None:
    rows = [line.ours for line in result.asked.table.lines if line.ours] or [answer.parts]
    logs = {
        (row, seed): read_log(out / "runs" / found.grid.key(row, seed) / EVALUATION_FILE)
        for row in rows
        for seed in seeds
    }
    result.sheets.append(scored_sheet(result.asked.table, answer, logs))
    agreement = directions(result.asked.table, answer, logs)
    if agreement is not None:
        result.sheets.append(agreement)
    _add_claims(result, found, out)


def _add_claims(result: Result, found: Comparison, out: Path) -> None:
    claims = claims_sheet(found)
    if claims is not None:
        result.sheets.append(claims)
        result.notes.append(summary(found))
    seeds = len(found.seeds)
    result.notes.append(
        f"{seeds} seed{'s' if seeds > 1 else ''}; 95 % intervals over patients"
        f"{' and seeds' if seeds > 1 else ''}. Not the paper's setting: "
        f"{'; '.join(found.grid.smaller) or 'smaller'}."
    )
    folder = out / found.grid.name
    result.files += [folder / RESULTS_FILE, folder / MANIFEST_FILE]


def _page(
    asked: Asked, answer: PageAnswer, grid: Grid, out: Path, seed: int, progress: Progress
) -> Path:
    """The first seed's models, asked the same rows of the test split."""
    data = _data_of(grid, out)
    rows = choose_rows(data, tasks=answer.tasks, limit=EXAMPLES)
    tokens = grid.base.evaluate.benchmark.max_new_tokens
    specs = {
        row: ModelSpec(
            model=str(out / "runs" / grid.key(row, seed) / MODEL_FOLDER), max_new_tokens=tokens
        )
        for row in answer.rows
    }
    page = ask_and_render(
        specs,
        data,
        rows,
        progress=progress,
        title=f"{asked.paper.title}: {asked.table.title}",
        notes=(f"In the paper: {asked.table.shows}.", *(f"Here: {line}." for line in grid.smaller)),
    )
    path = out / FOLDER / f"{asked.name}.html"
    write_page(path, page)
    return path


def _data_of(grid: Grid, out: Path) -> Dataset:
    return load_dataset(out / "data" / grid.base.data.fingerprint())


def _written(result: Result, out: Path) -> Result:
    path = out / FOLDER / f"{result.asked.name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(result.markdown(), encoding="utf-8")
    result.files.insert(0, path)
    return result
