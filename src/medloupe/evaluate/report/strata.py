"""Bars by finding, and along the strata of a benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.report import charts
from medloupe.evaluate.report.numbers import interval, number
from medloupe.html.markup import Html, tag
from medloupe.types import EvalLog, Metric

_FINDING = "finding = "


def findings_section(log: EvalLog) -> list[Html]:
    """Every scorer that says something of each finding, the best finding first."""
    found = [m for m in log.metrics if m.stratum.startswith(_FINDING) and m.arm == "model"]
    if not found:
        return []
    tasks = {(m.answer_type, m.name, m.group) for m in found if m.group}
    kinds = Counter((answer_type, name) for answer_type, name, _ in tasks)
    # of one kind of question, all of them together would say the same again
    found = [m for m in found if m.group or kinds[m.answer_type, m.name] != 1]
    ranked = sorted(found, key=lambda m: (m.estimate is None, -(m.estimate or 0), m.stratum))
    return _section("findings", "Finding by finding", _grouped(ranked))


def strata_section(log: EvalLog, benchmark: Benchmark) -> list[Html]:
    """The first scorer of each answer type along each stratum."""
    primary = benchmark.primary()
    found = [
        m
        for m in log.metrics
        if m.stratum
        and not m.stratum.startswith(_FINDING)
        and m.arm == "model"
        and m.name == primary[m.answer_type].name
    ]
    return _section("strata", "Where it is easy, where it is hard", _grouped(found))


def _grouped(metrics: Iterable[Metric]) -> list[tuple[str, str, list[Metric]]]:
    """By kind of question and scorer: (kind, scorer, metrics)."""
    groups: dict[tuple[str, str], list[Metric]] = {}
    for metric in metrics:
        name = metric.group or f"all {metric.answer_type} questions"
        groups.setdefault((name, metric.name), []).append(metric)
    return [(*names, group) for names, group in groups.items()]


def _section(id: str, title: str, groups: Sequence[tuple[str, str, list[Metric]]]) -> list[Html]:
    if not groups:
        return []
    figures = [
        tag(
            "figure",
            tag("figcaption", kind, " ", tag("small", scorer)),
            tag("table", tag("tbody", *(_row(metric) for metric in metrics))),
        )
        for kind, scorer, metrics in groups
    ]
    return [tag("section", tag("h2", title), tag("div", *figures, class_="strata"), id=id)]


def _row(metric: Metric) -> Html:
    name = metric.stratum.removeprefix(_FINDING).replace("<=", "≤").replace(">=", "≥")
    return tag(
        "tr",
        tag("th", name, tag("small", f"n = {metric.n:,}"), scope="row"),
        tag(
            "td", charts.bars([(metric, "model")], f"{name}: {interval(metric)}"), class_="picture"
        ),
        tag("td", *number(metric)),
    )
