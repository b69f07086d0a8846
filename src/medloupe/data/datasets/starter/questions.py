"""Questions about records, balanced so that no question's wording tells its answer.

A closed question is asked in groups: with exactly the same words, equally often for each of its
answers, in every split. The best constant answer therefore scores exactly chance, per template and
even per wording. What does not fill a group is not asked.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from medloupe.data.builders.compare import JOINED, Counted, headings, timeline
from medloupe.data.datasets.starter.anatomy import PLANES
from medloupe.data.datasets.starter.cases import CLEAR, DATASET, DIAGNOSES, LICENCE, Case, Finding
from medloupe.data.datasets.starter.lesions import KINDS
from medloupe.data.datasets.starter.patients import MOST_LESIONS
from medloupe.data.datasets.starter.series import CHANGES, judge
from medloupe.data.datasets.starter.volumes import VOLUME_KINDS
from medloupe.data.datasets.starter.words import WORDS, Words
from medloupe.types import Box, Conversation, ImageRef, Language, Message, Record, Split, Text

if TYPE_CHECKING:
    from medloupe.types import Part

Task = Literal[
    "plane",
    "presence",
    "side",
    "kind",
    "count",
    "size",
    "diagnosis",
    "change",
    "findings",
    "report",
    "rec",
    "reg",
    "volume_presence",
    "volume_side",
    "volume_rec",
    "comparison",
    "volume_change",
]
VOLUME_CHANGE: Task = "volume_change"
# Asked only where they are named, so that data sets of older configs stay what they are.
ON_REQUEST: tuple[Task, ...] = ("comparison", VOLUME_CHANGE)
TASKS: tuple[Task, ...] = tuple(task for task in get_args(Task) if task not in ON_REQUEST)
CHOICES = 4  # options of the question for a kind


@dataclass(frozen=True)
class Row:
    """A question before it is a conversation. `answer` names an option, or is the content itself.

    `slots` fill the wording, `about` become attributes. `headings` stand before the images, by
    default the number of each examination where there are several.
    """

    task: Task
    cases: tuple[Case, ...]
    wording: str
    answer: str | tuple[Part, ...]
    options: tuple[str, ...] = ()
    slots: Mapping[str, str] = field(default_factory=dict)
    asked: tuple[Part, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    headings: tuple[str, ...] = ()

    @property
    def group(self) -> tuple[str, ...]:
        """What rows of exactly the same words share."""
        return (self.task, self.wording, *self.slots.values(), *self.options)


def conversations(
    records: Sequence[Record], tasks: Sequence[Task], languages: Sequence[Language], seed: int
) -> list[Conversation]:
    """Every question about these records, in the order of the records."""
    order = {record.id: number for number, record in enumerate(records)}
    rows = []
    for split in get_args(Split):
        cases = [Case(record) for record in records if record.split == split]
        for language in languages:
            for task in tasks:
                rng = np.random.default_rng((seed, zlib.crc32(f"{split}{language}{task}".encode())))
                rows += [
                    (order[row.cases[-1].record.id], _conversation(row, language))
                    for row in _rows(task, cases, WORDS[language], rng)
                ]
    return [row for _, row in sorted(rows, key=lambda item: item[0])]


def _rows(task: Task, cases: list[Case], words: Words, rng: np.random.Generator) -> list[Row]:
    """The rows of one task, language and split; closed ones balanced."""
    of_volumes = task.startswith("volume_")
    cases = [case for case in cases if (case.plane == "volume") == of_volumes]
    if task in ("change", VOLUME_CHANGE):
        return balanced(list(_change_rows(task, cases)), rng)
    if task == "comparison":
        return list(_comparison_rows(cases, words))
    alone = [case for case in cases if not case.series]
    if task in OPEN:
        return list(OPEN[task](alone, words))
    if task == "kind":
        return _kind_rows(alone, rng)
    return balanced(list(CLOSED[task](alone)), rng)


def balanced(rows: Sequence[Row], rng: np.random.Generator) -> list[Row]:
    """As many rows as possible such that those of the same words have every answer equally often."""
    groups: defaultdict[tuple[str, ...], defaultdict[str, list[Row]]]
    groups = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row.group][str(row.answer)].append(row)
    chosen = []
    for answers in groups.values():
        options = next(iter(answers.values()))[0].options
        times = min(len(answers[option]) for option in options)
        for option in options:
            picked = rng.permutation(len(answers[option]))[:times]
            chosen += [answers[option][int(number)] for number in sorted(picked)]
    return chosen


def _plane(cases: Sequence[Case]) -> Iterator[Row]:
    for case in cases:
        yield Row("plane", (case,), "plane", case.plane, PLANES)


def _presence(cases: Sequence[Case]) -> Iterator[Row]:
    yield from _presence_of("presence", tuple(KINDS), cases)


def _volume_presence(cases: Sequence[Case]) -> Iterator[Row]:
    yield from _presence_of("volume_presence", VOLUME_KINDS, cases)


def _presence_of(task: Task, kinds: Sequence[str], cases: Sequence[Case]) -> Iterator[Row]:
    for case in cases:
        for kind in kinds:
            found = [finding for finding in case.findings if finding.kind == kind]
            about = _about(found[0]) if found else {"kind": kind}
            answer = "yes" if found else "no"
            slots = {"kind": kind}
            yield Row(task, (case,), "presence", answer, ("yes", "no"), slots, about=about)


def _side(cases: Sequence[Case]) -> Iterator[Row]:
    yield from _side_of("side", cases)


def _volume_side(cases: Sequence[Case]) -> Iterator[Row]:
    yield from _side_of("volume_side", cases)


def _side_of(task: Task, cases: Sequence[Case]) -> Iterator[Row]:
    for case in cases:
        for finding in case.unique:
            if finding.side:
                slots, about = {"kind": finding.kind}, _about(finding)
                options = ("left", "right")
                yield Row(task, (case,), "side", finding.side, options, slots, about=about)


def _count(cases: Sequence[Case]) -> Iterator[Row]:
    options = tuple(str(number) for number in range(MOST_LESIONS + 1))
    for case in cases:
        yield Row("count", (case,), "count", str(len(case.findings)), options)


def _size(cases: Sequence[Case]) -> Iterator[Row]:
    for case in cases:
        for finding in case.unique:
            if finding.size:
                slots, about = {"kind": finding.kind}, _about(finding)
                options = ("small", "large")
                yield Row("size", (case,), "size", finding.size, options, slots, about=about)


def _diagnosis(cases: Sequence[Case]) -> Iterator[Row]:
    for case in cases:
        yield Row("diagnosis", (case,), "diagnosis", case.diagnosis, DIAGNOSES)


def _kind_rows(cases: Sequence[Case], rng: np.random.Generator) -> list[Row]:
    """Four images at a time, whose largest lesions are of four kinds that become the options.

    No image of the four shows another of the four kinds, so exactly one option is right.
    """
    waiting: dict[str, list[Case]] = {kind: [] for kind in KINDS}
    for number in rng.permutation(len(cases)):
        found = cases[int(number)].findings
        if found and _stands_out(found):
            waiting[found[0].kind].append(cases[int(number)])
    rows: list[Row] = []
    for _ in range(len(cases)):
        kinds = [kind for kind in KINDS if waiting[kind]]
        if len(kinds) < CHOICES:
            break
        shares = np.array([len(waiting[kind]) for kind in kinds]) ** 0.5
        chosen = rng.choice(kinds, CHOICES, replace=False, p=shares / shares.sum()).tolist()
        picked = [_without_others(waiting[kind], kind, chosen) for kind in chosen]
        if None in picked:
            continue
        for kind, case in zip(chosen, picked, strict=True):
            assert case is not None
            waiting[kind].remove(case)
            slots, about = {"options": ",".join(chosen)}, _about(case.findings[0])
            rows.append(Row("kind", (case,), "kind", kind, tuple(chosen), slots, about=about))
    return rows


def _stands_out(findings: Sequence[Finding]) -> bool:
    return len(findings) == 1 or findings[0].width > findings[1].width * CLEAR


def _without_others(cases: Sequence[Case], kind: str, kinds: Sequence[str]) -> Case | None:
    others = set(kinds) - {kind}
    return next((case for case in cases if not case.kinds & others), None)


def _change_rows(task: Task, cases: Sequence[Case]) -> Iterator[Row]:
    """Every pair of examinations that ends with the last one, for every kind of lesion in them."""
    for times in _series(cases):
        for first, last in combinations(range(len(times)), 2):
            if last == len(times) - 1:
                yield from _changes_between(task, times, first, last)


def _series(cases: Sequence[Case]) -> Iterable[tuple[Case, ...]]:
    """The examinations of each series, first to last."""
    series: defaultdict[str, tuple[Case, ...]] = defaultdict(tuple)
    for case in cases:
        if case.series:
            series[case.series] += (case,)
    return series.values()


def _changes_between(task: Task, times: tuple[Case, ...], first: int, last: int) -> Iterator[Row]:
    wording = "change" if len(times) == 2 else "change_between"
    place = {} if len(times) == 2 else {"first": str(first), "last": str(last)}
    # rows of `change` were without days before there was `volume_change`, and stay what they were
    when = timeline([case.record for case in times]) if task == VOLUME_CHANGE else {}
    for known, change in _changes(times[first], times[last]):
        slots, about = {"kind": known.kind} | place, _about(known) | when
        yield Row(task, times, wording, change, CHANGES, slots, about=about)


def _changes(before: Case, after: Case) -> Iterator[tuple[Finding, str]]:
    """Each lesion of either examination, as last seen, with what became of it."""
    for kind in KINDS:
        old, new = before.only(kind), after.only(kind)
        change = judge(old.width if old else None, new.width if new else None)
        known = new or old
        if change is not None and known is not None:
            yield known, change


def _comparison_rows(cases: Sequence[Case], words: Words) -> Iterator[Row]:
    """The course of all lesions from the first examination to the last, under roles and dates.

    A hash of the series chooses the roles, so "after surgery" says nothing about what happened.
    """
    for times in _series(cases):
        records = [case.record for case in times]
        days = [record.date_offset_days for record in records]
        choices, draw = words.roles[len(times)], zlib.crc32(times[0].series.encode())
        roles = choices[draw % len(choices)]
        counted: Counted = "before" if draw // len(choices) % 2 else "after"
        changes = [(f.kind, f.side, change) for f, change in _changes(times[0], times[-1])]
        yield Row(
            "comparison",
            times,
            "comparison" if len(times) == 2 else "comparison_between",
            (Text(text=words.course(changes)),),
            headings=tuple(headings(roles, days, words.language, counted)),
            about=_widest(times[-1]) | {"roles": JOINED.join(roles)} | timeline(records),
        )


CLOSED: Mapping[str, Callable[[Sequence[Case]], Iterator[Row]]] = {
    "plane": _plane,
    "presence": _presence,
    "side": _side,
    "count": _count,
    "size": _size,
    "diagnosis": _diagnosis,
    "volume_presence": _volume_presence,
    "volume_side": _volume_side,
}


def _findings(cases: Sequence[Case], words: Words) -> Iterator[Row]:
    for case in cases:
        parts: list[Part] = []
        for finding in case.findings:
            lead = words.comma if parts else ""
            parts += [Text(text=f"{lead}{words.names[finding.kind]} "), finding.box]
        answer = tuple(parts) or (Text(text=words.no_lesion),)
        yield Row("findings", (case,), "findings", answer, about=_widest(case))


def _report(cases: Sequence[Case], words: Words) -> Iterator[Row]:
    for case in cases:
        text = words.report(case.plane, case.diagnosis, [(f.kind, f.side) for f in case.findings])
        yield Row("report", (case,), "report", (Text(text=text),), about=_widest(case))


def _rec(cases: Sequence[Case], words: Words) -> Iterator[Row]:
    del words
    for case in cases:
        for finding in case.unique:
            slots, about = {"kind": finding.kind}, _about(finding)
            yield Row("rec", (case,), "rec", (finding.box,), slots=slots, about=about)


def _volume_rec(cases: Sequence[Case], words: Words) -> Iterator[Row]:
    for row in _rec(cases, words):
        yield Row("volume_rec", row.cases, "rec", row.answer, slots=row.slots, about=row.about)


def _reg(cases: Sequence[Case], words: Words) -> Iterator[Row]:
    for case in cases:
        for finding in case.unique:
            answer = Text(text=words.lesion_at(finding.kind, finding.side))
            asked = finding.box.model_copy(update={"label": "region"})
            yield Row("reg", (case,), "reg", (answer,), asked=(asked,), about=_about(finding))


OPEN: Mapping[str, Callable[[Sequence[Case], Words], Iterator[Row]]] = {
    "findings": _findings,
    "report": _report,
    "rec": _rec,
    "reg": _reg,
    "volume_rec": _volume_rec,
}


def _about(finding: Finding) -> dict[str, str]:
    about = {"kind": finding.kind, "lesion_width": f"{finding.width:.3f}"}
    return about | ({"side": finding.side} if finding.side else {})


def _widest(case: Case) -> dict[str, str]:
    return {"lesion_width": f"{case.findings[0].width:.3f}"} if case.findings else {}


def _conversation(row: Row, language: Language) -> Conversation:
    words, last = WORDS[language], row.cases[-1].record
    place = [row.slots[name] for name in ("first", "last", "kind") if name in row.slots]
    template = "/".join([row.task, *place, language])
    spoken = isinstance(row.answer, str)
    answer = (Text(text=words.names[row.answer]),) if isinstance(row.answer, str) else row.answer
    boxed = len(answer) == 1 and isinstance(answer[0], Box)
    return Conversation(
        id="/".join([last.id, template, *([row.about["kind"]] if row.asked else [])]),
        messages=(
            Message(role="user", content=(*_pictures(row, words), *_question(row, words))),
            Message(role="assistant", content=answer),
        ),
        patient_id=last.patient_id,
        study_id=last.study_id,
        split=last.split,
        dataset=DATASET,
        licence=LICENCE,
        task=row.task,
        template=template,
        answer_type="closed" if spoken else "box" if boxed else "open",
        options=tuple(words.names[option] for option in row.options),
        language=language,
        attributes={"plane": row.cases[-1].plane, **row.about},
    )


def _pictures(row: Row, words: Words) -> list[Text | ImageRef | Box]:
    """The images, each after its heading where there are several."""
    if len(row.cases) == 1:
        return [row.cases[0].image]
    numbered = [words.examination.format(ordinal=ordinal) for ordinal in words.ordinals]
    parts: list[Text | ImageRef | Box] = []
    for heading, case in zip(row.headings or numbered, row.cases, strict=False):
        parts += [Text(text=heading), case.image]
    return parts


def _question(row: Row, words: Words) -> list[Text | ImageRef | Box]:
    slots = {name: words.spoken(name, value) for name, value in row.slots.items()}
    return [Text(text=words.questions[row.wording].format(**slots)), *row.asked]
