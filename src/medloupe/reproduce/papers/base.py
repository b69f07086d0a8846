"""What a paper prints, as data, and what can be set beside it: here, and at published size.

Numbers stand as printed, in the paper's unit; None is a cell that the paper leaves empty. How a table is
asked again at the size of a workstation is its `tiny`:

    GridAnswer      a grid of runs: other rows, other data, the same question
    ScoredAnswer    a grid whose runs are scored in the table's own columns
    SettingsAnswer  fields of a recipe against the printed ones
    PageAnswer      a page of the same images and questions to the models of a grid
    CommandAnswer   lines to type, where a verb already does it
    NoAnswer        nothing to run, and why
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from medloupe.config import Config
from medloupe.evaluate.benchmarks import named_benchmark
from medloupe.types import AnswerType

Printed: TypeAlias = float | str | None


class Line(Config):
    """A row of a table: `ours` is the row of a grid that stands for it."""

    label: str = Field(min_length=1)
    cells: tuple[Printed, ...] = ()
    ours: str = ""


class Column(Config):
    """Which metric of a run's log stands in a column of ours; `of` is the paper's column."""

    title: str
    scorer: str
    answer_type: AnswerType
    stratum: str = ""
    of: str = ""


class GridAnswer(Config):
    """The grid answers the same question; its own measures are the columns."""

    kind: Literal["grid"] = "grid"
    grid: str


class ScoredAnswer(Config):
    """Runs of `grid`, scored in `columns`. With `parts`, of one run alone: a line for each part (finding,
    class) of what these scorers say, as in the paper's table of that run."""

    kind: Literal["scored"] = "scored"
    grid: str
    columns: tuple[Column, ...] = Field(min_length=1)
    parts: str = ""


class SettingsAnswer(Config):
    """(what, printed, recipe, field): the recipe's field is the printed one."""

    kind: Literal["settings"] = "settings"
    fields: tuple[tuple[str, Printed, str, str], ...] = Field(min_length=1)


class PageAnswer(Config):
    """The rows of a grid, asked `tasks` side by side."""

    kind: Literal["page"] = "page"
    grid: str
    rows: tuple[str, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = Field(min_length=1)


class CommandAnswer(Config):
    """What to type; the lines run on a CPU with what is at hand."""

    kind: Literal["commands"] = "commands"
    lines: tuple[str, ...] = Field(min_length=1)


class NoAnswer(Config):
    """Nothing of it can be run on a CPU, or there is nothing to run."""

    kind: Literal["none"] = "none"
    why: str = Field(min_length=1)


Tiny = Annotated[
    GridAnswer | ScoredAnswer | SettingsAnswer | PageAnswer | CommandAnswer | NoAnswer,
    Field(discriminator="kind"),
]


class PaperTable(Config):
    """One table or figure.

    `unit` is that of the numbers, `full` the commands at published size, `needs` what cannot be had without
    asking, and whom. `differs` says how the small answer is not the paper's.
    """

    name: str = Field(pattern=r"^(fig)?[0-9]+[a-c]?$")
    shows: str = Field(min_length=1)
    columns: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()
    unit: str = ""
    tiny: Tiny
    full: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    differs: str = ""

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for line in self.lines:
            if len(line.cells) != len(self.columns):
                raise ValueError(
                    f"{line.label!r} has {len(line.cells)} cells for {len(self.columns)} columns"
                )
        return self

    @property
    def title(self) -> str:
        """ "Table 4a", "Figure 3"."""
        if self.name.startswith("fig"):
            return f"Figure {self.name.removeprefix('fig')}"
        return f"Table {self.name}"


class Paper(Config):
    """All of a paper's tables and figures, in its order."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    tables: tuple[PaperTable, ...]

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [table.name for table in self.tables]
        if len(set(names)) != len(names):
            raise ValueError(f"two tables have one name: {names}")
        return self


def lines(text: str, *, ours: dict[str, str] | None = None) -> tuple[Line, ...]:
    """Lines from a table as text: cells between "|", "-" is empty, what is a number becomes one.

    `ours` names the row of a grid that stands for a line, by label.
    """
    found = []
    for row in text.strip().splitlines():
        label, *cells = (cell.strip() for cell in row.split("|"))
        stands = (ours or {}).get(label, "")
        found.append(Line(label=label, cells=tuple(map(_printed, cells)), ours=stands))
    return tuple(found)


def rows_of(benchmarks: Sequence[str]) -> tuple[str, ...]:
    """The lines that prepare the rows of benchmarks, each in `data/NAME`; what stands for your copy of
    the source is its data set's name in capitals."""
    return tuple(
        f"medloupe benchmarks prepare {name} --root {named_benchmark(name).data.name.upper()} "
        f"--out data/{name}"
        for name in benchmarks
    )


def scored_by(run: str, benchmarks: Sequence[str]) -> tuple[str, ...]:
    """The lines that score `runs/RUN`, each benchmark in its own folder below it; see `rows_of`."""
    return tuple(
        f"medloupe evaluate --model runs/{run} --benchmark {name} --data data/{name} "
        f"--out runs/{run}/{name}"
        for name in benchmarks
    )


def with_settings(command: str, changes: Sequence[str]) -> str:
    """A command with fields changed, quoted for a shell."""
    return command + "".join(f" --set {shlex.quote(change)}" for change in changes)


def row_of(
    recipe: str, source: str, run: str, benchmarks: Sequence[str], changes: Sequence[str] = ()
) -> tuple[str, ...]:
    """A row of a table: a recipe with fields changed, trained on `source` (`--root R` or `--data D`) in
    `runs/RUN` and scored; see `rows_of`."""
    train = with_settings(f"medloupe train {recipe} {source} --out runs/{run}", changes)
    return (train, *scored_by(run, benchmarks))


def batch_of(stage: str) -> str:
    """The fields of a recipe whose product is a stage's rows of a step."""
    return f"train.stages.{stage}.batch_size*train.stages.{stage}.accumulate"


def _printed(cell: str) -> Printed:
    if cell == "-":
        return None
    try:
        return float(cell)
    except ValueError:
        return cell
