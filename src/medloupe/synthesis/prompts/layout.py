"""A row as a teacher reads it: one block of text, every part under its own heading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from pydantic import Field

from medloupe.config import Config
from medloupe.synthesis.types import SourceRow
from medloupe.types import Box


class Words(Config):
    """The headings of one language; `{n}` is a running number, `{name}` a section's name.

    A box is told by its label and by how often it occurs, never by pixel numbers, which an answer could
    not be held to.
    """

    text: str
    mention: str = ""
    section: str = ""
    prior: str = ""
    labels: str = ""
    boxes: str = ""
    modality: str = ""
    anatomy: str = ""
    separator: str = ", "
    colon: str = ": "
    times: str = "{label} (x{n})"
    sections: Mapping[str, str] = Field(default_factory=dict)


def laid_out(row: SourceRow, words: Words) -> str:
    """The row's parts that the prompt set has a heading for, one after another."""
    return "\n".join(_blocks(row, words))


def _blocks(row: SourceRow, words: Words) -> Iterator[str]:
    for heading, value in ((words.modality, row.modality), (words.anatomy, row.anatomy)):
        if heading and value:
            yield f"{heading}{words.colon}{value.replace('_', ' ')}"
    if words.prior and "prior" in row.sections:
        yield f"{words.prior}{words.colon}{_one_line(row.sections['prior'])}"
    rest = {name: text for name, text in row.sections.items() if name != "prior" and text.strip()}
    if words.section and rest:
        for name, text in rest.items():
            heading = words.section.format(name=words.sections.get(name, name))
            yield f"{heading}{words.colon}{_one_line(text)}"
    elif row.text.strip():
        yield f"{words.text}{words.colon}{_one_line(row.text)}"
    if words.mention:
        for number, mention in enumerate(row.mentions, start=1):
            yield f"{words.mention.format(n=number)}{words.colon}{_one_line(mention)}"
    if words.labels and row.labels:
        names = [label.replace("_", " ") for label in row.labels]
        yield f"{words.labels}{words.colon}{words.separator.join(names)}"
    if words.boxes and row.boxes:
        yield f"{words.boxes}{words.colon}{words.separator.join(_boxes(row.boxes, words))}"


def _boxes(boxes: tuple[Box, ...], words: Words) -> Iterator[str]:
    told = Counter(" ".join((*box.words, box.label.replace("_", " "))) for box in boxes)
    for label, number in told.items():
        yield words.times.format(label=label, n=number) if number > 1 else label


def _one_line(text: str) -> str:
    return " ".join(text.split())
