"""Prompt sets: YAML files of this package, or the user's own by path.

A file says, in words, what the teacher is and does (`task`), the rules it keeps to, how a row is laid out
before it (`fields`), and which examples it is shown. Everything that shapes a message is in the hash, by
way of the messages themselves: those of made-up rows of every kind are hashed, with the schema.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import Field

from medloupe.config import Config, read_yaml
from medloupe.errors import ConfigError, did_you_mean
from medloupe.synthesis.prompts.layout import Words, laid_out
from medloupe.synthesis.types import (
    ChatMessage,
    Kind,
    PromptSet,
    RowPrompts,
    SourceRow,
    SynthesisError,
    Turn,
)
from medloupe.types import Box, Language

KINDS: Final[tuple[Kind, ...]] = ("caption", "report", "labels", "pair")
_NAMES: Final = (
    "caption",
    "caption_llava_med",
    "report",
    "labels",
    "pair",
    "caption_zh",
    "caption_llava_med_zh",
    "report_zh",
    "labels_zh",
    "pair_zh",
)
PROMPT_SETS: Final = ("auto", *_NAMES)
"""What a config can name; "auto" takes for each row the set of its kind and language."""


class Example(Config):
    """One example: a source as it is shown, and the answer that is wanted for it."""

    source: SourceRow
    turns: tuple[Turn, ...] = Field(min_length=1)


class PromptFile(Config):
    """A prompt set as it stands in its file. `examples` names a file of `Example`s beside it."""

    kind: Kind
    language: Language
    task: str = Field(min_length=1)
    rules: tuple[str, ...] = Field(min_length=1)
    form: str = Field(min_length=1)
    request: str = Field(min_length=1)
    words: Words
    fewest: int = Field(default=2, ge=1)
    most: int = Field(default=6, ge=1)
    examples: str


class FilePrompts(PromptSet, RowPrompts):
    """The prompt set of one file: rows of one kind, in one language."""

    def __init__(self, name: str, file: PromptFile, examples: Sequence[Example]) -> None:
        self.name, self.file, self.examples = name, file, tuple(examples)

    @property
    def few_shot(self) -> str:
        return self.file.examples

    @cached_property
    def hash(self) -> str:
        probes = [self._lines(row) for row in _probes(self.file)]
        shaped = [self._fixed(), probes, self.schema()]
        text = json.dumps(shaped, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def of(self, row: SourceRow) -> FilePrompts:  # noqa: ARG002
        return self

    def messages(self, row: SourceRow) -> list[ChatMessage]:
        """System prompt, examples, row.

        Raises:
            SynthesisError: a row of another kind or language.
        """
        if (row.kind, row.language) != (self.file.kind, self.file.language):
            raise SynthesisError(
                f"the prompt set {self.name!r} is for {self.file.kind} rows in {self.file.language!r};"
                f" this is a {row.kind} row in {row.language!r}",
                remedy='Set prompts to "auto", which takes for each row the set that fits',
                row=row.id,
            )
        return [*self._fixed(), {"role": "user", "content": self._lines(row)}]

    def schema(self) -> dict[str, Any]:
        return answer_schema(self.file.fewest, self.file.most)

    def _fixed(self) -> list[ChatMessage]:
        """What is the same for every row."""
        file = self.file
        rules = "\n".join(f"- {rule}" for rule in file.rules)
        system = f"{file.task.strip()}\n\n{rules}\n\n{file.form.strip()}"
        shown: list[ChatMessage] = [{"role": "system", "content": system}]
        for example in self.examples:
            shown.append({"role": "user", "content": self._lines(example.source)})
            shown.append({"role": "assistant", "content": answer_json(example.turns)})
        return shown

    def _lines(self, row: SourceRow) -> str:
        return f"{laid_out(row, self.file.words)}\n\n{self.file.request.strip()}"


class AutoPrompts(PromptSet):
    """For each row the set of its kind and language."""

    def __init__(self) -> None:
        loaded = [_packaged(name) for name in _NAMES if "llava_med" not in name]
        self._sets: Mapping[tuple[Kind, Language], FilePrompts] = {
            (prompts.file.kind, prompts.file.language): prompts for prompts in loaded
        }

    @cached_property
    def hash(self) -> str:
        text = ",".join(prompts.hash for _, prompts in sorted(self._sets.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def of(self, row: SourceRow) -> FilePrompts:
        return self._sets[row.kind, row.language]


def prompt_set(name: str) -> PromptSet:
    """A set of this package, or one of your own by the path of its YAML file.

    Raises:
        ConfigError: unknown name, or a file that is no prompt set.
    """
    if name == "auto":
        return AutoPrompts()
    if name in _NAMES:
        return _packaged(name)
    if name.endswith((".yaml", ".yml", ".json")):
        path = Path(name)
        file = PromptFile.from_yaml(path)
        beside = path.parent / f"{file.examples}.yaml"
        return FilePrompts(path.stem, file, _examples(read_yaml(beside), str(beside)))
    raise ConfigError(
        f"unknown prompt set {name!r}; {did_you_mean(name, PROMPT_SETS)}",
        remedy="Name one of these, or the path of a YAML file of your own",
        field="prompts",
    )


def answer_schema(fewest: int, most: int) -> dict[str, Any]:
    """The JSON schema of an answer: `{"turns": [{"question": ..., "answer": ...}, ...]}`.

    No keyword beyond those that every endpoint's constrained output knows; `minItems` and `maxItems`
    are left to the filter where an endpoint ignores them.
    """
    text = {"type": "string"}
    turn = {
        "type": "object",
        "properties": {"question": text, "answer": text},
        "required": ["question", "answer"],
        "additionalProperties": False,
    }
    turns = {"type": "array", "items": turn, "minItems": fewest, "maxItems": most}
    return {
        "type": "object",
        "properties": {"turns": turns},
        "required": ["turns"],
        "additionalProperties": False,
    }


def answer_json(turns: Sequence[Turn]) -> str:
    """An answer as a teacher should write it."""
    return json.dumps({"turns": [turn.to_dict() for turn in turns]}, ensure_ascii=False, indent=1)


def _packaged(name: str) -> FilePrompts:
    file = PromptFile.parse(_resource("sets", name), file=f"{name}.yaml")
    beside = f"{file.examples}.yaml"
    return FilePrompts(name, file, _examples(_resource("examples", file.examples), beside))


def _resource(folder: str, name: str) -> Any:
    path = resources.files(__package__).joinpath(folder, f"{name}.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _examples(data: Any, file: str) -> list[Example]:
    if not isinstance(data, list):
        raise ConfigError("examples are a list of {source, turns}", file=file)
    return [Example.parse(item, file=file) for item in data]


def _probes(file: PromptFile) -> list[SourceRow]:
    """Made-up rows that reach every line of the layout: a change of layout changes the hash."""
    box = Box(label="Lung_nodule", x1=10, y1=20, x2=30, y2=60, words=("small",))
    sections = {"findings": "F.", "impression": "I.", "prior": "P."}
    sections |= dict.fromkeys(file.words.sections, "S.")
    return [
        SourceRow(
            id="probe",
            kind=kind,
            text="Text.",
            mentions=("One.", "Two."),
            sections=named,
            labels=("Nodule", "No_finding"),
            boxes=(box, box, box.model_copy(update={"label": "Mass"})),
            modality="x-ray",
            anatomy="chest",
            language=file.language,
        )
        for kind in KINDS
        for named in ({}, sections)
    ]
