"""Rows about the same images gathered into one case: a `Record` and what has no place in it."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medloupe.data.datasets.folder.columns import CORNERS, EXTENT, SECTIONS
from medloupe.data.datasets.folder.tables import Line
from medloupe.errors import DataError, did_you_mean
from medloupe.types import AnswerType, Box, ImageRef, Language, Question, Record

_DATES = ("%Y-%m-%d", "%Y%m%d", "%Y/%m/%d", "%d.%m.%Y", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S")
_COUNTED = ("qid", "question_id", "case_id")
_ANSWER_TYPES: Mapping[str, AnswerType] = {"open": "open", "closed": "closed"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A record, the row that it is first named in, and its comparison with `record.prior`.

    `change` is one of a few classes, `comparison` free text.
    """

    record: Record
    line: Line
    language: Language
    diagnosis: str = ""
    comparison: str = ""
    change: str = ""


def gather(
    lines: Iterable[tuple[Line, tuple[ImageRef, ...]]],
    *,
    dataset: str,
    licence: str,
    language: Language,
) -> list[Case]:
    """One case for each set of images, in the order of the table.

    Raises:
        DataError: rows of one case that contradict each other, a question without its answer, a box
            that is none, a date or number that cannot be read, a prior that cannot be found.
    """
    groups: defaultdict[tuple[ImageRef, ...], list[Line]] = defaultdict(list)
    for line, images in lines:
        groups[images].append(line)
    dates = _offsets(groups.values())
    _refuse_one_id_twice(groups.values())
    named = _names(groups)
    cases = []
    for images, group in groups.items():
        first = group[0]
        record = Record(
            id=named[images],
            patient_id=_agreed(group, "patient_id") or None,
            study_id=_agreed(group, "study_id") or None,
            date_offset_days=dates[id(first)],
            images=images,
            report={name: text for name in SECTIONS if (text := _agreed(group, name))},
            labels=_labels(group),
            questions=_questions(group, language),
            boxes=_boxes(group),
            attributes=_attributes(group),
            split=next((split for line in group if (split := line.split_of())), None),
            dataset=dataset,
            licence=licence,
        )
        cases.append(
            Case(
                record=record,
                line=next((line for line in group if line.has("prior")), first),
                language=first.language_of(language),
                diagnosis=_agreed(group, "diagnosis"),
                comparison=_agreed(group, "comparison"),
                change=_agreed(group, "change"),
            )
        )
    _refuse_two_splits(groups.values())
    return _with_priors(cases)


def _refuse_one_id_twice(groups: Iterable[Sequence[Line]]) -> None:
    """An id is of one case. Numbers of questions or views may begin anew with every case."""
    owners: dict[str, tuple[int, Line]] = {}
    for number, group in enumerate(groups):
        for line in group:
            name = line.text("id")
            if not name or line.columns["id"].casefold().replace(" ", "_") in _COUNTED:
                continue
            owner, first = owners.setdefault(name, (number, line))
            if owner != number:
                raise line.error(
                    f"the id {name!r} is that of line {first.number} already, with other images",
                    "id",
                    "Give every case an id of its own; several images of one case stand in one "
                    "cell: a.png;b.png",
                )


def _names(
    groups: Mapping[tuple[ImageRef, ...], Sequence[Line]],
) -> dict[tuple[ImageRef, ...], str]:
    """The id of each case: its own where the table gives one, else the path of its image."""
    given = {images: {line.text("id") for line in group} for images, group in groups.items()}
    flat = [name for names in given.values() for name in names]
    own = all(len(names) == 1 for names in given.values()) and len(set(flat)) == len(flat)
    if own and "" not in flat:
        return {images: next(iter(names)) for images, names in given.items()}
    return {images: "+".join(map(_image_name, images)) for images in groups}


def _image_name(image: ImageRef) -> str:
    name = image.uri if image.series is None else f"{image.uri}/{image.series}"
    return name if image.frame is None else f"{name}#{image.frame}"


def _agreed(group: Sequence[Line], role: str) -> str:
    """What the rows of one case say, which has to be one thing; "" where none says anything."""
    said = [line for line in group if line.has(role)]
    for line in said[1:]:
        if line.text(role) != said[0].text(role):
            raise line.error(
                f"says {line.text(role)!r}, line {said[0].number} about the same images says "
                f"{said[0].text(role)!r}",
                role,
                "Rows about the same images describe one case: make them agree",
            )
    return said[0].text(role) if said else ""


def _refuse_two_splits(groups: Iterable[Sequence[Line]]) -> None:
    for group in groups:
        named = [line for line in group if line.split_of()]
        for line in named[1:]:
            if line.split_of() != named[0].split_of():
                raise line.error(
                    f"is in {line.split_of()}, line {named[0].number} about the same images in "
                    f"{named[0].split_of()}",
                    "split",
                    "One image is in one split",
                )


def _labels(group: Sequence[Line]) -> tuple[str, ...]:
    if not any(
        "labels" in line.columns or "x1" in line.columns or "x" in line.columns for line in group
    ):
        _refuse_two_labels(group)
    found = [name for line in group for name in (line.text("label"), *line.several("labels"))]
    return tuple(dict.fromkeys(name for name in found if name))


def _refuse_two_labels(group: Sequence[Line]) -> None:
    """A column of one class per image says one thing about it."""
    said = [line for line in group if line.has("label")]
    for line in said[1:]:
        if line.text("label") != said[0].text("label"):
            raise line.error(
                f"says {line.text('label')!r}, line {said[0].number} about the same images says "
                f"{said[0].text('label')!r}",
                "label",
                "Correct one; if an image may bear several labels, call the column labels: "
                f"--set 'columns.labels={line.columns['label']}'",
            )


def _questions(group: Sequence[Line], language: Language) -> tuple[Question, ...]:
    asked = [line for line in group if line.has("question") or line.has("answer")]
    shared = _attributes(group) if asked else {}
    return tuple(_question(line, number, shared, language) for number, line in enumerate(asked, 1))


def _question(line: Line, number: int, shared: Mapping[str, str], language: Language) -> Question:
    for role in ("question", "answer"):
        if not line.has(role):
            raise line.error(f"the {role} is missing", role, "Fill it in, or delete the row")
    options = line.several("options")
    kind = line.text("answer_type").casefold()
    if kind and kind not in _ANSWER_TYPES:
        raise line.error(f"unknown answer type {kind!r}", "answer_type", "Write open or closed")
    default: AnswerType = "closed" if options or _says_yes_or_no(line.text("answer")) else "open"
    return Question(
        id=str(number),
        text=line.text("question"),
        answer=line.text("answer"),
        answer_type=_ANSWER_TYPES.get(kind, default),
        options=options,
        language=line.language_of(language),
        task=line.text("task"),
        attributes={k: v for k, v in line.attributes().items() if shared.get(k) != v},
    )


def _says_yes_or_no(answer: str) -> bool:
    return answer.rstrip(".。").casefold() in ("yes", "no", "是", "否")


def _attributes(group: Sequence[Line]) -> dict[str, str]:
    """What all rows of a case agree on. Where they differ it belongs to their questions; without
    questions, all values are kept."""
    values: defaultdict[str, list[str]] = defaultdict(list)
    for line in group:
        for name, text in line.attributes().items():
            if text not in values[name]:
                values[name].append(text)
        if line.has("modality") and not values["modality"]:
            values["modality"].append(line.text("modality"))
    asks = any(line.has("question") for line in group)
    return {name: "; ".join(texts) for name, texts in values.items() if len(texts) == 1 or not asks}


def _boxes(group: Sequence[Line]) -> tuple[Box, ...]:
    return tuple(box for line in group if (box := box_of(line)) is not None)


def box_of(line: Line) -> Box | None:
    """The box of a row, if it has one.

    Raises:
        DataError: a part of it is missing or no number, it has no area or no label.
    """
    roles = CORNERS if "x1" in line.columns else EXTENT
    if not any(line.has(role) for role in roles):
        return None
    for role in roles:
        if not line.has(role):
            raise line.error("a part of the box is missing", role, "Fill it in, or empty all four")
    a, b, c, d = (line.number_of(role) for role in roles)
    x2, y2 = (c, d) if roles is CORNERS else (a + c, b + d)
    if x2 <= a or y2 <= b:
        raise line.error(
            f"the box has no area: x {a:g} to {x2:g}, y {b:g} to {y2:g}",
            roles[2],
            "The second corner lies right of and below the first",
        )
    if not line.has("label"):
        raise line.error("a box without a label", "label", "Say what the box shows")
    depth = {role: line.number_of(role) for role in ("z1", "z2") if line.has(role)}
    if len(depth) == 1 or (depth and depth["z2"] <= depth["z1"]):
        raise line.error("z1 and z2 do not make a box", "z1", "Give both, the lower first")
    return Box(label=line.text("label"), x1=a, y1=b, x2=x2, y2=y2, **depth)


def _offsets(groups: Iterable[Sequence[Line]]) -> dict[int, float | None]:
    """Days since the patient's first study, by the id of a group's first row.

    Dates themselves are not kept: with a study's date, a patient can be found again.
    """
    days: dict[int, float | None] = {}
    patients: dict[int, str] = {}
    for group in groups:
        first = group[0]
        day = next((day for line in group if (day := _day(line)) is not None), None)
        days[id(first)] = day
        patients[id(first)] = _agreed(group, "patient_id")
    starts: dict[str, float] = {}
    for key, day in days.items():
        if day is not None:
            starts[patients[key]] = min(day, starts.get(patients[key], day))
    return {
        key: None if day is None or not patients[key] else day - starts[patients[key]]
        for key, day in days.items()
    }


def _day(line: Line) -> float | None:
    if line.has("days"):
        return line.number_of("days")
    text = line.text("date")
    if not text:
        return None
    for form in _DATES:
        try:
            moment = dt.datetime.strptime(text, form)
        except ValueError:
            continue
        return moment.toordinal() + moment.hour / 24 + moment.minute / 1440
    raise line.error(f"the date {text!r} cannot be read", "date", "Write it as 2024-05-31")


def _with_priors(cases: Sequence[Case]) -> list[Case]:
    """Priors by the id of their record, whatever the table called them: id, study or image."""
    names: dict[str, str] = {}
    for case in cases:
        record = case.record
        first = record.images[0]
        for name in (record.study_id or "", first.uri, first.uri.rpartition("/")[2], record.id):
            names[name] = record.id
    done = []
    for case in cases:
        wanted = case.line.text("prior")
        if wanted and wanted not in names:
            raise case.line.error(
                f"the earlier study {wanted!r} is not in the table; {did_you_mean(wanted, names)}",
                "prior",
                "Name the id, the study_id or the image of another row",
            )
        prior = names[wanted] if wanted else None
        record = case.record.model_copy(update={"prior": prior})
        done.append(dataclasses.replace(case, record=record))
    return done


def refuse_fractions(cases: Sequence[Case]) -> None:
    """Refuse boxes that look like shares of the image: `Box` is in pixels.

    Raises:
        DataError: no edge of any box lies beyond 1.
    """
    boxed = [case for case in cases if case.record.boxes]
    edges = [max(box.x2, box.y2) for case in boxed for box in case.record.boxes]
    if edges and max(edges) <= 1:
        raise DataError(
            "all boxes lie within 0 to 1: they look like shares of the image",
            remedy="Multiply them by the width and height of their images: boxes are in pixels",
            file=str(boxed[0].line.file),
            field=boxed[0].line.columns.get("x1", "x"),
        )
