"""The config of a synthesis: source, prompts, teachers, filters, limits."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from medloupe.config import Config
from medloupe.synthesis.budget import Limits
from medloupe.synthesis.filters import DEFAULT_FILTERS
from medloupe.synthesis.sources import SourceConfig
from medloupe.synthesis.teachers import TeacherConfig
from medloupe.synthesis.teachers.embedded import EmbeddedTeacherConfig
from medloupe.synthesis.types import Filter


class SynthesisConfig(Config):
    """What `medloupe synthesize` does.

    Each row's teacher is drawn by a hash of `seed` and the row's id, in the shares of the weights
    (Llama3-Med: 25 of Claude 3 Opus, 75 of Llama 3 70B); without teachers, the embedded one writes
    all. `permission` is your statement that a data-use agreement lets its text go to the teachers named
    here. `flagged` says what becomes of rows in which names or dates are found: a teacher elsewhere is
    not sent them ("withhold"), or is ("send").

    Limits, filters, permission, prices, rates and addresses may change while a run is under way: filters
    judge the journalled answers anew, at no cost. Everything else is fixed by the first sitting.
    """

    source: SourceConfig
    prompts: str = "auto"
    teachers: tuple[TeacherConfig, ...] = (EmbeddedTeacherConfig(),)
    filters: tuple[Filter, ...] = Field(
        default_factory=lambda: tuple(Filter.parse(name) for name in DEFAULT_FILTERS)
    )
    seed: int = 0
    permission: str = ""
    flagged: Literal["withhold", "send"] = "withhold"
    limits: Limits = Field(default_factory=Limits)

    @field_validator("teachers")
    @classmethod
    def _some_and_named_apart(cls, value: tuple[TeacherConfig, ...]) -> tuple[TeacherConfig, ...]:
        names = [teacher.called for teacher in value]
        if not names:
            raise ValueError("name at least one teacher")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"teachers {', '.join(map(repr, twice))} occur twice: set their label")
        return value

    @model_validator(mode="after")
    def _filters_once(self) -> SynthesisConfig:
        names = [judge.name for judge in self.filters]
        if len(set(names)) < len(names):
            raise ValueError(f"a filter is named twice: {', '.join(names)}")
        return self

    def teacher_of(self, row_id: str) -> TeacherConfig:
        """The teacher that writes for a row: the same on every machine, whatever other rows there are."""
        digest = hashlib.sha256(f"{self.seed}:{row_id}".encode()).digest()
        drawn = int.from_bytes(digest[:8]) / 2**64 * sum(t.weight for t in self.teachers)
        for teacher in self.teachers:
            drawn -= teacher.weight
            if drawn < 0:
                return teacher
        return self.teachers[-1]

    def fixed(self) -> dict[str, Any]:
        """What may not change while a run is under way, as plain data."""
        data = self.to_dict()
        for name in ("limits", "filters", "permission", "flagged"):
            del data[name]
        for teacher, plain in zip(self.teachers, data["teachers"], strict=True):
            for name in teacher.free:
                plain.pop(name, None)
        return data
