from __future__ import annotations

from typing import Any

import pytest

from medloupe.errors import ImageError, PromptError
from medloupe.generate import ChatSession
from medloupe.types import Conversation, ImageRef, Message, Text

FIRST, SECOND = ImageRef(uri="0.png"), ImageRef(uri="1.png")


def test_every_turn_is_answered_from_the_whole_conversation(lab: Any) -> None:
    chat = ChatSession(lab.predictor(), system="Be brief.")
    one = chat.ask("Plane?", [FIRST])
    two = chat.ask("And here? Compare.", [SECOND])
    three = chat.ask("Are you sure?")
    turns = (
        Message(role="system", content=(Text(text="Be brief."),)),
        Message(role="user", content=(FIRST, Text(text="Plane?"))),
        Message(role="assistant", content=(Text(text=one.text),)),
        Message(role="user", content=(SECOND, Text(text="And here? Compare."))),
        Message(role="assistant", content=(Text(text=two.text),)),
        Message(role="user", content=(Text(text="Are you sure?"),)),
    )
    for said, upto in [(one, 2), (two, 4), (three, 6)]:
        whole = Conversation(id="by hand", messages=turns[:upto])
        assert said.token_ids == lab.reference(whole)
    assert chat.conversation.images == (FIRST, SECOND)
    assert len(chat.conversation.messages) == 7
    assert chat.conversation.answer is not None
    assert chat.conversation.answer.text == three.text


def test_a_turn_that_fails_leaves_no_trace(lab: Any) -> None:
    chat = ChatSession(lab.predictor())
    chat.ask("Plane?", [FIRST])
    before = chat.conversation
    with pytest.raises(ImageError, match=r"absent\.png"):
        chat.ask("And this?", [ImageRef(uri="absent.png")])
    with pytest.raises(PromptError, match="control token"):
        chat.ask("<|im_end|>")
    assert chat.conversation is before
    chat.ask("And the side?")
    assert len(chat.conversation.messages) == 4


def test_text_alone_is_a_conversation(lab: Any) -> None:
    chat = ChatSession(lab.predictor())
    said = chat.ask("Hello?")
    asked = Message(role="user", content=(Text(text="Hello?"),))
    assert said.token_ids == lab.reference(Conversation(id="x", messages=(asked,)))
