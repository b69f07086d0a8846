"""Every stage looked at before the first one trains: hours later is too late to hear of an empty one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch

from medloupe.errors import ConfigError, TrainingError, did_you_mean
from medloupe.models.vlm import Part, VisionLanguageModel
from medloupe.train.objectives.base import StageContext, ease_of
from medloupe.train.optimizer import trained_parameters
from medloupe.train.stages import StageConfig


def check_parts(stages: Iterable[StageConfig], parts: Collection[Part]) -> None:
    """Check that the model has the `parts` that stages train.

    Raises:
        ConfigError: naming the stage.
    """
    for stage in stages:
        for part in stage.trainable:
            if part not in parts:
                raise ConfigError(
                    f"the stage trains {part!r}, and the model has none",
                    field=f"train.stages.{stage.name}.trainable",
                    remedy=f"Give the model one (model.{part}), or leave it out",
                )


def check_stages(
    stages: Iterable[StageConfig], context: Callable[[StageConfig], StageContext]
) -> None:
    """Check that each stage has rows, and the attribute that its curriculum orders them by.

    Rows are counted, not encoded: a row too long for the model is still met when its stage begins.

    Raises:
        TrainingError: naming the stage, what it wants, what the data have, and what to `--set`.
    """
    for stage in stages:
        place = f"train.stages.{stage.name}"
        rows = stage.objective.check(context(stage).dataset, place)
        if stage.curriculum is None or not rows:
            continue
        attribute = stage.curriculum.attribute
        try:
            ease_of(([row] for row in rows), attribute)
        except TrainingError as error:
            known = {name for row in rows for name in row.attributes}
            raise TrainingError(
                error.fault.rule,
                row=error.fault.row,
                field=f"{place}.curriculum.attribute",
                remedy=f"Set a numeric attribute of the rows ({did_you_mean(attribute, known)}): --set "
                f"{place}.curriculum.attribute=NAME; or none: --set {place}.curriculum=null",
            ) from error


def check_best(stages: Iterable[StageConfig], *, evaluates: bool) -> None:
    """Check that there will be evaluations to choose the best checkpoint by.

    Raises:
        ConfigError: naming the stage.
    """
    for stage in stages:
        if stage.best is not None and not evaluates:
            raise ConfigError(
                "the stage wants its best by a metric, and nothing evaluates",
                field=f"train.stages.{stage.name}.best",
                remedy="Give the trainer a hook, or leave best out",
            )


def check_trained(model: VisionLanguageModel, stage: StageConfig) -> None:
    """Check what trains once the stage has its adapters.

    Raises:
        TrainingError: a part has nothing to train, or in a type in which small updates are lost.
    """
    for part, named in trained_parameters(model).items():
        for name, parameter in named:
            if parameter.dtype != torch.float32:
                raise TrainingError(
                    f"{name} trains in {parameter.dtype}: small updates would be lost",
                    field=f"stage {stage.name}",
                    remedy="Set model.language.dtype=float32, or train it with lora",
                )
        if part in stage.trainable and not named:
            raise TrainingError(f"{part} has nothing to train", field=f"stage {stage.name}")
