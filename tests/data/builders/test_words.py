"""Lists and labels as they are said."""

from __future__ import annotations

import pytest

from medloupe.data.builders.words import (
    in_sentence,
    is_yes_no,
    joined,
    listed,
    require_name,
    require_option,
    with_options,
)
from medloupe.errors import DataError


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("Aortic enlargement", "aortic enlargement"),
        ("Pleural_effusion", "pleural effusion"),
        ("ILD", "ILD"),
        ("Lung Tumor", "Lung Tumor"),
        ("COVID-19", "COVID-19"),
        ("T cell", "T cell"),
        ("the left lung", "left lung"),
        ("A nodule", "nodule"),
        ("  right   kidney ", "right kidney"),
        ("", ""),
    ],
)
def test_a_label_inside_a_sentence(label: str, said: str) -> None:
    assert in_sentence(label, "en") == said


def test_chinese_labels_are_left_as_they_are() -> None:
    assert in_sentence("左肺", "zh") == "左肺"


def test_lists() -> None:
    assert listed(["a", "b", "c"], "en") == "a, b, c"
    assert listed(["a, large", "b"], "en") == "a, large; b"
    assert listed(["甲", "乙"], "zh") == "甲、乙"
    assert listed(["甲、大", "乙"], "zh") == "甲、大；乙"
    assert joined(["a"], "en") == "a"
    assert joined(["a", "b", "c"], "en") == "a, b and c"
    assert joined(["甲", "乙", "丙"], "zh") == "甲、乙和丙"
    assert joined([], "en") == ""


@pytest.mark.parametrize("options", [("yes", "no"), ("No", "Yes")])
def test_yes_and_no_are_not_listed(options: tuple[str, str]) -> None:
    assert with_options("Is it?", options, "en") == "Is it?"


def test_options_are_listed_once() -> None:
    assert with_options("Which?", ("mass", "cyst"), "en") == "Which?\nOptions: mass, cyst."
    assert with_options("Left or right?", ("left", "right"), "en") == "Left or right?"
    assert with_options("左侧还是右侧？", ("左侧", "右侧"), "zh") == "左侧还是右侧？"
    # letters inside other words do not name the options
    assert with_options("Is a cab big?", ("a", "b"), "en").endswith("Options: a, b.")


def test_yes_and_no_in_every_chinese_spelling() -> None:
    assert is_yes_no(("有", "没有"), "zh")
    assert not is_yes_no(("有", "否"), "zh")
    assert not is_yes_no(("yes", "no", "maybe"), "en")


def test_an_answer_is_spelt_as_its_option() -> None:
    assert require_option(" Left. ", ("left", "right"), row="r", field="answer") == "left"


@pytest.mark.parametrize("options", [(), ("left",), ("left", "right", "Left")])
def test_too_few_options(options: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="too few or repeat"):
        require_option("left", options, row="r", field="answer")


@pytest.mark.parametrize("label", ["No finding", "without effusion", "未见异常", "无结节"])
def test_a_negation_is_no_name(label: str) -> None:
    with pytest.raises(DataError, match="is a negation") as caught:
        require_name(label, row="r")
    assert caught.value.fault.row == "r"


def test_words_that_begin_like_negations_are_names() -> None:
    for label in ("Nodule", "Nonspecific opacity", "Notch"):
        require_name(label, row="r")
    with pytest.raises(DataError, match="the label is empty"):
        require_name(" ", row="r")
