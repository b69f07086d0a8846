"""The probe family: rows -> the same rows asked otherwise, in pairs.

A probe's difference is the model's score minus its score under the probe, over the rows that both
answered, with an interval over patients.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, Protocol, TypeAlias

from pydantic import Field

from medloupe.config import ComponentConfig, resolve_component
from medloupe.evaluate.benchmark import limited_rows
from medloupe.types import Conversation, ImageRef, Message, Part

Asked: TypeAlias = "list[Conversation | None]"
"""One conversation per row, with the answer that is right under the probe; None where it does not apply."""

Expect = Literal["worse", "same"]
"""What a model does that looks and understands: its score falls, or stays as it is."""


class Look(Protocol):
    """What a probe may know about an image beyond its reference."""

    def size_of(self, ref: ImageRef) -> tuple[int, ...]:
        """(width, height) in original pixels, of a volume (width, height, depth)."""
        ...

    def mirrors(self, ref: ImageRef) -> bool:
        """Do its columns run between the patient's sides?"""
        ...


class Probe(ComponentConfig):
    """Asks rows otherwise. Its name is the arm under which scores and metrics stand.

    `limit` rows of a task at most are asked, spread over the patients (None: all). `about` completes
    "the model ...", `expect` says what looking and understanding would do to the score.
    """

    family = "probe"
    table: ClassVar[Mapping[str, str]] = {
        "swapped": "medloupe.evaluate.probes.swapped:Swapped",
        "text_only": "medloupe.evaluate.probes.unseen:TextOnly",
        "blank": "medloupe.evaluate.probes.unseen:Blank",
        "mirrored": "medloupe.evaluate.probes.mirrored:Mirrored",
        "negated": "medloupe.evaluate.probes.negated:Negated",
        "paraphrased": "medloupe.evaluate.probes.paraphrased:Paraphrased",
        "exchanged": "medloupe.evaluate.probes.exchanged:Exchanged",
    }
    about: ClassVar[str]
    expect: ClassVar[Expect]

    limit: int | None = Field(default=48, ge=1)

    @abstractmethod
    def ask(self, rows: Sequence[Conversation], *, seed: int, look: Look) -> Asked:
        """The rows, each with its answer, as the probe asks them; one entry per row, in their order."""


def probe_class(name: str) -> type[Probe]:
    """The class of a probe by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    found = resolve_component(Probe, name)
    assert issubclass(found, Probe)
    return found


def with_images(row: Conversation, images: Sequence[ImageRef]) -> Conversation:
    """The row with its images, in reading order, replaced by as many others."""
    left = iter(images)
    return map_parts(row, lambda part: next(left) if isinstance(part, ImageRef) else part)


def map_parts(row: Conversation, change: Callable[[Part], Part | None]) -> Conversation:
    """The row with `change` of each of its parts, in reading order; None leaves a part out."""
    messages = tuple(_mapped(message, change) for message in row.messages)
    return row.model_copy(update={"messages": messages})


def _mapped(message: Message, change: Callable[[Part], Part | None]) -> Message:
    content = tuple(new for part in message.content if (new := change(part)) is not None)
    return message.model_copy(update={"content": content})


def limited(asked: Asked, limit: int | None) -> list[tuple[int, Conversation]]:
    """The rows that are asked, each with its number: at most `limit` of a task, those with the smallest
    hashes, one of each patient before a second of any."""
    present = [(number, row) for number, row in enumerate(asked) if row is not None]
    if limit is None:
        return present
    kept = {row.id for row in limited_rows([row for _, row in present], limit)}
    return [(number, row) for number, row in present if row.id in kept]
