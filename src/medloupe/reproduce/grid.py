"""A grid: rows that differ from one base run in a few fields, and what a paper says of them.

Everything is a value that is fixed before the first result: what is measured and what is expected, too.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal, Self

from pydantic import Field, model_validator

from medloupe.config import Config
from medloupe.errors import ConfigError, did_you_mean
from medloupe.evaluate.scorers.base import CorpusScorer, Scorer
from medloupe.recipes.config import RunConfig
from medloupe.reproduce.parts import MADE, Part

ROW = "row:"
"""`model.start.folder=row:LABEL` begins with the model of another row, of the same seed."""


class Row(Config):
    """One composition: the base with `overrides`, `field=value` as for `--set`."""

    label: str = Field(min_length=1)
    overrides: tuple[str, ...] = ()


class Measure(Config):
    """The mean of one scorer over the test rows of some tasks."""

    label: str = Field(min_length=1)
    scorer: str
    tasks: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _counts_rows(self) -> Self:
        if isinstance(Scorer.parse({"name": self.scorer}), CorpusScorer):
            raise ValueError(
                f"{self.scorer} is one number for all rows, and a grid wants a score a row; "
                "take one that has it, bleu_4.nltk for example"
            )
        return self


class Claim(Config):
    """What the paper says of two rows: `first` scores more than `second`, or no more than it.

    `paper` are its numbers. `because` is known beforehand about why it may come out otherwise here.
    """

    first: str
    second: str
    says: Literal["more", "no more"] = "more"
    paper: str = Field(min_length=1)
    because: str = ""


class Grid(Config):
    """Rows on one prepared data set, the measures, and the claims they answer.

    `version` is raised with every change to what is run, measured or expected. `smaller` says how the
    runs differ from the paper's. `parts` are made once and stand in the base as `made:NAME`.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    version: int = Field(default=1, ge=1)
    title: str = Field(min_length=1)
    answers: str = Field(min_length=1)
    base: RunConfig
    parts: dict[str, Part] = Field(default_factory=dict)
    rows: tuple[Row, ...] = Field(min_length=1)
    measures: tuple[Measure, ...] = Field(min_length=1)
    claims: tuple[Claim, ...] = ()
    smaller: tuple[str, ...] = ()
    resamples: int = Field(default=2000, ge=100)

    @model_validator(mode="after")
    def _known(self) -> Self:
        labels = [row.label for row in self.rows]
        if len(set(labels)) != len(labels):
            raise ValueError(f"two rows have one label: {labels}")
        for name, part in self.parts.items():
            if name in self.named(part.to_dict()):
                raise ValueError(f"part {name!r} is made of itself")
        for claim in self.claims:
            for label in (claim.first, claim.second):
                if label not in labels:
                    raise ValueError(f"a claim is about {label!r}; {did_you_mean(label, labels)}")
        return self

    def config(self, label: str, seed: int) -> RunConfig:
        """The run of a row, in which parts and other rows are still named, not found.

        Raises:
            ConfigError: no such row, or an override that does not fit.
        """
        for row in self.rows:
            if row.label == label:
                seeds = [f"seed={seed}", f"train.seed={seed}"]
                return self.base.with_overrides([*row.overrides, *seeds])
        known = [row.label for row in self.rows]
        raise ConfigError(f"grid {self.name!r} has no row {label!r}; {did_you_mean(label, known)}")

    def start(self, label: str) -> str | None:
        """The row with whose model a row begins."""
        start = self.config(label, 0).model.start
        if start is None or not start.folder.startswith(ROW):
            return None
        return start.folder.removeprefix(ROW)

    def key(self, label: str, seed: int) -> str:
        """16 hex digits over all that a run is made of; equal runs of two grids have equal keys.

        Fields that are null do not count, so that an optional field that is added later changes no key.
        """
        config = self.config(label, seed).to_dict()
        start = self.start(label)
        if start is not None:
            config["model"]["start"]["folder"] = ROW + self.key(start, seed)
        parts = {name: part.to_dict() for name, part in self.parts.items()}
        used: dict[str, object] = {}
        waiting = self.named(config)
        while waiting:
            name = waiting.pop()
            used[name] = parts[name]
            waiting += [other for other in self.named(parts[name]) if other not in used]
        text = json.dumps(_stated([config, used]), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def named(self, value: object) -> list[str]:
        """The parts that plain data name as `made:NAME`."""
        text = json.dumps(value)
        return [name for name in self.parts if json.dumps(MADE + name) in text]

    def rows_fingerprint(self) -> str:
        """16 hex digits over what is run, measured and expected, but not how that is worded."""
        fixed = {
            "rows": [[row.label, self.key(row.label, 0)] for row in self.rows],
            "measures": [measure.to_dict() for measure in self.measures],
            "claims": [claim.to_dict() | {"because": ""} for claim in self.claims],
        }
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def _stated(value: object) -> object:
    """Plain data without the fields that are null."""
    if isinstance(value, dict):
        return {key: _stated(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_stated(inner) for inner in value]
    return value
