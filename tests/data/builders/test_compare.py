"""Comparison with an earlier examination."""

from __future__ import annotations

from typing import Any

import pytest

from medloupe.data.builders import both_orders, compare, headings, order_in_time
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
    assert row.attributes == {
        "sex": "F",
        "prior": "before",
        "roles": "Earlier examination | Later examination",
        "days": "0 | 12",
        "days_between": "12",
        "wording": row.attributes["wording"],
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
    assert not {"days_between", "days"} & set(row.attributes)


def test_days_may_be_counted_back_from_the_last_examination(record: Record, prior: Record) -> None:
    row = compare(record, prior, "Same.", counted="before")
    assert shown(row)[:3:2] == ["Earlier examination (12 days before): ", "\nLater examination: "]
    row = compare(record, prior, "不变。", counted="before", language="zh")
    assert shown(row)[:3:2] == ["前一次检查（12天前）：", "\n后一次检查："]


@pytest.fixture
def three(record: Record, prior: Record) -> tuple[Record, Record, Record]:
    """Days 0, 1 and 12."""
    surgery = {"id": "surgery", "date_offset_days": 1, "images": (ImageRef(uri="middle.png"),)}
    return prior, prior.model_copy(update=surgery), record


def test_any_number_of_examinations(three: tuple[Record, Record, Record]) -> None:
    *priors, record = three
    row = compare(record, priors, "Better.")
    assert shown(row)[:6] == [
        "Examination 1: ",
        "earlier.png",
        "\nExamination 2 (1 day after the first): ",
        "middle.png",
        "\nExamination 3 (12 days after the first): ",
        "later.png",
    ]
    assert shown(row)[6].strip() in PROMPTS["comparison.several"]["en"]
    assert row.attributes["prior"] == "before | surgery"
    assert row.attributes["roles"] == "Examination 1 | Examination 2 | Examination 3"
    assert (row.attributes["days"], row.attributes["days_between"]) == ("0 | 1 | 12", "12")
    roles = ("手术前", "手术后", "复查")
    row = compare(record, priors, "好转。", roles=roles, counted="before", language="zh")
    assert shown(row)[:6:2] == [
        "手术前（末次检查前12天）：",
        "\n手术后（末次检查前11天）：",
        "\n复查：",
    ]
    assert compare(record, priors[1:], "Better.").attributes["prior"] == "surgery"
    row = compare(record, priors, "不变。", language="zh")
    assert shown(row)[2:5:2] == [
        "\n第2次检查（首次检查后1天）：",
        "\n第3次检查（首次检查后12天）：",
    ]


def test_every_pair_of_neighbours_is_checked(three: tuple[Record, Record, Record]) -> None:
    first, surgery, record = three
    with pytest.raises(DataError, match="'before' is of patient 'p1', 'surgery' of 'p9'"):
        compare(record, [first, surgery.model_copy(update={"patient_id": "p9"})], "Same.")
    with pytest.raises(DataError, match="'surgery' is 1 days later than 'before'"):
        compare(record, [surgery, first], "Same.")
    with pytest.raises(DataError, match="2 roles for 3 examinations") as caught:
        compare(record, [first, surgery], "Same.", roles=("Before", "After"))
    assert caught.value.fault.field == "roles"
    with pytest.raises(DataError, match="the earlier study is missing"):
        compare(record, [], "Same.")


def test_dates_are_compared_over_an_undated_study(three: tuple[Record, Record, Record]) -> None:
    first, middle, last = three
    late = first.model_copy(update={"date_offset_days": 20})
    undated = middle.model_copy(update={"date_offset_days": None})
    with pytest.raises(DataError, match="'before' is 8 days later than this one"):
        compare(last, [late, undated], "Better.")
    row = compare(last, [first, undated], "Better.")
    assert shown(row)[4] == "\nExamination 3 (12 days after the first): "
    with pytest.raises(DataError, match="compared with itself"):
        compare(undated, [undated.model_copy(), first, undated.model_copy()], "Same.")
    with pytest.raises(DataError, match="compared with itself"):
        compare(last, [last, undated], "Same.")


def test_a_patient_unknown_in_all_needs_each_relation_stated(
    three: tuple[Record, Record, Record],
) -> None:
    first, middle, last = (
        one.model_copy(update={"patient_id": None, "prior": prior})
        for one, prior in zip(three, (None, "before", "surgery"), strict=True)
    )
    assert compare(last, [first, middle], "Same.").attributes["prior"] == "before | surgery"
    with pytest.raises(DataError, match="is of patient None"):
        compare(last, [first, middle.model_copy(update={"prior": None})], "Same.")


def test_headings_leave_out_what_is_not_dated() -> None:
    assert headings(["A", "B", "C"], [None, 3, 5], "en") == ["A: ", "B: ", "C: "]
    assert headings(["A", "B", "C"], [1, None, 5], "en") == [
        "A: ",
        "B: ",
        "C (4 days after the first): ",
    ]


def test_the_later_of_two_images_in_both_orders(record: Record, prior: Record) -> None:
    rows = both_orders(record, prior)
    assert [row.id for row in rows] == [
        "case/comparison_order/earlier_first",
        "case/comparison_order/later_first",
        "case/comparison_order/earlier_first/zh",
        "case/comparison_order/later_first/zh",
    ]
    said = [(row.images[0].uri, row.answer.text) for row in rows if row.answer]
    assert said == [
        ("earlier.png", "second"),
        ("later.png", "first"),
        ("earlier.png", "第二张"),
        ("later.png", "第一张"),
    ]
    assert rows[0].question == rows[1].question
    assert rows[2].question == rows[3].question
    assert "12" not in rows[0].question  # nor does the text name the days
    assert {row.attributes["days_between"] for row in rows} == {"12"}
    assert rows[0].options == ("first", "second")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"date_offset_days": None}, "no date that is before"),
        ({"date_offset_days": 12}, "no date that is before"),
        ({"date_offset_days": 13}, "1 days later than this one"),
        ({"images": (ImageRef(uri="a.png"), ImageRef(uri="b.png"))}, "has 2 images"),
    ],
)
def test_order_needs_two_dated_images(
    record: Record, prior: Record, change: dict[str, Any], rule: str
) -> None:
    with pytest.raises(DataError, match=rule):
        order_in_time(record, prior.model_copy(update=change), later_first=True)


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
