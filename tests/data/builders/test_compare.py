"""Comparison with an earlier examination."""

from __future__ import annotations

from typing import Any

import pytest

from medloupe.data.builders import compare
from medloupe.data.builders.prompts import PROMPTS
from medloupe.errors import DataError
from medloupe.types import Box, Conversation, ImageRef, Record, Text


def shown(row: Conversation) -> list[str]:
    return [
        part.text if isinstance(part, Text) else part.uri
        for part in row.messages[0].content
        if not isinstance(part, Box)
    ]


def test_the_earlier_image_comes_first_and_times_are_named(record: Record, prior: Record) -> None:
    row = compare(record, prior, "The effusion is new.")
    *pictures, question = shown(row)
    assert pictures == [
        "Earlier examination: ",
        "earlier.png",
        "\nLater examination (12 days later): ",
        "later.png",
    ]
    assert question.strip() in PROMPTS["comparison"]["en"]
    assert (row.id, row.patient_id, row.split) == ("case/comparison", "p1", "test")
    assert row.attributes == {"sex": "F", "prior": "before", "days_between": "12"} | {
        "wording": row.attributes["wording"]
    }


def test_roles_and_chinese(record: Record, prior: Record) -> None:
    tomorrow = record.model_copy(update={"date_offset_days": 1})
    row = compare(tomorrow, prior, "Better.", roles=("First examination", "After surgery"))
    assert shown(row)[0] == "First examination: "
    assert shown(row)[2] == "\nAfter surgery (1 day later): "
    row = compare(record, prior, "积液增多。", language="zh")
    assert shown(row)[:4:2] == ["前一次检查：", "\n后一次检查（12天后）："]
    assert row.id == "case/comparison/zh"


def test_unknown_dates_are_not_named(record: Record, prior: Record) -> None:
    undated = prior.model_copy(update={"date_offset_days": None})
    row = compare(record, undated, "Same.")
    assert shown(row)[2] == "\nLater examination: "
    assert "days_between" not in row.attributes


def test_options(record: Record, prior: Record) -> None:
    row = compare(record, prior, "better", options=("better", "same", "worse"), task="change")
    assert shown(row)[-1].endswith("\nOptions: better, same, worse.")
    assert (row.answer_type, row.template) == ("closed", "change/choice/en")
    with pytest.raises(DataError, match="'gone' is none of the options"):
        compare(record, prior, "gone", options=("better", "same", "worse"))


def test_several_images_and_boxes_in_the_answer(record: Record, prior: Record) -> None:
    two = prior.model_copy(update={"images": (*prior.images, ImageRef(uri="lateral.png"))})
    new = Box(label="nodule", x1=0, y1=0, x2=5, y2=5, image=2)
    row = compare(record, two, ["New: ", new])
    assert [image.uri for image in row.images] == ["earlier.png", "lateral.png", "later.png"]
    assert row.images[new.image].uri == "later.png"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"patient_id": "p2"}, "of patient 'p2', this one of 'p1'"),
        ({"patient_id": None}, "of patient None"),
        ({"date_offset_days": 20}, "8 days later than this one"),
        ({"images": ()}, "'before' has no image"),
        ({"id": "case"}, "compared with itself"),
    ],
)
def test_what_is_no_earlier_study(
    record: Record, prior: Record, change: dict[str, Any], rule: str
) -> None:
    with pytest.raises(DataError, match=rule) as caught:
        compare(record, prior.model_copy(update=change), "Same.")
    assert (caught.value.fault.row, caught.value.fault.field) == ("case", "prior")
    assert caught.value.fault.remedy


def test_a_missing_prior_is_named(record: Record) -> None:
    lost = record.model_copy(update={"prior": "gone"})
    with pytest.raises(DataError, match="the earlier study is missing: 'gone'"):
        compare(lost, None, "Same.")


def test_patients_unknown_on_both_sides_need_the_relation_stated(
    record: Record, prior: Record
) -> None:
    a, b = (one.model_copy(update={"patient_id": None}) for one in (record, prior))
    with pytest.raises(DataError, match="of patient None"):
        compare(a, b, "Same.")
    assert compare(a.model_copy(update={"prior": "before"}), b, "Same.").attributes["prior"]
