"""What stages do with low-rank adapters: which plans are sound, and where adapters begin and end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from medloupe.errors import ConfigError
from medloupe.models.low_rank import (
    LowRankConfig,
    attach,
    carried_adapters,
    is_adapter,
    merge,
    rest_dropout,
)
from medloupe.models.vlm import Part, VisionLanguageModel
from medloupe.train.stages import LORA_FIELDS, StageConfig

Carried = Mapping[str, LowRankConfig]


def check_adapters(stages: Sequence[StageConfig], carried: Carried, *, quantized: bool) -> None:
    """See that every stage can train what it means to, before the first one begins.

    Args:
        carried: the adapters that the model brings along.
        quantized: whether the language model's weights are.

    Raises:
        ConfigError: naming the stage.
    """
    kept: dict[str, LowRankConfig] = dict(carried)
    for stage in stages:
        for part in stage.trainable:
            if quantized and part == "language_model":
                _refuse_quantized(stage)
            if part in kept:
                _refuse_other(stage, part, kept[part])
        for part, lora in stage.adapted.items():
            kept[part] = lora.adapters()
            if lora.merge:
                del kept[part]


def begin_adapters(model: VisionLanguageModel, stage: StageConfig) -> None:
    """Put on the adapters that the stage trains, or go on with those that the model carries.

    Raises:
        ConfigError: a target is no layer of the part.
    """
    for part, lora in stage.adapted.items():
        try:
            attach(model, part, lora.adapters())
        except ConfigError as error:
            raise error.at(field=f"stage {stage.name}, {LORA_FIELDS[part]}") from error


def end_adapters(model: VisionLanguageModel, stage: StageConfig) -> None:
    """Merge the adapters that the stage does not keep."""
    for part, lora in stage.adapted.items():
        if lora.merge:
            merge(model, part)


def carry(model: VisionLanguageModel, carried: Mapping[str, dict[str, object]]) -> None:
    """Make the model carry the adapters of a checkpoint, whose weights come after."""
    for part, data in carried.items():
        attach(model, part, LowRankConfig.parse(data))


def train_mode(model: VisionLanguageModel) -> None:
    """`model.train()`, but adapters that do not train rest."""
    model.train()
    for part in carried_adapters(model):
        rest_dropout(model.get_submodule(part))


def changed_weights(
    model: VisionLanguageModel, stages: Sequence[StageConfig]
) -> dict[str, dict[str, torch.Tensor]]:
    """By part, the tensors that these stages may have changed: all of a part that trained or was merged
    into, else the adapters alone."""
    whole = {
        part
        for stage in stages
        for part in stage.trainable
        if part not in stage.adapted or stage.adapted[part].merge
    }
    parts = sorted({part for stage in stages for part in stage.trainable})
    return {
        part: {
            name: tensor
            for name, tensor in model.get_submodule(part).state_dict().items()
            if part in whole or is_adapter(name)
        }
        for part in parts
    }


def _refuse_quantized(stage: StageConfig) -> None:
    if stage.lora is None:
        raise ConfigError(
            "quantised weights cannot train",
            field=f"stage {stage.name}",
            remedy="Give the stage lora, or set model.language.quantization to none",
        )
    if stage.lora.merge:
        raise ConfigError(
            "adapters cannot be merged into quantised weights",
            field=f"stage {stage.name}, lora.merge",
            remedy="Set lora.merge to false: they are saved with the model",
        )


def _refuse_other(stage: StageConfig, part: Part, kept: LowRankConfig) -> None:
    """The part carries adapters: the stage must go on with these."""
    lora = stage.adapted.get(part)
    if lora is None:
        raise ConfigError(
            f"the stage trains all of {part}, which carries kept adapters",
            field=f"stage {stage.name}",
            remedy=f"Set merge to true in the stage that made them, or give {LORA_FIELDS[part]}",
        )
    if lora.adapters() != kept:
        raise ConfigError(
            f"{part} carries adapters {kept.to_json()}, the stage has others",
            field=f"stage {stage.name}, {LORA_FIELDS[part]}",
            remedy="Give it the same fields, or set merge to true in the stage before",
        )
