"""The index of tables and of benchmarks as Markdown: what docs/benchmarks.md holds between its marks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from medloupe.evaluate.benchmarks import BENCHMARKS, NamedBenchmark
from medloupe.evaluate.benchmarks.lock import Pin, read_pins
from medloupe.reproduce.papers.base import (
    CommandAnswer,
    GridAnswer,
    NoAnswer,
    PageAnswer,
    PaperTable,
    ScoredAnswer,
)
from medloupe.reproduce.papers.index import PAPERS, Asked


def marked(name: str, text: str) -> str:
    """A generated part of a document between its marks."""
    return f"<!-- {name}: generated -->\n{text}\n<!-- /{name} -->"


def on_a_cpu(table: PaperTable) -> str:
    """How a table is asked at the size of a workstation, in few words."""
    answer = table.tiny
    if isinstance(answer, GridAnswer):
        return f"yes: grid {answer.grid}"
    if isinstance(answer, ScoredAnswer):
        return f"yes: grid {answer.grid}, the table's columns"
    if isinstance(answer, PageAnswer):
        return f"yes: a page of the models of grid {answer.grid}"
    if isinstance(answer, CommandAnswer):
        return "yes: a command"
    if isinstance(answer, NoAnswer):
        return f"no: {answer.why}"
    return "yes: the recipes' fields"


def papers_table() -> str:
    """Every table and figure of every paper."""
    lines = ["| name | what it shows | on a CPU | what published size needs |", "|---|---|---|---|"]
    for paper in PAPERS.values():
        for table in paper.tables:
            name = Asked(paper, table).name
            needs = "; ".join(table.needs) or "nothing"
            lines.append(f"| `{name}` | {table.shows} | {on_a_cpu(table)} | {needs} |")
    return "\n".join(lines)


def benchmarks_table() -> str:
    """Every named benchmark; the version where the data were at hand."""
    pins = read_pins()
    lines = [
        "| name | what it asks | source | headline scorers | version pinned | licence | data |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_line(named, pins) for named in BENCHMARKS.values()]
    return "\n".join(lines)


def _line(named: NamedBenchmark, pins: Mapping[str, Pin]) -> str:
    pinned = pins[named.name]
    version = "not here"
    if pinned.version:
        version = f"`{pinned.version}`, {pinned.count:,} rows ({pinned.copy_of})"
    first = ", ".join(f"`{chosen[0].name}`" for chosen in named.benchmark.scorers.values())
    cells = (named.title, named.source, first, version, named.licence, named.get)
    return f"| `{named.name}` | {' | '.join(cells)} |"


def renewed(text: str) -> str:
    """A document with its generated parts made anew."""
    for name, made in (("tables", papers_table()), ("benchmarks", benchmarks_table())):
        first, last = f"<!-- {name}: generated -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(first)
        text = before + marked(name, made) + rest.partition(last)[2]
    return text


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
