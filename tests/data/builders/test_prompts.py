"""Wordings as data: complete in both languages, chosen by a hash."""

from __future__ import annotations

import re
import string
from collections import Counter
from itertools import pairwise
from typing import get_args

import pytest

from medloupe.data.builders.prompts import PROMPTS, word
from medloupe.types import Language

LANGUAGES: tuple[Language, ...] = get_args(Language)
FAMILIES = [(family, language) for family in PROMPTS for language in LANGUAGES]


def slots(text: str) -> set[str | None]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize(("family", "language"), FAMILIES)
def test_every_family_has_several_wordings_with_the_same_slots(
    family: str, language: Language
) -> None:
    wordings = PROMPTS[family][language]
    assert len(wordings) >= 4
    assert len(set(wordings)) == len(wordings)
    assert len({frozenset(slots(text)) for text in wordings}) == 1
    assert slots(wordings[0]) == slots(PROMPTS[family]["en"][0])


@pytest.mark.parametrize("family", PROMPTS)
def test_each_wording_is_in_its_language(family: str) -> None:
    cjk = re.compile("[\u4e00-\u9fff]")
    assert not any(cjk.search(text) for text in PROMPTS[family]["en"])
    for text in PROMPTS[family]["zh"]:
        assert cjk.search(text)
        assert not re.search("[A-Za-z]", re.sub(r"\{\w+\}", "", text))


def test_the_choice_depends_on_record_task_and_seed_alone() -> None:
    first = word("reg", "case-1", "reg", language="en")
    assert first == word("reg", "case-1", "reg", language="en")
    assert first.text == PROMPTS["reg"]["en"][first.number]
    numbers = [word("reg", f"case-{n}", "reg", language="en").number for n in range(400)]
    again = [word("reg", f"case-{n}", "other", language="en").number for n in range(400)]
    seeded = [word("reg", f"case-{n}", "reg", language="en", seed=1).number for n in range(400)]
    assert numbers != again
    assert numbers != seeded
    # one in four each: 100 of 400, standard deviation 8.7
    assert all(60 < count < 140 for count in Counter(numbers).values())
    assert set(numbers) == {0, 1, 2, 3}


def test_the_choice_is_the_same_on_every_machine() -> None:
    """sha256("0:reg:case-1") begins with the bytes that decide (Python's hash() would not do)."""
    numbers = [word("reg", f"case-{n}", "reg", language="en").number for n in range(8)]
    assert numbers == [1, 0, 3, 3, 0, 3, 3, 2]


def test_languages_choose_alike_so_that_translations_pair_up() -> None:
    pairs = [
        (
            word("rec", str(n), "rec", language=a, label="x"),
            word("rec", str(n), "rec", language=b, label="x"),
        )
        for n in range(20)
        for a, b in pairwise(LANGUAGES)
    ]
    assert all(a.number == b.number for a, b in pairs)
