"""Answers to a folder, a DICOM tree or a file of questions, as JSON lines.

OUT                                one line a row, in the order of the input, when all are answered
OUT's name with .answers.jsonl     what was said, as it comes: the same command goes on from it
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medloupe.config import Config
from medloupe.data.dataset import Progress
from medloupe.data.store import aside, write_lines
from medloupe.errors import ConfigError, MedLoupeError, MissingExtraError
from medloupe.evaluate.predictors.endpoint import EndpointConfig
from medloupe.evaluate.resume import (
    Answers,
    Said,
    Shard,
    ask_all,
    by_images,
    dump_answer,
    load_answer,
)
from medloupe.evaluate.runner import probabilities
from medloupe.generate import GenerateConfig
from medloupe.imaging.read import read_ref
from medloupe.processing import Processor
from medloupe.recipes import run
from medloupe.recipes.answering import HF, Answerer, is_foreign, open_foreign
from medloupe.recipes.asked import Input, Item
from medloupe.types import Box, Conversation, Generation, ImageRef, MedicalImage

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
        if is_foreign(self.model):
            return open_foreign(
                self.model,
                root,
                endpoint_model=self.endpoint_model,
                changes=self.changes,
                max_new_tokens=self.max_new_tokens,
                trust_code=self.trust_code,
            )
        return run.open_own(
            self._folder, root=root, config=self._decoding, trust_code=self.trust_code
        )

    def identity(self) -> str:
        """`Answerer.identity`, without loading weights."""
        if self.model.startswith(HF):
            from medloupe.evaluate.predictors.hf import HFConfig

            given = {
                "source": self.model.removeprefix(HF),
                "max_new_tokens": self.max_new_tokens,
                "trust_code": self.trust_code,
            }
            return HFConfig.parse(given).with_overrides(self.changes).identity()
        if is_foreign(self.model):
            fields = {
                "url": self.model,
                "model": self.endpoint_model or "",
                "max_tokens": self.max_new_tokens,
            }
            return EndpointConfig.parse(fields).with_overrides(self.changes).identity()
        return run.identity_of(self._folder, self._decoding)

    def reads_volumes(self) -> bool:
        """Whether a volume can be asked about as one."""
        if is_foreign(self.model):
            return "volumes=refuse" not in self.changes
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
        EndpointError: an endpoint will answer none.
        MissingExtraError: Ray is not installed.
    """
    journal = out.with_name(f"{out.stem}.answers.jsonl")
    own = journal if shard is None else shard.file(journal)
    parts = sorted(journal.parent.glob(f"{journal.stem}.*-of-*{journal.suffix}"))
    kept = () if shard is not None else parts
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


class _Worker:
    """Lives in an actor: one open model. Rows come and answers go as JSON values."""

    def __init__(self, spec: str, root: str) -> None:
        self._predict = ModelSpec.model_validate_json(spec).open(Path(root)).predict

    def ask(self, rows: Sequence[str]) -> list[dict[str, Any]]:
        said: dict[int, dict[str, Any]] = {}

        def hear(number: int, answer: Generation | MedLoupeError) -> None:
            if isinstance(answer, Generation):
                said[number] = {"answer": dump_answer(answer)}
            else:
                said[number] = {"error": str(answer)}

        asked = [Conversation.model_validate_json(row) for row in rows]
        self._predict.answer_each(asked, hear, progress=_unwatched, done=frozenset())
        return [said[number] for number in range(len(rows))]

    def ready(self) -> bool:
        return True


def _unwatched(what: str, done: int, total: int) -> None:
    """Progress inside of a worker."""


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
    and the images under the same names."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError.naming("ray", extra="ray") from error
    ours = not ray.is_initialized()
    if ours:
        named = address or os.environ.get("RAY_ADDRESS")
        own = {} if named else {"num_cpus": workers or os.cpu_count(), "include_dashboard": False}
        ray.init(address=named, log_to_driver=False, logging_level="ERROR", **own)
    try:
        _shared_out(ray, spec, root.resolve(), left, answers, workers, progress)
    except ray.exceptions.RayError as error:
        raise _explained(error) from None
    finally:
        if ours:
            ray.shutdown()


def _shared_out(
    ray: Any,
    spec: ModelSpec,
    root: Path,
    left: Sequence[Conversation],
    answers: Answers,
    workers: int | None,
    progress: Progress,
) -> None:
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    number = workers or cpus
    if number > cpus:  # the last ones would be waited for without end
        raise ConfigError(
            f"{number} workers were asked for, and the cluster has {cpus} CPUs",
            remedy=f"Pass --workers {cpus} or fewer",
        )
    holder = ray.remote(num_cpus=1, max_restarts=1, max_task_retries=1)(_Worker)
    actors = [holder.remote(spec.to_json(), str(root)) for _ in range(number)]
    ray.get([actor.ready.remote() for actor in actors])
    waiting = _chunks(left)
    running: dict[Any, tuple[Any, list[Conversation]]] = {}

    def hand(actor: Any) -> None:
        for rows in waiting:
            running[actor.ask.remote([row.to_json() for row in rows])] = actor, rows
            return

    for _ in range(_AHEAD):
        for actor in actors:
            hand(actor)
    told = 0
    while running:
        (finished,), _ = ray.wait(list(running), num_returns=1)
        actor, rows = running.pop(finished)
        hand(actor)
        for row, said in zip(rows, ray.get(finished), strict=True):
            failed = "error" in said
            answer = MedLoupeError(said["error"]) if failed else load_answer(said["answer"])
            answers.add(answers.key(row), row.id, answer)
        told += len(rows)
        progress("answer", told, len(left))


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


def _explained(error: Exception) -> MedLoupeError:
    """What went wrong in a worker, without its traceback."""
    for found in (error, error.__cause__):
        if isinstance(found, MedLoupeError):
            return found
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ConfigError(
        f"a worker failed: {lines[-1]}",
        remedy="Run the same command again: what was answered is kept",
    )
