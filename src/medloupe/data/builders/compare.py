"""Comparison with earlier examinations of the same patient (HiA's comparative diagnosis).

The images stand in the order of time, each examination under its role, so that "first" and "after
surgery" have something to refer to. The attributes say the same without words: `prior`, `roles` and
`days` list the examinations in this order, separated by " | ". Only `order_in_time` may turn the
order round, since it asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, get_args

from medloupe.data.builders.base import Piece, Said, pieces, turn
from medloupe.data.builders.prompts import word
from medloupe.data.builders.questions import key_of
from medloupe.data.builders.words import require_option, with_options
from medloupe.errors import DataError
from medloupe.types import Conversation, Language, Record

Roles = Sequence[str]
"""What the examinations are called, the earliest first."""

Counted = Literal["after", "before"]
"""Whether days are counted from the first examination on or back from the last one."""

ROLES: Mapping[Language, tuple[str, str]] = {
    "en": ("Earlier examination", "Later examination"),
    "zh": ("前一次检查", "后一次检查"),
}
IN_ORDER: Mapping[Language, tuple[str, str]] = {
    "en": ("first", "second"),
    "zh": ("第一张", "第二张"),
}
_NUMBERED: Mapping[Language, str] = {"en": "Examination {number}", "zh": "第{number}次检查"}
_PICTURE: Mapping[Language, tuple[str, str]] = {
    "en": ("First image", "Second image"),
    "zh": ("第一张图像", "第二张图像"),
}
_PLAIN: Mapping[Language, str] = {"en": "{role}: ", "zh": "{role}："}
_OF_TWO: Mapping[Language, Mapping[Counted, str]] = {
    "en": {"after": "{role} ({days} later): ", "before": "{role} ({days} before): "},
    "zh": {"after": "{role}（{days}后）：", "before": "{role}（{days}前）："},
}
_OF_MANY: Mapping[Language, Mapping[Counted, str]] = {
    "en": {
        "after": "{role} ({days} after the first): ",
        "before": "{role} ({days} before the last): ",
    },
    "zh": {"after": "{role}（首次检查后{days}）：", "before": "{role}（末次检查前{days}）："},
}
ORDER = "comparison_order"
"""The task of `order_in_time`."""
JOINED = " | "  # between the examinations of an attribute


def compare(
    record: Record,
    prior: Record | Sequence[Record] | None,
    answer: Said,
    *,
    options: Sequence[str] = (),
    question: str | None = None,
    roles: Roles | None = None,
    counted: Counted = "after",
    task: str = "comparison",
    language: Language = "en",
    seed: int = 0,
) -> Conversation:
    """What changed from `prior` (one study, or several in the order of time) to `record`. The days
    between them are said where both have a date.

    Boxes in `answer` count images in reading order: those of the earliest study come first. `roles`
    name the examinations, e.g. ("First examination", "After surgery").

    Raises:
        DataError: a prior is missing, is of another patient, is not earlier or has no image, roles
            differ in number, or options lack the answer.
    """
    studies = _checked(record, prior)
    several = len(studies) > 2
    called = _called(studies, roles, language)
    family = "comparison.several" if several else "comparison"
    wording = word(family, record.id, task, language=language, seed=seed)
    if options:
        said = "".join(piece for piece in pieces(answer) if isinstance(piece, str))
        require_option(said, options, row=record.id, field="answer")
    asked = with_options(question or wording.text, options, language)
    return turn(
        record,
        task=task,
        key=key_of(language),
        question=[*_shown(studies, called, language, counted), "\n" + asked],
        answer=answer,
        template="/".join([task, *(["choice"] if options else []), language]),
        answer_type="closed" if options else "open",
        options=options,
        language=language,
        attributes=_about(studies, called) | ({} if question else {"wording": str(wording.number)}),
    )


def order_in_time(
    record: Record,
    prior: Record,
    *,
    later_first: bool,
    language: Language = "en",
) -> Conversation:
    """Which of two images was taken later; `later_first` shows that of `record` first.

    Asked in `both_orders`, the position of an image says nothing about its time.

    Raises:
        DataError: as `compare`; or one of the two has no date, both have the same, or several images.
    """
    studies = _checked(record, prior)
    for one in studies:
        if len(one.images) != 1:
            rule = (
                f"the study {one.id!r} has {len(one.images)} images, and one of each is asked about"
            )
            raise DataError(rule, remedy="Leave the pair out", row=record.id, field="images")
    if not days_between(prior, record):
        raise DataError(
            f"{prior.id!r} has no date that is before this one",
            remedy="Date both studies, or leave the pair out",
            row=record.id,
            field="date_offset_days",
        )
    wording = word("order", record.id, ORDER, language=language, seed=0)
    shown = studies[::-1] if later_first else studies
    said: list[Piece] = []
    for name, study in zip(_PICTURE[language], shown, strict=True):
        lead = "\n" if said else ""
        said += [lead + _PLAIN[language].format(role=name), *study.images]
    return turn(
        record,
        task=ORDER,
        key=key_of(language, "later_first" if later_first else "earlier_first"),
        question=[*said, "\n" + wording.text],
        answer=IN_ORDER[language][0 if later_first else 1],
        template=f"{ORDER}/{language}",
        answer_type="closed",
        options=IN_ORDER[language],
        language=language,
        attributes={"prior": prior.id, "wording": str(wording.number)} | timeline(studies),
    )


def both_orders(record: Record, prior: Record) -> list[Conversation]:
    """`order_in_time` with either image first, in English and in Chinese."""
    return [
        order_in_time(record, prior, later_first=later_first, language=language)
        for language in get_args(Language)
        for later_first in (False, True)
    ]


def headings(
    roles: Roles, days: Sequence[float | None], language: Language, counted: Counted = "after"
) -> list[str]:
    """What stands before the images of each examination: its role, and its distance in time from the
    first (or the last) one, where both have a date (`days`, from any origin)."""
    anchor = days[0 if counted == "after" else -1]
    dated = (_OF_MANY if len(roles) > 2 else _OF_TWO)[language][counted]
    plain = len(roles) - 1 if counted == "before" else 0
    said = []
    for place, (role, day) in enumerate(zip(roles, days, strict=True)):
        if place == plain or day is None or anchor is None:
            said.append(_PLAIN[language].format(role=role))
        else:
            apart = day - anchor if counted == "after" else anchor - day
            said.append(dated.format(role=role, days=in_days(apart, language)))
    return said


def days_between(prior: Record, record: Record) -> float | None:
    """Days from `prior` to `record`, None where one has no date."""
    if prior.date_offset_days is None or record.date_offset_days is None:
        return None
    return record.date_offset_days - prior.date_offset_days


def _checked(record: Record, prior: Record | Sequence[Record] | None) -> list[Record]:
    """The studies in the order of time, `record` the last."""

    def refuse(rule: str, remedy: str) -> DataError:
        return DataError(rule, remedy=remedy, row=record.id, field="prior")

    if not prior:
        named = f": {record.prior!r}" if record.prior else ""
        raise refuse(f"the earlier study is missing{named}", "Add its record, or do not compare")
    studies = [*([prior] if isinstance(prior, Record) else prior), record]
    if len({one.id for one in studies}) < len(studies):
        raise refuse("a study is compared with itself", "Name an earlier study")
    dated = studies[0]
    for before, after in pairwise(studies):
        this = "this one" if after is record else repr(after.id)
        unknown = after.patient_id is None and before.patient_id is None
        if before.patient_id != after.patient_id or (unknown and after.prior != before.id):
            raise refuse(
                f"the earlier study {before.id!r} is of patient {before.patient_id!r}, "
                f"{this} of {after.patient_id!r}",
                "Compare studies of one patient; give both the same patient_id",
            )
        gap = days_between(dated, after)
        if gap is not None and gap < 0:
            raise refuse(
                f"the earlier study {dated.id!r} is {-gap:g} days later than {this}",
                "Exchange the two, or correct the dates",
            )
        dated = dated if after.date_offset_days is None else after
    for one in studies:
        if not one.images:
            raise refuse(f"the study {one.id!r} has no image to compare", "Add it, or leave it out")
    return studies


def _called(studies: Sequence[Record], roles: Roles | None, language: Language) -> Roles:
    if roles is None and len(studies) == 2:
        return ROLES[language]
    if roles is None:
        return [_NUMBERED[language].format(number=place + 1) for place in range(len(studies))]
    if len(roles) != len(studies):
        raise DataError(
            f"{len(roles)} roles for {len(studies)} examinations",
            remedy="Name each examination once, the earliest first",
            row=studies[-1].id,
            field="roles",
        )
    return roles


def _shown(
    studies: Sequence[Record], roles: Roles, language: Language, counted: Counted
) -> list[Piece]:
    """Role, images, role, images."""
    said: list[Piece] = []
    days = [study.date_offset_days for study in studies]
    for study, heading in zip(studies, headings(roles, days, language, counted), strict=True):
        said += ["\n" + heading if said else heading, *study.images]
    return said


def _about(studies: Sequence[Record], roles: Roles) -> dict[str, str]:
    priors = JOINED.join(study.id for study in studies[:-1])
    return {"prior": priors, "roles": JOINED.join(roles)} | timeline(studies)


def timeline(studies: Sequence[Record]) -> dict[str, str]:
    """The attributes `days` (of each examination after the first) and `days_between` (of the last), where
    all have a date."""
    since = [days_between(studies[0], study) for study in studies]
    known = [day for day in since if day is not None]
    if len(known) < len(since):
        return {}
    return {"days": JOINED.join(f"{day:g}" for day in known), "days_between": f"{known[-1]:g}"}


def in_days(days: float, language: Language) -> str:
    """ "1 day", "12 days", "0.5 days"."""
    if language == "zh":
        return f"{days:g}天"
    return f"{days:g} day" if days == 1 else f"{days:g} days"
