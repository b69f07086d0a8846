"""The runs of a grid in a table's own columns, and whether its directions come out.

An estimate is the mean over the seeds; its interval goes from the lowest to the highest end of the seeds'
own intervals over patients, which is wider than need be. A direction "agrees" or "differs" only where two
intervals do not meet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import fmean
from typing import Literal

from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.metrics import find_metric
from medloupe.evaluate.scorers.labels import LabelLine, LabelScorer
from medloupe.evaluate.statistics import Estimate
from medloupe.reproduce.compare import Logs
from medloupe.reproduce.page import shown
from medloupe.reproduce.papers.base import Column, Line, PaperTable, ScoredAnswer
from medloupe.reproduce.papers.sheets import Sheet
from medloupe.types import EvalLog, Metric

Direction = Literal["agrees", "differs", "undecided"]
NOTHING = Estimate(None, None, None)


def scored_sheet(table: PaperTable, answer: ScoredAnswer, logs: Logs) -> Sheet:
    """A line for each row of the grid, or for each label of one of them."""
    if answer.parts:
        return _labels_sheet(answer, [log for (row, _), log in logs.items() if row == answer.parts])
    rows = tuple(
        (
            line.label,
            line.ours,
            *(shown(_of(column, line.ours, logs)) for column in answer.columns),
        )
        for line in table.lines
        if line.ours
    )
    return Sheet(
        title="Here, x 100",
        header=("stands for", "row", *(column.title for column in answer.columns)),
        rows=rows,
    )


def directions(table: PaperTable, answer: ScoredAnswer, logs: Logs) -> Sheet | None:
    """Every pair of lines that both stand here, in every column that the paper prints of both."""
    if answer.parts:
        return None
    rows = []
    for column in answer.columns:
        place = table.columns.index(column.of) if column.of in table.columns else None
        if place is None:
            continue
        counts = Counter(
            direction(printed, _of(column, a.ours, logs), _of(column, b.ours, logs))
            for a, b, printed in _pairs(table.lines, place)
        )
        if counts:
            states: tuple[Direction, ...] = ("agrees", "differs", "undecided")
            rows.append((column.title, *(str(counts[state]) for state in states)))
    if not rows:
        return None
    return Sheet(
        title="Direction, pairs of lines",
        header=("column", "agrees", "differs", "undecided"),
        rows=tuple(rows),
    )


def direction(printed: float, first: Estimate, second: Estimate) -> Direction:
    """Whether `first` less `second` has the sign of the paper's difference, as far as intervals say."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return "undecided"
    if printed == 0:
        return "undecided"
    if first.low > second.high:
        return "agrees" if printed > 0 else "differs"
    if second.low > first.high:
        return "agrees" if printed < 0 else "differs"
    return "undecided"


def over_seeds(metrics: Sequence[Metric]) -> Estimate:
    """The mean of the estimates, and the widest interval."""
    known = [metric for metric in metrics if metric.estimate is not None]
    if not known:
        return NOTHING
    mean = fmean(metric.estimate for metric in known if metric.estimate is not None)
    lows = [metric.low for metric in known if metric.low is not None]
    highs = [metric.high for metric in known if metric.high is not None]
    if len(lows) < len(known) or len(highs) < len(known):
        return Estimate(mean, None, None)
    return Estimate(mean, min(lows), max(highs))


def _pairs(table: Sequence[Line], place: int) -> Iterator[tuple[Line, Line, float]]:
    """Lines that stand here, with the paper's difference."""
    here = [line for line in table if line.ours]
    for first, second in combinations(here, 2):
        one, other = first.cells[place], second.cells[place]
        if isinstance(one, float) and isinstance(other, float):
            yield first, second, one - other


def _of(column: Column, row: str, logs: Logs) -> Estimate:
    """The row's own value in a column, over all seeds."""
    found = [log for (label, _), log in logs.items() if label == row]
    return over_seeds(_metrics(column, found, column.stratum))


def _metrics(column: Column, logs: Sequence[EvalLog], stratum: str) -> list[Metric]:
    wanted = {"name": column.scorer, "answer_type": column.answer_type, "stratum": stratum}
    found = (find_metric(log.metrics, **wanted) for log in logs)
    return [metric for metric in found if metric is not None]


def _labels_sheet(answer: ScoredAnswer, logs: Sequence[EvalLog]) -> Sheet:
    """Each label of the first seed's report with its support, estimates over all seeds."""
    rows = []
    reported = [_report(column, logs[0]) for column in answer.columns] if logs else []
    for lines in zip(*reported, strict=True):
        label, support = lines[0][0].label, lines[0][0].support
        stratum = f"finding = {label}"
        found = [over_seeds(_metrics(column, logs, stratum)) for column in answer.columns]
        cells = [
            f"{100 * plain:.1f}" if one.estimate is None else shown(one)
            for one, (_, plain) in zip(found, lines, strict=True)
        ]
        rows.append((label, *cells, str(support)))
    return Sheet(
        title=f"Here, row {answer.parts!r}, x 100; averages of the first seed",
        header=("label", *(column.title for column in answer.columns), "support"),
        rows=tuple(rows),
    )


def _report(column: Column, log: EvalLog) -> list[tuple[LabelLine, float]]:
    """The lines of a log's labels, each with the figure that the column shows."""
    asked = Benchmark.parse(log.manifest.get("benchmark"))
    scorers = {scorer.name: scorer for scorer in asked.scorers_of(column.answer_type)}
    scorer = scorers[column.scorer]
    assert isinstance(scorer, LabelScorer), f"{column.scorer} reports no labels"
    lines = scorer.report([row for row in log.rows if row.answer_type == column.answer_type])
    return [(line, line._asdict()[scorer.figure]) for line in lines]
