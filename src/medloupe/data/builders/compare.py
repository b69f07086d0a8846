"""Comparison with an earlier examination of the same patient (HiA's comparative diagnosis).

The images stand in the order of time, each examination under its role, so that "first" and "after
surgery" have something to refer to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medloupe.data.builders.base import Piece, Said, pieces, turn
from medloupe.data.builders.prompts import word
from medloupe.data.builders.questions import key_of
from medloupe.data.builders.words import require_option, with_options
from medloupe.errors import DataError
from medloupe.types import Conversation, Language, Record

Roles = tuple[str, str]
"""What the earlier and the later examination are called."""

ROLES: Mapping[Language, Roles] = {
    "en": ("Earlier examination", "Later examination"),
    "zh": ("前一次检查", "后一次检查"),
}
_HEADED: Mapping[Language, tuple[str, str]] = {
    "en": ("{role}: ", "{role} ({days} later): "),
    "zh": ("{role}：", "{role}（{days}后）："),
}


def compare(
    record: Record,
    prior: Record | None,
    answer: Said,
    *,
    options: Sequence[str] = (),
    question: str | None = None,
    roles: Roles | None = None,
    task: str = "comparison",
    language: Language = "en",
    seed: int = 0,
) -> Conversation:
    """What changed from `prior` to `record`. The time between them is said where both have a date.

    Boxes in `answer` count images in reading order: those of `prior` come first. `roles` name the
    examinations, e.g. ("First examination", "After surgery").

    Raises:
        DataError: `prior` is missing, is of another patient, is not earlier or has no image, or options
            lack the answer.
    """
    prior = _checked(record, prior)
    wording = word("comparison", record.id, task, language=language, seed=seed)
    if options:
        said = "".join(piece for piece in pieces(answer) if isinstance(piece, str))
        require_option(said, options, row=record.id, field="answer")
    gap = days_between(prior, record)
    asked = with_options(question or wording.text, options, language)
    return turn(
        record,
        task=task,
        key=key_of(language),
        question=[*_shown(prior, record, roles or ROLES[language], language), "\n" + asked],
        answer=answer,
        template="/".join([task, *(["choice"] if options else []), language]),
        answer_type="closed" if options else "open",
        options=options,
        language=language,
        attributes={"prior": prior.id}
        | ({} if gap is None else {"days_between": f"{gap:g}"})
        | ({} if question else {"wording": str(wording.number)}),
    )


def days_between(prior: Record, record: Record) -> float | None:
    """Days from `prior` to `record`, None where one has no date."""
    if prior.date_offset_days is None or record.date_offset_days is None:
        return None
    return record.date_offset_days - prior.date_offset_days


def _checked(record: Record, prior: Record | None) -> Record:
    def refuse(rule: str, remedy: str) -> DataError:
        return DataError(rule, remedy=remedy, row=record.id, field="prior")

    if prior is None:
        named = f": {record.prior!r}" if record.prior else ""
        raise refuse(f"the earlier study is missing{named}", "Add its record, or do not compare")
    if prior.id == record.id:
        raise refuse("a study is compared with itself", "Name an earlier study")
    unknown = record.patient_id is None and prior.patient_id is None
    if prior.patient_id != record.patient_id or (unknown and record.prior != prior.id):
        raise refuse(
            f"the earlier study {prior.id!r} is of patient {prior.patient_id!r}, "
            f"this one of {record.patient_id!r}",
            "Compare studies of one patient; give both the same patient_id",
        )
    gap = days_between(prior, record)
    if gap is not None and gap < 0:
        raise refuse(
            f"the earlier study {prior.id!r} is {-gap:g} days later than this one",
            "Exchange the two, or correct the dates",
        )
    for one in (prior, record):
        if not one.images:
            raise refuse(f"the study {one.id!r} has no image to compare", "Add it, or leave it out")
    return prior


def _shown(prior: Record, record: Record, roles: Roles, language: Language) -> list[Piece]:
    """Role, images, role, images."""
    plain, dated = _HEADED[language]
    gap = days_between(prior, record)
    later = plain if gap is None else dated
    return [
        plain.format(role=roles[0]),
        *prior.images,
        "\n" + later.format(role=roles[1], days=in_days(gap or 0.0, language)),
        *record.images,
    ]


def in_days(days: float, language: Language) -> str:
    """ "1 day", "12 days", "0.5 days"."""
    if language == "zh":
        return f"{days:g}天"
    return f"{days:g} day" if days == 1 else f"{days:g} days"
