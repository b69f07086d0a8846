"""Published questions, classes and labels."""

from __future__ import annotations

from typing import Any

import pytest

from medloupe.data.builders import ask, classify, converse, label_all, presence
from medloupe.errors import DataError
from medloupe.types import Language, Question, Record


def question(text: str = "What is it?", answer: str = "A mass.", **fields: Any) -> Question:
    return Question(**({"id": "7", "text": text, "answer": answer} | fields))


def test_an_open_question_is_passed_on_as_published(record: Record) -> None:
    row = ask(record, question(task="organ", attributes={"source": "osf"}))
    assert (row.id, row.task, row.template) == ("case/organ/7", "organ", "organ/open/en")
    assert row.question == "What is it?"
    assert row.answer is not None
    assert row.answer.text == "A mass."
    assert (row.answer_type, row.options) == ("open", ())
    assert row.attributes == {"sex": "F", "source": "osf"}


@pytest.mark.parametrize(
    ("answer", "language", "options"),
    [
        ("Yes", "en", ("yes", "no")),
        ("no.", "en", ("yes", "no")),
        ("否", "zh", ("是", "否")),
        ("没有", "zh", ("有", "没有")),
        ("不是", "zh", ("是", "不是")),
        ("left", "en", ()),
    ],
)
def test_a_closed_question_answered_yes_or_no_gets_its_options(
    record: Record, answer: str, language: Language, options: tuple[str, ...]
) -> None:
    row = ask(record, question(answer=answer, answer_type="closed", language=language))
    assert row.options == options
    assert row.template == f"vqa/{'yes_no' if options else 'closed'}/{language}"
    assert row.question == "What is it?"


def test_an_open_yes_is_left_open(record: Record) -> None:
    row = ask(record, question(answer="yes"))
    assert (row.options, row.template) == ((), "vqa/open/en")


def test_multiple_choice_lists_its_options(record: Record) -> None:
    row = ask(record, question(answer="mass", answer_type="closed", options=("cyst", "mass")))
    assert row.question == "What is it?\nOptions: cyst, mass."
    assert (row.options, row.template) == (("cyst", "mass"), "vqa/choice/en")


def test_options_without_the_answer_are_refused(record: Record) -> None:
    asked = question(answer="masses", answer_type="closed", options=("cyst", "mass"))
    with pytest.raises(DataError, match="none of the options; did you mean 'mass'") as caught:
        ask(record, asked)
    assert (caught.value.fault.row, caught.value.fault.field) == ("case/7", "answer")
    assert caught.value.fault.remedy


def test_questions_of_a_record_as_one_conversation(record: Record) -> None:
    asked = record.model_copy(
        update={"questions": (question(), question("Left?", "no", id="8", answer_type="closed"))}
    )
    row = converse(asked)
    assert (row.id, row.task, row.template) == (
        "case/conversation",
        "conversation",
        "conversation/en",
    )
    texts = [message.text for message in row.messages]
    assert texts == ["What is it?", "A mass.", "Left?", "no"]
    assert row.images == record.images


def test_a_conversation_needs_questions_of_one_language(record: Record) -> None:
    with pytest.raises(DataError, match="no question"):
        converse(record)
    with pytest.raises(DataError, match="in one language"):
        converse(record, [question(), question(language="zh")])
    assert converse(record, [question(language="zh")]).id == "case/conversation/zh"


def test_a_class_is_asked_for_with_all_classes(record: Record) -> None:
    row = classify(record, "cyst_wall", ["mass", "cyst_wall"])
    assert row.question.endswith("\nOptions: mass, cyst wall.")
    assert row.answer is not None
    assert row.answer.text == "cyst wall"
    assert (row.answer_type, row.options) == ("closed", ("mass", "cyst wall"))
    assert (row.id, row.template) == ("case/classification", "classification/en")
    assert row.attributes["wording"].isdigit()


def test_the_template_is_shared_by_all_wordings(record: Record) -> None:
    rows = [
        classify(record.model_copy(update={"id": str(n)}), "mass", ["mass", "cyst"])
        for n in range(20)
    ]
    assert len({row.question for row in rows}) == 4
    assert {row.template for row in rows} == {"classification/en"}


def test_a_question_of_ones_own_and_no_list(record: Record) -> None:
    row = classify(
        record,
        "mass",
        ["mass", "cyst"],
        task="kind",
        question="Which kind?",
        multiple_choice=False,
    )
    assert (row.question, row.id, row.options) == ("Which kind?", "case/kind", ("mass", "cyst"))
    assert "wording" not in row.attributes


def test_a_label_outside_the_classes_is_refused(record: Record) -> None:
    with pytest.raises(DataError, match="'mas' is none of the options; did you mean 'mass'"):
        classify(record, "mas", ["mass", "cyst"])
    with pytest.raises(DataError, match="'mas' is none of the options"):
        label_all(record, ["mas"], ["mass", "cyst"])


def test_labels_come_in_the_order_of_the_classes(record: Record) -> None:
    row = label_all(record, ["cyst", "mass"], ["mass", "nodule", "cyst"])
    assert "mass, nodule and cyst" in row.question
    assert row.answer is not None
    assert row.answer.text == "mass, cyst"
    assert (row.answer_type, row.template) == ("open", "labels/en")


@pytest.mark.parametrize(("language", "none"), [("en", "None of these"), ("zh", "以上均无")])
def test_no_label_is_an_answer(record: Record, language: Language, none: str) -> None:
    row = label_all(record, [], ["mass", "cyst"], language=language)
    assert row.answer is not None
    assert row.answer.text == none


@pytest.mark.parametrize(
    ("present", "language", "answer"),
    [(True, "en", "yes"), (False, "en", "no"), (True, "zh", "是"), (False, "zh", "否")],
)
def test_presence(record: Record, present: bool, language: Language, answer: str) -> None:
    row = presence(record, "Left lung", present, language=language)
    assert row.answer is not None
    assert row.answer.text == answer
    assert answer in row.options
    assert row.answer_type == "closed"
    name = "left lung" if language == "en" else "Left lung"
    assert name in row.question
    assert row.template == f"presence/{name}/{language}"


def test_presence_of_a_negation_is_refused(record: Record) -> None:
    with pytest.raises(DataError, match="'No finding' is a negation"):
        presence(record, "No finding", True)


def test_ids_differ_by_language_and_label(record: Record) -> None:
    rows = [
        presence(record, label, True, language=language)
        for label in ("mass", "cyst")
        for language in ("en", "zh")
    ]
    assert len({row.id for row in rows}) == 4
