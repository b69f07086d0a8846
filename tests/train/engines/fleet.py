"""Runs in one or several real processes: `python fleet.py LAB PLAN.json`, where the plan lists runs.

A run is `{"scene", "engine", "processes", "out", "stop", "after", "spoil"}`: a scene is a model with its
stages, `stop` the step in which the last process is asked to stop, `after` the run whose folder is gone on
with, `spoil` the step in which the last process's loss is no number.
Torch is imported once; processes are forked, one thread each, before anything is computed.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import shutil
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from by_path import loaded
from torch.distributed.tensor import DTensor

from medloupe.imaging.transforms import ImageTransform
from medloupe.models.vlm import VisionLanguageModel
from medloupe.processing import ImageSource, Processor, ProcessorConfig
from medloupe.train import StageConfig, StoppedError, TrainConfig, Trainer
from medloupe.train.engines.zero import ZeroAdamW
from medloupe.train.objectives.base import StageContext
from medloupe.train.state import StageState

LATER = [f"medloupe.train.engines.{name}" for name in ("ddp", "fsdp2", "one", "deepspeed")]
if importlib.util.find_spec("deepspeed") is not None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    LATER.append("deepspeed")
ENGINES: dict[str | None, Any] = {f"zero{n}": {"name": "deepspeed", "zero": n} for n in (2, 3)}
HERE = Path(__file__).resolve().parent
LORA = {"rank": 2, "alpha": 16.0}
BOTH = ["connector", "language_model"]
STAGES: dict[str, list[dict[str, Any]]] = {
    # 9 rows: 4 + 4 + 1, so that one process of two has no row in every third batch
    "whole": [{"trainable": BOTH, "batch_size": 4, "accumulate": 2, "steps": 5}],
    # the same, one image at a time: with the text row in it, one process has fewer parts than the other
    "cut": [
        {"trainable": BOTH, "batch_size": 4, "accumulate": 2, "steps": 5}
        | {"micro_budget": {"passes": 1}}
    ],
    # one row a step, and one of the nine is text, which reaches nothing that trains; then two rows a step,
    # so that one process may have the text and the other an image; then the same connector with adapters
    "stages": [
        {"name": "align", "trainable": ["encoder", "connector"], "batch_size": 1, "steps": 9},
        {"name": "mixed", "trainable": ["connector"], "batch_size": 2, "steps": 5},
        {"name": "tune", "trainable": BOTH, "lora": LORA, "batch_size": 2, "steps": 2},
    ],
    "bf16": [
        {"trainable": BOTH, "lora": LORA, "batch_size": 4, "steps": 4, "precision": "bf16"},
    ],
    # not packed: 25 rows; checkpointing, and then a stage without the adapters that were kept
    "hia": [
        {
            "trainable": ["adapter", "language_model"],
            "lora": LORA | {"merge": False},
            "checkpointing": True,
            "batch_size": 4,
            "steps": 3,
        },
        {"name": "more", "trainable": ["adapter"], "batch_size": 3, "steps": 1},
    ],
    # the image labels of each process are averaged by itself, so they do not count here
    "ground": [
        {"objective": {"name": "grounding", "min_count": 1, "image_weight": 0.0}}
        | {"trainable": ["encoder", "connector"], "batch_size": 3, "steps": 4},
    ],
    "best": [
        {"trainable": BOTH, "batch_size": 4, "steps": 6}
        | {"best": {"metric": "size", "mode": "min", "restore": True}}
    ],
    "dropout": [{"trainable": BOTH, "lora": LORA | {"dropout": 0.3}, "batch_size": 4, "steps": 5}],
}


class Watched(Trainer):
    """Notes what is sharded and whether losses reach what trains; one process may be asked to stop, or have
    its loss spoiled."""

    at = 0
    spoil = -1
    spoils = False
    sharded = False
    share = 1.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.reaches: list[bool] = []
        self.parts = 0

    def _step(self, state: StageState, *args: Any) -> Any:
        is_last = self.engine.rank == self.engine.world - 1
        self.spoils = is_last and state.step == self.spoil
        return super()._step(state, *args)

    def backward(self, loss: torch.Tensor) -> None:
        self.parts += 1
        super().backward(loss * float("nan") if self.spoils else loss)

    def update(self, state: StageState) -> None:
        self.reaches.append(state.losses.reaches)
        if isinstance(state.optimizer, ZeroAdamW):
            self.sharded = all(parameter.numel() == 0 for _, parameter in state.parameters)
        else:
            self.sharded = all(isinstance(parameter, DTensor) for _, parameter in state.parameters)
        if state.step + 1 == self.at and self.engine.rank == self.engine.world - 1:
            self.asked.by = "SIGTERM"
        super().update(state)
        if isinstance(state.optimizer, ZeroAdamW):
            self.share = share_of_moments(state.optimizer)


def share_of_moments(optimizer: ZeroAdamW) -> float:
    """How much of AdamW's first moments this process holds."""
    moments = [of["exp_avg"].numel() for of in optimizer.adamw.state.values()]
    return sum(moments) / sum(shape.numel() for shape in optimizer.shapes.values())


def train_config(scene: str, engine: str | None) -> TrainConfig:
    base = {"name": "only", "objective": "language", "precision": "fp32", "learning_rate": 3e-3}
    stages = tuple(StageConfig.parse(base | fields) for fields in STAGES[scene])
    every = 2 if scene == "best" else None
    engine = ENGINES.get(engine, engine)
    return TrainConfig(stages=stages, engine=engine, save_every=2, evaluate_every=every)


def size(step: int, model: VisionLanguageModel) -> dict[str, float]:
    """A metric that is small once and then no more."""
    weight = model.connector.state_dict()["layers.2.weight"]
    return {"size": abs(step - 4) + float(weight.double().norm())}


def make_trainer(lab: Path, scene: str, engine: str | None, out: Path, **options: Any) -> Watched:
    """A trainer that starts from the files of the lab."""
    tiny = loaded(HERE.parent / "tiny.py")
    made = tiny.Lab(lab)
    model = made.model()
    if scene == "bf16":
        model.language_model.to(torch.bfloat16)
    context = made.context(model)
    if scene == "hia":
        context = with_adapter(context)
    return Watched(
        context.model,
        train_config(scene, engine),
        out,
        lambda stage: dataclasses.replace(context, frozen_encoder="encoder" not in stage.trainable),
        hook=size if scene == "best" else None,
        progress=lambda *_: None,
        **options,
    )


def with_adapter(context: StageContext) -> StageContext:
    """The same data for another model, with HiA between its layers."""
    kit = loaded(HERE.parents[1] / "models/adapters/kit.py")
    words = context.processor.tokenizer
    config = kit.hia()
    model: VisionLanguageModel = kit.tiny_vlm(len(words), config)
    kit.stir(model.adapter)
    transform = config.for_base(kit.base_encoder()).fitted(
        kit.base_encoder().fitted(ImageTransform())
    )
    reader = Processor(
        ProcessorConfig(transform=transform), words, model.layouts, model.config.image_token_id
    )
    images = ImageSource(context.dataset.root, transform)
    return dataclasses.replace(context, model=model, processor=reader, images=images)


def fit(lab: Path, run: dict[str, Any]) -> None:
    trainer = make_trainer(lab, run["scene"], run["engine"], Path(run["out"]))
    trainer.at, trainer.spoil = run.get("stop", 0), run.get("spoil", -1)
    stopped = False
    try:
        trainer.fit(resume=True)
    except StoppedError:
        stopped = True
    if trainer.engine.is_main:
        said = {
            "stopped": stopped,
            "sharded": trainer.sharded,
            "share": trainer.share,
            "reaches": trainer.reaches,
            "parts": trainer.parts,
        }
        (Path(run["out"]) / "said.json").write_text(json.dumps(said))
    trainer.engine.close()


def in_processes(lab: Path, run: dict[str, Any]) -> None:
    """Fork, run, wait: every process must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = run["processes"]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            if run["engine"] is not None:
                os.environ |= {  # as torchrun does
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(world),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            try:
                fit(lab, run)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"{run}: {codes}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in ("torch._dynamo", *LATER):  # else every process would import them for itself
        importlib.import_module(name)
    for one in json.loads(Path(sys.argv[2]).read_text()):
        if "after" in one:
            shutil.copytree(one["after"], one["out"])
        in_processes(Path(sys.argv[1]), one)
