"""What became of the score when the same questions were asked otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.metrics import (
    ANSWER_TYPES,
    FEWEST_PATIENTS,
    MINUS,
    about_arm,
    arms_of,
    find_metric,
)
from medloupe.evaluate.probes.base import Expect, probe_class
from medloupe.evaluate.report import charts
from medloupe.evaluate.report.numbers import TITLES, count_of, interval, number
from medloupe.html.markup import Html, tag
from medloupe.types import AnswerType, Arm, EvalLog, Metric


class _Asked(NamedTuple):
    """A probe on the rows of one kind of question: the score under it, and the difference."""

    arm: Arm
    expect: Expect
    under: Metric
    minus: Metric


class ProbeVerdict(NamedTuple):
    """What may be said of a difference, and how it is coloured."""

    text: str
    kind: str


def probes_section(log: EvalLog, benchmark: Benchmark) -> list[Html]:
    """A table of all rows of each answer type, and one by kind of question; nothing without probes."""
    found = _asked(log, benchmark)
    if not found:
        return []
    tables = [_tables(found, kind) for kind in ANSWER_TYPES]
    return [
        tag(
            "section",
            tag("h2", "Asked otherwise"),
            tag("p", _LEAD, class_="lead"),
            *(table for of_kind in tables for table in of_kind),
            tag("details", tag("summary", "How to read this"), *_explanation(), class_="how"),
            id="probes",
        )
    ]


_LEAD = (
    "The same questions with one thing changed. Without the right image a model that looks scores"
    " lower; where the right answer follows the change, a model that understands scores the same."
)


def probe_verdict(minus: Metric, expect: Expect) -> ProbeVerdict:
    """What the interval of (model minus model under a probe) shows, and no more."""
    if minus.estimate is None:
        return ProbeVerdict("not scored", "unsure")
    if minus.clusters < FEWEST_PATIENTS or minus.low is None or minus.high is None:
        return ProbeVerdict("too few patients", "unsure")
    falls, rises = minus.low > 0, minus.high < 0
    word = "falls" if falls else "rises"
    if rises if minus.lower_is_better else falls:  # it does worse under the probe
        return ProbeVerdict(word, "yes" if expect == "worse" else "no")
    if falls or rises:
        return ProbeVerdict(word, "no" if expect == "worse" else "unsure")
    if expect == "same":
        return ProbeVerdict("no change shown", "unsure")
    return ProbeVerdict("no rise shown" if minus.lower_is_better else "no fall shown", "unsure")


def _asked(log: EvalLog, benchmark: Benchmark) -> list[_Asked]:
    """Probe by probe; within one, answer types and their kinds of question in the order of the metrics."""
    primary = benchmark.primary()
    arms = [arm for arm in arms_of(log.rows) if f"{MINUS}{arm}" in {m.arm for m in log.metrics}]
    found = []
    for arm in arms:
        expect = probe_class(arm).expect
        for kind in (kind for kind in ANSWER_TYPES if kind in primary):
            for minus in _of(log.metrics, f"{MINUS}{arm}", kind, primary[kind].name):
                under = find_metric(
                    log.metrics, name=minus.name, arm=arm, answer_type=kind, group=minus.group
                )
                if under is not None:
                    found.append(_Asked(arm, expect, under, minus))
    return found


def _of(metrics: Iterable[Metric], arm: Arm, kind: AnswerType, scorer: str) -> list[Metric]:
    wanted = (scorer, arm, kind, "")
    return [m for m in metrics if (m.name, m.arm, m.answer_type, m.stratum) == wanted]


def _tables(found: Sequence[_Asked], kind: AnswerType) -> list[Html]:
    """All rows of an answer type, and below, closed, each kind of question where there are several."""
    of_kind = [one for one in found if one.minus.answer_type == kind]
    if not of_kind:
        return []
    tasks = [one for one in of_kind if one.minus.group]
    title = tag("h3", TITLES[kind], " ", tag("small", of_kind[0].minus.name))
    tables = [title, _table([one for one in of_kind if not one.minus.group])]
    if len({one.minus.group for one in tasks}) > 1:
        tables.append(tag("details", tag("summary", "By kind of question"), _table(tasks)))
    return tables


def _table(found: Sequence[_Asked]) -> Html:
    reach = charts.reach_of(one.minus for one in found)
    head = tag(
        "tr",
        tag("th", "The model …"),
        tag("th", "Score expected"),
        tag("th", "Score seen"),
        tag("th", "Model, same rows"),
        tag("th", "Under the probe"),
        tag(
            "th",
            tag("span", f"−{reach:g}"),
            tag("span", "0"),
            tag("span", f"+{reach:g}"),
            class_="axis",
        ),
        tag("th", "Difference"),
    )
    rows = [_row(one, reach) for one in found]
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="kinds asked-otherwise")


def _row(one: _Asked, reach: float) -> Html:
    minus = one.minus
    said = probe_verdict(minus, one.expect)
    rows = f"{minus.group}: " if minus.group else ""
    unscored = f", {minus.unscored:,} unscored" if minus.unscored else ""
    count = (
        f"{rows}{count_of(minus.n, 'question')}, {count_of(minus.clusters, 'patient')}{unscored}"
    )
    about = about_arm(one.arm).removeprefix("the model ")
    drawn = charts.difference(minus, reach, f"{about}, {rows}difference {interval(minus)}")
    return tag(
        "tr",
        tag("th", about, tag("small", count), scope="row"),
        tag("td", _expected(minus, one.expect), data_label="expected"),
        tag("td", tag("span", said.text, class_=f"pill {said.kind}"), data_label="seen"),
        tag("td", tag("b", _own(one)), data_label="model, same rows"),
        tag("td", *number(one.under), data_label="under the probe"),
        tag("td", drawn, class_="picture"),
        tag("td", *number(minus, sign=True), data_label="difference"),
    )


def _expected(minus: Metric, expect: Expect) -> str:
    if expect == "same":
        return "stays"
    return "rises" if minus.lower_is_better else "falls"


def _own(one: _Asked) -> str:
    """The model's score on the rows compared: what the probe left and the difference, on the same rows."""
    if one.minus.estimate is None or one.under.estimate is None or one.under.n != one.minus.n:
        return "–"
    return f"{one.under.estimate + one.minus.estimate:.2f}"


def _explanation() -> list[Html]:
    return [
        tag(
            "p",
            "The difference is the model's score minus its score under the probe, over the rows that both"
            " answered, with a 95 % interval from resampled patients. Falls: the whole interval lies"
            " above zero. No change shown: it holds zero; the ends of the interval say how large"
            " a change may still be. Intervals are not corrected for the number of probes, and"
            f" below {FEWEST_PATIENTS} patients nothing is said.",
        ),
        tag(
            "p",
            "A score that falls without the image shows that answers depend on it, not that they are"
            " right for the right reason. A probe asks only rows where the change and its right"
            " answer are certain, so its rows are not a sample of all.",
        ),
    ]
