"""Answers to a folder, a DICOM tree or a file of questions, as JSON lines.

OUT                                one line a row, in the order of the input, when all are answered
OUT's name with .answers.jsonl     what was said, as it comes: the same command goes on from it
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from medloupe.cluster import explained, import_ray, on_cluster, workers_on
from medloupe.config import Config
from medloupe.data.dataset import Progress, silent
from medloupe.data.store import aside, write_lines
from medloupe.errors import MedLoupeError
from medloupe.evaluate.predictors import is_foreign
from medloupe.evaluate.resume import Answers, Said, Shard, ask_all, by_images
from medloupe.evaluate.runner import probabilities
from medloupe.generate import GenerateConfig
from medloupe.imaging.read import read_ref
from medloupe.processing import Processor
from medloupe.recipes import run
from medloupe.recipes.answering import Answerer, foreign_config, open_foreign
from medloupe.recipes.asked import Input, Item
from medloupe.types import Box, Conversation, Generation, ImageRef, MedicalImage

if TYPE_CHECKING:
    from medloupe.recipes.answering import ForeignConfig

Engine = Literal["local", "ray"]
_CHUNK = 64  # rows that a worker of a cluster is handed at once
_AHEAD = 2  # chunks in hand for each worker


class ModelSpec(Config):
    """A model by what opens it: a folder of ours, "hf:FOLDER", or the url of an endpoint.

    `changes` are FIELD=VALUE of how it is asked: of `GenerateConfig`, or of a foreign model's config.
    """

    model: str
    endpoint_model: str | None = None
    changes: tuple[str, ...] = ()
    max_new_tokens: int = 128
    trust_code: bool = False

    def open(self, root: Path) -> Answerer:
        """Load it, or connect."""
        config = self.foreign()
        if config is not None:
            return open_foreign(config, root)
        return run.open_own(
            self._folder, root=root, config=self._decoding, trust_code=self.trust_code
        )

    def foreign(self) -> ForeignConfig | None:
        """How it is asked, where it is not ours.

        Raises:
            ConfigError: an endpoint without the name of its model, or a wrong field.
        """
        if not is_foreign(self.model):
            return None
        return foreign_config(
            self.model,
            endpoint_model=self.endpoint_model,
            changes=self.changes,
            max_new_tokens=self.max_new_tokens,
            trust_code=self.trust_code,
        )

    def identity(self) -> str:
        """`Answerer.identity`, without loading weights."""
        config = self.foreign()
        if config is not None:
            return config.identity()
        return run.identity_of(self._folder, self._decoding)

    def reads_volumes(self) -> bool:
        """Whether a volume can be asked about as one."""
        config = self.foreign()
        if config is not None:
            return config.volumes != "refuse"
        return Processor.load(self._folder).layouts.volume is not None

    @property
    def _folder(self) -> Path:
        return run.model_folder(Path(self.model))

    @property
    def _decoding(self) -> GenerateConfig:
        first = GenerateConfig(max_new_tokens=self.max_new_tokens)
        return first.with_overrides(self.changes)


@dataclass(frozen=True, kw_only=True)
class Account:
    """How many rows were answered, and how many were not. `whole` is false where other parts are still
    to be answered: then no OUT was written."""

    rows: int
    failed: int
    skipped: int
    whole: bool


def predict(
    spec: ModelSpec,
    given: Input,
    out: Path,
    *,
    shard: Shard | None = None,
    engine: Engine = "local",
    workers: int | None = None,
    address: str | None = None,
    progress: Progress,
) -> Account:
    """Ask every row that is not answered yet, and write `out` when all are.

    Raises:
        CheckpointError, ConfigError: the model cannot be opened.
        EndpointError: an endpoint will answer none; what it answered before is kept.
        MissingExtraError: Ray is not installed.
    """
    journal = out.with_name(f"{out.stem}.answers.jsonl")
    own = journal if shard is None else shard.file(journal)
    kept = () if shard is not None else Shard.found(journal)
    with Answers(own, model=spec.identity(), root=given.root, kept=kept) as answers:
        asked = given.asked if shard is None else shard.part(given.asked)
        left = [one for one in asked if not answers.is_done(answers.key(one))]
        if left and engine == "ray":
            _ask_on_ray(spec, given.root, left, answers, workers, address, progress)
        elif left:
            ask_all(spec.open(given.root).predict, asked, answers, progress=progress)
        if shard is not None:
            answers.join(shard.files(journal))
        said = {item.asked.id: answers.of(item.asked) for item in given.items if item.asked}
    if None in said.values():
        mine = [said[one.id] for one in asked]
        failed = sum(isinstance(one, str) for one in mine)
        return Account(rows=len(mine), failed=failed, skipped=given.skipped, whole=False)
    places = _Places(given.root)
    lines = [_line(item, said, places) for item in given.items]
    scratch = aside(out)  # whole or not at all
    write_lines(scratch, map(_text, lines))
    scratch.replace(out)
    failed = sum(bool(line["error"]) for line in lines)
    return Account(rows=len(lines), failed=failed, skipped=given.skipped, whole=True)


def _text(line: dict[str, Any]) -> str:
    """One line of JSON. An id may hold half of a surrogate pair, which no file can."""
    return json.dumps(line, ensure_ascii=False).encode(errors="replace").decode()


class _Places:
    """Images again, for spacing and place in the patient; the last one stays."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._last: tuple[ImageRef, MedicalImage] | None = None

    def of(self, ref: ImageRef) -> MedicalImage:
        if self._last is None or self._last[0] != ref:
            self._last = ref, read_ref(ref, self._root)
        return self._last[1]


def _line(item: Item, said: dict[str, Said | None], places: _Places) -> dict[str, Any]:
    """A row of the output; every row has the same fields."""
    answer: Said | None = item.error
    images: tuple[ImageRef, ...] = ()
    options: tuple[str, ...] = ()
    question = ""
    if item.asked is not None:
        answer = said[item.asked.id]
        images, question = item.asked.without_answer().images, item.asked.question
        options = item.asked.options
    line: dict[str, Any] = {
        "id": item.id,
        "images": [ref.model_dump(mode="json", exclude_defaults=True) for ref in images],
        "question": question,
        "answer": None,
        "confidence": None,
        "option_probs": {},
        "boxes": [],
        "finish_reason": None,
        "seconds": None,
        "error": "",
    }
    if not isinstance(answer, Generation):
        return line | {"error": answer}
    sure = probabilities(answer)
    return line | {
        "answer": answer.text,
        "confidence": sure["confidence"],
        "option_probs": dict(zip(options, sure["option_probs"], strict=False)),
        "boxes": [_box(box, places.of(images[box.image])) for box in answer.boxes],
        "finish_reason": answer.finish_reason,
        "seconds": round(answer.seconds, 4),
    }


def _box(box: Box, image: MedicalImage) -> dict[str, Any]:
    """A box in pixels (voxels) of its image; in mm from that image's first corner, and where its centre
    lies in the patient (RAS+), where the file says."""
    low, high = [box.x1, box.y1], [box.x2, box.y2]
    if box.z1 is not None and box.z2 is not None:
        low, high = [*low, box.z1], [*high, box.z2]
    placed: dict[str, Any] = {"mm": None, "size_mm": None, "centre_ras_mm": None}
    if image.spacing is not None:
        steps = image.spacing[::-1]  # x, y, z
        near = [edge * step for edge, step in zip(low, steps, strict=False)]
        far = [edge * step for edge, step in zip(high, steps, strict=False)]
        size = [b - a for a, b in zip(near, far, strict=True)]
        placed |= {"mm": [*near, *far], "size_mm": size}
    if image.affine is not None:
        # pixel column j covers [j, j + 1), and the affine is of pixel centres
        centre = [(a + b) / 2 - 0.5 for a, b in zip(low, high, strict=True)]
        depth = (len(image.array) - 1) / 2 if image.units != "rgb" else 0.0
        x, y, z = (*centre, depth)[:3]
        placed["centre_ras_mm"] = (image.affine @ [x, y, z, 1.0])[:3].tolist()
    edges = {"label": box.label, "image": box.image, "pixels": [*low, *high], "score": box.score}
    return edges | placed


_Told: TypeAlias = dict[int, Generation | MedLoupeError]
"""What became of rows, by their number."""


class _Worker:
    """Lives in an actor: one open model."""

    def __init__(self, spec: ModelSpec, root: Path) -> None:
        self._predict = spec.open(root).predict
        self._stop: MedLoupeError | None = None

    def ask(self, rows: Sequence[Conversation]) -> tuple[_Told, MedLoupeError | None]:
        """What was told before all was, or before what keeps the model from answering any more."""
        told: _Told = {}
        if self._stop is None:
            try:
                self._predict.answer_each(rows, told.__setitem__, progress=silent, done=frozenset())
            except MedLoupeError as error:
                self._stop = error
        return told, self._stop

    def ready(self) -> bool:
        return True


def _ask_on_ray(
    spec: ModelSpec,
    root: Path,
    left: Sequence[Conversation],
    answers: Answers,
    workers: int | None,
    address: str | None,
    progress: Progress,
) -> None:
    """Chunks to whichever worker is free; the driver alone writes. Machines of the cluster see the model
    and the images under the same names.

    Raises:
        MedLoupeError: of the first worker that cannot go on, when the others have told what they have.
    """
    ray = import_ray()
    with on_cluster(ray, workers, address):
        actors = _workers(ray, spec, root.resolve(), workers)
        waiting = _chunks(left)
        running: dict[Any, tuple[Any, list[Conversation]]] = {}

        def hand(actor: Any) -> None:
            for rows in waiting:
                running[actor.ask.remote(rows)] = actor, rows
                return

        for _ in range(_AHEAD):
            for actor in actors:
                hand(actor)
        count = 0
        stop: MedLoupeError | None = None
        while running:
            (finished,), _ = ray.wait(list(running), num_returns=1)
            actor, rows = running.pop(finished)
            told, stopped = _told_by(ray, finished)
            assert stopped is not None or len(told) == len(rows)
            stop = stop or stopped
            if stop is None:
                hand(actor)
            for number, said in told.items():
                answers.add(answers.key(rows[number]), rows[number].id, said)
            count += len(told)
            progress("answer", count, len(left))
    if stop is not None:
        raise stop


def _workers(ray: Any, spec: ModelSpec, root: Path, workers: int | None) -> list[Any]:
    """Actors with open models."""
    number = workers_on(ray, workers)
    holder = ray.remote(num_cpus=1, max_restarts=1, max_task_retries=1)(_Worker)
    actors = [holder.remote(spec, root) for _ in range(number)]
    try:
        ray.get([actor.ready.remote() for actor in actors])
    except ray.exceptions.RayError as error:
        raise _explained(error) from None
    return actors


def _told_by(ray: Any, finished: Any) -> tuple[_Told, MedLoupeError | None]:
    try:
        told: tuple[_Told, MedLoupeError | None] = ray.get(finished)
    except ray.exceptions.RayError as error:
        return {}, _explained(error)
    return told


def _explained(error: Exception) -> MedLoupeError:
    again = "Run the same command again: what was answered is kept"
    return explained(error, "a worker failed", remedy=again)


def _chunks(left: Sequence[Conversation]) -> Iterator[list[Conversation]]:
    """Of whole images, about `_CHUNK` rows each."""
    chunk: list[Conversation] = []
    for group in by_images(left):
        chunk += group
        if len(chunk) >= _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
