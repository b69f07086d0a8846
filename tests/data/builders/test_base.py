"""Ids, provenance and the order of parts."""

from __future__ import annotations

from medloupe.data.builders import dialogue, pieces, turn
from medloupe.types import Box, ImageRef, Message, Record, Text


def test_a_turn_carries_the_provenance_of_its_record(record: Record) -> None:
    row = turn(
        record, task="side", question="Which side?", answer="left", attributes={"plane": "axial"}
    )
    assert row.id == "case/side"
    assert (row.patient_id, row.study_id, row.split) == ("p1", "s2", "test")
    assert (row.dataset, row.licence) == ("mine", "CC0-1.0")
    assert row.attributes == {"sex": "F", "plane": "axial"}
    assert (row.task, row.template) == ("side", "side")


def test_a_key_tells_conversations_of_one_task_apart(record: Record) -> None:
    row = turn(record, task="vqa", key="7", question="?", answer="no", template="vqa/open/en")
    assert (row.id, row.template) == ("case/vqa/7", "vqa/open/en")


def test_images_stand_before_the_question(record: Record) -> None:
    row = turn(record, task="t", question="What?", answer="That.")
    assert row.messages == (
        Message(role="user", content=(record.images[0], Text(text="What?"))),
        Message(role="assistant", content=(Text(text="That."),)),
    )


def test_images_that_are_named_replace_those_of_the_record(record: Record) -> None:
    other = ImageRef(uri="other.png")
    shown = turn(record, task="t", question="What?", answer="That.", images=[other])
    blind = turn(record, task="t", question="What?", answer="That.", images=())
    assert (shown.images, blind.images) == ((other,), ())


def test_a_question_that_places_images_keeps_its_order(record: Record) -> None:
    a, b = ImageRef(uri="a.png"), ImageRef(uri="b.png")
    row = turn(record, task="t", question=["First ", a, " then ", b, "."], answer="Same.")
    assert row.messages[0].content == (
        Text(text="First "),
        a,
        Text(text=" then "),
        b,
        Text(text="."),
    )
    assert row.images == (a, b)


def test_an_image_in_a_later_turn_counts_as_placed(record: Record) -> None:
    late = ImageRef(uri="late.png")
    row = dialogue(record, task="t", turns=[("Hello", "Hi"), (["And ", late], "Better.")])
    assert row.images == (late,)
    assert [m.role for m in row.messages] == ["user", "assistant", "user", "assistant"]


def test_a_dialogue_shows_its_images_once(record: Record) -> None:
    row = dialogue(record, task="t", turns=[("One?", "1"), ("Two?", "2")])
    assert row.images == record.images
    assert isinstance(row.messages[0].content[0], ImageRef)
    assert row.messages[2].content == (Text(text="Two?"),)


def test_pieces_take_one_piece_for_a_list_of_it() -> None:
    box = Box(label="a", x1=0, y1=0, x2=1, y2=1)
    assert (pieces("a"), pieces(box), pieces(["a", box])) == (["a"], [box], ["a", box])
