"""A benchmark: which rows are asked, how, and how the answers are scored."""

from __future__ import annotations

import hashlib
import itertools
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field, field_validator

from medloupe.config import Config
from medloupe.data.dataset import Dataset
from medloupe.errors import ConfigError, DataError, did_you_mean
from medloupe.evaluate.scorers.base import Scorer
from medloupe.evaluate.scorers.boxes import BoxHit50, BoxIoU
from medloupe.evaluate.scorers.closed import LlavaMedClosedAccuracy, StrictClosedAccuracy
from medloupe.evaluate.scorers.exact import ExactMatch
from medloupe.evaluate.scorers.open_recall import LlavaMedOpenRecall, StrictOpenRecall
from medloupe.types import AnswerType, Conversation, Split, Text


class Stratum(Config):
    """A division of the rows of a task by one attribute: by number at `edges`, else by value."""

    attribute: str
    edges: tuple[float, ...] = ()

    def label(self, attributes: dict[str, str]) -> str | None:
        """The part a row belongs to ("4 <= lesion_width < 8"), None if it has no such attribute."""
        value = attributes.get(self.attribute)
        if value is None:
            return None
        if not self.edges:
            return f"{self.attribute} = {value}"
        try:
            place = bisect_right(self.edges, float(value))
        except ValueError:
            return None
        return self.labels[place]

    @property
    def labels(self) -> list[str]:
        """The parts by number, in order."""
        name, edges = self.attribute, [f"{edge:g}" for edge in self.edges]
        inner = [f"{a} <= {name} < {b}" for a, b in itertools.pairwise(edges)]
        return [f"{name} < {edges[0]}", *inner, f"{name} >= {edges[-1]}"] if edges else []

    @field_validator("edges")
    @classmethod
    def _increasing(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        if list(edges) != sorted(set(edges)):
            raise ValueError("edges must increase")
        return edges


def default_scorers() -> dict[AnswerType, tuple[Scorer, ...]]:
    """Strict first: the first scorer of an answer type is the one that headlines."""
    return {
        "closed": (StrictClosedAccuracy(), LlavaMedClosedAccuracy()),
        "open": (StrictOpenRecall(), LlavaMedOpenRecall(), ExactMatch()),
        "box": (BoxIoU(), BoxHit50()),
    }


class Benchmark(Config):
    """One split of a data set, asked greedily, and the scorers of each answer type.

    `tasks` () is all of them. `instruction` follows the question of every row. `limit` keeps at
    most that many rows of a task, spread over the patients, always the same ones.
    """

    name: str = Field(min_length=1)
    split: Split = "test"
    tasks: tuple[str, ...] = ()
    instruction: str = ""
    max_new_tokens: int = Field(default=64, ge=1)
    limit: int | None = Field(default=None, ge=1)
    scorers: dict[AnswerType, tuple[Scorer, ...]] = Field(default_factory=default_scorers)
    strata: tuple[Stratum, ...] = ()
    resamples: int = Field(default=2000, ge=100)

    @field_validator("scorers")
    @classmethod
    def _one_config_a_name(
        cls, scorers: dict[AnswerType, tuple[Scorer, ...]]
    ) -> dict[AnswerType, tuple[Scorer, ...]]:
        """A log knows scores by the scorer's name, so two configs under one name would be mixed up."""
        found: dict[str, Scorer] = {}
        for scorer in (one for kind in scorers.values() for one in kind):
            if found.setdefault(scorer.name, scorer) != scorer:
                raise ValueError(f"{scorer.name} stands here with two configs")
        return scorers

    def select(self, dataset: Dataset) -> tuple[Conversation, ...]:
        """The rows to ask, in file order.

        Raises:
            DataError: no row is left, an unknown task, a row without an answer, or a repeated id.
            ConfigError: an answer type without a scorer.
            MissingExtraError: a scorer needs what is not installed.
        """
        rows = dataset.split(self.split)
        known = {row.task for row in rows}
        for task in self.tasks:
            if rows and task not in known:
                raise DataError(
                    f"unknown task {task!r}; {did_you_mean(task, known)}",
                    file=str(dataset.root),
                    field="tasks",
                )
        rows = tuple(row for row in rows if not self.tasks or row.task in self.tasks)
        if not rows:
            raise DataError(
                f"nothing to evaluate: the {self.split} split has no rows",
                remedy="Choose another split, or prepare the data set again",
                file=str(dataset.root),
            )
        kept = rows if self.limit is None else limited_rows(rows, self.limit)
        self._require_answerable(kept, dataset)
        for answer_type in sorted({row.answer_type for row in kept}):
            for scorer in self.scorers_of(answer_type):
                scorer.require()
        return kept

    def ask(self, row: Conversation) -> Conversation:
        """What the model is given: the row without its answer, the instruction at its end."""
        row = row.without_answer()
        if not self.instruction or not row.messages:
            return row
        last = row.messages[-1]
        content = (*last.content, Text(text=f"\n{self.instruction}"))
        messages = (*row.messages[:-1], last.model_copy(update={"content": content}))
        return row.model_copy(update={"messages": messages})

    def scorers_of(self, answer_type: AnswerType) -> tuple[Scorer, ...]:
        """The scorers of an answer type, the one that headlines first.

        Raises:
            ConfigError: the benchmark has none for it.
        """
        found = self.scorers.get(answer_type, ())
        if not found:
            raise ConfigError(
                f"benchmark {self.name!r} has no scorer for {answer_type!r} answers",
                remedy="Name at least one, or choose tasks without such answers",
                field=f"scorers.{answer_type}",
            )
        return found

    def primary(self) -> dict[str, Scorer]:
        """The scorer that headlines each answer type."""
        return {kind: scorers[0] for kind, scorers in self.scorers.items() if scorers}

    def version(self, rows_digest: str) -> str:
        """12 hex digits over the rows, the prompt, the decoding and the scorers."""
        return hashlib.sha256(f"{self.fingerprint()}:{rows_digest}".encode()).hexdigest()[:12]

    def _require_answerable(self, rows: Sequence[Conversation], dataset: Dataset) -> None:
        file = str(dataset.root)
        for row in rows:
            if row.answer is None:
                raise DataError("a row without an answer cannot be scored", file=file, row=row.id)
            self.scorers_of(row.answer_type)
        repeated = [id for id, count in Counter(row.id for row in rows).items() if count > 1]
        if repeated:
            raise DataError("two rows have the same id", file=file, row=repeated[0])


def digest_rows(rows: Iterable[Conversation]) -> str:
    """SHA-256 (16 digits) over the rows, in order of their ids. An image that a data set keeps elsewhere
    (an absolute uri) counts by its content, where that is known: another machine has another path."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: row.id):
        plain = row.to_dict()
        for part in (part for message in plain["messages"] for part in message["content"]):
            if part["type"] == "image" and part["sha256"] and Path(part["uri"]).is_absolute():
                part["uri"] = ""
        digest.update(json.dumps(plain, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def cluster_of(row_id: str, patient_id: str | None, uris: Sequence[str]) -> str:
    """What is resampled as one: the patient, or where none is known the images, or the row."""
    if patient_id is not None:
        return f"patient {patient_id}"
    return f"image {' '.join(uris)}" if uris else f"row {row_id}"


def limited_rows(rows: Sequence[Conversation], limit: int) -> tuple[Conversation, ...]:
    """At most `limit` rows of each task: one of each patient in turn, patients in the order of their
    hashes. An interval comes from patients, so many patients with few rows say more than few with many."""
    ranked: dict[str, list[tuple[int, str, str]]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for row in sorted(rows, key=lambda row: row.id):
        patient = cluster_of(row.id, row.patient_id, [image.uri for image in row.images])
        place = hashlib.sha256(patient.encode()).hexdigest()
        ranked.setdefault(row.task, []).append((seen[patient, row.task], place, row.id))
        seen[patient, row.task] += 1
    kept = {name for rows in ranked.values() for _, _, name in sorted(rows)[:limit]}
    return tuple(row for row in rows if row.id in kept)
