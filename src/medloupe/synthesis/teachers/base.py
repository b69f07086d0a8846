"""The family of teachers. A teacher answers one prompt once; it neither retries nor counts.

What comes back is a value, an `Answer` or a `Failure`, so that it crosses processes unchanged.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from medloupe.config import ComponentConfig, Config
from medloupe.synthesis.types import ChatMessage

Finish = Literal["stop", "length", "refusal"]


class Answer(Config):
    """What a teacher said. `model` is what the endpoint says that it runs; tokens are its own counts, or
    estimates where it gives none (`counted` is then false).
    """

    text: str
    model: str
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    counted: bool = True
    finish: Finish = "stop"


class Failure(Config):
    """Why there is no answer.

    `scope`: "retry" (it may pass), "row" (this prompt will never be answered), "stop" (no prompt will:
    the key, the model or the account). `wait` is what the endpoint asks for, in seconds. `paid` is true
    where the endpoint may have worked for it, and hence charges for it.
    """

    scope: Literal["retry", "row", "stop"]
    reason: str
    wait: float | None = None
    paid: bool = False


class Teacher(abc.ABC):
    """An open teacher: connections, or weights in memory. Used within one event loop."""

    @abc.abstractmethod
    async def ask(
        self, messages: Sequence[ChatMessage], schema: Mapping[str, Any] | None
    ) -> Answer | Failure:
        """Answer one prompt, in the form of `schema` where the model can be held to it."""

    async def close(self) -> None:
        """Give back what it holds."""
        return


class Price(Config):
    """Per million tokens, in the currency of the account."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of one request."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class TeacherConfig(ComponentConfig, abc.ABC):
    """One teacher of a mix. `label` names it in the provenance (default: its model).

    `weight` is relative to those of the other teachers. `concurrency` is how many requests may be open at
    once; rates are upper limits, None where the endpoint sets none.
    """

    family: ClassVar[str] = "teacher"
    table: ClassVar[Mapping[str, str]] = {
        "embedded": "medloupe.synthesis.teachers.embedded:EmbeddedTeacherConfig",
        "openai": "medloupe.synthesis.teachers.openai:OpenAITeacherConfig",
        "anthropic": "medloupe.synthesis.teachers.anthropic:AnthropicTeacherConfig",
    }
    # What may differ when a run goes on: nothing that the model sees.
    free: ClassVar[frozenset[str]] = frozenset(
        {"concurrency", "requests_per_minute", "tokens_per_minute", "price"}
    )

    label: str = ""
    weight: float = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=1024, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    concurrency: int = Field(default=8, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    price: Price | None = None

    @property
    @abc.abstractmethod
    def called(self) -> str:
        """The label, or the model's own name."""

    @property
    @abc.abstractmethod
    def is_local(self) -> bool:
        """Whether what it is sent stays on this machine or in a private network."""

    @abc.abstractmethod
    def open(self) -> Teacher:
        """Connect, or load the weights.

        Raises:
            ConfigError: the environment variable of the key is not set.
            MissingExtraError: a package of an extra is not installed.
        """


def estimate_tokens(text: str) -> int:
    """About how many tokens a text is, from above: 3 bytes of UTF-8 each (a Chinese character is one)."""
    return len(text.encode()) // 3 + 1


def estimate_prompt(messages: Sequence[ChatMessage]) -> int:
    """`estimate_tokens` of a prompt, with 8 for the frame of each message."""
    return sum(estimate_tokens(message["content"]) + 8 for message in messages)
