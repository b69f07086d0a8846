"""Chinese through the starter's language model: nothing is lost between text and tokens."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest

from medloupe.data.builders.prompts import PROMPTS
from medloupe.data.datasets.starter import StarterConfig
from medloupe.data.datasets.starter.questions import Task
from medloupe.data.datasets.starter.words import CHINESE

CHARACTER = re.compile("[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every Chinese text that ten patients bring, of every task."""
    pytest.importorskip("nilearn", reason="needs the starter extra")
    config = StarterConfig(
        patients=10, size=64, volume_size=24, tasks=get_args(Task), languages=("zh",)
    )
    made = config.prepare(tmp_path_factory.mktemp("chinese"), workers=2)
    rows = made.conversations
    assert {row.task for row in rows} >= {"report", "diagnosis", "findings", "comparison"}
    return sorted({message.text for row in rows for message in row.messages})


def test_every_text_survives_the_tokenizer(smollm2: Any, texts: list[str]) -> None:
    words = [*CHINESE.names.values(), *CHINESE.questions.values()]
    wordings = [text for family in PROMPTS.values() for text in family["zh"]]
    for text in (*texts, *words, *wordings):
        ids = smollm2.encode(text, add_special_tokens=False)
        assert smollm2.unk_token_id not in ids, text
        assert smollm2.decode(ids, skip_special_tokens=True) == text


def test_chinese_costs_about_two_tokens_a_character(smollm2: Any, texts: list[str]) -> None:
    """The vocabulary is English: a character is three bytes, and each could be a token of its own."""
    characters = [text for text in texts if CHARACTER.search(text)]
    length = sum(len(text) for text in characters)
    tokens = sum(len(smollm2.encode(text, add_special_tokens=False)) for text in characters)
    assert len(characters) > 60
    assert tokens / length == pytest.approx(1.88, abs=0.1)
