"""What a run does, from a `RunConfig` to a model folder, an evaluation and a report.

OUT/run.yaml, manifest.json    the resolved config, and where it all comes from
OUT/train.jsonl, checkpoints/  written while training
OUT/model/                     the complete model: nothing else is needed to load it
OUT/eval.jsonl, report.html    written by `evaluate`, and a model card
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from medloupe.config import trusting_code
from medloupe.data.audit import Passed
from medloupe.data.dataset import Dataset, Progress, load_dataset
from medloupe.data.store import aside, write_lines
from medloupe.errors import CheckpointError, ConfigError, DataError
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.log import read_log as read_evaluation
from medloupe.evaluate.resume import Shard
from medloupe.evaluate.runner import run_benchmark
from medloupe.generate import GenerateConfig, Predictor
from medloupe.imaging.files import sha256_file
from medloupe.imaging.read import read_ref
from medloupe.imaging.store import DecodedStore
from medloupe.models.features import FeatureStore
from medloupe.models.language import cache_folder
from medloupe.models.vlm import VisionLanguageModel
from medloupe.models.warm import StartConfig, warm_start
from medloupe.processing import ImageSource, Processor
from medloupe.recipes import answering
from medloupe.recipes.answering import Answerer, evaluate_answerer
from medloupe.recipes.config import EvaluateConfig, RunConfig
from medloupe.recipes.manifest import run_manifest, surroundings
from medloupe.recipes.sources import RunData, load_run_data, pass_gate
from medloupe.train import StageConfig, Trainer
from medloupe.train.checkpoint import CheckpointFolder
from medloupe.train.engines.base import Engine
from medloupe.train.log import read_log
from medloupe.train.loop import Hook
from medloupe.train.objectives.base import KEPT_BYTES, StageContext
from medloupe.train.preflight import check_stages
from medloupe.types import EvalLog, ImageRef

RUN_FILE = "run.yaml"
MANIFEST_FILE = "manifest.json"
EVALUATION_FILE = answering.EVALUATION_FILE
REPORT_FILE = answering.REPORT_FILE
MODEL_FOLDER = "model"
OFF = "off"
# Decoded views are kept up to this size; a view is decoded again when it was dropped.
VIEW_BYTES = 1 << 30


def build(config: RunConfig, root: Path) -> tuple[VisionLanguageModel, Processor, ImageSource]:
    """The model with pretrained parts, a fresh connector and a fresh adapter, before any warm start, and
    what feeds it from below `root`."""
    torch.manual_seed(config.seed)
    parts = config.model
    model, tokenizer = VisionLanguageModel.compose(
        parts.encoder, parts.connector, parts.language, parts.adapter
    )
    _channels_last(model)
    image_token = model.config.image_token_id
    processor = Processor(config.processor, tokenizer, model.layouts, image_token)
    images = ImageSource(
        root, processor.config.transform, keep_bytes=VIEW_BYTES, store=decoded_store(config.store)
    )
    return model, processor, images


def train(
    config: RunConfig,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress,
    tell: Callable[[str], None] | None = None,
    workers: int | None = 1,
    features: FeatureStore | None = None,
    engine: Engine | None = None,
) -> Path:
    """Run every stage on a prepared data set and save the model; returns its folder.

    Of several processes the first looks at the data, fills the store, evaluates and writes, while the
    others wait. `engine` is what `config.train.open_engine()` gave; without one it is opened here.

    `tell` hears, before training begins, where the data come from and what the leak audit warns of.
    `workers` processes look at the images for that and fill the store of decoded ones (None: one a
    core); more than one need a script that can be imported, with its work under `if __name__ == "__main__"`.
    `features` stands in for the store that `config.features` names.

    Raises:
        CheckpointError: `out` holds checkpoints and `resume` is false, or they are of another run.
        LeakError: training and held-out rows share patients or images; see `RunConfig.audit`.
        DataError, TrainingError, PromptError, ImageError: what is wrong with the data or the run.
        StoppedError: a signal asked for it; the run goes on from there with `resume`.
    """
    engine = engine or config.train.open_engine()
    sources = load_run_data(config, data)
    refuse_unevaluable(config, sources.own)
    refuse_started(out, resume=resume)
    manifest: dict[str, Any] = {}
    if engine.is_main:
        passed = pass_gate(config, sources, out / MANIFEST_FILE, workers=workers, progress=progress)
        if tell is not None:
            for line in (*sources.provenance(), *passed.warnings):
                tell(line)
        manifest = _begin(config, sources, passed, out)
    engine.wait()
    kept = features or feature_store(config.features)
    if engine.is_main and tell is not None:
        tell(_about_features(config, kept))
    model, processor, images = build(config, data)
    if config.model.start is not None:
        started = _start(model, config.model.start, tell if engine.is_main else None)
        if engine.is_main:
            manifest |= started
            _write_run(out, config, manifest)

    def context(stage: StageConfig) -> StageContext:
        return StageContext(
            model=model,
            processor=processor,
            dataset=sources.of(stage),
            images=images,
            frozen_encoder="encoder" not in stage.trainable and config.features != OFF,
            precision=stage.precision,
            progress=progress,
            features=kept,
            mixed=stage.mixture is not None,
        )

    if images.store is not None and engine.is_main:
        check_stages(config.train.stages, context)  # before hours of reading, too
        refs = (
            image
            for stage in config.train.stages
            for row in stage.objective.check(sources.of(stage), f"train.stages.{stage.name}")
            for image in row.images
        )
        images.store.fill(refs, data, images.transform, workers=workers, progress=progress)
    engine.wait()
    hook = _hook(config, sources.own, processor, data) if config.train.evaluate_every else None
    Trainer(model, config.train, out, context, hook=hook, progress=progress, engine=engine).fit(
        resume=resume
    )
    if engine.is_main:
        save_model(out / MODEL_FOLDER, model, processor, config, manifest)
    engine.wait()
    return out / MODEL_FOLDER


def training_benchmark(config: RunConfig) -> Benchmark:
    """What a run asks while it trains: its benchmark on rows that are not its test's, and few of them."""
    train = config.train
    few = {"split": train.evaluate_split or "validation", "limit": train.evaluate_limit or 32}
    return config.evaluate.benchmark.model_copy(update=few)


def refuse_unevaluable(config: RunConfig, dataset: Dataset) -> None:
    """See that there are rows to ask while training, before any trains.

    Raises:
        DataError: the split has none, or one that cannot be scored.
    """
    if config.train.evaluate_every is None:
        return
    try:
        training_benchmark(config).select(dataset)
    except DataError as error:
        raise error.at(field="train.evaluate_split") from error


def _hook(config: RunConfig, dataset: Dataset, processor: Processor, data: Path) -> Hook:
    """Asks a model that is being trained; figures are named `task/scorer`, and `scorer` over all tasks."""
    benchmark = training_benchmark(config)
    decoding = config.evaluate.decoding().model_copy(update={"option_probs": False})
    images = ImageSource(data, processor.config.transform, store=decoded_store(config.store))

    def evaluate_now(step: int, model: VisionLanguageModel) -> dict[str, float]:
        del step
        log = run_benchmark(
            benchmark,
            dataset,
            Predictor(model, processor, images, decoding),
            manifest={},
            seed=config.seed,
            probes=(),
        )
        return {
            f"{metric.group}/{metric.name}" if metric.group else metric.name: metric.estimate
            for metric in log.metrics
            if metric.arm == "model" and not metric.stratum and metric.estimate is not None
        }

    return evaluate_now


def evaluate(
    folder: Path,
    data: Path,
    out: Path,
    *,
    config: EvaluateConfig | None = None,
    trust_code: bool = False,
    progress: Progress,
    resume: bool = True,
) -> EvalLog:
    """Score a saved model on a prepared data set: `out/eval.jsonl` and `out/report.html`.

    `config` defaults to the evaluation of the run that made the model. The report shows the training
    curve where `train.jsonl` stands beside the model's folder. With `resume` the answers that `out` holds
    of this very model and decoding are not asked for again.
    """
    log = evaluate_part(
        folder, data, out, config=config, trust_code=trust_code, progress=progress, resume=resume
    )
    assert log is not None
    return log


def evaluate_part(
    folder: Path,
    data: Path,
    out: Path,
    *,
    config: EvaluateConfig | None = None,
    trust_code: bool = False,
    progress: Progress,
    resume: bool = False,
    shard: Shard | None = None,
) -> EvalLog | None:
    """As `evaluate`, or one part of it; None where other parts are still to be answered.

    Raises:
        ConfigError: `out` holds answers of an evaluation that did not finish, and `resume` is false.
    """
    run = load_run_of(folder, trust_code=trust_code)
    asked = config or run.evaluate
    dataset = load_dataset(data)
    answerer = open_own(
        folder,
        root=data,
        config=asked.decoding(),
        trust_code=trust_code,
        run=run,
        about=_evaluation_manifest(folder, run, dataset),
    )
    curve = [row for row in read_log(folder.parent / "train.jsonl") if row["event"] == "step"]
    return evaluate_answerer(
        answerer,
        dataset,
        out,
        config=asked,
        seed=run.seed,
        progress=progress,
        curve=curve,
        resume=resume,
        shard=shard,
    )


def open_own(
    folder: Path,
    *,
    root: Path,
    config: GenerateConfig,
    trust_code: bool = False,
    run: RunConfig | None = None,
    about: Mapping[str, Any] | None = None,
) -> Answerer:
    """A saved model of ours, ready to be asked about images below `root`; see `Answerer` for `about`."""
    made = run or load_run_of(folder, trust_code=trust_code)
    store = _store_here(made.store)
    predict = load(folder, root=root, config=config, trust_code=trust_code, store=store)

    def shown(ref: ImageRef) -> NDArray[Any]:
        return predict.processor.config.transform.shown(read_ref(ref, root))

    return Answerer(
        predict=predict,
        identity=lambda: identity_of(folder, config),
        about=about or {},
        look=predict.images,
        shown=shown,
    )


def identity_of(folder: Path, config: GenerateConfig) -> str:
    """The content of the model's folder and what decides an answer, but for rounding."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    noted = {MANIFEST_FILE, RUN_FILE}  # a date does not change an answer
    hashes = [sha256_file(path) for path in files if path.name not in noted]
    decoding = config.to_dict() | {"batch_size": None, "share_prefix": None}
    return "ours " + json.dumps([hashes, decoding], sort_keys=True)


def load(
    folder: Path,
    *,
    root: Path,
    config: GenerateConfig | None = None,
    trust_code: bool = False,
    store: DecodedStore | None = None,
) -> Predictor:
    """A saved model, ready to answer; relative image paths are below `root`."""
    predict = Predictor.load(
        folder, root=root, trust_code=trust_code, config=config or GenerateConfig(), store=store
    )
    _channels_last(predict.model)
    return predict


def feature_store(name: str | None) -> FeatureStore | None:
    """The store that `RunConfig.features` names, if it names one.

    Raises:
        ConfigError: its folder cannot be made or written.
    """
    if name is None or name == OFF:
        return None
    return FeatureStore(cache_folder() / "features" if name == "cache" else Path(name))


def _about_features(config: RunConfig, kept: FeatureStore | None) -> str:
    """One line: what becomes of the features of frozen encoders."""
    if all("encoder" in stage.trainable for stage in config.train.stages):
        return "features: the encoder trains in every stage, nothing is kept"
    if config.features == OFF:
        return "features: not kept, frozen encoders run anew in every step"
    where = "" if kept is None else f", and in {kept.folder}"
    return f"features: those of frozen encoders are kept in memory, {KEPT_BYTES >> 30} GiB at most{where}"


def decoded_store(name: str | None) -> DecodedStore | None:
    """The store that `RunConfig.store` names.

    Raises:
        ConfigError: its folder cannot be made or written.
    """
    if name is None:
        return None
    try:
        return DecodedStore(cache_folder() / "views" if name == "cache" else Path(name))
    except ConfigError as error:
        raise error.at(field="store") from error


def _store_here(name: str | None) -> DecodedStore | None:
    """`decoded_store`, but that a folder of the machine which trained the model is not made here."""
    is_absent = name not in (None, "cache") and not Path(str(name)).is_dir()
    return decoded_store(None if is_absent else name)


def model_folder(path: Path) -> Path:
    """The model's folder, from itself or from the run's.

    Raises:
        CheckpointError: no saved model there.
    """
    for folder in (path, path / MODEL_FOLDER):
        if (folder / "config.json").is_file():
            return folder
    raise CheckpointError(
        "no saved model here",
        file=str(path),
        remedy="Name the folder that 'medloupe train' wrote; an unfinished run goes on with --resume",
    )


def load_run_of(folder: Path, *, trust_code: bool = False) -> RunConfig:
    """The run that made a saved model; it may come from elsewhere, so its code is not trusted."""
    with trusting_code(trust_code):
        return RunConfig.from_yaml(folder / RUN_FILE)


def save_model(
    folder: Path,
    model: VisionLanguageModel,
    processor: Processor,
    config: RunConfig,
    manifest: dict[str, Any],
) -> Path:
    """Write the complete model beside its place and rename it: the folder is whole or absent.

    Raises:
        CheckpointError: it could not be written; one that stood there before is as it was.
    """
    scratch, old = folder.with_suffix(".partial"), folder.with_suffix(".old")
    try:
        for stale in (scratch, old):
            shutil.rmtree(stale, ignore_errors=True)
        scratch.mkdir(parents=True)
        model.save_pretrained(scratch)
        processor.save(scratch)
        _write_run(scratch, config, manifest)
        for file in scratch.iterdir():
            _sync(file)
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise CheckpointError(
            f"the model could not be written: {error}",
            file=str(folder),
            remedy="Free disk space and run again with --resume; the checkpoints are good",
        ) from error
    return folder


def refuse_started(out: Path, *, resume: bool) -> None:
    """Refuse a folder in which a run has begun.

    Raises:
        CheckpointError: it has checkpoints and `resume` is false.
    """
    if not resume and CheckpointFolder(out / "checkpoints", keep=1).found():
        raise CheckpointError(
            "this run has checkpoints already",
            file=str(out),
            remedy="Pass --resume to go on, or choose another --out",
        )


def is_trained(config: RunConfig, out: Path) -> bool:
    """Whether `out` holds the finished model of exactly this run."""
    return _fingerprint_in(out / MODEL_FOLDER / MANIFEST_FILE) == config.fingerprint()


def is_evaluated(config: RunConfig, out: Path) -> bool:
    """Whether `out` holds the evaluation and the report of exactly this run."""
    logged = out / EVALUATION_FILE
    if not (is_trained(config, out) and logged.is_file() and (out / REPORT_FILE).is_file()):
        return False
    return bool(read_evaluation(logged).manifest.get("config") == config.to_dict())


def _start(
    model: VisionLanguageModel, start: StartConfig, tell: Callable[[str], None] | None
) -> dict[str, Any]:
    """Fill what a warm start fills; what was and was not loaded, for people and for the manifest."""
    report = warm_start(model, start)
    if tell is not None:
        for line in report.lines():
            tell(f"start from {start.folder}: {line}")
    return {"start": report.to_dict()}


def _fingerprint_in(manifest: Path) -> str | None:
    if not manifest.is_file():
        return None
    return str(json.loads(manifest.read_text(encoding="utf-8"))["config_fingerprint"])


def _begin(config: RunConfig, sources: RunData, passed: Passed, out: Path) -> dict[str, Any]:
    """Note what is about to run; refuse to mix two runs in one folder."""
    manifest = run_manifest(config, sources.own) | {
        "mixtures": sources.fingerprints(),
        "audit": {"leak": passed.leak, "warnings": list(passed.warnings)},
    }
    if CheckpointFolder(out / "checkpoints", keep=1).found():
        _refuse_other_run(config, manifest, out)
    out.mkdir(parents=True, exist_ok=True)
    _write_run(out, config, manifest)
    return manifest


def _refuse_other_run(config: RunConfig, manifest: dict[str, Any], out: Path) -> None:
    before = RunConfig.from_yaml(out / RUN_FILE)
    fields = ("model", "processor", "seed")
    differ = [field for field in fields if getattr(before, field) != getattr(config, field)]
    if before.train.decisive() != config.train.decisive():
        differ.append("train")
    if any(s.best for s in config.train.stages) and before.evaluate != config.evaluate:
        differ.append("evaluate")
    noted = json.loads((out / MANIFEST_FILE).read_text(encoding="utf-8"))
    data = ("data_fingerprint", "mixtures")
    if [noted.get(name, {}) for name in data] != [manifest[name] for name in data]:
        differ.append("data")
    if differ:
        raise CheckpointError(
            f"the run in this folder had another {' and another '.join(differ)}",
            file=str(out),
            remedy=f"Resume with {out / RUN_FILE} and its data, or choose another --out",
        )


def _write_run(folder: Path, config: RunConfig, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, indent=1, ensure_ascii=False, sort_keys=True)
    for name, content in ((RUN_FILE, config.to_yaml().rstrip("\n")), (MANIFEST_FILE, text)):
        scratch = aside(folder / name)  # a kill in between must not leave half a file
        write_lines(scratch, [content])
        scratch.replace(folder / name)


def _evaluation_manifest(folder: Path, run: RunConfig, dataset: Dataset) -> dict[str, Any]:
    trained = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    return {
        **run_manifest(run, dataset),
        "checkpoint": f"{folder.parent.name}/{folder.name}",
        "config": run.to_dict(),
        "trained": trained,
        **surroundings(),
    }


def _channels_last(model: VisionLanguageModel) -> None:
    """The memory order in which 2D convolutions run fastest on CPUs; answers are the same."""
    adapted = [] if model.adapter is None else model.adapter.parameters()
    for parameter in (*model.encoder.parameters(), *adapted):
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
