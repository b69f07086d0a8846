"""Tables of text, for the terminal and for Markdown alike."""

from __future__ import annotations

from dataclasses import dataclass

from medloupe.evaluate.statistics import Estimate
from medloupe.reproduce.compare import Comparison
from medloupe.reproduce.page import claimed, shown
from medloupe.reproduce.papers.base import PaperTable, Printed


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A titled table; `header` names every column, the first one of the row's label."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [f"| {' | '.join(self.header)} |", "|---" * len(self.header) + "|"]
        lines += [f"| {' | '.join(map(_escaped, row))} |" for row in self.rows]
        return f"## {self.title}\n\n" + "\n".join(lines)


def printed(value: Printed, otherwise: str = "-") -> str:
    """A number as short as it is, an empty cell as `otherwise`."""
    if value is None:
        return otherwise
    return value if isinstance(value, str) else f"{value:g}"


def paper_sheet(table: PaperTable) -> Sheet | None:
    """What the paper prints; None for a figure without numbers."""
    if not table.lines:
        return None
    unit = f" ({table.unit})" if table.unit else ""
    return Sheet(
        title=f"The paper{unit}",
        header=("", *(column.strip() for column in table.columns)),
        rows=tuple((line.label, *map(printed, line.cells)) for line in table.lines),
    )


def grid_sheet(table: PaperTable, found: Comparison) -> Sheet:
    """A grid's rows under its measures, each beside the line of the paper for which it stands."""
    stands = {line.ours: line.label for line in table.lines if line.ours}
    measures = [measure.label for measure in found.grid.measures]
    rows = []
    for row in found.grid.rows:
        cells = [found.cell(row.label, measure) for measure in measures]
        texts = (shown(cell.estimate) if cell else "-" for cell in cells)
        rows.append((row.label, stands.get(row.label, "-"), *texts))
    majority = tuple(
        f"{100 * found.majority[measure]:.1f}" if measure in found.majority else "-"
        for measure in measures
    )
    rows.append(("most frequent training answer", "-", *majority))
    return Sheet(
        title=f"Here: grid {found.grid.name}, version {found.grid.version}",
        header=("row", "stands for", *measures),
        rows=tuple(rows),
    )


def claims_sheet(found: Comparison) -> Sheet | None:
    """What the paper says of two rows, and what the runs say to it."""
    if not found.answers:
        return None
    return Sheet(
        title="Direction",
        header=("claim", "paper", "measure", "here", "verdict"),
        rows=tuple(
            (
                claimed(answer),
                answer.claim.paper,
                answer.measure,
                shown(answer.difference, signed=True),
                answer.verdict,
            )
            for answer in found.answers
        ),
    )


def percent(found: Estimate) -> str:
    """ "61.2 (55.0 to 67.1)"."""
    return shown(found)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
