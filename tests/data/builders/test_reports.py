"""Reports and captions."""

from __future__ import annotations

import pytest

from medloupe.data.builders import caption, report
from medloupe.data.builders.prompts import PROMPTS
from medloupe.data.builders.reports import is_brief
from medloupe.errors import DataError
from medloupe.types import Record


def test_several_sections_stand_under_their_names(record: Record) -> None:
    row = report(record)
    assert row.answer is not None
    assert row.answer.text == "Findings: Clear lungs.\nImpression: Normal."
    assert "findings and impression" in row.question
    assert (row.id, row.template) == ("case/report", "report/findings+impression/en")


def test_one_section_stands_alone(record: Record) -> None:
    row = report(record, sections=["impression"])
    assert row.answer is not None
    assert row.answer.text == "Normal."
    assert "findings" not in row.question
    assert row.template == "report/impression/en"


def test_a_chinese_report(record: Record) -> None:
    row = report(record, language="zh")
    assert row.answer is not None
    assert row.answer.text == "影像所见：Clear lungs.\n影像诊断：Normal."
    assert "影像所见和影像诊断" in row.question
    assert (row.id, row.language) == ("case/report/zh", "zh")


def test_the_empty_sections_are_named(record: Record) -> None:
    with pytest.raises(DataError, match="the report has no technique and no history") as caught:
        report(record, sections=["findings", "technique", "history"])
    fault = caught.value.fault
    assert (fault.row, fault.field) == ("case", "report")
    assert "findings, impression" in fault.remedy
    with pytest.raises(DataError, match="no section was named"):
        report(record, sections=())


def test_the_instruction_follows_the_length_of_the_caption(record: Record) -> None:
    brief, detailed = caption(record, "word " * 29), caption(record, "word " * 30)
    assert brief.question in PROMPTS["caption.brief"]["en"]
    assert detailed.question in PROMPTS["caption.detailed"]["en"]
    assert (brief.template, detailed.template) == ("caption/brief/en", "caption/detailed/en")


def test_chinese_captions_are_measured_in_characters() -> None:
    assert is_brief("肺" * 59, "zh")
    assert not is_brief("肺 " * 60, "zh")


def test_the_seed_changes_the_wording(record: Record) -> None:
    texts = {caption(record, "A lung.", seed=seed).question for seed in range(30)}
    assert texts == set(PROMPTS["caption.brief"]["en"])


def test_an_empty_caption_is_refused(record: Record) -> None:
    with pytest.raises(DataError, match="the caption is empty") as caught:
        caption(record, " \n")
    assert caught.value.fault.row == "case"
