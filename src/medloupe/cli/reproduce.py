"""`medloupe reproduce`: a paper's comparison, run again at the size of a workstation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medloupe.cli import console
from medloupe.errors import ConfigError

if TYPE_CHECKING:
    from medloupe.reproduce.compare import Comparison

ALL = "all"


def reproduce(
    grid: Annotated[str | None, typer.Argument(help="A grid's name, or all.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds of every row.")] = 3,
    out: Annotated[
        Path, typer.Option("--out", help="The folder of all grids; they share runs.")
    ] = Path("runs/reproduce"),
    processes: Annotated[
        int,
        typer.Option("--processes", min=1, help="Runs at a time; they share the cores."),
    ] = 1,
    list_: Annotated[bool, typer.Option("--list", help="List the grids and stop.")] = False,
) -> None:
    """Run a grid of ablations on starter data and set it beside the paper's table.

    A second call goes on where the first one stopped. Results stand in OUT/GRID/results.md.

    [dim]medloupe reproduce --list[/]
    [dim]medloupe reproduce stages --seeds 1[/]
    [dim]medloupe reproduce all --processes 2 --out runs/reproduce[/]
    """
    console.quiet_libraries()
    if list_:
        console.out.print(_listed())
        return
    if grid is None:
        raise ConfigError("no grid was named", remedy="medloupe reproduce --list shows them")
    from medloupe.reproduce.grids import GRIDS

    for name in GRIDS if grid == ALL else (grid,):
        _reproduce(name, seeds, out, processes)


def _reproduce(name: str, seeds: int, out: Path, processes: int) -> None:
    from medloupe.reproduce import Reproduction, grids
    from medloupe.reproduce.page import summary
    from medloupe.reproduce.runner import RESULTS_FILE

    def tell(line: str) -> None:
        console.out.print(line, markup=False)

    with console.Bars() as bars:
        asked = grids.grid(name)
        found = Reproduction(
            asked,
            out,
            seeds=tuple(range(seeds)),
            progress=bars,
            tell=tell,
            processes=processes,
        ).run()
    console.out.print(_table(found))
    console.out.print(_answers(found))
    console.out.print(summary(found))
    console.out.print(f"results: {escape(str(out / asked.name / RESULTS_FILE))}")


def _listed() -> Table:
    from medloupe.reproduce.grids import GRIDS

    table = Table("grid", "rows", "what it asks", "answers", box=SIMPLE_HEAD)
    for make in GRIDS.values():
        made = make()
        table.add_row(made.name, str(len(made.rows)), escape(made.title), escape(made.answers))
    return table


def _table(found: Comparison) -> Table:
    from medloupe.reproduce.page import shown

    measures = [measure.label for measure in found.grid.measures]
    table = Table(found.grid.title, *measures, box=SIMPLE_HEAD)
    for row in found.grid.rows:
        cells = [found.cell(row.label, measure) for measure in measures]
        table.add_row(escape(row.label), *(shown(cell.estimate) if cell else "-" for cell in cells))
    return table


def _answers(found: Comparison) -> Table:
    from medloupe.reproduce.page import claimed, shown

    table = Table("the paper says", "measure", "here", "verdict", box=SIMPLE_HEAD)
    for answer in found.answers:
        here = shown(answer.difference, signed=True)
        table.add_row(escape(claimed(answer)), answer.measure, here, answer.verdict)
    return table
