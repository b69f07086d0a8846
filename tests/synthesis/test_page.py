"""The sample page: complete, escaped, the same rows every time, readable in Chinese."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from medloupe.synthesis.page import write_sample_page
from medloupe.synthesis.types import Draft, Outcome, Provenance, Rejection, SourceRow, Turn
from medloupe.types import Box, Conversation, Message, Text

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp;'
MADE = Provenance(
    teacher="opus", model="claude-3", prompt_hash="ab", few_shot="caption_en", temperature=0.7,
    source="r", licence="CC0", date="2026-01-01",
)  # fmt: skip


def row(name: str, text: str = "CT of the liver.", **fields: object) -> SourceRow:
    return SourceRow.parse({"id": name, "text": text, **fields})


def accepted(name: str, answer: str = "A liver.") -> Outcome:
    messages = (
        Message(role="user", content=(Text(text="What is it?"),)),
        Message(role="assistant", content=(Text(text=answer),)),
    )
    return Outcome(
        source=name,
        conversation=Conversation(id=name, messages=messages),
        draft=Draft(turns=(Turn(question="What is it?", answer=answer),), raw=f"raw {answer}"),
        provenance=MADE,
    )


def rejected(name: str, *filters: str, raw: str = "raw answer", reason: str = "because") -> Outcome:
    return Outcome(
        source=name,
        rejections=tuple(Rejection(filter=f, reason=f"{reason} of {f}") for f in filters),
        draft=Draft(turns=(), raw=raw),
        provenance=MADE,
    )


def page(tmp_path: Path, *rows: tuple[SourceRow, Outcome], **options: object) -> str:
    path = tmp_path / "samples.html"
    write_sample_page(path, rows, title="A run", **options)  # type: ignore[arg-type]
    return path.read_text(encoding="utf-8")


def plain(text: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def test_counts_teachers_filters_sources_and_reasons_are_there(tmp_path: Path) -> None:
    said = plain(
        page(
            tmp_path,
            (row("r1", mentions=["It is large."], modality="CT"), accepted("r1")),
            (row("r2"), rejected("r2", "numbers", "advice")),
            (row("r3"), rejected("r3", "numbers")),
            (
                row("r4"),
                Outcome(source="r4", rejections=(Rejection(filter="guard", reason="1 name"),)),
            ),
        )
    )
    assert "rows 4 accepted 1 (25%) rejected 3 (75%)" in said
    assert "opus claude-3 3 1 (33%)" in said
    assert "numbers 2 1 50%" in said
    assert "advice 1 0 25%" in said
    for shown in ("CT of the liver.", "It is large.", "A liver.", "numbers because of numbers",
                  "There is no answer.", "opus · claude-3"):  # fmt: skip
        assert shown in said
    assert "Drawn by a hash of the row's name, not by hand: 1 accepted, 3 rejected." in said


def test_what_was_left_out_of_an_answer_is_said(tmp_path: Path) -> None:
    cut = '{"turns": [{"question": "What is it?", "answer": "A liver."}, {"que'
    assert "1 whole turns were kept" in page(tmp_path, (row("r"), rejected("r", "turns", raw=cut)))


def test_nothing_that_was_written_becomes_markup(tmp_path: Path) -> None:
    box = Box(label=EVIL, x1=0, y1=0, x2=1, y2=1)
    source = row(
        EVIL, EVIL, mentions=[EVIL], sections={EVIL: EVIL}, labels=[EVIL], boxes=[box.to_dict()],
        modality=EVIL, anatomy=EVIL, domain=EVIL, dataset=EVIL, licence=EVIL,
    )  # fmt: skip
    made = MADE.model_copy(update={"teacher": EVIL, "model": EVIL})
    good = accepted(EVIL, EVIL).model_copy(update={"provenance": made})
    bad = rejected("b", EVIL, raw=EVIL, reason=EVIL).model_copy(update={"provenance": made})
    path = tmp_path / "page.html"
    write_sample_page(path, [(source, good), (row("b", EVIL), bad)], title=EVIL)
    text = path.read_text(encoding="utf-8")
    assert text.count("<script") == 1
    assert "<img" not in text
    assert 'alert("x")' in text
    assert 'data-reasons="&lt;script&gt;' in text
    assert "default-src &#x27;none&#x27;" in text


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    text = page(tmp_path, (row("r"), accepted("r")))
    assert not re.search(r"\b(?:src|href)=", text)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.html"]


def test_a_chinese_page_is_chinese_and_marked_so(tmp_path: Path) -> None:
    source = row("r", "肝脏CT。", language="zh")
    text = page(tmp_path, (source, accepted("r", "肝脏。")), language="zh")
    assert '<main lang="zh-Hans">' in text
    assert '<div lang="zh-Hans"><h3>来源</h3>' in text
    said = plain(text[text.index("<main") : text.index("<script")])
    for english in ("accepted", "Source", "Draft", "rows beside"):
        assert english not in said
    assert "接受 1 (100%)" in said


def test_rows_keep_their_own_language_on_either_page(tmp_path: Path) -> None:
    text = page(tmp_path, (row("r"), accepted("r")), language="zh")
    assert '<div lang="en"><h3>来源</h3>' in text


def many(number: int) -> Iterator[tuple[SourceRow, Outcome]]:
    for n in range(number):
        name = f"row{n}"
        outcome = accepted(name) if n % 3 else rejected(name, "numbers" if n % 2 else "dates")
        yield row(name), outcome


def test_the_same_rows_are_shown_in_any_order_and_spread_over_filters(tmp_path: Path) -> None:
    rows = list(many(300))
    one = page(tmp_path, *rows, accepted=5, rejected=6)
    other = page(tmp_path, *reversed(rows), accepted=5, rejected=6)
    assert one == other
    assert one.count('class="card"') == 11
    assert one.count('data-reasons="numbers"') == one.count('data-reasons="dates"') == 3


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    def peak(number: int) -> int:
        tracemalloc.start()
        write_sample_page(tmp_path / "p.html", many(number), title="t", accepted=5, rejected=5)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)
    # Kept, 3,600 rows more would take over ten megabytes.
    assert peak(4000) < peak(400) + 500_000


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_run_without_rows_has_a_page(tmp_path: Path, language: str) -> None:
    assert "</html>" in page(tmp_path, language=language)
