"""The model card: what a model is for, what it was made from, how good it is and for whom, from its files.

Everything comes from the evaluation's log, the manifests in it and the training log beside it (Mitchell
et al. 2019, "Model Cards for Model Reporting", for what a card holds). What they do not say is "not
recorded": nothing is filled in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.log import noted
from medloupe.evaluate.metrics import (
    BLIND_ARMS,
    DIFFERENCE,
    FEWEST_PATIENTS,
    MINUS,
    MODEL,
    about_arm,
    find_metric,
    headline,
    stronger_blind,
    task_of,
    verdict,
)
from medloupe.evaluate.probes.base import Expect, probe_class
from medloupe.evaluate.report.numbers import p_text, patients_of
from medloupe.evaluate.statistics import Estimate
from medloupe.evaluate.subgroups import Subgroup, dataset_name, subgroups, unrecorded
from medloupe.html.markup import Html, join, tag
from medloupe.html.page import document, write_page
from medloupe.types import EvalLog, Metric

CARD_FILE, CARD_PAGE = "MODEL_CARD.md", "MODEL_CARD.html"
UNKNOWN = "not recorded"
_CALIBRATION = ("ece", "brier", "aurc", "accuracy_at_")
_BESIDE = {"report.html": "the evaluation report", "eval.jsonl": "every answer and score"}


@dataclass(frozen=True)
class Facts:
    """Names and values, one a line."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells below their headings."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Points:
    """Sentences, one a point."""

    lines: tuple[str, ...]


Part: TypeAlias = str | Facts | Table | Points
Section: TypeAlias = tuple[str, list[Part]]


def write_card(folder: Path, log: EvalLog, *, beside: Path | None = None) -> tuple[Path, Path]:
    """Write `MODEL_CARD.md` and `MODEL_CARD.html`, each whole or not at all; their paths.

    `beside` is the run's folder, which may hold the training log and the report.

    Raises:
        ConfigError: the manifest does not hold the benchmark.
    """
    sections = card_sections(log, training_stages(beside) if beside else ())
    links = [name for name in _BESIDE if beside is not None and (folder / name).is_file()]
    title = f"Model card: {_text(log.manifest.get('model'))}"
    markdown, page = folder / CARD_FILE, folder / CARD_PAGE
    write_page(markdown, as_markdown(title, sections, links))
    write_page(page, as_html(title, sections, links))
    return markdown, page


def training_stages(folder: Path) -> tuple[Mapping[str, Any], ...]:
    """What `train.jsonl` says of each stage that began: what trained, with how many numbers, and what was
    frozen. A stage that was begun again counts once, as it was last."""
    try:
        lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    stages: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        try:
            said = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a killed run
        if isinstance(said, dict) and said.get("event") == "stage":
            stages[str(said.get("stage"))] = said
    return tuple(stages.values())


def card_sections(log: EvalLog, stages: Sequence[Mapping[str, Any]] = ()) -> list[Section]:
    """The card, section by section."""
    benchmark = Benchmark.parse(log.manifest.get("benchmark"))
    groups = subgroups(log, benchmark)
    return [
        ("Intended use", _use(log)),
        ("Model", _model(log)),
        ("Training data", _data(log)),
        ("Training", _training(log, stages)),
        ("Evaluation", _evaluation(log, benchmark)),
        ("Probes", _probes(log)),
        ("Subgroups", _subgroups(log, groups)),
        ("Calibration", _calibration(log)),
        ("Limits", _limits(log, benchmark, groups)),
        ("Provenance", _provenance(log)),
    ]


def as_markdown(title: str, sections: Iterable[Section], links: Iterable[str] = ()) -> str:
    """The card as Markdown; what could be read as markup is escaped."""
    lines = [f"# {_escaped(title)}", "", _INTRODUCTION, ""]
    lines += [f"- [{_BESIDE[name]}]({name})" for name in links]
    for name, parts in sections:
        lines += ["", f"## {name}"]
        for part in parts:
            lines += ["", *_markdown(part)]
    return "\n".join(lines) + "\n"


def as_html(title: str, sections: Iterable[Section], links: Iterable[str] = ()) -> str:
    """The card as one page."""
    body = [tag("h1", title), tag("p", _INTRODUCTION, class_="lead")]
    body += [tag("p", tag("a", _BESIDE[name], href=name)) for name in links]
    for name, parts in sections:
        body.append(tag("section", tag("h2", name), *map(_html, parts)))
    style = Html(".scroll { overflow-x: auto; } dl.facts { margin-bottom: 1rem; }")
    return document(title, tag("main", *body), style=style)


_INTRODUCTION = (
    "Written by MedLoupe from the files of the run. What they do not say is not recorded."
    " Scores are 0 to 1; in brackets 95 % intervals over patients."
)


def _use(log: EvalLog) -> list[Part]:
    tasks = sorted({task_of(row) for row in log.rows})
    modalities = sorted({i.modality for row in log.rows for i in row.images if i.modality})
    return [
        "Research on vision-language models in medicine: to study answers to questions of the kinds below,"
        " about images like those it was evaluated on.",
        Facts(
            (
                ("kinds of question evaluated", ", ".join(tasks) or UNKNOWN),
                ("modalities evaluated", ", ".join(modalities) or UNKNOWN),
                ("languages evaluated", ", ".join(sorted({row.language for row in log.rows}))),
            )
        ),
        Points(
            (
                "It is no medical device. It is not for diagnosis, triage or treatment, nor for any"
                " decision about a patient.",
                "It is not for other kinds of question, image or patient than those evaluated: nothing"
                " here says how it answers there.",
                "A clinical validation is not recorded.",
            )
        ),
    ]


def _model(log: EvalLog) -> list[Part]:
    parts = _at(log.manifest, "config", "model")
    return [
        Facts(
            (
                ("name", _text(log.manifest.get("model"))),
                ("description", _text(_at(log.manifest, "config", "description"))),
                ("checkpoint", _text(log.manifest.get("checkpoint"))),
                ("encoder", _named(_at(parts, "encoder"))),
                ("connector", _named(_at(parts, "connector"))),
                ("adapter", _named(_at(parts, "adapter"), absent="none" if parts else UNKNOWN)),
                ("language model", _text(_at(parts, "language", "source"))),
                ("licences of its parts", UNKNOWN),
            )
        )
    ]


def _data(log: EvalLog) -> list[Part]:
    """The data set as the training's manifest has it."""
    card = _at(log.manifest, "trained", "data") or _at(log.manifest, "data")
    trained = _at(log.manifest, "trained")
    warnings = _at(trained, "audit", "warnings")
    mixtures = _at(trained, "mixtures")
    found: list[Part] = [_dataset(card)]
    found.append(
        Facts(
            (
                (
                    "leak audit",
                    _text(_at(trained, "audit", "leak"), empty="no leak found")
                    if _at(trained, "audit") is not None
                    else UNKNOWN,
                ),
                (
                    "audit warnings",
                    "; ".join(warnings)
                    if warnings
                    else "none"
                    if warnings is not None
                    else UNKNOWN,
                ),
                ("mixtures", _json(mixtures) if mixtures else UNKNOWN),
                ("data fingerprint", _text(_at(trained, "data_fingerprint"))),
            )
        )
    )
    return found


def _dataset(card: Any) -> Facts:
    names = ("name", "version", "description", "licence", "citation", "access", "splits")
    facts = [(name, _text(_at(card, name))) for name in names]
    counts = _at(card, "counts")
    said = ", ".join(f"{number:,} {what}" for what, number in sorted((counts or {}).items()))
    facts.append(("counts of this copy", said or UNKNOWN))
    known = card is not None
    for name, title in (("partial", "partial copy"), ("leak", "leak between splits")):
        facts.append((title, _text(_at(card, name), empty="none stated") if known else UNKNOWN))
    facts += [("note", str(note)) for note in _at(card, "notes") or ()]
    return Facts(tuple(facts))


def _training(log: EvalLog, logged: Sequence[Mapping[str, Any]]) -> list[Part]:
    planned = _at(log.manifest, "config", "train", "stages") or []
    said = {str(stage.get("stage")): stage for stage in logged}
    rows = []
    for stage in planned:
        name = _text(_at(stage, "name"))
        seen = said.get(name)
        trained = (
            ", ".join(f"{part} ({number:,})" for part, number in seen.get("trainable", {}).items())
            if seen
            else ", ".join(_at(stage, "trainable") or ())
        )
        rows.append(
            (
                name,
                _named(_at(stage, "objective")),
                trained or UNKNOWN,
                ", ".join(seen.get("frozen", ())) or "nothing" if seen else UNKNOWN,
                _lora(stage),
                _text(seen.get("steps") if seen else _at(stage, "steps")),
                _text(seen.get("rows") if seen else None),
                _text(_at(stage, "learning_rate")),
            )
        )
    heads = ("stage", "objective", "trained (numbers)", "frozen", "low-rank adapters", "steps",
             "rows", "learning rate")  # fmt: skip
    start = _at(log.manifest, "trained", "start") or _at(log.manifest, "config", "model", "start")
    facts = Facts(
        (
            ("trained from", _json(start) if start else UNKNOWN),
            ("seeds", _json(_at(log.manifest, "trained", "seeds") or log.manifest.get("seeds"))),
            ("date", _text(_at(log.manifest, "trained", "date"))),
            ("hardware", _json(_at(log.manifest, "trained", "hardware"))),
        )
    )
    return [Table(heads, tuple(rows)) if rows else f"Stages: {UNKNOWN}.", facts]


def _lora(stage: Any) -> str:
    kinds = {name: _at(stage, name) for name in ("lora", "encoder_lora")}
    found = [f"{name} of rank {_text(_at(lora, 'rank'))}" for name, lora in kinds.items() if lora]
    return ", ".join(found) or "none"


def _evaluation(log: EvalLog, benchmark: Benchmark) -> list[Part]:
    facts = Facts(
        (
            ("benchmark", f"{log.benchmark} {log.version}, {benchmark.split} split"),
            ("data set", _text(_at(log.manifest, "dataset", "name"))),
            ("version of the data set", _text(_at(log.manifest, "dataset", "version"))),
            ("questions", f"{len(log.rows):,}"),
            ("patients", patients_of(log.rows)),
            ("instruction", benchmark.instruction or "none"),
            ("new tokens at most", str(benchmark.max_new_tokens)),
            ("resamples", f"{benchmark.resamples:,}"),
        )
    )
    rows = []
    found = headline(log)
    tasks = Counter(metric.answer_type for metric in found if metric.group)
    for metric in found:
        if not metric.group and tasks[metric.answer_type] == 1:
            continue  # all of them would say the same again
        blind = (_like(log, metric, arm) for arm in BLIND_ARMS)
        best = stronger_blind(found for found in blind if found is not None)
        gap = _like(log, metric, DIFFERENCE)
        rows.append(
            (
                metric.group or f"all {metric.answer_type}",
                metric.name,
                f"{metric.n:,}",
                f"{metric.clusters:,}",
                f"{metric.unscored:,}",
                _value(metric),
                f"{_value(best)} ({about_arm(best.arm)})" if best else UNKNOWN,
                _value(gap, sign=True),
                verdict(gap),
            )
        )
    heads = ("questions", "scorer", "n", "patients", "unscored", "model", "image-blind",
             "difference", "better than image-blind?")  # fmt: skip
    return [facts, Table(heads, tuple(rows)) if rows else f"Scores: {UNKNOWN}."]


def _like(log: EvalLog, metric: Metric, arm: str) -> Metric | None:
    return find_metric(
        log.metrics,
        name=metric.name,
        arm=arm,
        answer_type=metric.answer_type,
        group=metric.group,
        stratum=metric.stratum,
    )


def _probes(log: EvalLog) -> list[Part]:
    """The paired differences of the scorers that headline, over all rows of each answer type."""
    rows = []
    for metric in headline(log):
        if metric.group:
            continue
        for other in log.metrics:
            if other.arm.startswith(MINUS) and other == _like(log, metric, other.arm):
                name = other.arm.removeprefix(MINUS)
                rows.append(
                    (
                        about_arm(name),
                        f"all {other.answer_type}",
                        other.name,
                        f"{other.n:,}",
                        f"{other.clusters:,}",
                        _value(other, sign=True),
                        _expected(other, probe_class(name).expect),
                    )
                )
    heads = ("asked otherwise", "questions", "scorer", "n", "patients",
             "model minus itself asked otherwise", "if it looks and understands")  # fmt: skip
    return [Table(heads, tuple(rows)) if rows else f"Probes: {UNKNOWN}."]


def _expected(minus: Metric, expect: Expect) -> str:
    """The model minus itself under a probe, if it looks and understands."""
    if expect == "same":
        return "0"
    return "below 0" if minus.lower_is_better else "above 0"


_GROUPS = (
    "The difference is the group's score minus that of all other rows. p is corrected for all groups of"
    " a kind of answer (Holm); q is the share of false finds to expect among groups with such a q or"
    " a smaller one (Benjamini and Hochberg). Differences smaller than the one visible would mostly be"
    " missed with so many patients."
)


def _subgroups(log: EvalLog, groups: Sequence[Subgroup]) -> list[Part]:
    rows = [
        (
            f"{group.dimension} = {group.value}",
            group.answer_type,
            f"{group.n:,}",
            f"{group.patients:,}",
            f"{group.unscored:,}",
            _estimate(group.score),
            _estimate(group.difference, sign=True),
            p_text(group.holm),
            p_text(group.q),
            group.note or _visible(group.visible),
        )
        for group in groups
    ]
    heads = ("group", "questions", "n", "patients", "unscored", "score", "difference to the rest",
             "p (Holm)", "q", "note")  # fmt: skip
    scorers = {group.answer_type: group.scorer for group in groups}
    scored = ", ".join(f"{name} ({kind})" for kind, name in scorers.items())
    parts: list[Part] = (
        [f"Scored by {scored}. {_GROUPS}", Table(heads, tuple(rows))] if rows else []
    )
    silent = unrecorded(log.rows, dataset_name(log))
    if silent:
        parts.append(f"Of no row recorded: {', '.join(silent)}.")
    return parts or [f"Subgroups: {UNKNOWN}."]


def _calibration(log: EvalLog) -> list[Part]:
    rows = [
        (m.name, f"all {m.answer_type}", f"{m.n:,}", f"{m.unscored:,}", _value(m), m.note)
        for m in log.metrics
        if m.arm == MODEL
        and not m.group
        and not m.stratum
        and m.name.startswith(_CALIBRATION)
        and m.estimate is not None
    ]
    heads = ("scorer", "questions", "n", "unscored", "value", "note")
    return [Table(heads, tuple(rows)) if rows else f"Calibration: {UNKNOWN}."]


def _limits(log: EvalLog, benchmark: Benchmark, groups: Sequence[Subgroup]) -> list[Part]:
    """What the numbers above say against the model, and what they cannot say."""
    lines = []
    primary = benchmark.primary()
    for metric in headline(log):
        if not metric.group:
            continue
        answer = verdict(_like(log, metric, DIFFERENCE))
        if answer == "no":
            lines.append(
                f"{metric.group}: no better than answering without the image ({metric.name})."
            )
        if answer == "too few patients":
            lines.append(f"{metric.group}: fewer than {FEWEST_PATIENTS} patients, no verdict.")
        if answer == "not compared":
            lines.append(f"{metric.group}: not compared with an image-blind answerer.")
    lines += [
        f"{group.dimension} = {group.value}: {_estimate(group.difference, sign=True)} against the rest"
        f" ({group.scorer}, p {p_text(group.holm)} after correction)."
        for group in groups
        if group.holm is not None
        and group.holm < 0.05
        and _is_worse(group, lower=primary[group.answer_type].lower_is_better)
    ]
    lines += [f"{kind}: {count:,}." for kind, count in noted(log).items()]
    for name in ("partial", "leak"):
        text = _at(log.manifest, "dataset", name)
        if text:
            lines.append(f"Evaluated on a data set with a stated {name}: {text}")
    if _at(log.manifest, "trained") is None:
        lines.append("How it was trained is not recorded.")
    return [Points(tuple(lines)) if lines else "None that the files show."]


def _is_worse(group: Subgroup, *, lower: bool) -> bool:
    """Than the rest, where `lower` scores are better or higher ones."""
    gap = group.difference.estimate
    return gap is not None and (gap > 0 if lower else gap < 0)


def _provenance(log: EvalLog) -> list[Part]:
    trained = _at(log.manifest, "trained")
    return [
        Facts(
            (
                ("evaluated", _text(log.manifest.get("date"))),
                ("trained", _text(_at(trained, "date"))),
                ("code revision, evaluation", _text(log.manifest.get("code_revision"))),
                ("code revision, training", _text(_at(trained, "code_revision"))),
                ("configuration", _text(_at(trained, "config_fingerprint"))),
                ("rows evaluated", _text(log.manifest.get("rows_digest"))),
                ("packages", _json(log.manifest.get("packages"))),
                ("hardware of the evaluation", _json(log.manifest.get("hardware"))),
            )
        )
    ]


def _at(value: Any, *names: str) -> Any:
    """What stands there, None if anything on the way is missing."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _text(value: Any, *, empty: str = UNKNOWN) -> str:
    if value is None:
        return UNKNOWN
    return str(value) if value != "" else empty


def _named(component: Any, *, absent: str = UNKNOWN) -> str:
    return absent if component is None else _text(_at(component, "name"))


def _json(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return json.dumps(value, ensure_ascii=False, sort_keys=True).replace('"', "")


def _value(metric: Metric | None, *, sign: bool = False) -> str:
    if metric is None:
        return UNKNOWN
    return _estimate(Estimate(metric.estimate, metric.low, metric.high), sign=sign)


def _estimate(found: Estimate, *, sign: bool = False) -> str:
    if found.estimate is None:
        return "–"
    form = "+.3f" if sign else ".3f"
    text = format(found.estimate, form)
    if found.low is None or found.high is None:
        return text
    return f"{text} [{found.low:{form}}, {found.high:{form}}]"


def _visible(value: float | None) -> str:
    return "" if value is None else f"visible from {value:.2f}"


def _markdown(part: Part) -> list[str]:
    match part:
        case Facts(items):
            return [f"- **{_escaped(name)}**: {_escaped(value)}" for name, value in items]
        case Points(lines):
            return [f"- {_escaped(line)}" for line in lines]
        case Table(heads, rows):
            return [_line(heads), _line(["---"] * len(heads)), *(_line(row) for row in rows)]
    return [_escaped(part)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell if cell == '---' else _escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    """Plain text in Markdown: one line, no markup, no cell of its own."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _html(part: Part) -> Html:
    match part:
        case Facts(items):
            pairs = (tag("div", tag("dt", name), tag("dd", value)) for name, value in items)
            return tag("dl", *pairs, class_="facts")
        case Points(lines):
            return tag("ul", *(tag("li", line) for line in lines))
        case Table(heads, rows):
            head = tag("thead", tag("tr", *(tag("th", name) for name in heads)))
            drawn = (tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
            return tag("div", tag("table", join(head, tag("tbody", *drawn))), class_="scroll")
    return tag("p", part)
