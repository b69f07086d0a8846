"""Tables of text, for the terminal and for Markdown alike."""

from __future__ import annotations

from dataclasses import dataclass

from medloupe.reproduce.compare import Comparison
from medloupe.reproduce.page import claim_rows, majority_cells, score_cells
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
    labels = [row.label for row in found.grid.rows]
    rows = [(label, stands.get(label, "-"), *score_cells(found, label)) for label in labels]
    rows.append(("most frequent training answer", "-", *majority_cells(found)))
    return Sheet(
        title=f"Here: grid {found.grid.name}, version {found.grid.version}",
        header=("row", "stands for", *(measure.label for measure in found.grid.measures)),
        rows=tuple(rows),
    )


def claims_sheet(found: Comparison) -> Sheet | None:
    """What the paper says of two rows, and what the runs say to it."""
    if not found.answers:
        return None
    return Sheet(
        title="Direction",
        header=("claim", "paper", "measure", "here", "verdict"),
        rows=tuple(claim_rows(found)),
    )


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
