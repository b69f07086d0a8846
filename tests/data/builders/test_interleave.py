"""Images in the midst of text."""

from __future__ import annotations

import pytest

from medloupe.data.builders import interleave
from medloupe.errors import DataError
from medloupe.types import ImageRef, Record, Text


def test_markers_become_images_in_order(record: Record) -> None:
    second = ImageRef(uri="second.png")
    two = record.model_copy(update={"images": (*record.images, second)})
    row = interleave(two, "<image> before, <image> after. Compare.", "Better.", task="comparative")
    assert row.messages[0].content == (
        record.images[0],
        Text(text=" before, "),
        second,
        Text(text=" after. Compare."),
    )
    assert (row.id, row.template) == ("case/comparative", "comparative/en")


def test_another_marker_key_and_language(record: Record) -> None:
    row = interleave(record, "看[1]。", "好。", task="t", key="3", marker="[1]", language="zh")
    assert row.id == "case/t/3/zh"
    assert row.messages[0].content == (Text(text="看"), record.images[0], Text(text="。"))


@pytest.mark.parametrize("question", ["No image.", "<image><image>"])
def test_markers_and_images_are_counted(record: Record, question: str) -> None:
    with pytest.raises(DataError, match="the record 1 images") as caught:
        interleave(record, question, "x", task="t")
    assert caught.value.fault.row == "case"


def test_an_answer_holds_no_image(record: Record) -> None:
    with pytest.raises(DataError, match="writes no images"):
        interleave(record, "<image>", "<image>", task="t")
