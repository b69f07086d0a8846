"""A recipe's model on the meta device, and one image as its transform makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, cast

import numpy as np
import torch
from transformers import AutoConfig, PretrainedConfig

from medloupe.errors import ConfigError, did_you_mean
from medloupe.imaging.composed import DetailedTransform
from medloupe.imaging.views import Arrays, ViewTransform
from medloupe.models.language import LanguageConfig, architecture_from, plain_architecture
from medloupe.models.low_rank import attach
from medloupe.models.vlm import VisionLanguageModel, VLMConfig
from medloupe.recipes.config import ModelConfig
from medloupe.recipes.published import LANGUAGE
from medloupe.train.stages import StageConfig
from medloupe.types import ImageInput, ImageRef, MedicalImage, Views

Kind = Literal["image", "volume"]
# Slices, rows and columns of the stand-ins: more than any recipe takes, so that none is cut short.
SHAPES: Final[dict[Kind, tuple[int, int, int]]] = {
    "image": (1, 1024, 1024),
    "volume": (64, 128, 128),
}


def build(config: ModelConfig) -> VisionLanguageModel:
    """The model without numbers; a frozen language model in the type that it is kept in.

    Raises:
        ConfigError: the language model's architecture is not known here.
    """
    architecture = language_architecture(config.language)
    fields = VLMConfig(
        encoder=config.encoder.resolved().to_dict(),
        connector=config.connector.to_dict(),
        adapter=None if config.adapter is None else config.adapter.to_dict(),
        language=plain_architecture(architecture),
        attention="sdpa",
        image_token_id=int(architecture.vocab_size),
    )
    with torch.device("meta"):
        model = VisionLanguageModel(fields)
    model.language_model.to(getattr(torch, config.language.dtype))
    return model


def set_trainable(model: VisionLanguageModel, stage: StageConfig) -> None:
    """Freeze, and put adapters on, as training does."""
    for part in model.parts:
        trains = part in stage.trainable and part not in stage.adapted
        model.get_submodule(part).requires_grad_(trains)
    with torch.device("meta"):
        for part, lora in stage.adapted.items():
            attach(model, part, lora.adapters())


def language_architecture(language: LanguageConfig) -> PretrainedConfig:
    """Of a published model from our own table, of a local folder from its config.json.

    Raises:
        ConfigError: it is neither.
    """
    if language.source in LANGUAGE:
        return architecture_from(LANGUAGE[language.source])
    if (Path(language.source) / "config.json").is_file():
        return cast(PretrainedConfig, AutoConfig.from_pretrained(language.source))
    raise ConfigError(
        f"the architecture of {language.source!r} is not known offline; "
        f"{did_you_mean(language.source, LANGUAGE)}",
        field="model.language.source",
        remedy="Name a folder that holds its config.json",
    )


def example(kind: Kind, transform: ViewTransform, dtype: torch.dtype) -> ImageInput:
    """A black image through the recipe's own transform, so that nothing is counted twice."""
    image = MedicalImage(
        array=np.zeros(SHAPES[kind], dtype=np.float32),
        units="HU",
        spacing=(1.0, 1.0, 1.0),
        source=ImageRef(uri="example", kind=kind),
    )
    views = _on_meta(transform.apply(image), dtype)
    if not isinstance(transform, DetailedTransform):
        return ImageInput(kind=kind, views=views)
    return ImageInput(kind=kind, views=views[0], detail=views[1])


def _on_meta(views: Arrays, dtype: torch.dtype) -> Views:
    if isinstance(views, tuple):
        return tuple(_on_meta(view, dtype) for view in views)
    return torch.empty(views.shape, dtype=dtype, device="meta")
