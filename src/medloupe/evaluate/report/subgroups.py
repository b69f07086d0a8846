"""Every group of patients, images and questions against all others, with counts."""

from __future__ import annotations

from collections.abc import Sequence

from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.metrics import ANSWER_TYPES, FEWEST_PATIENTS
from medloupe.evaluate.report import charts
from medloupe.evaluate.report.numbers import TITLES, count_of, interval, number, p_text
from medloupe.evaluate.statistics import Estimate
from medloupe.evaluate.subgroups import Subgroup, subgroups
from medloupe.html.markup import Html, tag
from medloupe.types import AnswerType, EvalLog, Metric

_LEAD = (
    "The difference is the group's score minus that of all other rows of the table. p is corrected (Holm)"
    f" for the groups of a table; there is none with fewer than {FEWEST_PATIENTS} patients on either side."
)


def subgroups_section(log: EvalLog, benchmark: Benchmark) -> list[Html]:
    """One table of groups for each answer type; nothing where rows tell of no group."""
    found = subgroups(log, benchmark)
    tables = [
        _table([one for one in found if one.answer_type == kind], kind) for kind in ANSWER_TYPES
    ]
    if not found:
        return []
    return [
        tag(
            "section",
            tag("h2", "Group by group"),
            tag("p", _LEAD, class_="lead"),
            *(part for table in tables for part in table),
            id="subgroups",
        )
    ]


def _table(found: Sequence[Subgroup], kind: AnswerType) -> list[Html]:
    if not found:
        return []
    reach = charts.reach_of(_metric(one, one.difference) for one in found)
    names = ("Group", "Score", "", "Difference to the others", "p, corrected", "Remark")
    head = tag("tr", *(tag("th", name) for name in names))
    title = tag("h3", TITLES[kind], " ", tag("small", found[0].scorer))
    rows = (_row(one, reach) for one in found)
    return [title, tag("table", tag("thead", head), tag("tbody", *rows), class_="kinds groups")]


def _row(one: Subgroup, reach: float) -> Html:
    difference = _metric(one, one.difference)
    about = f"{one.dimension}: {one.value}"
    unscored = f", {one.unscored:,} unscored" if one.unscored else ""
    count = f"{count_of(one.n, 'question')}, {count_of(one.patients, 'patient')}{unscored}"
    drawn = charts.difference(difference, reach, f"{about}: difference {interval(difference)}")
    return tag(
        "tr",
        tag("th", about, tag("small", count), scope="row"),
        tag("td", *number(_metric(one, one.score)), data_label="score"),
        tag("td", drawn, class_="picture"),
        tag("td", *number(difference, sign=True), data_label="difference"),
        tag("td", p_text(one.holm), data_label="p, corrected"),
        tag("td", tag("small", one.note)),
    )


def _metric(one: Subgroup, found: Estimate) -> Metric:
    return Metric(
        name=one.scorer,
        estimate=found.estimate,
        low=found.low,
        high=found.high,
        n=one.n,
        clusters=one.patients,
        unscored=one.unscored,
    )
