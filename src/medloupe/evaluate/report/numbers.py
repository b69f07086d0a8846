"""Numbers and their tables as they are written on a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from medloupe.html.markup import Html, tag
from medloupe.types import AnswerType, EvalRow, Metric

TITLES: Mapping[AnswerType, str] = {
    "closed": "Closed questions",
    "box": "Boxes",
    "open": "Open questions",
}


def number(metric: Metric, *, sign: bool = False) -> tuple[Html, ...]:
    """The estimate, and its interval smaller beside it."""
    if metric.estimate is None:
        return (tag("b", "–"),)
    form = "+.2f" if sign else ".2f"
    value = tag("b", minus_signs(format(metric.estimate, form)))
    if metric.low is None or metric.high is None:
        return (value,)
    ends = f"{minus_signs(format(metric.low, form))} to {minus_signs(format(metric.high, form))}"
    return value, Html(" "), tag("span", ends, class_="interval")


def interval(metric: Metric) -> str:
    """ "0.50 (0.25 to 0.75)"."""
    if metric.estimate is None:
        return "no value"
    if metric.low is None or metric.high is None:
        return f"{metric.estimate:.2f}"
    return f"{metric.estimate:.2f} ({metric.low:.2f} to {metric.high:.2f})"


def minus_signs(text: str) -> str:
    """Hyphens as minus signs."""
    return text.replace("-", "−")


def p_text(p: float | None) -> str:
    """ "0.031", "< 0.001", "–"."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count_of(count: int, noun: str) -> str:
    """ "1 kind", "1,200 kinds", "2 boxes"."""
    plural = "es" if noun.endswith("x") else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def patients_of(rows: Sequence[EvalRow]) -> str:
    """How many, and what stands for those of whom nothing is recorded."""
    known = {row.patient_id for row in rows if row.patient_id is not None}
    silent = sum(row.patient_id is None for row in rows)
    if not silent:
        return f"{len(known):,}"
    of_some = f"{len(known):,}, and of {count_of(silent, 'question')} " if known else ""
    return f"{of_some}not recorded: questions about one image count as one patient's"


def scores_table(heads: Iterable[str], rows: Iterable[Html]) -> Html:
    """A table wider than the page may be."""
    head = tag("thead", tag("tr", *(tag("th", name) for name in heads)))
    return tag("div", tag("table", head, tag("tbody", *rows), class_="scores"), class_="scroll")
