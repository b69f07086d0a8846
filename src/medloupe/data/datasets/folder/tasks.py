"""What a user's cases are asked: whatever their columns can answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from medloupe.data import builders
from medloupe.data.datasets.folder.cases import Case
from medloupe.types import Conversation

# More classes than this are not listed in the question: nobody would read it.
MOST_LISTED = 30
Cases = Sequence[Case]


def classification(cases: Cases) -> Iterator[Conversation]:
    """One label per case, out of those of all cases."""
    classes = _classes(cases)
    if len(classes) < 2 or not _single(cases):
        return
    for case in cases:
        if case.record.labels:
            yield builders.classify(
                case.record,
                case.record.labels[0],
                classes,
                language=case.language,
                multiple_choice=len(classes) <= MOST_LISTED,
            )


def labels(cases: Cases) -> Iterator[Conversation]:
    """Several labels per case. A case without any has none of them."""
    classes = _classes(cases)
    if not classes or _single(cases) or any(case.record.boxes for case in cases):
        return
    for case in cases:
        if 2 <= len(classes) <= MOST_LISTED:
            yield builders.label_all(
                case.record, case.record.labels, classes, language=case.language
            )
        else:
            yield builders.identify(
                case.record, case.record.labels, task="labels", language=case.language
            )


def vqa(cases: Cases) -> Iterator[Conversation]:
    """The questions of the table."""
    for case in cases:
        for question in case.record.questions:
            yield builders.ask(case.record, question)


def diagnosis(cases: Cases) -> Iterator[Conversation]:
    """The diagnosis column."""
    for case in cases:
        if case.diagnosis:
            yield builders.diagnose(case.record, case.diagnosis, language=case.language)


def report(cases: Cases) -> Iterator[Conversation]:
    """Findings and impression as far as a case has them, else the report as a whole."""
    for case in cases:
        parts = [name for name in ("findings", "impression") if case.record.report.get(name)]
        if not parts and case.record.report.get("report"):
            parts = ["report"]
        if parts:
            yield builders.report(case.record, sections=parts, language=case.language)


def caption(cases: Cases) -> Iterator[Conversation]:
    """The caption column."""
    for case in cases:
        if case.record.report.get("caption"):
            yield builders.caption(
                case.record, case.record.report["caption"], language=case.language
            )


def findings(cases: Cases) -> Iterator[Conversation]:
    """All boxes with their names; a case of a table with boxes that has none has no finding."""
    if any(case.record.boxes for case in cases):
        for case in cases:
            yield builders.ground(case.record, case.record.boxes, language=case.language)


def rec(cases: Cases) -> Iterator[Conversation]:
    """Where each label is."""
    for case in cases:
        for label in dict.fromkeys(box.label for box in case.record.boxes):
            boxes = [box for box in case.record.boxes if box.label == label]
            yield builders.refer(case.record, label, boxes, language=case.language)


def reg(cases: Cases) -> Iterator[Conversation]:
    """What is in each box. A box that bears two labels is asked about once for neither."""
    for case in cases:
        edges = [box.model_copy(update={"label": ""}) for box in case.record.boxes]
        for box, edge in zip(case.record.boxes, edges, strict=True):
            if edges.count(edge) == 1:
                yield builders.describe_region(case.record, box, language=case.language)


def comparison(cases: Cases) -> Iterator[Conversation]:
    """What is said about a case beside its earlier study."""
    known = {case.record.id: case.record for case in cases}
    for case in cases:
        if case.comparison:
            prior = known.get(case.record.prior or "")
            yield builders.compare(case.record, prior, case.comparison, language=case.language)


def change(cases: Cases) -> Iterator[Conversation]:
    """The change since the earlier study, out of those of all cases."""
    known = {case.record.id: case.record for case in cases}
    kinds = sorted({case.change for case in cases if case.change})
    for case in cases:
        if case.change:
            prior = known.get(case.record.prior or "")
            yield builders.compare(
                case.record,
                prior,
                case.change,
                options=kinds if len(kinds) > 1 else (),
                task="change",
                language=case.language,
            )


TASKS: Mapping[str, Callable[[Cases], Iterator[Conversation]]] = {
    "classification": classification,
    "labels": labels,
    "vqa": vqa,
    "diagnosis": diagnosis,
    "report": report,
    "caption": caption,
    "findings": findings,
    "rec": rec,
    "reg": reg,
    "comparison": comparison,
    "change": change,
}


def _single(cases: Cases) -> bool:
    """Whether the labels are classes: one column for one label, and no boxes that bear them."""
    several = any("labels" in case.line.columns or len(case.record.labels) > 1 for case in cases)
    return not several and not any(case.record.boxes for case in cases)


def _classes(cases: Cases) -> list[str]:
    return sorted({label for case in cases for label in case.record.labels})
