"""The sample browser: questions beside their images, drawn without favour."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.metrics import about_arm, task_of
from medloupe.evaluate.report.groups import Groups
from medloupe.evaluate.report.numbers import count_of
from medloupe.evaluate.report.pictures import Gallery
from medloupe.evaluate.scorers.base import Scorer
from medloupe.html.markup import Html, join, tag
from medloupe.types import Answer, Box, EvalLog, EvalRow, Score

STATES = ("right", "partly", "wrong", "unscored", "error")


class Sample(NamedTuple):
    """A row with its scores, and what the first scorer of its answer type makes of it."""

    row: EvalRow
    scores: Sequence[Score]
    value: float | None
    state: str


def sample_browser(log: EvalLog, benchmark: Benchmark, gallery: Gallery, limit: int) -> Html:
    """Cards with filters. Every card is in the page; the filters only hide."""
    samples = _samples(log, benchmark)
    shown = choose(samples, limit)
    groups = Groups([sample.row for sample in shown], benchmark.strata)
    cards = [_card(sample, gallery, groups.of(sample.row)) for sample in shown]
    counts = Counter(sample.state for sample in shown)
    how = f"All {len(samples):,} questions."
    if len(shown) < len(samples):
        how = (
            f"{len(shown):,} of {len(samples):,} questions, taken in turn from every kind and outcome,"
            " within each by a hash of the id. Their shares are not the model's accuracy."
        )
    return tag(
        "section",
        tag("h2", "Look for yourself"),
        tag("p", how, class_="lead"),
        _filters(shown, counts, groups.names),
        tag("p", _legend(), class_="legend"),
        tag("p", "", class_="lead found", id="found", role="status"),
        tag("div", *cards, class_="cards", id="cards"),
        tag("p", "Nothing matches these filters.", id="none", hidden=True),
        id="samples",
    )


def choose(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most `limit`: one of each (task, state) in turn, within each by the hash of the id."""
    order = sorted(samples, key=lambda s: hashlib.sha256(s.row.id.encode()).hexdigest())
    taken: Counter[tuple[str, str]] = Counter()
    ranked = []
    for place, sample in enumerate(order):
        kind = (task_of(sample.row), sample.state)
        ranked.append((taken[kind], place, sample))
        taken[kind] += 1
    ranked.sort(key=lambda item: item[:2])
    return [sample for _, _, sample in ranked[:limit]]


def _samples(log: EvalLog, benchmark: Benchmark) -> list[Sample]:
    scores: dict[str, list[Score]] = defaultdict(list)
    for score in log.scores:
        if score.arm == "model":
            scores[score.id].append(score)
    return [
        _sample(row, scores[row.id], benchmark.scorers_of(row.answer_type)[0]) for row in log.rows
    ]


def _sample(row: EvalRow, scores: Sequence[Score], scorer: Scorer) -> Sample:
    value = next((score.value for score in scores if score.scorer == scorer.name), None)
    if row.error:
        return Sample(row, scores, None, "error")
    if value is None:
        return Sample(row, scores, None, "unscored")
    if value >= scorer.right_from:
        return Sample(row, scores, value, "right")
    return Sample(row, scores, value, "partly" if value > 0 else "wrong")


def _filters(shown: Sequence[Sample], counts: Mapping[str, int], groups: Sequence[str]) -> Html:
    tasks = sorted({task_of(sample.row) for sample in shown})
    states = [("", "all", len(shown))]
    states += [(state, state, counts[state]) for state in STATES if counts.get(state)]
    radios = [
        tag(
            "label",
            tag("input", type="radio", name="state", value=value, checked=value == ""),
            tag("span", text, " ", tag("small", f"{count:,}", class_="count", data_state=value)),
        )
        for value, text, count in states
    ]
    chosen = [_choice("task", "Kind of question", "every kind of question", tasks)]
    chosen += [_choice("group", "Group", "every group", groups)] if groups else []
    sought = tag(
        "input", type="search", id="sought", placeholder="find words", aria_label="Find words"
    )
    return tag(
        "form",
        *chosen,
        sought,
        tag("div", *radios, class_="radios", role="group", aria_label="Outcome"),
        class_="filters",
        id="filters",
    )


def _choice(id: str, label: str, every: str, values: Sequence[str]) -> Html:
    options = [tag("option", every, value="")]
    options += [tag("option", value, value=value) for value in values]
    return tag("select", *options, id=id, aria_label=label)


def _legend() -> Html:
    return join(
        tag("span", "truth", class_="key truth"),
        tag("span", "model", class_="key predicted"),
        tag("span", "in the question", class_="key asked"),
    )


def _card(sample: Sample, gallery: Gallery, groups: Sequence[str]) -> Html:
    row, scores, value, state = sample
    partial = value is not None and 0 < value < 1
    outcome = f"{state} {value:.2f}" if partial else state
    pictures = [
        tag("figure", gallery.picture(ref, _boxes(row, index), f"image {index + 1} of {row.id}"))
        for index, ref in enumerate(row.images)
    ]
    answer = _line("error", row.error, "predicted error sought")
    if not row.error:
        answer_text = said(row.prediction, row.predicted_boxes)
        answer = _line("model", answer_text, f"predicted {state} sought")
    asked = row.question.strip() or "(no text)"
    body = tag(
        "div",
        tag(
            "p",
            tag("span", task_of(row), class_="pill"),
            tag("span", outcome, class_=f"pill {state}"),
            class_="pills",
        ),
        tag("p", asked, class_="question"),
        tag(
            "dl",
            _line("truth", said(row.truth, row.truth_boxes), "truth sought"),
            answer,
            *_sureness(row),
        ),
        _details(row, scores),
        class_="body",
    )
    shown = []
    if pictures:
        shown = [tag("div", *pictures, class_=f"pictures n{min(len(pictures), 3)}"), _window()]
    return tag(
        "article",
        *shown,
        body,
        class_="card",
        data_task=task_of(row),
        data_state=state,
        data_groups=json.dumps(groups, ensure_ascii=False),
    )


def _window() -> Html:
    """Centre and width of the grey values shown, in per cent of those embedded."""
    centre = tag("input", type="range", name="centre", min="0", max="100", value="50")
    width = tag("input", type="range", name="width", min="2", max="200", value="100")
    return tag(
        "details",
        tag("summary", "window and size"),
        tag("label", tag("span", "centre"), centre),
        tag("label", tag("span", "width"), width),
        tag("button", "as it was", type="button", data_do="reset"),
        tag("button", "larger", type="button", data_do="larger", aria_pressed="false"),
        class_="window",
    )


def _sureness(row: EvalRow) -> list[Html]:
    """How sure the model was, where it says so."""
    if row.confidence is None:
        return []
    return [_line("sure", f"{row.confidence:.2f}", "sure")]


def _boxes(row: EvalRow, image: int) -> list[tuple[Box, str]]:
    kinds = ((row.question_boxes, "asked"), (row.truth_boxes, "truth"))
    drawn = [
        (box, kind) for boxes, kind in (*kinds, (row.predicted_boxes, "predicted")) for box in boxes
    ]
    return [(box, kind) for box, kind in drawn if box.image == image]


def said(text: str, boxes: Sequence[Box]) -> str:
    """A text, or how many boxes there are in its place."""
    if text.strip():
        return text.strip()
    return count_of(len(boxes), "box") if boxes else "(nothing)"


def _line(name: str, text: str, kind: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", text), class_=kind)


def _details(row: EvalRow, scores: Sequence[Score]) -> Html:
    lines = [_line(s.scorer, _score_text(s), "") for s in scores]
    lines += [_line(about_arm(arm), _probed(answer), "") for arm, answer in row.others.items()]
    if row.options:
        lines.append(_line("options", ", ".join(_with_probs(row)), ""))
    if row.finish_reason == "length":
        lines.append(_line("cut", "the answer reached the longest length allowed", ""))
    lines += [_line(name, value, "sought") for name, value in sorted(row.attributes.items())]
    lines.append(_line("id", row.id, "sought"))
    if row.patient_id is not None:
        lines.append(_line("patient", row.patient_id, "sought"))
    return tag("details", tag("summary", "scores and comparison"), tag("dl", *lines))


def _probed(answer: Answer) -> str:
    """What was said under another arm, with what was asked and right where these differ."""
    lines = [answer.error or said(answer.text, answer.boxes)]
    if answer.question is not None:
        lines.append(f"asked: {answer.question.strip()}")
    if answer.truth is not None:
        lines.append(f"right: {said(answer.truth, answer.truth_boxes or ())}")
    return "\n".join(lines)


def _with_probs(row: EvalRow) -> list[str]:
    """The options, each with its probability where all have one."""
    if len(row.option_probs) != len(row.options):
        return list(row.options)
    both = zip(row.options, row.option_probs, strict=True)
    return [f"{option} {prob:.2f}" for option, prob in both]


def _score_text(score: Score) -> str:
    value = "unscored" if score.value is None else f"{score.value:.2f}"
    return f"{value} ({score.reason})" if score.reason else value
