"""The page of several runs: each against the first, question by question, and where they disagree."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from medloupe.evaluate.log import noted
from medloupe.evaluate.metrics import headline
from medloupe.evaluate.paired import Comparison, Pair, PairedLine, differences
from medloupe.evaluate.report import charts
from medloupe.evaluate.report.numbers import (
    count_of,
    interval,
    minus_signs,
    number,
    p_text,
    scores_table,
)
from medloupe.evaluate.report.pictures import Gallery, ReadImage
from medloupe.evaluate.report.samples import said
from medloupe.html.markup import Html, join, tag
from medloupe.html.page import asset, document, write_page
from medloupe.types import Box, EvalLog, Metric

_STYLE = """
.scores td, .scores th { vertical-align: top; }
.scores td.picture { min-width: 9rem; }
.scores tr.found > * { background: var(--yes-back); }
.scores tr.lost > * { background: var(--no-back); }
.body dl > div.run { grid-template-columns: minmax(3.5rem, 7rem) 1fr; }
.body .rival dd { color: var(--asked); font-weight: 600; }
.box.rival { stroke: #63b8f5; stroke-dasharray: 6 4; }
.label.rival { fill: #63b8f5; }
.key.rival::before { border-top: 2.5px dashed var(--asked); }
"""


def write_comparison(
    path: Path,
    logs: Mapping[str, EvalLog],
    comparisons: Sequence[Comparison],
    images: ReadImage,
    *,
    samples: int = 40,
) -> None:
    """Write the page, whole or not at all; see `render_comparison`."""
    page = render_comparison(logs, comparisons, images, samples=samples)
    write_page(path, page)


def render_comparison(
    logs: Mapping[str, EvalLog],
    comparisons: Sequence[Comparison],
    images: ReadImage,
    *,
    samples: int = 40,
) -> str:
    """Runs by name, and the comparison of each but the first with the first.

    At most `samples` disagreements of each comparison are shown; an image that `images` cannot read is
    named in its place.
    """
    gallery = Gallery(images)
    sections = [
        part for comparison in comparisons for part in _sections(comparison, gallery, samples)
    ]
    first = next(iter(logs.values()))
    body = tag(
        "main",
        tag(
            "header",
            tag("p", "MedLoupe comparison of runs", class_="eyebrow"),
            tag("h1", first.benchmark),
        ),
        _runs(logs),
        *sections,
        tag("details", tag("summary", "How to read this"), *_explanation(), class_="how"),
        *_manifests(logs),
        tag("footer", "MedLoupe is research software. It is no medical device."),
    )
    style = join(asset(__package__, "style.css"), Html(_STYLE))
    title = f"{first.benchmark}: {' and '.join(logs)}"
    return document(title, gallery.store(), body, style=style)


def name_of(line: PairedLine) -> str:
    """What questions a line is about."""
    return line.group or f"all {line.answer_type}"


def _runs(logs: Mapping[str, EvalLog]) -> Html:
    """Each run by itself: what it is, and the scorer that headlines each answer type."""
    rows = []
    for name, log in logs.items():
        primary = [metric for metric in headline(log) if not metric.group]
        facts = [str(log.manifest.get(key, "not recorded")) for key in ("model", "date")]
        scores = join(
            *(tag("div", tag("small", f"{m.answer_type}: {m.name} "), *number(m)) for m in primary)
        )
        notes = ", ".join(f"{count:,} {kind}" for kind, count in noted(log).items())
        cells = (*facts, log.version, f"{len(log.rows):,}", scores, notes or "–")
        rows.append(tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in cells)))
    names = ("run", "model", "date", "version", "questions", "scores", "to know")
    return tag("section", tag("h2", "The runs"), scores_table(names, rows), id="runs")


def _sections(comparison: Comparison, gallery: Gallery, samples: int) -> list[Html]:
    first, second = comparison.names
    parts = [
        tag("h2", f"{second} against {first}"),
        tag("p", _sentence(comparison), class_="lead"),
        *_left_out(comparison),
        _lines(comparison.lines, comparison.names),
    ]
    if comparison.subgroups:
        summary = tag("summary", f"Group by group ({len(comparison.subgroups):,})")
        parts.append(tag("details", summary, _lines(comparison.subgroups, comparison.names)))
    return [tag("section", *parts), _disagreements(comparison, gallery, samples)]


def _sentence(comparison: Comparison) -> str:
    first, second = comparison.names
    tested = [line for line in comparison.lines if line.holm is not None]
    better = sum(line.winner == "second" for line in tested)
    worse = sum(line.winner == "first" for line in tested)
    rows = count_of(len(comparison.pairs), "question")
    return (
        f"{rows} in common. Of {count_of(len(tested), 'test')} {second} is better in {better:,} and"
        f" {first} in {worse:,} (p below 0.05 after Holm's correction for all of them)."
    )


def _left_out(comparison: Comparison) -> list[Html]:
    notes = [f"Versions differ: {'; '.join(comparison.versions)}"] if comparison.versions else []
    notes += [
        f"Left out: {count_of(len(ids), 'row')}, {reason} ({', '.join(ids[:3])}"
        f"{', ...' if len(ids) > 3 else ''})"
        for reason, ids in comparison.left_out.items()
    ]
    return [tag("aside", *(tag("p", note) for note in notes), class_="warnings")] if notes else []


def _lines(lines: Sequence[PairedLine], names: tuple[str, str]) -> Html:
    metrics = [_metric(line) for line in lines]
    reach = charts.reach_of(metrics)
    rows = [_row(line, metric, reach) for line, metric in zip(lines, metrics, strict=True)]
    heads = ["questions", "scorer", "n", "patients", "unscored", *names]
    heads += [
        f"{names[1]} − {names[0]}",
        "difference, 95 % interval",
        "p",
        "p, Holm",
        "q",
        "visible",
        "note",
    ]
    return scores_table(heads, rows)


def _row(line: PairedLine, metric: Metric, reach: float) -> Html:
    name = f"{line.dimension} = {line.value}" if line.dimension else name_of(line)
    better = "lower is better" if line.lower_is_better else ""
    cells = (
        line.scorer,
        f"{line.n:,}",
        f"{line.patients:,}",
        f"{line.unscored:,}",
        _score(line.first),
        _score(line.second),
        charts.difference(metric, reach, f"{name}: difference {interval(metric)}"),
        join(*number(metric, sign=True)),
        p_text(line.p),
        p_text(line.holm),
        p_text(line.q),
        _score(line.visible),
        "; ".join(part for part in (better, line.note) if part),
    )
    kind = {"second": "found", "first": "lost"}.get(line.winner)
    drawn = [tag("td", c, class_="picture" if i == 6 else None) for i, c in enumerate(cells)]
    return tag("tr", tag("th", name, scope="row"), *drawn, class_=kind)


def _metric(line: PairedLine) -> Metric:
    """The difference, for what draws metrics."""
    estimate, low, high = line.difference
    return Metric(name=line.scorer, estimate=estimate, low=low, high=high, n=line.n)


def _score(value: float | None) -> str:
    return "–" if value is None else minus_signs(f"{value:.2f}")


def _disagreements(comparison: Comparison, gallery: Gallery, samples: int) -> Html:
    first, second = comparison.names
    groups = (
        (f"Where {second} scores higher", [p for p in comparison.pairs if _gap(p) > 0]),
        (f"Where {first} scores higher", [p for p in comparison.pairs if _gap(p) < 0]),
    )
    parts = [tag("h2", "Where they disagree"), tag("p", _legend(comparison.names), class_="legend")]
    for title, pairs in groups:
        chosen = sorted(pairs, key=lambda pair: (-abs(_gap(pair)), _place(pair)))[: samples // 2]
        how = f"{len(chosen):,} of {len(pairs):,}, the largest differences first, then by a hash."
        cards = [_card(pair, comparison.names, gallery) for pair in chosen]
        parts += [tag("h3", title, " ", tag("small", how)), tag("div", *cards, class_="cards")]
    return tag("section", *parts)


def _gap(pair: Pair) -> float:
    """The second's value minus the first's; 0 where one has none: that is no disagreement of answers."""
    if pair.first_value is None or pair.second_value is None:
        return 0.0
    return pair.second_value - pair.first_value


def _place(pair: Pair) -> str:
    return hashlib.sha256(pair.first.id.encode()).hexdigest()


def _legend(names: tuple[str, str]) -> Html:
    return join(
        tag("span", "truth", class_="key truth"),
        tag("span", names[0], class_="key predicted"),
        tag("span", names[1], class_="key rival"),
    )


def _card(pair: Pair, names: tuple[str, str], gallery: Gallery) -> Html:
    first, second, scorer, *values = pair
    pictures = [
        tag("figure", gallery.picture(ref, _boxes(pair, index), f"image {index + 1} of {first.id}"))
        for index, ref in enumerate(first.images)
    ]
    answers = [
        _run(name, f"{said(row.prediction, row.predicted_boxes)} ({_score(value)})", kind)
        for name, row, value, kind in zip(
            names, (first, second), values, ("predicted", "rival"), strict=True
        )
    ]
    body = tag(
        "div",
        tag("p", first.question.strip() or "(no text)", class_="question"),
        tag("dl", _run("truth", said(first.truth, first.truth_boxes), "truth"), *answers),
        tag("p", tag("small", f"{scorer}; {first.id}")),
        class_="body",
    )
    shown = [tag("div", *pictures, class_=f"pictures n{min(len(pictures), 3)}")] if pictures else []
    return tag("article", *shown, body, class_="card")


def _boxes(pair: Pair, image: int) -> list[tuple[Box, str]]:
    kinds = (
        (pair.first.truth_boxes, "truth"),
        (pair.first.predicted_boxes, "predicted"),
        (pair.second.predicted_boxes, "rival"),
    )
    return [(box, kind) for boxes, kind in kinds for box in boxes if box.image == image]


def _run(name: str, text: str, kind: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", text), class_=f"run {kind}")


def _explanation() -> list[Html]:
    return [
        tag(
            "p",
            "Differences are paired: over the rows that both runs answered and that both have a score"
            " for. Intervals are of 95 %, from resampled patients, and not corrected. p is two-sided: how"
            " often a difference as large comes up if the two runs' answers to each patient are"
            " exchanged at random. Holm's p and q (Benjamini and Hochberg) are corrected for all tests of"
            " the table; a row with Holm's p below 0.05 is coloured, green where the run compared is better,"
            " red where the first one is.",
        ),
        tag(
            "p",
            "Visible is the smallest true difference that so many patients would show, at p below 0.05"
            " and uncorrected, four times in five. No difference found below it means little.",
        ),
    ]


def _manifests(logs: Mapping[str, EvalLog]) -> list[Html]:
    """Where the manifests of the others differ from the first one's."""
    (name, first), *others = logs.items()
    parts = []
    for other, log in others:
        rows = [
            tag("tr", *(tag("td", cell) for cell in found))
            for found in differences(first.manifest, log.manifest)
        ]
        places = count_of(len(rows), "place")
        summary = tag("summary", f"Manifests: {other} differs from {name} in {places}")
        parts.append(tag("details", summary, scores_table(("field", name, other), rows)))
    return parts
