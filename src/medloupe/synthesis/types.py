"""What the parts of the room hand to each other: source rows in, drafts between, one outcome a row out.

A prompt set says what a teacher is sent, `parse` reads what came back, filters judge it; the pipeline
knows them by the protocols below, and takes them from

- `prompts.prompt_set(name: str) -> PromptSet` and `prompts.PROMPT_SETS` (names);
- `parse.parse(text: str, row: SourceRow) -> Draft`;
- `Filter.table`, with `filters.DEFAULT_FILTERS` where a config names none;
- `guard.refuse_external(card: DatasetCard | SourceRow, receiver: str, permission: str) -> None`, which
  raises `SynthesisError` where the source's agreement forbids a teacher elsewhere and no permission is
  stated, and `guard.flags(row: SourceRow) -> tuple[str, ...]`: names and dates in what would be sent.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field, model_validator

from medloupe.config import ComponentConfig, Config
from medloupe.errors import MedLoupeError
from medloupe.types import Box, Conversation, ImageRef, Language, Split

Kind = Literal["caption", "report", "labels", "pair"]
ChatMessage = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""


class SynthesisError(MedLoupeError):
    """A teacher's answer, a source row or a budget that synthesis cannot go on with."""


class SourceRow(Config):
    """What is known of an image without looking at it.

    `text` is the caption, or the whole report; `mentions` are sentences elsewhere in the paper that name
    the figure; `sections` those of a report. Of a "pair", `text` is of the current study and
    `sections["prior"]` of the earlier one; its images stand earlier first. `boxes` are in pixels of
    `images[box.image]`. `access` is the source's data-use agreement in words ("" where it has none).
    """

    id: str = Field(min_length=1)
    kind: Kind = "caption"
    text: str = ""
    mentions: tuple[str, ...] = ()
    sections: dict[str, str] = Field(default_factory=dict)
    labels: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    modality: str = ""
    anatomy: str = ""
    domain: str = ""
    language: Language = "en"
    images: tuple[ImageRef, ...] = ()
    patient_id: str | None = None
    study_id: str | None = None
    dataset: str = ""
    licence: str = ""
    access: str = ""
    split: Split | None = None


class Turn(Config):
    """One question about the image and its answer."""

    question: str
    answer: str


class Draft(Config):
    """What a teacher wrote: the turns as read, and its text as it came."""

    turns: tuple[Turn, ...]
    raw: str


class Provenance(Config):
    """Where a conversation comes from. `model` is what the endpoint says that it runs, `few_shot` the name
    of the set of examples, `date` the day (UTC, ISO 8601) on which the answer came, `source` the row's id.
    """

    teacher: str
    model: str
    prompt_hash: str
    few_shot: str
    temperature: float
    source: str
    licence: str
    date: str


class Rejection(Config):
    """Why a row was not taken: the filter's name (or "parse", "teacher", "guard", "source", "form"), and
    its reason."""

    filter: str
    reason: str


class Outcome(Config):
    """What became of a source row: a conversation, or every reason against it."""

    source: str
    conversation: Conversation | None = None
    rejections: tuple[Rejection, ...] = ()
    draft: Draft | None = None
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Outcome:
        if (self.conversation is None) == (not self.rejections):
            raise ValueError("an outcome is either accepted or rejected for at least one reason")
        return self


class Seen(Protocol):
    """What was accepted before this row, for near-duplicates: the same however a run was interrupted.

    `key` is a bucket (a MinHash band, for one) of the filter's choice.
    """

    def matches(self, key: str) -> tuple[str, ...]:
        """The texts accepted earlier under `key`, oldest first."""
        ...

    def note(self, key: str, text: str) -> None:
        """Keep `text` under `key`, should this row be accepted."""
        ...


class RowPrompts(Protocol):
    """How rows of one kind and language are put to a teacher."""

    @property
    def hash(self) -> str:
        """Hex digest over everything that decides the messages (words, examples, order)."""
        ...

    @property
    def few_shot(self) -> str:
        """The name of the set of examples."""
        ...

    def messages(self, row: SourceRow) -> list[ChatMessage]:
        """System prompt, examples as user and assistant messages, and the row."""
        ...

    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of an answer, or None where answers are plain text."""
        ...


class PromptSet(Protocol):
    """What a config's `prompts` names: for each row the prompts that are used for it."""

    @property
    def hash(self) -> str:
        """Hex digest over everything that decides the messages of any row."""
        ...

    def of(self, row: SourceRow) -> RowPrompts:
        """The prompts of a row: their hash, examples, messages and schema."""
        ...


class Filter(ComponentConfig):
    """One reason to refuse a draft."""

    family: ClassVar[str] = "synthesis filter"
    table: ClassVar[Mapping[str, str]] = {
        "turns": "medloupe.synthesis.filters.turns:Turns",
        "questions": "medloupe.synthesis.filters.questions:Questions",
        "length": "medloupe.synthesis.filters.length:Length",
        "language": "medloupe.synthesis.filters.language:Language",
        "mentions": "medloupe.synthesis.filters.mentions:Mentions",
        "numbers": "medloupe.synthesis.filters.numbers:Numbers",
        "dates": "medloupe.synthesis.filters.dates:Dates",
        "names": "medloupe.synthesis.filters.names:Names",
        "unsupported": "medloupe.synthesis.filters.unsupported:Unsupported",
        "negation": "medloupe.synthesis.filters.negation:Negation",
        "laterality": "medloupe.synthesis.filters.laterality:Laterality",
        "modality": "medloupe.synthesis.filters.modality:Modality",
        "advice": "medloupe.synthesis.filters.advice:Advice",
        "duplicates": "medloupe.synthesis.filters.duplicates:Duplicates",
    }

    @abstractmethod
    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        """Why the draft cannot be taken, or None. Judged independently of the other filters."""
