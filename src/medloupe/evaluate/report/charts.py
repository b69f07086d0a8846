"""Small SVG pictures of metrics and losses. Colours are classes of `style.css`, so they follow the
reader's light or dark; lengths in the code are units of each picture's own viewBox."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from medloupe.html.markup import Html, tag
from medloupe.types import Metric

_WIDTH = 240.0
_NARROW = 140.0
_BAR = 11.0
_GAP = 4.0


def bars(metrics: Sequence[tuple[Metric, str]], title: str) -> Html:
    """Horizontal bars on 0..1 with whiskers, one per (metric, class), from the top."""
    height = len(metrics) * (_BAR + _GAP) + _GAP
    shapes = [_rule(share * _WIDTH, height) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for index, (metric, kind) in enumerate(metrics):
        if metric.estimate is None:
            continue
        top = _GAP + index * (_BAR + _GAP)
        length = metric.estimate * _WIDTH
        shapes.append(tag("rect", x=0.0, y=top, width=length, height=_BAR, rx=2.0, class_=kind))
        shapes += _whisker(metric, top + _BAR / 2, lambda value: value * _WIDTH)
    return _picture(_WIDTH, height, title, shapes)


def difference(metric: Metric, reach: float, title: str) -> Html:
    """One difference as a dot with whiskers on -reach..reach, zero marked."""
    height = 2 * (_BAR + _GAP) + _GAP

    def place(value: float) -> float:
        return (value / reach + 1) / 2 * _NARROW

    shapes = [_rule(place(share * reach), height) for share in (-1.0, -0.5, 0.5, 1.0)]
    shapes.append(tag("line", x1=place(0.0), x2=place(0.0), y1=0.0, y2=height, class_="zero"))
    if metric.estimate is not None:
        shapes += _whisker(metric, height / 2, place)
        shapes.append(tag("circle", cx=place(metric.estimate), cy=height / 2, r=3.5, class_="dot"))
    return _picture(_NARROW, height, title, shapes)


def reach_of(metrics: Iterable[Metric]) -> float:
    """The half-width of a difference axis that holds every interval: 0.25, 0.5 or 1."""
    ends = [abs(end) for m in metrics for end in (m.estimate, m.low, m.high) if end is not None]
    largest = max(ends, default=1.0)
    return next((reach for reach in (0.25, 0.5) if largest <= reach), 1.0)


def loss_curve(rows: Sequence[Mapping[str, Any]], title: str) -> Html | None:
    """A training loss over steps: every logged value faint, a running mean strong.

    `rows` are of one stage. None where fewer than two have a finite loss.
    """
    points = [
        (float(row["step"]), float(row["loss"]))
        for row in rows
        if _is_number(row.get("step")) and _is_number(row.get("loss"))
    ]
    if len(points) < 2:
        return None
    points = _thinned(points)
    top = _nice_top(max(loss for _, loss in points))
    bottom = min(0.0, min(loss for _, loss in points))
    first, last = points[0][0], max(step for step, _ in points)
    left, right, upper, lower = 40.0, 552.0, 12.0, 168.0

    def at(step: float, loss: float) -> tuple[float, float]:
        across = (step - first) / ((last - first) or 1.0)
        return (
            left + across * (right - left),
            lower - (loss - bottom) / (top - bottom) * (lower - upper),
        )

    shapes = []
    for share in (0.0, 0.5, 1.0):
        value = bottom + share * (top - bottom)
        _, y = at(first, value)
        shapes.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="rule"))
        shapes.append(
            tag("text", f"{value:.3g}", x=left - 6, y=y + 4, text_anchor="end", class_="tick")
        )
    for step, anchor in ((first, "start"), (last, "end")):
        x, _ = at(step, 0.0)
        shapes.append(
            tag("text", f"step {step:g}", x=x, y=lower + 18, text_anchor=anchor, class_="tick")
        )
    smooth = _smoothed(points)
    shapes.append(tag("polyline", points=_path(points, at), class_="loss faint"))
    shapes.append(tag("polyline", points=_path(smooth, at), class_="loss"))
    return tag(
        "svg", tag("title", title), *shapes, viewBox="0 0 560 192", role="img", class_="curve"
    )


def _picture(width: float, height: float, title: str, shapes: Iterable[Html]) -> Html:
    # Whiskers and dots at the ends of the axis must not be cut: a margin of 6 on either side.
    box = f"-6 0 {width + 12:g} {height:g}"
    return tag("svg", tag("title", title), *shapes, viewBox=box, role="img", class_="chart")


def _rule(x: float, height: float) -> Html:
    return tag("line", x1=x, x2=x, y1=0.0, y2=height, class_="rule")


def _whisker(metric: Metric, y: float, place: Callable[[float], float]) -> list[Html]:
    if metric.low is None or metric.high is None:
        return []
    low, high = place(metric.low), place(metric.high)
    caps = [tag("line", x1=x, x2=x, y1=y - 4.0, y2=y + 4.0, class_="whisker") for x in (low, high)]
    return [tag("line", x1=low, x2=high, y1=y, y2=y, class_="whisker"), *caps]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _thinned(points: list[tuple[float, float]], most: int = 600) -> list[tuple[float, float]]:
    """At most `most` points: means of neighbours."""
    size = math.ceil(len(points) / most)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], math.fsum(loss for _, loss in part) / len(part)) for part in parts]


def _smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """An exponential running mean over about a fortieth of the run, unbiased at its start."""
    keep = 1 - 1 / max(2.0, len(points) / 40)
    mean = weight = 0.0
    out = []
    for step, loss in points:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        out.append((step, mean / weight))
    return out


def _path(
    points: list[tuple[float, float]], at: Callable[[float, float], tuple[float, float]]
) -> str:
    return " ".join("{:.1f},{:.1f}".format(*at(step, loss)) for step, loss in points)


def _nice_top(value: float) -> float:
    """The first of 1, 1.5, 2, 3, 5, 7.5 x 10^k that is not below `value`."""
    if value <= 0:
        return 1.0
    scale = 10.0 ** math.floor(math.log10(value))
    return next(scale * step for step in (1, 1.5, 2, 3, 5, 7.5, 10) if scale * step >= value)
