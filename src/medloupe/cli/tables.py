"""Scores as a table for the terminal: the headline scorer of each task, beside not looking."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table

from medloupe.evaluate.metrics import BLIND_ARMS, verdict
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
            _value(_stronger(arms), interval=False),
            _value(difference, sign="+"),
            verdict(difference),
        )
    return table


def _stronger(arms: Mapping[str, Metric]) -> Metric | None:
    """The better of the two ways of not looking."""
    found = [arms[name] for name in BLIND_ARMS if name in arms]
    answered = [metric for metric in found if metric.estimate is not None]
    return max(answered, key=lambda metric: metric.estimate or 0.0, default=None)


def headline(log: EvalLog) -> list[Metric]:
    """The model's metrics under the first scorer of each answer type, without strata."""
    first: dict[str, str] = {}
    for metric in log.metrics:
        first.setdefault(metric.answer_type, metric.name)
    return [
        metric
        for metric in log.metrics
        if metric.arm == "model" and not metric.stratum and metric.name == first[metric.answer_type]
    ]


def _place(metric: Metric) -> tuple[str, str, str, str]:
    return metric.name, metric.answer_type, metric.group, metric.stratum


def _value(metric: Metric | None, *, sign: str = "", interval: bool = True) -> str:
    if metric is None or metric.estimate is None:
        return "-"
    text = f"{metric.estimate:{sign}.2f}"
    if interval and metric.low is not None and metric.high is not None:
        text += f" \\[{metric.low:{sign}.2f}, {metric.high:{sign}.2f}]"
    return text
