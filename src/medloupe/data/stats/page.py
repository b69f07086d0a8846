"""The page: what is here, what leaks, what a constant answer scores, then the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medloupe.data.stats import charts
from medloupe.data.stats.images import ImageFacts
from medloupe.data.stats.numbers import AnswerBalance, DataStats, Overlap, Spread
from medloupe.html.markup import Html, tag
from medloupe.html.page import asset, document, write_page

_MOST = 40  # rows of a table; what is left out is counted
_BIASED = 0.7  # above this, a constant answer alone looks like a good model
_SPLITS = ("train", "validation", "test", "no split")

Table = Mapping[str, Mapping[str, int]]


def write_stats_page(path: Path, stats: DataStats) -> None:
    """Write the page, whole or not at all."""
    write_page(path, render(stats))


def render(stats: DataStats) -> str:
    """The page as text: one file, nothing external, readable on a phone and on paper."""
    body = tag(
        "main",
        _header(stats),
        _warnings(stats),
        _counts(stats),
        *_overlaps(stats.overlaps),
        *_answers(stats.answers),
        *_groups(
            "What is asked",
            ("Kinds of question", stats.tasks),
            ("Answer types", stats.answer_types),
            ("Languages", stats.languages),
            ("Turns of a conversation", stats.turns),
            ("Images of a conversation", stats.images_per_row),
        ),
        *_groups("What is labelled", ("Labels", stats.labels), ("Boxes", stats.boxes)),
        *_lengths("How long the texts are", stats.lengths),
        *_lengths("Tokens", stats.tokens),
        *_images(stats),
        *_groups("Who and how", *stats.attributes.items()),
        tag("footer", "MedLoupe is research software. It is no medical device."),
    )
    return document(f"{stats.card.name}: data", body, style=asset(__package__, "style.css"))


def _header(stats: DataStats) -> Html:
    card = stats.card
    facts = [
        ("version", card.version),
        ("licence", card.licence or "not stated"),
        ("access", card.access or "not stated"),
        ("splits", card.splits),
        ("rows' fingerprint", stats.rows),
    ]
    lines = [tag("p", text, class_="lead") for text in (card.description, card.citation) if text]
    return tag(
        "header",
        tag("p", "MedLoupe data report", class_="eyebrow"),
        tag("h1", card.name),
        *lines,
        tag(
            "dl",
            *(tag("div", tag("dt", name), tag("dd", text)) for name, text in facts if text),
            class_="facts",
        ),
    )


def _warnings(stats: DataStats) -> Html:
    images = stats.images
    unreadable = len(images.unreadable) if images is not None else 0
    lines = [
        ("Partial copy", stats.card.partial),
        ("Leak", stats.card.leak),
        ("Unreadable", f"{unreadable:,} images; medloupe check names them" if unreadable else ""),
    ]
    notes = [tag("p", tag("strong", f"{name}: "), text) for name, text in lines if text]
    return tag("aside", *notes, class_="warnings") if notes else Html()


def _counts(stats: DataStats) -> Html:
    splits = _present(stats.counts.values())
    head = tag("tr", tag("th", ""), *(tag("th", split) for split in splits), tag("th", "all"))
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            *(tag("td", f"{numbers.get(split, 0):,}") for split in splits),
            tag("td", f"{sum(numbers.values()):,}"),
        )
        for name, numbers in stats.counts.items()
    ]
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="numbers")
    return tag(
        "section", tag("h2", "What is here"), tag("div", table, class_="scroll"), id="counts"
    )


def _overlaps(overlaps: Sequence[Overlap]) -> list[Html]:
    if not overlaps:
        return []
    leaks = sum(bool(o.patients or o.images) for o in overlaps)
    title = f"{leaks} of {len(overlaps)} pairs of splits share patients or images"
    if not leaks:
        title = "No patient and no image is in two splits"
    names = ("splits", "", "patients", "images", "questions word for word", "with the same answer")
    rows = [
        tag(
            "tr",
            tag("th", f"{o.one} and {o.other}", scope="row"),
            tag("td", _pill("leak", "no") if o.patients or o.images else _pill("apart", "yes")),
            tag("td", f"{o.patients:,}"),
            tag("td", f"{o.images:,}"),
            tag("td", f"{o.questions:,} of {o.distinct_questions:,}"),
            tag("td", f"{o.question_answers:,}"),
        )
        for o in overlaps
    ]
    table = tag(
        "table",
        tag("thead", tag("tr", *(tag("th", name) for name in names))),
        tag("tbody", *rows),
        class_="numbers",
    )
    lead = "Shared questions are common where few wordings are used; shared images never are."
    return [
        tag(
            "section",
            tag("h2", title),
            tag("p", f"{lead} medloupe audit looks for copies too.", class_="lead"),
            tag("div", table, class_="scroll"),
            id="overlap",
        )
    ]


def _answers(balances: Sequence[AnswerBalance]) -> list[Html]:
    if not balances:
        return []
    closed = [b for b in balances if b.answer_type == "closed"] or list(balances)
    total = sum(b.scored for b in closed)
    together = sum(b.share * b.scored for b in closed) / total
    kind = "closed " if closed[0].answer_type == "closed" else ""
    biased = sum(b.share >= _BIASED for b in closed)
    lead = (
        f"The most frequent training answer of each wording, given blindly, is right on"
        f" {together:.0%} of the {total:,} held-out {kind}questions (of all, where none is held out)."
    )
    if biased:
        lead += f" On {biased} of {len(closed)} kinds it reaches {_BIASED:.0%}: compare with it."
    ordered = sorted(balances, key=lambda b: (-b.share, -b.n, b.task, b.template))
    names = ("kind of question", "wording", "rows", "answers", "best constant", "its score", "")
    rows = [
        tag(
            "tr",
            tag("th", b.task, tag("small", b.answer_type), scope="row"),
            tag("td", b.template),
            tag("td", f"{b.n:,}"),
            tag("td", f"{b.answers:,}", title=", ".join(f"{a} ({n:,})" for a, n in b.top)),
            tag("td", b.constant),
            tag("td", charts.share(b.share, f"{b.share:.0%}"), class_="picture"),
            tag("td", f"{b.share:.0%}"),
        )
        for b in ordered[:_MOST]
    ]
    table = tag(
        "table",
        tag("thead", tag("tr", *(tag("th", name) for name in names))),
        tag("tbody", *rows),
        class_="numbers answers",
    )
    return [
        tag(
            "section",
            tag("h2", "What an answer without looking scores"),
            tag("p", lead, class_="lead"),
            tag("div", table, class_="scroll"),
            _more(len(ordered)),
            id="answers",
        )
    ]


def _groups(title: str, *tables: tuple[str, Table]) -> list[Html]:
    """Tables of bars; a table with one row and one number says nothing and is left out."""
    shown = [(name, table) for name, table in tables if table]
    if not shown:
        return []
    splits = _present(numbers for _, table in shown for numbers in table.values())
    legend = [
        tag("span", tag("i", class_=charts.split_class(split)), split, class_="key")
        for split in splits
    ]
    figures = [tag("figure", tag("figcaption", name), _bars(name, table)) for name, table in shown]
    return [
        tag(
            "section",
            tag("h2", title),
            tag("p", *legend, class_="legend"),
            tag("div", *figures, class_="figures"),
        )
    ]


def _bars(name: str, table: Table) -> Html:
    largest = max(sum(numbers.values()) for numbers in table.values())
    rows = []
    for value, numbers in list(table.items())[:_MOST]:
        words = ", ".join(f"{split} {number:,}" for split, number in numbers.items())
        bar = charts.stacked(numbers, largest, f"{name} {value}: {words}")
        total = f"{sum(numbers.values()):,}"
        rows.append(
            tag(
                "tr",
                tag("th", value, scope="row"),
                tag("td", bar, class_="picture"),
                tag("td", total),
            )
        )
    return tag("div", tag("table", tag("tbody", *rows), class_="bars"), _more(len(table)))


def _lengths(title: str, spreads: Mapping[str, Spread]) -> list[Html]:
    if not spreads:
        return []
    figures = [
        tag("figure", tag("figcaption", name), charts.histogram(spread, name), _line(spread))
        for name, spread in spreads.items()
    ]
    return [tag("section", tag("h2", title), tag("div", *figures, class_="figures"))]


def _line(spread: Spread) -> Html:
    parts = (
        f"{spread.n:,} texts",
        f"median {spread.median:g}",
        f"5 to 95 %: {spread.p5:g} to {spread.p95:g}",
        f"longest {spread.highest:g}",
    )
    return tag("p", ", ".join(parts), class_="note")


def _images(stats: DataStats) -> list[Html]:
    images = stats.images
    if images is None or not images.points:
        return []
    figures = [
        tag(
            "figure",
            tag("figcaption", "Width and height"),
            charts.scatter(images.points, "Width and height of images"),
            tag("p", _extent(images), class_="note"),
        )
    ]
    everything = {
        "Sizes in pixels": images.sizes,
        "Spacing in mm (slice, row, column)": images.spacings,
    }
    everything |= {"Values are": images.units, "Kind of file": images.formats}
    figures += [
        tag(
            "figure",
            tag("figcaption", name),
            _bars(name, {k: {"all": n} for k, n in table.items()}),
        )
        for name, table in everything.items()
    ]
    figures.append(
        tag("figure", tag("figcaption", "Modality"), _bars("Modality", stats.modalities))
    )
    return [
        tag("section", tag("h2", "Images"), tag("div", *figures, class_="figures"), id="images")
    ]


def _extent(images: ImageFacts) -> str:
    text = (
        f"{images.n:,} images, {images.bytes / 1e6:,.1f} MB; width {_range(images.widths)},"
        f" height {_range(images.heights)}"
    )
    return text + (f", slices {_range(images.slices)}" if images.slices[2] > 1 else "")


def _range(values: tuple[int, int, int]) -> str:
    low, middle, high = values
    return f"{low:,} to {high:,} (median {middle:,})" if low != high else f"{low:,}"


def _present(tables: Iterable[Mapping[str, int]]) -> list[str]:
    found = {split for numbers in tables for split in numbers}
    return [split for split in _SPLITS if split in found]


def _more(number: int) -> Html:
    left = number - _MOST
    return tag("p", f"and {left:,} more", class_="note") if left > 0 else Html()


def _pill(text: str, kind: str) -> Html:
    return tag("span", text, class_=f"pill {kind}")
