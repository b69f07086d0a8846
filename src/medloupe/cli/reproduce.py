"""`medloupe reproduce`: a paper's tables beside ours, and the grids of runs that answer them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medloupe.cli import console
from medloupe.errors import ConfigError

if TYPE_CHECKING:
    from medloupe.reproduce.compare import Comparison
    from medloupe.reproduce.grid import Grid
    from medloupe.reproduce.papers import Asked
    from medloupe.reproduce.papers.answer import Result
    from medloupe.reproduce.papers.sheets import Sheet


def reproduce(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="PAPER[.TABLE]",
            help="hia, llama3_med, litegpt or medm_vl, one of its tables (litegpt.8, medm_vl.fig3a); or "
            "a grid's name, or all: every grid but litegpt_tables.",
        ),
    ] = None,
    scale: Annotated[
        Literal["tiny", "full"],
        typer.Option("--scale", help="tiny: here, on a CPU. full: the commands at published size."),
    ] = "tiny",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds of every row.")] = 3,
    out: Annotated[
        Path, typer.Option("--out", help="The folder of all grids; they share runs.")
    ] = Path("runs/reproduce"),
    processes: Annotated[
        int,
        typer.Option("--processes", min=1, help="Runs at a time; they share the cores."),
    ] = 1,
    list_: Annotated[
        bool, typer.Option("--list", help="List the papers' tables and the grids, and stop.")
    ] = False,
) -> None:
    """Set a table of a paper beside ours, from finished runs or by running what is missing.

    A second call goes on where the first one stopped. Results stand in OUT/papers and OUT/GRID.

    [dim]medloupe reproduce --list[/]
    [dim]medloupe reproduce litegpt --list[/]
    [dim]medloupe reproduce medm_vl.5 --seeds 1[/]
    [dim]medloupe reproduce litegpt.8 --scale full[/]
    [dim]medloupe reproduce all --processes 2 --out runs/reproduce[/]
    """
    console.quiet_libraries()
    from medloupe.reproduce.papers import answer, find

    if list_:
        _list(what)
        return
    if what is None:
        raise ConfigError(
            "nothing was named", remedy="medloupe reproduce --list shows what there is"
        )
    named = _named_grids(what)
    if named and scale == "full":
        raise ConfigError(
            f"{what} names a grid, and only a paper's tables have a published size",
            remedy="medloupe reproduce --list shows the tables",
        )
    for name in named:
        _grid(name, seeds, out, processes)
    for asked in () if named else find(what):
        _show(answer.full(asked) if scale == "full" else _tiny(asked, out, seeds, processes))


def _named_grids(what: str) -> list[str]:
    """The grids that a word names; none if it names a paper. "hia" is both: the paper's tables are asked,
    that grid's among them."""
    from medloupe.reproduce import grids
    from medloupe.reproduce.papers import PAPERS
    from medloupe.reproduce.papers.index import ALL, all_grids

    if what == ALL:
        return list(grids.GRIDS)
    return [what] if what in all_grids() and what not in PAPERS else []


def _list(what: str | None) -> None:
    from medloupe.reproduce.papers import PAPERS, find
    from medloupe.reproduce.papers.index import all_grids

    named = list(all_grids()) if what is None else _named_grids(what)
    papers = PAPERS if what is None else () if named else (what.partition(".")[0],)
    for name in papers:
        console.out.print(_tables(find(name)))
    if named:
        console.out.print(_grids(named))


def _tables(found: list[Asked]) -> Table:
    from medloupe.reproduce.papers.docs import on_a_cpu

    title = found[0].paper.title
    table = Table(
        "name", "what it shows", "on a CPU", box=SIMPLE_HEAD, title=title, title_justify="left"
    )
    for asked in found:
        table.add_row(asked.name, escape(asked.table.shows), escape(on_a_cpu(asked.table)))
    return table


def _grids(names: list[str]) -> Table:
    from medloupe.reproduce.papers.index import made_grid

    table = Table("grid", "rows", "what it asks", "answers", box=SIMPLE_HEAD)
    for made in map(made_grid, names):
        table.add_row(made.name, str(len(made.rows)), escape(made.title), escape(made.answers))
    return table


def _tiny(asked: Asked, out: Path, seeds: int, processes: int) -> Result:
    from medloupe.reproduce.papers.answer import tiny

    numbers = tuple(range(seeds))
    with console.Bars() as bars:

        def run(grid: Grid) -> Comparison:
            return _run(grid, numbers, out, processes, bars)

        return tiny(asked, out, numbers, run, bars)


def _run(
    grid: Grid, seeds: tuple[int, ...], out: Path, processes: int, bars: console.Bars
) -> Comparison:
    from medloupe.reproduce import Reproduction

    def tell(line: str) -> None:
        console.out.print(line, markup=False)

    return Reproduction(grid, out, seeds=seeds, progress=bars, tell=tell, processes=processes).run()


def _show(result: Result) -> None:
    asked = result.asked
    console.out.print(f"[bold]{escape(asked.name)}[/]  {escape(asked.table.shows)}")
    for sheet in result.sheets:
        console.out.print(_sheet(sheet))
    for note in result.notes:
        console.out.print(note, markup=False)
    for path in result.files:
        console.out.print(f"written: {path}", markup=False)


def _sheet(sheet: Sheet) -> Table:
    table = Table(
        *map(escape, sheet.header), box=SIMPLE_HEAD, title=escape(sheet.title), title_justify="left"
    )
    for row in sheet.rows:
        table.add_row(*map(escape, row))
    return table


def _grid(name: str, seeds: int, out: Path, processes: int) -> None:
    from medloupe.reproduce.page import summary
    from medloupe.reproduce.papers.index import made_grid
    from medloupe.reproduce.runner import RESULTS_FILE

    asked = made_grid(name)
    with console.Bars() as bars:
        found = _run(asked, tuple(range(seeds)), out, processes, bars)
    console.out.print(_table(found))
    console.out.print(_answers(found))
    console.out.print(summary(found))
    console.out.print(f"results: {escape(str(out / asked.name / RESULTS_FILE))}")


def _table(found: Comparison) -> Table:
    from medloupe.reproduce.page import score_cells

    measures = [measure.label for measure in found.grid.measures]
    table = Table(found.grid.title, *measures, box=SIMPLE_HEAD)
    for row in found.grid.rows:
        table.add_row(escape(row.label), *score_cells(found, row.label))
    return table


def _answers(found: Comparison) -> Table:
    from medloupe.reproduce.page import claim_rows

    table = Table("the paper says", "measure", "here", "verdict", box=SIMPLE_HEAD)
    for claim, _, measure, here, verdict in claim_rows(found):
        table.add_row(escape(claim), measure, here, verdict)
    return table
