"""Pictures of counts, as SVG. Colours are classes of the style sheet; lengths are units of each
picture's own viewBox."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from medloupe.data.stats.numbers import Spread
from medloupe.html.markup import Html, tag

_WIDTH = 240.0
_BAR = 12.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 8.0, 352.0, 10.0, 118.0


def stacked(numbers: Mapping[str, int], largest: int, title: str) -> Html:
    """One bar of parts by split; the longest bar of its table is `largest`."""
    shapes, x = [], 0.0
    for split, number in numbers.items():
        width = number / max(largest, 1) * _WIDTH
        shapes.append(
            tag("rect", x=x, y=0.0, width=max(width, 0.6), height=_BAR, class_=split_class(split))
        )
        x += width
    return _picture(_WIDTH, _BAR, title, shapes)


def share(value: float, title: str) -> Html:
    """A bar from 0 to 1 on its track."""
    track = tag("rect", x=0.0, y=0.0, width=_WIDTH, height=_BAR, class_="track")
    bar = tag("rect", x=0.0, y=0.0, width=value * _WIDTH, height=_BAR, class_="bar")
    return _picture(_WIDTH, _BAR, title, [track, bar])


def histogram(spread: Spread, title: str) -> Html:
    """How many values lie where, the median marked. Counts are on a root scale, so that the few long
    ones, which decide what is cut off, can be seen."""
    low, high = spread.edges[0], spread.edges[-1]
    most = math.sqrt(max(spread.counts))

    def across(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_RIGHT - _LEFT)

    shapes = []
    for count, start, end in zip(spread.counts, spread.edges, spread.edges[1:], strict=False):
        if not count:
            continue
        height = max(math.sqrt(count) / most * (_BOTTOM - _TOP), 1.0)
        x, width = across(start) + 0.5, max(across(end) - across(start) - 1.0, 0.5)
        words = f"{_number(start)} to {_number(end)}: {count:,}"
        bar = tag("title", words)
        shapes.append(
            tag("rect", bar, x=x, y=_BOTTOM - height, width=width, height=height, class_="bar")
        )
    middle = across(spread.median)
    shapes.append(tag("line", x1=middle, x2=middle, y1=_TOP - 4, y2=_BOTTOM, class_="middle"))
    shapes.append(tag("line", x1=_LEFT, x2=_RIGHT, y1=_BOTTOM, y2=_BOTTOM, class_="rule"))
    for value, anchor in ((spread.lowest, "start"), (spread.highest, "end")):
        x = _LEFT if anchor == "start" else _RIGHT
        shapes.append(
            tag("text", _number(value), x=x, y=_BOTTOM + 16, text_anchor=anchor, class_="tick")
        )
    return tag(
        "svg", tag("title", title), *shapes, viewBox="0 0 360 140", role="img", class_="histogram"
    )


def scatter(points: Sequence[tuple[int, int, int]], title: str) -> Html:
    """Image widths against heights; the area of a dot is how many images have that size."""
    largest = max(max(width, height) for width, height, _ in points)
    most = max(number for _, _, number in points)
    side, base = 300.0, 312.0

    def place(value: float) -> float:
        return value / largest * side

    shapes = [
        tag("line", x1=40.0, x2=40 + side, y1=base, y2=base, class_="rule"),
        tag("line", x1=40.0, x2=40.0, y1=base - side, y2=base, class_="rule"),
        tag("line", x1=40.0, x2=40 + side, y1=base, y2=base - side, class_="rule dashed"),
    ]
    for width, height, number in points:
        dot = tag("title", f"{width} x {height}: {number:,}")
        radius = 2.0 + 10 * math.sqrt(number / most) if most > 1 else 3.0
        shapes.append(
            tag(
                "circle",
                dot,
                cx=40 + place(width),
                cy=base - place(height),
                r=radius,
                class_="size",
            )
        )
    shapes += [
        tag(
            "text", f"{largest} px wide", x=40 + side, y=base + 16, text_anchor="end", class_="tick"
        ),
        tag("text", f"{largest}", x=36.0, y=base - side + 10, text_anchor="end", class_="tick"),
    ]
    return tag(
        "svg", tag("title", title), *shapes, viewBox="0 0 352 332", role="img", class_="scatter"
    )


def split_class(split: str) -> str:
    """The style class of a split."""
    return split.replace(" ", "-")


def _picture(width: float, height: float, title: str, shapes: Iterable[Html]) -> Html:
    box = f"0 0 {width:g} {height:g}"
    return tag(
        "svg",
        tag("title", title),
        *shapes,
        viewBox=box,
        preserveAspectRatio="none",
        role="img",
        class_="chart",
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"
