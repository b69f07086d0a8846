"""Scores as a table for the terminal: the headline scorer of each task, beside not looking."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from medloupe.evaluate.metrics import headline, stronger_blind, verdict
from medloupe.evaluate.statistics import Estimate
from medloupe.types import EvalLog, Metric


def scores(log: EvalLog) -> Table:
    """One line per task, and one for all of an answer type, under the scorer that headlines it."""
    chosen = headline(log)
    scorers = {metric.answer_type: metric.name for metric in chosen}
    table = Table(
        title=f"{log.benchmark} {log.version}",
        caption="scored by " + ", ".join(scorers.values()),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("questions", no_wrap=True)
    for heading in ("n", "model", "blind", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("sees?")
    for metric in chosen:
        arms: dict[str, Metric] = {m.arm: m for m in log.metrics if _place(m) == _place(metric)}
        if not metric.group:
            table.add_section()
        difference = arms.get("difference")
        table.add_row(
            metric.group or f"[bold]all {metric.answer_type}[/]",
            f"{metric.n:,}",
            _value(metric),
            _value(stronger_blind(arms.values()), interval=False),
            _value(difference, sign="+"),
            verdict(difference),
        )
    return table


def _place(metric: Metric) -> tuple[str, str, str, str]:
    return metric.name, metric.answer_type, metric.group, metric.stratum


def _value(metric: Metric | None, *, sign: str = "", interval: bool = True) -> str:
    if metric is None:
        return "-"
    ends = (metric.low, metric.high) if interval else (None, None)
    return estimate_text(Estimate(metric.estimate, *ends), sign=sign)


def estimate_text(found: Estimate, *, sign: str = "") -> str:
    """ "0.50 [0.25, 0.75]", as rich takes it; "-" where there is none."""
    if found.estimate is None:
        return "-"
    text = f"{found.estimate:{sign}.2f}"
    if found.low is None or found.high is None:
        return text
    return f"{text} \\[{found.low:{sign}.2f}, {found.high:{sign}.2f}]"
