"""Curves of a whole evaluation: confidence against accuracy, risk against coverage, and FROC.

Drawn as `charts` are: colours are classes of `style.css`, lengths are units of the viewBox.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from medloupe.evaluate.metrics import ANSWER_TYPES
from medloupe.evaluate.report.numbers import count_of
from medloupe.evaluate.scorers.calibration import (
    AnswerAurc,
    AnswerEce,
    Aurc,
    Bin,
    Ece,
    OptionsAurc,
    OptionsEce,
    RiskPoint,
)
from medloupe.evaluate.scorers.detection import FrocIoU50, FrocPoint
from medloupe.html.markup import Html, tag
from medloupe.types import AnswerType, EvalLog, EvalRow

_LEFT, _RIGHT, _UPPER, _LOWER = 54.0, 270.0, 12.0, 192.0
_DOT = 7.0  # radius of the bin that holds most answers


class Point(NamedTuple):
    """A point of a curve, in its own units or in those of the viewBox."""

    x: float
    y: float


class _Axes(NamedTuple):
    """x from 0 to `right`, y from 0 to 1, both with ticks at their quarters."""

    x_name: str
    y_name: str
    right: float = 1.0

    def at(self, point: Point) -> Point:
        across, up = point.x / self.right, point.y
        return Point(_LEFT + across * (_RIGHT - _LEFT), _LOWER - up * (_LOWER - _UPPER))

    def drawn(self) -> list[Html]:
        shapes = []
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            x, y = self.at(Point(share * self.right, share))
            shapes += [
                tag("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, class_="rule"),
                _text(f"{share:g}", _LEFT - 6, y + 4, "end"),
                _text(f"{share * self.right:.3g}", x, _LOWER + 16, "middle"),
            ]
        middle = (_UPPER + _LOWER) / 2
        turned = f"rotate(-90 10 {middle:g})"
        return [
            *shapes,
            _text(self.x_name, (_LEFT + _RIGHT) / 2, _LOWER + 34, "middle"),
            tag("text", self.y_name, x=10.0, y=middle, text_anchor="middle", transform=turned,
                class_="tick"),
        ]  # fmt: skip


def curves_section(log: EvalLog) -> list[Html]:
    """Reliability and risk-coverage of each answer type whose answers come with probabilities."""
    figures = []
    for kind in ANSWER_TYPES:
        rows = [row for row in log.rows if row.answer_type == kind]
        figures += _sureness(kind, rows)
    if not figures:
        return []
    return [
        tag(
            "section",
            tag("h2", "Does it know when it is right?"),
            tag("p", _LEAD, class_="lead"),
            tag("div", *figures, class_="curves plots"),
            id="calibration",
        )
    ]


_LEAD = (
    "Reliability: on the dashed line, answers given with confidence 0.8 are right 8 times in 10; below"
    " it the model is too sure. A larger dot stands for more answers. Risk and coverage: how many answers"
    " are wrong if only the surest ones are given."
)
_FROC = FrocIoU50()
_READINGS: tuple[tuple[str, Ece, Aurc], ...] = (
    ("probability of the chosen option", OptionsEce(), OptionsAurc()),
    ("probability of the written answer", AnswerEce(), AnswerAurc()),
)


def froc_section(log: EvalLog) -> list[Html]:
    """Findings found against false boxes, of each answer type whose boxes have a confidence."""
    figures = []
    for kind in ANSWER_TYPES:
        rows = [row for row in log.rows if row.answer_type == kind]
        if any(box.score is not None for row in rows for box in row.predicted_boxes):
            points = _FROC.points(rows)
            scored = sum(_FROC.judge(row)[0] is not None for row in rows)
            about = tag("small", f"IoU at least 0.5, {count_of(scored, 'image')}")
            figures += (
                [_figure(f"FROC, {kind}", about, froc(points, f"FROC, {kind}"))] if points else []
            )
    if not figures:
        return []
    return [
        tag(
            "section",
            tag("h2", "Findings found, and false boxes"),
            tag("div", *figures, class_="curves plots"),
            id="froc",
        )
    ]


def _sureness(kind: AnswerType, rows: Sequence[EvalRow]) -> list[Html]:
    """The two plots by the first reading that has points: of the options, else of the answer."""
    for reading, ece, aurc in _READINGS:
        bins, risks = ece.points(rows), aurc.points(rows)
        if bins:
            count = count_of(sum(one.rows for one in bins), "answer")
            about = tag("small", f"{reading}, {count}")
            return [
                _figure(f"Reliability, {kind}", about, reliability(bins, f"reliability, {kind}")),
                _figure(f"Risk and coverage, {kind}", about, risk_coverage(risks, f"risk, {kind}")),
            ]
    return []


def _figure(name: str, about: Html, picture: Html) -> Html:
    return tag("figure", tag("figcaption", name, " ", about), picture)


def reliability(bins: Sequence[Bin], title: str) -> Html:
    """Each bin as a dot whose area is its share of the answers, before the diagonal on which confidence
    is what it says."""
    axes, most = _Axes("confidence", "share that is right"), max(one.rows for one in bins)
    places = [axes.at(Point(one.confidence, one.accuracy)) for one in bins]
    dots = [
        tag(
            "circle",
            tag(
                "title",
                f"confidence {one.confidence:.2f}, right {one.accuracy:.2f}, n = {one.rows:,}",
            ),
            cx=_fine(place.x),
            cy=_fine(place.y),
            r=_fine(max(2.0, _DOT * math.sqrt(one.rows / most))),
            class_="bin",
        )
        for one, place in zip(bins, places, strict=True)
    ]
    start, end = axes.at(Point(0, 0)), axes.at(Point(1, 1))
    diagonal = tag("line", x1=start.x, y1=start.y, x2=end.x, y2=end.y, class_="zero dashed")
    return _picture(title, [*axes.drawn(), diagonal, _line(places), *dots])


def risk_coverage(points: Sequence[RiskPoint], title: str) -> Html:
    """The share of answers that are wrong among the surest ones."""
    axes = _Axes("share of questions answered", "share that is wrong")
    places = [axes.at(Point(point.coverage, point.risk)) for point in points]
    return _picture(title, [*axes.drawn(), _line(places)])


def froc(points: Sequence[FrocPoint], title: str) -> Html:
    """The share of findings that are found against false boxes per image."""
    right = _nice(max(point.false_positives for point in points))
    axes = _Axes("false boxes per image", "share of findings found", right)
    places = [axes.at(Point(point.false_positives, point.sensitivity)) for point in points]
    return _picture(title, [*axes.drawn(), _line(places)])


def _picture(title: str, shapes: Iterable[Html]) -> Html:
    return tag(
        "svg", tag("title", title), *shapes, viewBox="0 0 280 232", role="img", class_="plot"
    )


def _line(places: Sequence[Point]) -> Html:
    points = " ".join(f"{place.x:.1f},{place.y:.1f}" for place in places)
    return tag("polyline", points=points, class_="loss")


def _text(text: str, x: float, y: float, anchor: str) -> Html:
    return tag("text", text, x=_fine(x), y=_fine(y), text_anchor=anchor, class_="tick")


def _fine(value: float) -> str:
    return f"{value:.1f}"


def _nice(value: float) -> float:
    """The first of 1, 2, 4, 8, 16, 24, ... that is not below `value`; FROC is read at the first four."""
    return next((top for top in (1.0, 2.0, 4.0, 8.0) if value <= top), math.ceil(value / 8) * 8.0)
