"""Filters on hand-labelled pairs (`judged/`), and what each does at its edges."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from by_path import loaded
from hypothesis import given, settings
from hypothesis import strategies as st

from medloupe.errors import ConfigError
from medloupe.synthesis.filters import DEFAULT_FILTERS
from medloupe.synthesis.filters.assertions import assertions
from medloupe.synthesis.filters.duplicates import alike, bands
from medloupe.synthesis.filters.quantities import _UNITS, quantities, tokens
from medloupe.synthesis.filters.texts import LONGEST, sentences
from medloupe.synthesis.types import Draft, Filter, SourceRow, Turn
from medloupe.types import Box

measure = loaded(Path(__file__).with_name("measure.py"))


class Run:
    """What was accepted earlier, in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, list[str]] = defaultdict(list)

    def matches(self, key: str) -> tuple[str, ...]:
        return tuple(self.kept.get(key, ()))

    def note(self, key: str, text: str) -> None:
        self.kept[key].append(text)


def draft(*turns: tuple[str, str]) -> Draft:
    return Draft(turns=tuple(Turn(question=q, answer=a) for q, a in turns), raw="")


def judged(name: str, row: SourceRow, said: Draft, run: Run | None = None) -> str | None:
    return Filter.parse(name).judge(row, said, run or Run())


ROW = SourceRow(id="r", text="CT of the liver with a mass.")


def test_every_filter_of_the_table_is_in_the_defaults_and_the_other_way_round() -> None:
    assert set(DEFAULT_FILTERS) == set(Filter.table)


@pytest.mark.parametrize("name", measure.FILTERS)
def test_filters_judge_the_labelled_pairs_rightly(name: str) -> None:
    found = measure.measure(name)
    told = "\n".join(f"{why or 'missed'}: {pair}" for pair, why in found.wrong)
    assert found.precision >= 0.97, told
    assert found.recall >= 0.97, told


@pytest.mark.parametrize("name", measure.FILTERS)
def test_the_labelled_pairs_hold_both_verdicts_and_languages(name: str) -> None:
    pairs = measure.pairs(name)
    assert sum(pair.refuse for pair in pairs) >= 15
    assert sum(not pair.refuse for pair in pairs) >= 15
    assert {pair.row.language for pair in pairs} == {"en", "zh"}


@pytest.mark.parametrize("name", DEFAULT_FILTERS)
def test_an_empty_draft_is_judged_without_failing(name: str) -> None:
    judged(name, ROW, Draft(turns=(), raw=""))
    judged(name, ROW, draft(("", "")))


# Turns and length.


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("What is it?", "A liver.")], "1 turns; wanted 2 to 12"),
        ([(f"What is part {n}?", "A liver.") for n in range(13)], "13 turns"),
        ([("What is it?", "A liver."), ("What else?", "")], "turn 2 has no answer"),
        ([("What is it?", "A liver."), ("...", "Yes.")], "turn 2 has no question"),
        ([("What is it?", "A liver."), ("What else?", " — ")], "turn 2 has no answer"),
    ],
)
def test_turns_refuses(turns: list[tuple[str, str]], reason: str) -> None:
    assert reason in str(judged("turns", ROW, draft(*turns)))


def test_turns_takes_what_was_asked_for() -> None:
    two = draft(("What is it?", "A liver."), ("这是什么？", "肝"))
    assert judged("turns", ROW, two) is None
    assert Filter.parse({"name": "turns", "fewest": 3}).judge(ROW, two, Run()) is not None
    with pytest.raises(ConfigError, match="fewest 5 is above most 2"):
        Filter.parse({"name": "turns", "fewest": 5, "most": 2})


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("What?", "The liver is seen here in full.")], "question 1 has 1 words"),
        ([("Is it dark?", "Yes."), ("Is it large?", "No.")], "all answers have 2 words"),
        ([("What is it?", "dark " * 181)], "answer 1 has 181 words; at most 180"),
        ([("what " * 61, "It is a liver of normal size.")], "question 1 has 61 words"),
        ([("是啥？", "图像显示的是肝脏的横断面图像。")], "question 1 has 1 words"),
        ([("这是什么图像？", "肝脏。")], "all answers have 1 words"),
        ([("这是什么图像？", "肝" * 361)], "answer 1 has 180.5 words"),
    ],
)
def test_length_refuses(turns: list[tuple[str, str]], reason: str) -> None:
    assert reason in str(judged("length", ROW, draft(*turns)))


def test_length_takes_short_answers_among_longer_ones() -> None:
    said = draft(("Is it dark?", "Yes."), ("Where is it?", "It lies in the middle."))
    assert judged("length", ROW, said) is None
    assert judged("length", ROW, draft(("这是什么图像？", "图像显示的是肝脏的横断面。"))) is None


# Duplicates.

ONE = draft(
    ("What does the image show?", "It shows a round dark lesion in the right lobe of the liver."),
    ("How is its border?", "The border is smooth, with a thin bright rim all around it."),
)
ALMOST = draft(
    ("What does the image show?", "It shows a round dark lesion in the right lobe of the liver."),
    ("How is its border?", "The border is smooth, with a thin bright rim all around the lesion."),
)
OTHER = draft(
    ("Which organ is seen?", "The stomach, filled with contrast."),
    ("Is its wall thick?", "No, the wall looks thin and even."),
)


def row(name: str) -> SourceRow:
    return ROW.model_copy(update={"id": name})


def test_duplicates_finds_the_same_and_the_nearly_same_row() -> None:
    run = Run()
    assert judged("duplicates", row("a"), ONE, run) is None
    assert "like the conversation of row 'a' (100%" in str(judged("duplicates", row("b"), ONE, run))
    assert "like the conversation of row 'a'" in str(judged("duplicates", row("c"), ALMOST, run))
    assert judged("duplicates", row("d"), OTHER, run) is None


def test_duplicates_judges_a_row_again_without_finding_itself() -> None:
    run = Run()
    assert judged("duplicates", row("a"), ONE, run) is None
    assert judged("duplicates", row("a"), ONE, run) is None


def test_duplicates_keeps_nothing_of_a_refused_row() -> None:
    run = Run()
    judged("duplicates", row("a"), ONE, run)
    kept = {key: list(texts) for key, texts in run.kept.items()}
    judged("duplicates", row("b"), ALMOST, run)
    assert run.kept == kept


def test_duplicates_over_the_run_can_be_left_out() -> None:
    run, alone = Run(), Filter.parse({"name": "duplicates", "over_run": False})
    assert alone.judge(row("a"), ONE, run) is None
    assert alone.judge(row("b"), ONE, run) is None
    assert run.kept == {}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (
            [("What is it?", "A liver."), ("What is it ?", "A large liver.")],
            "questions 1 and 2 are the same",
        ),
        (
            [
                ("Where is it?", "It lies in the right lobe."),
                ("Why so?", "It lies in the right lobe."),
            ],
            "answers 1 and 2 are the same",
        ),
        ([("What is it?", "It is a liver and it is a liver " * 4)], "answer 1 repeats itself"),
        ([("这是什么？", "这是肝脏。"), ("这是什么？", "肝")], "questions 1 and 2 are the same"),
        ([("这是什么？", "图像显示肝脏，" * 8)], "answer 1 repeats itself"),
    ],
)
def test_duplicates_within_a_row(turns: list[tuple[str, str]], reason: str) -> None:
    assert judged("duplicates", ROW, draft(*turns)) == reason


def test_short_answers_may_come_twice() -> None:
    said = draft(("Is there a mass?", "No."), ("Is there a cyst?", "No."))
    assert judged("duplicates", ROW, said) is None


def test_likeness_is_that_of_word_triples() -> None:
    assert alike("a b c d", "a b c d") == 1
    assert alike("a b c d", "a b c e") == pytest.approx(1 / 3)
    assert alike("", "a b c") == 0


def test_bands_are_the_same_everywhere_and_shared_by_like_texts() -> None:
    words = [f"word{n}" for n in range(60)]
    text, near = " ".join(words), " ".join([*words[:57], "x", "y", "z"])
    assert next(bands(text)) == "00:d63a8b5cc74cec5b"
    assert len(set(bands(text))) == 16
    assert set(bands(text)) & set(bands(near))
    assert not set(bands(text)) & set(bands("something else that has no triple in common"))


# Numbers that follow from what a row lists.


def test_numbers_counts_what_the_source_lists() -> None:
    boxes = tuple(Box(label="Nodule", x1=0, y1=0, x2=5, y2=5, size_mm=(4.0, 6.0)) for _ in range(3))
    marked = SourceRow(id="r", kind="labels", labels=("Nodule",), boxes=boxes)
    assert (
        judged("numbers", marked, draft(("How many?", "There are three nodules of 6 mm."))) is None
    )
    assert judged("numbers", marked, draft(("How many?", "There are four nodules."))) is not None
    pair = SourceRow(id="p", kind="pair", text="Stable.")
    assert judged("numbers", pair, draft(("Same?", "Yes, in the two images."))) is None


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("2.5 x 3 cm", [(25.0, "length"), (30.0, "length")]),
        ("5 to 7 mm", [(5.0, "length"), (7.0, "length")]),
        ("1,200 ml", [(1200.0, "volume")]),
        ("twenty-five days", [(25.0, "time")]),
        ("三到四厘米", [(30.0, "length"), (40.0, "length")]),
        ("二十五枚", [(25.0, "")]),
        ("一百零三个", [(103.0, "")]),
        ("stage IV", [(4.0, "")]),
        ("Ⅲ期", [(3.0, "")]),
        ("a 65-year-old", [(780.0, "months")]),
        ("T2-weighted X-ray of a 3D model, one-sided", [(1.0, "")]),
        ("for 90 minutes", [(1.5, "hours")]),
        ("90 MİNUTEſ", [(1.5, "hours")]),
    ],
)
def test_quantities(text: str, values: list[tuple[float, str]]) -> None:
    assert [(found.base, found.dimension) for found in quantities(text)] == values


@pytest.mark.parametrize("unit", _UNITS)
def test_every_unit_is_read_in_any_case_and_number(unit: str) -> None:
    for written in (unit, unit.upper(), f"{unit}s" if unit.isascii() and unit.isalpha() else unit):
        (found,) = quantities(f"it is 3 {written}, so far")
        assert found.dimension == _UNITS[unit][0], written


PIECES = [*_UNITS, *"0123456789", "12", "3.5", "1,000", "x", "×", "-", "/", "s", "es", "st", "th", "a", "an",
          "I", "iv", "Ⅳ", "ⅳ", "期", "级", "一", "十", "百", "零", "两个", "左", "右", "没有", "或", "left",
          "right", "no", "not", "without", "mass", "effusion", "fracture", "Figure", "Dr.", "May", "2019",
          "Monday", "should", "take", "?", "。", "\n", "\u00a0", "İ", "ı", "ſ", "K", "½", "²", "５",
          "٠", "🫁", "\x00"]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(["", " "])), max_size=40))
@settings(max_examples=300, deadline=None)
def test_no_filter_fails_on_any_text(pieces: list[tuple[str, str]]) -> None:
    text = "".join(piece + gap for piece, gap in pieces)
    half = len(text) // 2
    said = draft((text[:half], text[half:]), (text[half:], text))
    for name in DEFAULT_FILTERS:
        for language in ("en", "zh"):
            row = SourceRow(id="r", kind="report", text=text[::-1], language=language)
            reason = judged(name, row, said)
            assert reason is None or reason


def test_tokens_of_letters_and_digits() -> None:
    assert [name for name, _, _ in tokens("T2WI at L4-5, CD20 and 3D")] == [
        "t2",
        "l4",
        "cd20",
        "l5",
    ]


# What a text says of a finding.


def test_a_text_is_cut_into_sentences_that_end() -> None:
    assert sentences("See Fig. 2. It is 3.5 cm! 左侧积液。右肺清晰；") == [
        "See Fig. 2.", "It is 3.5 cm!", "左侧积液", "右肺清晰",
    ]  # fmt: skip
    endless = sentences("left mass " * 3000)
    assert max(map(len, endless)) == LONGEST
    assert "".join(endless) == ("left mass " * 3000).strip()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("No effusion, pneumothorax or edema.", "effusion- pneumothorax- edema-"),
        ("No effusion, but a small nodule.", "effusion- nodule+"),
        ("No change in the effusion.", "effusion+"),
        ("Pneumonia cannot be excluded.", "pneumonia?"),
        ("Rule out pneumothorax.", ""),
        ("The mass does not show calcification.", "mass+ calcification-"),
        ("Left effusion and right nodule.", "effusion+left nodule+right"),
        ("No acute fracture.", ""),
        ("Pneumothorax has resolved.", "pneumothorax-"),
        ("No pericardial effusion.", "pericardial effusion-"),
        ("未见胸腔积液，右肺见结节。", "effusion- nodule+right"),
        ("不除外肺炎。", "pneumonia?"),
        ("未见实变、气胸及胸腔积液。", "consolidation- pneumothorax- effusion-"),
        ("支气管扩张。", "bronchiectasis+"),
        ("肝内见无回声囊肿。", "cyst+"),
        ("无明显变化的结节。", "nodule+"),
    ],
)
def test_assertions(text: str, said: str) -> None:
    signs = {"yes": "+", "no": "-", "open": "?"}
    found = [f"{a.finding}{signs[a.polarity]}{a.side or ''}" for a in assertions(text)]
    assert " ".join(found) == said


def test_a_pair_is_judged_by_the_study_that_a_sentence_speaks_of() -> None:
    pair = SourceRow(
        id="p",
        kind="pair",
        text="No pneumothorax.",
        sections={"findings": "No pneumothorax.", "prior": "Right pneumothorax."},
    )
    right = ("What has changed?", "The pneumothorax of the earlier image is gone.")
    wrong = ("What does the second image show?", "It shows a pneumothorax on the right.")
    assert judged("negation", pair, draft(right)) is None
    assert "affirms pneumothorax" in str(judged("negation", pair, draft(wrong)))


def test_nothing_is_found_where_the_labels_say_so() -> None:
    normal = SourceRow(id="n", kind="labels", labels=("No_finding",))
    assert judged("negation", normal, draft(("What is seen?", "A nodule is seen."))) is not None
    assert judged("negation", normal, draft(("Is there a nodule?", "No."))) is None


def test_a_source_without_a_modality_is_not_judged() -> None:
    silent = SourceRow(id="s", text="A mass in the liver.")
    assert judged("modality", silent, draft(("What is it?", "It is a CT."))) is None
    known = silent.model_copy(update={"modality": "MRI"})
    assert judged("modality", known, draft(("What is it?", "It is a CT."))) is not None
