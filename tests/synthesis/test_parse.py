"""Answers as teachers write them: whole, wrapped, broken, in lines, in Chinese, or not at all."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medloupe.synthesis.parse import parse, read_turns
from medloupe.synthesis.prompts.sets import answer_json
from medloupe.synthesis.types import SourceRow, SynthesisError, Turn

ROW = SourceRow(id="row7", text="CT of the liver.")
TWO = [("What is it?", "A liver."), ("Is it dark?", "Yes, it is.")]
TURNS = [{"question": q, "answer": a} for q, a in TWO]
WHOLE = json.dumps({"turns": TURNS})

LLAVA = [
    {"from": speaker, "value": text}
    for q, a in TWO
    for speaker, text in (("human", f"<image>\n{q}"), ("gpt", a))
]
CHAT = [
    {"role": role, "content": text}
    for q, a in TWO
    for role, text in (("user", q), ("assistant", a))
]


def read(text: str) -> list[tuple[str, str]]:
    return [(turn.question, turn.answer) for turn in parse(text, ROW).turns]


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        json.dumps(TURNS),
        json.dumps({"turns": TURNS}, indent=4),
        f"```json\n{WHOLE}\n```",
        f"```\n{WHOLE}\n```",
        f"```json\n{WHOLE}",
        f"Sure! Here is the conversation:\n\n{WHOLE}\n\nLet me know if you need more.",
        f"Some notes {{like this}} and [these].\n{WHOLE}",
        f"<think>I could write {{}} here.</think>{WHOLE}<|im_end|>",
        f"\ufeff{WHOLE}</s>",
        WHOLE.replace("}]", "},]"),
        WHOLE.replace('": "', '"："'),
        WHOLE.replace('"', "“", 1).replace('"', "”", 1),
        str({"turns": TURNS}),
        json.dumps({"conversation": {"qa_pairs": TURNS}}),
        json.dumps([{"q": q, "a": a} for q, a in TWO]),
        json.dumps([{"Question 1": q, "Answer 1": a} for q, a in TWO]),
        json.dumps([{"问题": q, "回答": a} for q, a in TWO], ensure_ascii=False),
        json.dumps([list(pair) for pair in TWO]),
        json.dumps(LLAVA),
        json.dumps({"messages": CHAT}),
        json.dumps({f"{k}{n}": v for n, turn in enumerate(TURNS) for k, v in turn.items()}),
        "Q: What is it?\nA: A liver.\nQ: Is it dark?\nA: Yes, it is.",
        "Q1: What is it?\nA1: A liver.\n\nQ2: Is it dark?\nA2: Yes, it is.",
        "User: <image>\nWhat is it?\nAssistant: A liver.\nUser: Is it dark?\nAssistant: Yes, it is.",
        "**User:** What is it?\n**Assistant:** A liver.\n**User:** Is it dark?\n**Assistant:** Yes, it is.",
        "Here you go.\n\n1. **Question:** What is it?\n   **Answer:** A liver.\n"
        "2. **Question:** Is it dark?\n   **Answer:** Yes, it is.",
        "- Question: What is it? Answer: A liver.\n- Question: Is it dark? Answer: Yes, it is.",
        "1. What is it?\nA liver.\n2. Is it dark?\nYes, it is.",
        "1) What is it? A liver.\n2) Is it dark? Yes, it is.",
        "问：What is it?\n答：A liver.\n问：Is it dark?\n答：Yes, it is.",
        "问题1：What is it?\n回答1：A liver.\n问题2：Is it dark?\n回答2：Yes, it is.",
        "用户：What is it?\n助手：A liver.\n用户：Is it dark?\n助手：Yes, it is.",
    ],
)  # fmt: skip
def test_every_form_gives_the_same_turns(text: str) -> None:
    assert read(text) == TWO


def test_chinese_answers_keep_their_signs() -> None:
    said = "问：这是什么图像？\n答：这是CT图像：可见肝脏。\n问：有肿块吗？\n答：没有。"
    assert read(said) == [("这是什么图像？", "这是CT图像：可见肝脏。"), ("有肿块吗？", "没有。")]
    numbered = "1、这是什么图像？这是CT。\n2、有肿块吗？没有。"
    assert read(numbered) == [("这是什么图像？", "这是CT。"), ("有肿块吗？", "没有。")]


def test_an_answer_may_have_several_lines_and_colons() -> None:
    said = "Q: What is seen?\nA: Two things:\na dark area\nand a bright rim.\nQ: Why?\nA: Unknown."
    assert read(said)[0] == ("What is seen?", "Two things:\na dark area\nand a bright rim.")


def test_the_draft_keeps_the_answer_as_it_came() -> None:
    assert parse(f"Sure!\n{WHOLE}", ROW).raw == f"Sure!\n{WHOLE}"


@pytest.mark.parametrize("cut", range(1, len(WHOLE)))
def test_json_cut_anywhere_gives_whole_turns_or_says_what_is_wrong(cut: int) -> None:
    text = WHOLE[:cut]
    whole = text.count("}")
    if whole == 0:
        with pytest.raises(SynthesisError):
            read_turns(text)
        return
    found = read_turns(text)
    assert [(t.question, t.answer) for t in found.turns] == TWO[:whole]
    assert f"{whole} whole turns were kept" in found.note


@pytest.mark.parametrize("form", [LLAVA, {"messages": CHAT}])
def test_a_chat_that_is_cut_keeps_whole_pairs(form: object) -> None:
    text = json.dumps(form)
    cut = text[: text.rindex("}", 0, text.rindex("Yes")) + 1]
    found = read_turns(cut)
    assert [(t.question, t.answer) for t in found.turns] == TWO[:1]
    assert found.note == "the JSON is broken or cut off; 1 whole turns were kept"


def test_lines_that_are_cut_off_lose_their_last_question() -> None:
    found = read_turns("Q: What is it?\nA: A liver.\nQ: Is it da")
    assert [t.answer for t in found.turns] == ["A liver."]
    assert found.note == "the last question has no answer and was left out"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "an empty answer"),
        (" \n", "an empty answer"),
        ("<think>Hm.</think>", "only thoughts, no answer"),
        ("I'm sorry, but I can't help with that.", "the teacher refused: \"I'm sorry"),
        ("抱歉，我无法完成。", "the teacher refused"),
        ("The liver is large and dark.", "no question and answer can be read"),
        ("{}", "JSON without a whole turn"),
        ('{"turns": []}', "JSON without a whole turn"),
        (
            '{"turns": [{"question": "What is it?"}]}',
            "turn 1 lacks an answer; its keys are 'question'",
        ),
        ('[{"answer": "A."}]', "turn 1 lacks a question; its keys are 'answer'"),
        ('[{"x": 1}]', "turn 1 lacks question and answer; its keys are 'x'"),
        ("Q: What is it?\nA:\nQ: Is it dark?\nA: Yes.", "turn 1 has an empty answer"),
    ],
)
def test_errors_name_what_is_wrong_and_the_row(text: str, why: str) -> None:
    with pytest.raises(SynthesisError) as caught:
        parse(text, ROW)
    assert why in caught.value.fault.rule
    assert caught.value.fault.row == "row7"


_text = (
    st.text(
        alphabet=st.characters(
            exclude_categories=["Cs", "Cc"], exclude_characters="<>*_`#-•\"'“”|[]"
        ),
        min_size=1,
    )
    .map(str.strip)
    .filter(bool)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_text, _text), min_size=1, max_size=5))
def test_what_is_written_in_the_wanted_form_is_read_back(said: list[tuple[str, str]]) -> None:
    turns = tuple(Turn(question=q, answer=a) for q, a in said)
    assert read(answer_json(turns)) == said


@example("{[]}")
@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='{}[]":,Qq1.?？：问答A\n \\ab', max_size=80))
def test_no_text_makes_it_fail_in_another_way(text: str) -> None:
    try:
        found = read_turns(text)
    except SynthesisError:
        return
    assert found.turns
