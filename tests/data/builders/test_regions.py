"""REC, REG, grounded findings, diagnoses: boxes are parts, never text."""

from __future__ import annotations

import pytest

from medloupe.data.builders import describe_region, diagnose, ground, identify, refer
from medloupe.errors import DataError
from medloupe.types import Box, Conversation, Language, Record, Text

LOW = Box(label="nodule", x1=50, y1=40, x2=60, y2=50)
BESIDE = Box(label="nodule", x1=70, y1=10, x2=75, y2=15)
HIGH = Box(label="nodule", x1=0, y1=10, x2=5, y2=15)


def said(row: Conversation) -> list[str | Box]:
    assert row.answer is not None
    parts = [part for part in row.answer.content if isinstance(part, Text | Box)]
    return [part.text if isinstance(part, Text) else part for part in parts]


def test_rec_answers_with_boxes_alone(record: Record) -> None:
    row = refer(record, "Left_nodule", [LOW, BESIDE, HIGH])
    assert said(row) == [HIGH, " ", BESIDE, " ", LOW]
    assert row.answer is not None
    assert row.answer.text.strip() == ""
    assert "the left nodule" in row.question
    assert (row.answer_type, row.id) == ("box", "case/rec/left nodule")
    assert row.template == "rec/left nodule/en"


def test_rec_wordings_do_not_tell_how_many(record: Record) -> None:
    assert refer(record, "nodule", [LOW]).question == refer(record, "nodule", [LOW, HIGH]).question


def test_rec_without_a_box_names_the_near_labels(record: Record) -> None:
    with pytest.raises(DataError, match=r"no box of 'cardiomegally'.*'Cardiomegaly'") as caught:
        refer(record, "cardiomegally", [])
    assert (caught.value.fault.row, caught.value.fault.field) == ("case", "boxes")
    assert caught.value.fault.remedy


def test_rec_of_an_absence_is_refused(record: Record) -> None:
    with pytest.raises(DataError, match="negation"):
        refer(record, "No finding", [LOW])


def test_a_box_on_an_image_that_is_not_there(record: Record) -> None:
    stray = LOW.model_copy(update={"image": 1})
    for build in (
        lambda: refer(record, "nodule", [stray]),
        lambda: describe_region(record, stray),
        lambda: ground(record, [stray]),
    ):
        with pytest.raises(DataError, match="on image 1, but the record has 1"):
            build()


def test_reg_hides_what_it_asks_for(record: Record) -> None:
    row = describe_region(record, record.boxes[0])
    asked = [part for part in row.messages[0].content if isinstance(part, Box)]
    assert len(asked) == 1
    assert (asked[0].label, asked[0].words) == ("region", ())
    assert (asked[0].x1, asked[0].y2) == (5, 80)
    assert "effusion" not in str(row.messages[0]).lower()
    assert said(row) == ["Pleural effusion"]


def test_reg_with_words_of_its_own(record: Record) -> None:
    row = describe_region(record, LOW, "nodule on the left")
    assert said(row) == ["nodule on the left"]
    with pytest.raises(DataError, match="no label and no text"):
        describe_region(record, LOW, " ")


def test_reg_ids_do_not_depend_on_other_boxes(record: Record) -> None:
    deep = LOW.model_copy(update={"z1": 3.0, "z2": 4.5})
    ids = [describe_region(record, box).id for box in (LOW, HIGH, deep)]
    assert ids == [
        "case/reg/0:50,40,60,50",
        "case/reg/0:0,10,5,15",
        "case/reg/0:50,40,60,50,3,4.5",
    ]


def test_grounded_findings_come_by_name_then_place(record: Record) -> None:
    row = ground(record, [LOW, *record.boxes, HIGH])
    cardiomegaly, effusion = record.boxes[1], record.boxes[0]
    assert said(row) == [
        "Cardiomegaly ",
        cardiomegaly,
        ", nodule ",
        HIGH,
        ", nodule ",
        LOW,
        ", Pleural effusion ",
        effusion,
    ]
    assert (row.id, row.task, row.answer_type) == ("case/findings", "findings", "open")
    assert ground(record, [HIGH, LOW, *record.boxes]) == row


def test_litegpt_tags_and_marks(record: Record) -> None:
    row = ground(record, [LOW], tag="identify", marked=True)
    assert row.question.startswith("[identify] ")
    assert said(row) == ["<p>nodule</p> ", LOW]
    assert refer(record, "nodule", [LOW], tag="refer").question.startswith("[refer] ")
    assert ground(record, [LOW]).question[0] != "["


@pytest.mark.parametrize(("language", "none"), [("en", "No finding"), ("zh", "未见异常")])
def test_nothing_found_is_said(record: Record, language: Language, none: str) -> None:
    assert said(ground(record, [], language=language)) == [none]
    assert said(identify(record, [], language=language)) == [none]
    assert said(diagnose(record, [], language=language)) == [none]


def test_findings_without_boxes(record: Record) -> None:
    row = identify(record, ["nodule", "Cardiomegaly", "nodule"])
    assert said(row) == ["Cardiomegaly, nodule"]
    assert row.id == "case/identify"


def test_diagnosis(record: Record) -> None:
    assert said(diagnose(record, "COPD")) == ["COPD"]
    row = diagnose(record, ["Lung_tumor", "COPD"], classes=["COPD", "Lung_tumor", "TB"], tag="vqa")
    assert said(row) == ["Lung tumor, COPD"]
    assert row.question.startswith("[vqa] ")
    assert "COPD, Lung tumor, TB" in row.question
    assert row.task == "diagnosis"


def test_chinese(record: Record) -> None:
    row = ground(record, [LOW, HIGH], language="zh")
    assert said(row) == ["nodule ", HIGH, "、nodule ", LOW]
    assert row.id == "case/findings/zh"
