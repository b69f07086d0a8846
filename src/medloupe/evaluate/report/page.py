"""The page: verdict, tables, curves, samples, manifest, in the order in which a reader asks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medloupe.config import Config
from medloupe.data.dataset import DatasetCard
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.benchmarks.lock import deviation_of
from medloupe.evaluate.log import faults_of
from medloupe.evaluate.metrics import (
    DIFFERENCE,
    FEWEST_PATIENTS,
    MINUS,
    about_arm,
    find_metric,
    headline,
    verdict,
)
from medloupe.evaluate.report import charts
from medloupe.evaluate.report.curves import curves_section, froc_section
from medloupe.evaluate.report.numbers import (
    TITLES,
    count_of,
    interval,
    minus_signs,
    number,
    patients_of,
    scores_table,
)
from medloupe.evaluate.report.pictures import Gallery, ReadImage
from medloupe.evaluate.report.probes import probes_section
from medloupe.evaluate.report.samples import sample_browser
from medloupe.evaluate.report.strata import findings_section, strata_section
from medloupe.evaluate.report.subgroups import subgroups_section
from medloupe.html.markup import Html, tag
from medloupe.html.page import asset, document, write_page
from medloupe.types import AnswerType, EvalLog, Metric

TrainingRows = Sequence[Mapping[str, Any]]

_BLIND = {"swapped": "another patient's image", "majority": "most frequent training answer"}


def write_report(
    path: Path,
    log: EvalLog,
    images: ReadImage,
    training: TrainingRows | None = None,
    *,
    samples: int = 120,
) -> None:
    """Write the report of an evaluation, whole or not at all.

    `images` gives display pixels at original size; an image that cannot be read is named in its
    place. `training` are rows of a training log ("step", "loss" and, where there are several,
    "stage"). At most `samples` questions are shown.
    """
    page = render_report(log, images, training, samples=samples)
    write_page(path, page)


def render_report(
    log: EvalLog,
    images: ReadImage,
    training: TrainingRows | None = None,
    *,
    samples: int = 120,
) -> str:
    """The report as text; see `write_report`."""
    made = _Made.parse({name: log.manifest.get(name) for name in _Made.model_fields})
    gallery = Gallery(images)
    browser = sample_browser(log, made.benchmark, gallery, samples)
    body = tag(
        "main",
        _header(log, made),
        _warnings(log, made.dataset),
        _verdict_section(log, made.benchmark),
        *probes_section(log, made.benchmark),
        *findings_section(log),
        *strata_section(log, made.benchmark),
        *subgroups_section(log, made.benchmark),
        *froc_section(log),
        *curves_section(log),
        *_training_section(training or ()),
        browser,
        _all_scores(log),
        _manifest(log),
        tag("footer", "MedLoupe is research software. It is no medical device."),
    )
    return document(
        f"{log.benchmark}: evaluation report",
        gallery.store(),
        body,
        tag("script", asset(__package__, "browser.js")),
        style=asset(__package__, "style.css"),
    )


class _Made(Config):
    """The part of a manifest that the page explains itself with."""

    benchmark: Benchmark
    dataset: DatasetCard


def _header(log: EvalLog, made: _Made) -> Html:
    facts = [
        ("data set", f"{made.dataset.name} {made.dataset.version}, {made.benchmark.split} split"),
        ("questions", f"{len(log.rows):,}"),
        ("patients", patients_of(log.rows)),
    ]
    for name in ("model", "checkpoint", "date"):
        if isinstance(log.manifest.get(name), str):
            facts.append((name, log.manifest[name]))
    facts.append(("version", log.version))
    return tag(
        "header",
        tag("p", "MedLoupe evaluation report", class_="eyebrow"),
        tag("h1", log.benchmark),
        tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in facts), class_="facts"),
    )


def _warnings(log: EvalLog, card: DatasetCard) -> Html:
    cut = sum(row.finish_reason == "length" for row in log.rows)
    failed = {row.id for row in log.rows if row.error}
    silent = sum(bool(answer.error) for row in log.rows for answer in row.others.values())
    lost = {s.id for s in log.scores if s.value is None and s.arm == "model"} - failed
    faults = "; ".join(f"{count:,} {kind}" for kind, count in faults_of(log).items())
    lines = [
        ("Partial copy", card.partial),
        ("Leak", card.leak),
        ("Frozen benchmark", deviation_of(log)),
        ("Faults", faults),
        ("Errors", f"{count_of(len(failed), 'question')} got no answer" if failed else ""),
        ("Probes", f"{count_of(silent, 'question')} got no answer" if silent else ""),
        ("Unscored", f"{count_of(len(lost), 'question')} could not be scored" if lost else ""),
        (
            "Cut short",
            f"{count_of(cut, 'answer')} reached the longest length allowed" if cut else "",
        ),
    ]
    notes = [tag("p", tag("strong", f"{name}: "), text) for name, text in lines if text]
    return tag("aside", *notes, class_="warnings") if notes else Html()


def _verdict_section(log: EvalLog, benchmark: Benchmark) -> Html:
    tables = [_kind_table(log, benchmark, kind) for kind in TITLES]
    return tag(
        "section",
        *_headline(log, benchmark),
        *(table for table in tables if table is not None),
        tag("details", tag("summary", "How to read this"), *_explanation(benchmark), class_="how"),
        id="verdict",
    )


def _headline(log: EvalLog, benchmark: Benchmark) -> list[Html]:
    """One sentence: on how many kinds of question the model is better than not looking."""
    primary = {kind: scorer.name for kind, scorer in benchmark.primary().items()}
    differences = [
        metric
        for metric in log.metrics
        if metric.arm == "difference"
        and metric.group
        and not metric.stratum
        and metric.name == primary.get(metric.answer_type)
    ]
    if not differences:
        return [tag("h2", "Not compared with an image-blind model")]
    answers = Counter(verdict(metric) for metric in differences)
    small = answers["too few patients"]
    judged = len(differences) - small
    text = (
        f"The model beats its image-blind comparison on {answers['yes']} of"
        f" {count_of(judged, 'kind')} of question"
    )
    if not judged:
        text = "Too few patients to say whether the model beats an image-blind one"
    lines = [_together(log, benchmark)]
    if small:
        lines.append(
            f"{count_of(small, 'kind')} of question with fewer than {FEWEST_PATIENTS} patients: no verdict."
        )
    return [tag("h2", text), *(tag("p", line, class_="lead") for line in lines if line)]


def _together(log: EvalLog, benchmark: Benchmark) -> str:
    """All closed questions in one sentence, "" where they were not compared."""
    scorer = benchmark.primary().get("closed")
    if scorer is None:
        return ""
    name = scorer.name
    own = find_metric(log.metrics, name=name, answer_type="closed")
    gain = find_metric(log.metrics, name=name, arm="difference", answer_type="closed")
    if own is None or own.estimate is None or gain is None or gain.estimate is None:
        return ""
    ends = ""
    if gain.low is not None and gain.high is not None:
        ends = f", 95 % interval {gain.low:+.2f} to {gain.high:+.2f}"
    difference = minus_signs(f"{gain.estimate:+.2f}{ends}")
    return f"All closed questions together: {own.estimate:.2f}; difference to image-blind {difference}."


def _explanation(benchmark: Benchmark) -> list[Html]:
    return [
        tag(
            "p",
            "Image-blind means the stronger of two answerers that cannot see: the same model shown"
            " another patient's image of the same kind, and the most frequent training answer to the"
            " question's template. Which one is stronger is decided per kind of question.",
        ),
        tag(
            "p",
            "Yes: the whole 95 % interval of the paired difference lies above zero (below, under a scorer"
            " of which lower is better). Intervals come from"
            f" {benchmark.resamples:,} bootstrap resamples of whole patients and are not corrected for"
            f" the number of kinds. Below {FEWEST_PATIENTS} patients there is no verdict.",
        ),
    ]


def _kind_table(log: EvalLog, benchmark: Benchmark, kind: AnswerType) -> Html | None:
    """One row per task and one for all, under the first scorer of the answer type."""
    scorer = benchmark.primary().get(kind)
    own = [metric for metric in headline(log) if metric.answer_type == kind]
    if scorer is None or not own:
        return None
    shown = own if len(own) > 2 else own[1:]  # one task: "all" would say the same again
    differences = [
        find_metric(log.metrics, name=m.name, arm="difference", answer_type=kind, group=m.group)
        for m in shown
    ]
    reach = charts.reach_of(metric for metric in differences if metric is not None)
    rows = [
        _kind_row(log, metric, difference, reach)
        for metric, difference in zip(shown, differences, strict=True)
    ]
    head = tag(
        "tr",
        tag("th", "Kind of question"),
        tag("th", "Beats image-blind"),
        tag("th", tag("span", "0"), tag("span", "score"), tag("span", "1"), class_="axis"),
        tag("th", "Model"),
        tag("th", "Image-blind"),
        tag(
            "th",
            tag("span", f"−{reach:g}"),
            tag("span", "0"),
            tag("span", f"+{reach:g}"),
            class_="axis",
        ),
        tag("th", "Difference"),
    )
    title = tag("h3", TITLES[kind], " ", tag("small", scorer.name))
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="kinds")
    stated = [tag("p", tag("small", scorer.stated))] if scorer.stated else []
    return tag("div", title, *stated, table)


def _kind_row(log: EvalLog, own: Metric, difference: Metric | None, reach: float) -> Html:
    blind = {
        arm: found
        for arm in _BLIND
        if (
            found := find_metric(
                log.metrics,
                name=own.name,
                arm=arm,
                answer_type=own.answer_type,
                group=own.group,
            )
        )
    }
    name = own.group or "all of them"
    drawn = [(own, "model"), *((metric, arm) for arm, metric in blind.items())]
    chart = charts.bars(drawn, f"{name}: {interval(own)}, blind {_blind_text(blind)}")
    answer = verdict(difference)
    unscored = f", {own.unscored:,} unscored" if own.unscored else ""
    count = f"{count_of(own.n, 'question')}, {count_of(own.clusters, 'patient')}{unscored}"
    return tag(
        "tr",
        tag("th", name, tag("small", count), scope="row"),
        tag(
            "td",
            tag("span", answer, class_=f"pill {_class(answer)}"),
            data_label="beats image-blind",
        ),
        tag("td", chart, class_="picture"),
        tag("td", tag("div", *number(own), class_="arm model"), data_label="model"),
        tag(
            "td",
            *(
                tag("div", *number(metric), tag("small", _BLIND[arm]), class_=f"arm {arm}")
                for arm, metric in blind.items()
            ),
            data_label="image-blind",
        ),
        tag(
            "td",
            charts.difference(difference, reach, f"{name}: difference {interval(difference)}")
            if difference
            else "",
            class_="picture",
        ),
        tag(
            "td",
            *(number(difference, sign=True) if difference else ("–",)),
            data_label="difference",
        ),
        class_="all" if not own.group else None,
    )


def _blind_text(blind: Mapping[str, Metric]) -> str:
    return ", ".join(f"{interval(metric)} ({_BLIND[arm]})" for arm, metric in blind.items())


def _class(answer: str) -> str:
    return {"yes": "yes", "no": "no"}.get(answer, "unsure")


def _training_section(rows: TrainingRows) -> list[Html]:
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        stages.setdefault(str(row.get("stage", "")), []).append(row)
    figures = []
    for stage, logged in stages.items():
        curve = charts.loss_curve(logged, f"training loss {stage}".strip())
        if curve is not None:
            figures.append(tag("figure", tag("figcaption", stage or "loss"), curve))
    if not figures:
        return []
    return [
        tag(
            "section",
            tag("h2", "Training loss"),
            tag("div", *figures, class_="curves"),
            id="training",
        )
    ]


def _all_scores(log: EvalLog) -> Html:
    rows = [
        tag(
            "tr",
            tag("td", m.name),
            tag("td", about_arm(m.arm)),
            tag("td", m.group or f"all {m.answer_type}", f" | {m.stratum}" if m.stratum else ""),
            tag("td", *number(m, sign=m.arm.startswith((DIFFERENCE, MINUS)))),
            tag("td", f"{m.n:,}"),
            tag("td", f"{m.clusters:,}"),
            tag("td", f"{m.unscored:,}"),
            tag("td", m.note),
        )
        for m in log.metrics
    ]
    names = ("scorer", "answers of", "rows", "value", "n", "patients", "unscored", "note")
    summary = tag("summary", f"Every score ({len(rows):,})")
    return tag("details", summary, scores_table(names, rows), id="scores")


def _manifest(log: EvalLog) -> Html:
    text = json.dumps(log.manifest, indent=2, ensure_ascii=False, sort_keys=True)
    return tag("details", tag("summary", "Manifest"), tag("pre", text), id="manifest")
