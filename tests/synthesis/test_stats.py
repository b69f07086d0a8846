"""Images and turns by domain, counted by hand."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from medloupe.synthesis.stats import DomainCount, domain_counts, domain_of, domain_table
from medloupe.types import Conversation, ImageRef, Message, Text


def row(
    name: str, turns: int, *images: str, of: str | None = None, **attributes: str
) -> Conversation:
    refs = tuple(ImageRef(uri=image, modality=of) for image in images)
    messages = []
    for number in range(turns):
        content = (*refs, Text(text="Q")) if number == 0 else (Text(text="Q"),)
        messages += [
            Message(role="user", content=content),
            Message(role="assistant", content=(Text(text="A"),)),
        ]
    return Conversation(id=name, messages=tuple(messages), dataset="pmc", attributes=attributes)


ROWS = (
    row("1", 3, "a.png", domain="ct_scan", teacher="opus"),
    row("2", 2, "a.png", domain="CT", teacher="llama"),
    row("3", 4, "b.png", "c.png", domain="CT", teacher="llama"),
    row("4", 1, "d.png", domain="histology", teacher="llama"),
    row("5", 5, "e.png", of="dermoscopy", teacher="llama"),
)


def count(source: str, domain: str, images: int, turns: int) -> DomainCount:
    return DomainCount(source=source, domain=domain, images=images, turns=turns)


def test_images_are_counted_once_and_turns_each() -> None:
    assert domain_counts(ROWS) == (
        count("pmc", "CT", 3, 9),
        count("pmc", "Histology", 1, 1),
        count("pmc", "dermoscopy", 1, 5),
    )


def test_by_teacher_as_in_the_papers_two_blocks() -> None:
    assert domain_counts(ROWS, by="teacher") == (
        count("llama", "CT", 3, 6),
        count("llama", "Histology", 1, 1),
        count("llama", "dermoscopy", 1, 5),
        count("opus", "CT", 1, 3),
    )


def test_frames_of_one_file_are_images_of_their_own() -> None:
    frames = [ImageRef(uri="a.dcm", frame=number) for number in (0, 1)]
    content = (*frames, Text(text="Q"))
    both = Conversation(id="x", messages=(Message(role="user", content=content),))
    assert domain_counts([both])[0].images == 2


@pytest.mark.parametrize(
    ("attributes", "modality", "domain"),
    [
        ({"domain": "chest_xray"}, None, "Chest X-Ray"),
        ({"domain": "gross"}, None, "Pathology"),
        ({"modality": "X-ray", "anatomy": "chest"}, None, "Chest X-Ray"),
        ({"modality": "X-ray", "anatomy": "hand"}, None, "X-ray"),
        ({"modality": "MR"}, None, "MRI"),
        ({"modality": "磁共振"}, None, "MRI"),
        ({}, "CT", "CT"),
        ({"domain": "endoscopy"}, "CT", "endoscopy"),
        ({}, None, "not stated"),
    ],
)
def test_domain_of(attributes: dict[str, str], modality: str | None, domain: str) -> None:
    assert domain_of(row("r", 1, "a.png", of=modality, **attributes)) == domain


def test_the_table_has_domains_across_and_a_total() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(domain_table(domain_counts(ROWS, by="teacher")))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert ["CT", "Histology", "dermoscopy", "all"] in lines
    assert ["images", "3", "1", "1", "5"] in lines
    assert ["turns", "3", "0", "0", "3"] in lines


def test_a_name_is_text_and_no_markup() -> None:
    counts = [DomainCount(source="a[b]\\", domain="CT", images=1, turns=1)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(domain_table(counts))
    assert "a[b]\\ " in console.export_text()
