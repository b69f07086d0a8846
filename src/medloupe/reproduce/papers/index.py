"""The index of papers; `litegpt.8` names a table, `litegpt` all of a paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from medloupe.errors import ConfigError, did_you_mean
from medloupe.reproduce import grids
from medloupe.reproduce.grid import Grid
from medloupe.reproduce.papers.base import Paper, PaperTable
from medloupe.reproduce.papers.hia import HIA_PAPER
from medloupe.reproduce.papers.litegpt import LITEGPT
from medloupe.reproduce.papers.litegpt_runs import GRID, litegpt_tables
from medloupe.reproduce.papers.llama3_med import LLAMA3_MED
from medloupe.reproduce.papers.medm_vl import MEDM_VL

PAPERS: Final[Mapping[str, Paper]] = {
    paper.name: paper for paper in (HIA_PAPER, LLAMA3_MED, LITEGPT, MEDM_VL)
}
ALL: Final = "all"
"""All of `grids.GRIDS`."""


class Asked(NamedTuple):
    """One table of one paper."""

    paper: Paper
    table: PaperTable

    @property
    def name(self) -> str:
        return f"{self.paper.name}.{self.table.name}"


def find(name: str) -> list[Asked]:
    """The tables that `PAPER` or `PAPER.TABLE` names.

    Raises:
        ConfigError: no such paper or table.
    """
    wanted, _, number = name.partition(".")
    if wanted not in PAPERS:
        known = [*PAPERS, *all_grids(), ALL]
        raise ConfigError(
            f"no paper or grid is called {wanted!r}; {did_you_mean(wanted, known)}",
            remedy="medloupe reproduce --list shows them",
        )
    paper = PAPERS[wanted]
    found = [Asked(paper, table) for table in paper.tables if number in ("", table.name)]
    if not found:
        names = [table.name for table in paper.tables]
        raise ConfigError(
            f"{wanted} has no table {number!r}; {did_you_mean(number, names)}",
            remedy=f"medloupe reproduce {wanted} --list shows them",
        )
    return found


def all_grids() -> dict[str, Callable[[], Grid]]:
    """The papers' comparisons, and the one grid that only a paper's tables ask for."""
    return {**grids.GRIDS, GRID: litegpt_tables}


def made_grid(name: str) -> Grid:
    """A grid by name.

    Raises:
        ConfigError: there is none.
    """
    known = all_grids()
    if name not in known:
        raise ConfigError(f"unknown grid {name!r}; {did_you_mean(name, known)}")
    return known[name]()
