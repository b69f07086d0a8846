"""Whoever answers, ours or not, as one value; and a benchmark asked of it, whole or in parts.

OUT/answers.jsonl              what was said, as it comes: a killed evaluation goes on from it
OUT/answers.1-of-4.jsonl, ...  that of the processes among which one is shared
OUT/eval.jsonl, report.html    when all is answered
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medloupe.data.dataset import Dataset, DatasetCard, Progress
from medloupe.errors import ConfigError
from medloupe.evaluate.card import write_card
from medloupe.evaluate.log import write_log
from medloupe.evaluate.predictors import HF
from medloupe.evaluate.predictors.endpoint import EndpointConfig, EndpointPredictor
from medloupe.evaluate.predictors.recorded import RecordedPredictor
from medloupe.evaluate.predictors.shown import Showing, ShownConfig
from medloupe.evaluate.probes import Look
from medloupe.evaluate.report import write_report
from medloupe.evaluate.resume import ANSWERS_FILE, Answers, Shard, TellingPredictor
from medloupe.evaluate.runner import run_shard
from medloupe.imaging.files import sha256_file
from medloupe.imaging.read import read_ref
from medloupe.imaging.windows import to_display
from medloupe.recipes.config import EvaluateConfig
from medloupe.recipes.manifest import surroundings
from medloupe.types import EvalLog, ImageRef

if TYPE_CHECKING:
    from medloupe.evaluate.predictors.hf import HFConfig

    ForeignConfig: TypeAlias = EndpointConfig | HFConfig

EVALUATION_FILE = "eval.jsonl"
REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """A model ready to be asked.

    `identity()` says which model it is and how it decodes, for which it may read all of the model's files;
    `about` goes into manifests; `shown` is an image as people are shown it beside the answer.
    """

    predict: TellingPredictor
    identity: Callable[[], str]
    about: Mapping[str, Any]
    look: Look
    shown: Callable[[ImageRef], NDArray[Any]]


def foreign_config(
    model: str,
    *,
    endpoint_model: str | None = None,
    changes: Sequence[str] = (),
    max_new_tokens: int = 64,
    trust_code: bool = False,
) -> ForeignConfig:
    """How a model that is not ours is asked: "hf:FOLDER" (or a hub id), or the url of an endpoint.

    `changes` are FIELD=VALUE of `HFConfig` or `EndpointConfig`.

    Raises:
        ConfigError: an endpoint without the name of its model, or a wrong field.
    """
    if model.startswith(HF):
        from medloupe.evaluate.predictors.hf import HFConfig

        given = {
            "source": model.removeprefix(HF),
            "max_new_tokens": max_new_tokens,
            "trust_code": trust_code,
        }
        return HFConfig.parse(given).with_overrides(changes)
    if not endpoint_model:
        raise ConfigError(
            "an endpoint serves models by name", remedy="Pass --endpoint-model NAME with its url"
        )
    fields = {"url": model, "model": endpoint_model, "max_tokens": max_new_tokens}
    return EndpointConfig.parse(fields).with_overrides(changes)


def open_foreign(config: ForeignConfig, root: Path) -> Answerer:
    """A model that is not ours. Images lie below `root`.

    Raises:
        ConfigError: a key that is not set.
        CheckpointError: transformers cannot load the model.
        MissingExtraError: httpx is not installed.
    """
    if isinstance(config, EndpointConfig):
        endpoint = EndpointPredictor(config, root)
        return _foreign(endpoint, endpoint.images, config.identity(), config.model)
    from medloupe.evaluate.predictors.hf import HFPredictor

    loaded = HFPredictor(config, root)
    return _foreign(loaded, loaded.images, config.identity(), config.source)


def open_recorded(path: Path, root: Path) -> Answerer:
    """The answers of a file, see `RecordedPredictor`.

    Raises:
        DataError: there are none in it.
    """
    images = Showing(root, ShownConfig())
    return _foreign(RecordedPredictor(path), images, f"file {sha256_file(path)}", path.name)


def refuse_leaving(config: ForeignConfig, card: DatasetCard | None, said: str) -> None:
    """Refuse to show an endpoint elsewhere what may not leave, see `refuse_sending`."""
    if isinstance(config, EndpointConfig) and not config.is_local:
        refuse_sending(config.url, card, said)


def refuse_sending(place: str, card: DatasetCard | None, said: str) -> None:
    """Refuse to send to a place elsewhere what may not leave.

    A data set whose agreement keeps it here needs `said`, a permission that names it; files that no card
    describes need one that says anything.

    Raises:
        SynthesisError: the data set's agreement forbids it and `said` does not name it.
        ConfigError: nobody says that these files may be sent.
    """
    from medloupe.synthesis.guard import refuse_external

    if card is not None:
        refuse_external(card, place, said)
    elif not said.strip():
        raise ConfigError(
            f"the images would be sent to {place}, which is not on this machine or network",
            field="permission",
            remedy="Stay on this machine or network; or say with --permission why they may be sent",
        )


def evaluate_answerer(
    answerer: Answerer,
    dataset: Dataset,
    out: Path,
    *,
    config: EvaluateConfig,
    seed: int,
    progress: Progress,
    curve: Sequence[Mapping[str, Any]] | None = None,
    resume: bool = False,
    shard: Shard | None = None,
) -> EvalLog | None:
    """Ask, score, write the log and the report; None where other parts are still to be answered.

    With `shard` only a part is asked, and whichever process ends last scores all. `curve` are the steps of
    a training log.

    Raises:
        ConfigError: `out` holds answers of an evaluation that did not finish, and `resume` is false.
    """
    root = dataset.root
    with open_answers(out, answerer.identity(), root, resume=resume, shard=shard) as answers:
        log = run_shard(
            config.benchmark,
            dataset,
            answerer.predict,
            shard=shard,
            others=() if shard is None else shard.files(out / ANSWERS_FILE),
            manifest=answerer.about,
            seed=seed,
            probes=config.probes,
            look=answerer.look,
            progress=progress,
            answers=answers,
        )
    if log is None:
        return None
    if isinstance(answerer.predict, RecordedPredictor):
        answerer.predict.count_unknown(dataset.conversations)
        faults = dict(answerer.predict.faults)
        log = log.model_copy(update={"manifest": {**log.manifest, "faults": faults}})
    write_log(out / EVALUATION_FILE, log)
    steps = None if curve is None else [dict(row) for row in curve]
    write_report(out / REPORT_FILE, log, answerer.shown, steps or None)
    write_card(out, log, beside=out)
    return log


def open_answers(
    out: Path, identity: str, root: Path, *, resume: bool, shard: Shard | None
) -> Answers:
    """The answers in `out`: a new file, or what is there with `resume`, and always with a shard, whose own
    file others do not write.

    Raises:
        ConfigError: those of an evaluation that did not finish would be lost.
    """
    path = out / ANSWERS_FILE
    if shard is not None:
        return Answers(shard.file(path), model=identity, root=root)
    parts = Shard.found(path)
    if resume:
        return Answers(path, model=identity, root=root, kept=parts)
    log = out / EVALUATION_FILE
    ended = log.stat().st_mtime_ns if log.is_file() else -1
    if any(file.stat().st_mtime_ns > ended for file in (path, *parts) if file.is_file()):
        raise ConfigError(
            "here are answers of an evaluation that did not finish",
            remedy="Pass --resume to go on with them, choose another --out, or delete the file",
        ).at(file=str(path if path.is_file() else parts[0]))
    return Answers(path, model=identity, root=root, fresh=True)


def _foreign(predict: TellingPredictor, images: Showing, identity: str, name: str) -> Answerer:
    """`about` leaves out nothing but a key, which is in no config."""
    config = images.config

    def shown(ref: ImageRef) -> NDArray[np.uint8]:
        return to_display(read_ref(ref, images.root), config.window)

    about = {"model": name, "config": config.to_dict(), "checkpoint": identity, **surroundings()}
    return Answerer(
        predict=predict, identity=lambda: identity, about=about, look=images, shown=shown
    )
