"""Answers on disk as they come, so that none is asked for twice, and parts of a whole on many processes.

A line is one answer under the key of what was asked: the conversation as the model is shown it (with
whatever a probe changed), its images, the model, and how it decodes. A kill can cut only the last line,
which is asked again. What failed (an image that cannot be read, a refusal) is kept for those who count
it, and asked again by whoever goes on.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, Self, TypeAlias, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from medloupe.data.dataset import Progress
from medloupe.errors import ConfigError, MedLoupeError
from medloupe.types import Conversation, Generation, Hear, ImageRef

ANSWERS_FILE: Final = "answers.jsonl"
WINDOW: Final = 2048
"""Conversations whose prompts are held at once; those of an image stand together."""

Said: TypeAlias = Generation | str
"""An answer, or why there is none."""

_generation = TypeAdapter(Generation)


class Predictor(Protocol):
    """Answers conversations that end with a question: one `Generation` each, in their order."""

    def __call__(
        self, conversations: Sequence[Conversation], *, progress: Progress
    ) -> list[Generation]: ...


@runtime_checkable
class TellingPredictor(Protocol):
    """A predictor that tells of each answer as it comes, and of errors row by row."""

    def answer_each(
        self,
        conversations: Sequence[Conversation],
        hear: Hear,
        *,
        progress: Progress,
        done: frozenset[int],
    ) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Part `number` (from 1) `of` so many."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "2/4".

        Raises:
            ConfigError: it does not say so.
        """
        found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text.strip())
        if found is None or int(found[1]) > int(found[2]):
            raise ConfigError(
                f"{text!r} is no part of a whole",
                field="shard",
                remedy="Write 1/4, 2/4, 3/4 and 4/4 for the processes of four",
            )
        return cls(number=int(found[1]), of=int(found[2]))

    def file(self, path: Path) -> Path:
        """`answers.jsonl` -> `answers.2-of-4.jsonl`."""
        return path.with_name(f"{path.stem}.{self.number}-of-{self.of}{path.suffix}")

    def files(self, path: Path) -> list[Path]:
        """Those of all parts."""
        return [Shard(number=n, of=self.of).file(path) for n in range(1, self.of + 1)]

    @staticmethod
    def found(path: Path) -> list[Path]:
        """Those that are there, of however many parts."""
        name = f"{glob.escape(path.stem)}.*-of-*{glob.escape(path.suffix)}"
        return sorted(path.parent.glob(name))

    def part(self, asked: Sequence[Conversation]) -> list[Conversation]:
        """What this part asks; the questions of an image stay together."""
        groups = by_images(asked)
        return [one for group in groups[self.number - 1 :: self.of] for one in group]


class Answers:
    """The answers of one model, in memory and, with a `path`, on disk.

    Args:
        path: where answers are appended; None keeps none.
        model: says which model this is and how it decodes: answers of another are not taken.
        root: folder of relative image uris; a file without SHA-256 is known by its size and time.
        kept: other files of answers, such as those of shards.
        fresh: whether to begin with an empty file.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        model: str = "",
        root: Path = Path(),
        kept: Iterable[Path] = (),
        fresh: bool = False,
    ) -> None:
        self.path, self.model, self.root = path, model, root
        self.torn = 0
        self._said: dict[str, Said] = {}
        self._heard: set[str] = set()
        self._stamps: dict[ImageRef, str] = {}
        self._stream: BinaryIO | None = None
        if path is not None and fresh:
            path.unlink(missing_ok=True)
        for file in dict.fromkeys([*kept, *([path] if path else [])]):
            self.read(file)

    def key(self, asked: Conversation) -> str:
        """32 hex digits of everything that decides an answer, but for rounding."""
        shown = asked.without_answer()
        parts = [self.model, shown.to_dict(), [self._stamp(ref) for ref in shown.images]]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]

    def of(self, asked: Conversation) -> Said | None:
        """What was said, why nothing was, or None where it has not been asked."""
        return self._said.get(self.key(asked))

    def is_done(self, key: str) -> bool:
        """Whether there is an answer, or none could be had since this was opened."""
        return key in self._heard or isinstance(self._said.get(key), Generation)

    def add(self, key: str, name: str, said: Generation | MedLoupeError) -> None:
        """Keep what became of a conversation; `name` is its id, for readers."""
        if self.is_done(key):
            return
        self._heard.add(key)
        line: dict[str, Any] = {"key": key, "id": name}
        if isinstance(said, Generation):
            self._said[key] = said
            line["answer"] = dump_answer(said)
        else:
            self._said[key] = line["error"] = str(said)
        self._append(line)

    def read(self, path: Path) -> None:
        """Take the answers of a file; lines that are none are counted in `torn`."""
        if not path.is_file():
            return
        with path.open("rb") as stream:
            for line in stream:
                try:
                    data = json.loads(line)
                    key = str(data["key"])
                    said = data["error"] if "error" in data else load_answer(data["answer"])
                except (ValueError, LookupError, TypeError):  # a kill cuts a line
                    self.torn += 1
                    continue
                if isinstance(said, Generation) or not isinstance(self._said.get(key), Generation):
                    self._said[key] = said

    def close(self) -> None:
        """Let go of the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def join(self, files: Iterable[Path]) -> None:
        """Read what other processes have answered."""
        for file in files:
            if file != self.path:
                self.read(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, line: dict[str, Any]) -> None:
        """A whole line, handed to the system before anything else happens."""
        if self.path is None:
            return
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("ab")
            if _is_cut(self.path):
                self._stream.write(b"\n")
        self._stream.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")
        self._stream.flush()

    def _stamp(self, ref: ImageRef) -> str:
        """What tells an image from another at the same place."""
        if ref.sha256 is not None:
            return ref.sha256
        if ref not in self._stamps:
            try:
                found = (self.root / ref.uri).stat()
                self._stamps[ref] = f"{found.st_size} {found.st_mtime_ns}"
            except OSError:
                self._stamps[ref] = "absent"
        return self._stamps[ref]


def ask_all(
    predict: Predictor | TellingPredictor,
    asked: Sequence[Conversation],
    answers: Answers,
    *,
    progress: Progress,
) -> None:
    """Ask what is not answered yet; what is asked twice (by two probes) is asked once.

    Raises:
        MedLoupeError: by a predictor that does not tell of its errors, or one that gives up for good.
    """
    ordered = [one for group in by_images(asked) for one in group]
    unique = list({answers.key(one): one for one in ordered}.items())
    for start in range(0, len(unique), WINDOW):
        window = unique[start : start + WINDOW]
        done = frozenset(n for n, (key, _) in enumerate(window) if answers.is_done(key))
        if len(done) < len(window):
            shifted = _Shifted(progress, start, len(unique))
            _ask_window(predict, window, answers, done, shifted)


def _ask_window(
    predict: Predictor | TellingPredictor,
    window: Sequence[tuple[str, Conversation]],
    answers: Answers,
    done: frozenset[int],
    progress: Progress,
) -> None:
    def hear(number: int, said: Generation | MedLoupeError) -> None:
        key, conversation = window[number]
        answers.add(key, conversation.id, said)

    conversations = [conversation for _, conversation in window]
    if isinstance(predict, TellingPredictor):
        predict.answer_each(conversations, hear, progress=progress, done=done)
        return
    left = [number for number in range(len(window)) if number not in done]
    said = predict([conversations[number] for number in left], progress=progress)
    assert len(said) == len(left), f"{len(said)} generations for {len(left)} conversations"
    for number, generation in zip(left, said, strict=True):
        hear(number, generation)


@dataclass(frozen=True)
class _Shifted:
    """Progress of a window as part of the whole."""

    progress: Progress
    before: int
    total: int

    def __call__(self, what: str, done: int, _: int) -> None:
        self.progress(what, self.before + done, self.total)


def by_images(asked: Sequence[Conversation]) -> list[list[Conversation]]:
    """The conversations about the same images together, in the order of the first of each."""
    groups: dict[tuple[object, ...], list[Conversation]] = {}
    for number, conversation in enumerate(asked):
        key: tuple[object, ...] = conversation.images or ("alone", number)
        groups.setdefault(key, []).append(conversation)
    return list(groups.values())


def dump_answer(said: Generation) -> dict[str, Any]:
    """JSON of an answer; NaN stays, as Python's reader takes it."""
    fields = {field.name: getattr(said, field.name) for field in dataclasses.fields(said)}
    return fields | {"boxes": [box.to_dict() for box in said.boxes]}


def load_answer(data: Any) -> Generation:
    """What `dump_answer` wrote.

    Raises:
        ValueError: it is none.
    """
    try:
        return _generation.validate_python(data)
    except ValidationError as error:
        raise ValueError("no answer") from error


def _is_cut(path: Path) -> bool:
    """Whether the last line of a file has no end."""
    with path.open("rb") as stream:
        if stream.seek(0, 2) == 0:
            return False
        stream.seek(-1, 2)
        return stream.read(1) != b"\n"
