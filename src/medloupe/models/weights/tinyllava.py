"""TinyLLaVA Factory's checkpoints: one folder after fine-tuning, one for each part before.

The parts' folders `language_model`, `vision_tower` and `connector` each hold a `pytorch_model.bin` under
the part's own names, with tied tensors saved once; the config beside them is the whole model's. Every
language model was trained with Vicuna's words and its own end token.
Source: TinyLLaVA Factory, `training_recipe/base.py`, `model/modeling_tinyllava.py`, `data/template`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from transformers import AutoConfig

from medloupe.errors import CheckpointError
from medloupe.models.encoders import EncoderConfig
from medloupe.models.encoders.checkpoints import checkpoint_file, read_tensors
from medloupe.models.encoders.hf_vision import SiglipEncoderConfig
from medloupe.models.language import architecture_from
from medloupe.models.weights.naming import (
    COMPUTED,
    WEIGHTS,
    Naming,
    either,
    layers_from,
    load_named,
    shards,
)
from medloupe.models.weights.published import (
    POOLING_HEAD,
    Parts,
    Published,
    depth,
    empty_model,
    fit_of,
    inside,
    projector,
    saved_dtype,
    tokenizer_of,
    tower_data,
    tower_of,
)

PROMPT = "vicuna_v1"
# folder of a part -> the prefix of its names in the whole model
FOLDERS = {
    "language_model": "language_model.",
    "vision_tower": "vision_tower._vision_tower.",
    "connector": "connector.",
}


def is_tinyllava(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's config is of this kind."""
    return config.get("model_type") == "tinyllava"


def load_tinyllava(
    source: str, config: dict[str, Any], parts: Parts, *, allow: Collection[str] = ()
) -> Published:
    """The checkpoint, its tokenizer, its prompt and what makes its pixels.

    Raises:
        CheckpointError: it cannot be read, or a tensor fits nothing, is missing, or has another shape.
        ConfigError: a choice that has no equal here.
    """
    encoder = _encoder_of(config, parts)
    connector = projector(str(config.get("connector_type")))
    language = _language_of(config, parts)
    place = parts.tokenizer or (source if has(source, "tokenizer_config.json") else None)
    tokenizer, image_token_id = tokenizer_of(place or str(config["llm_model_name_or_path"]))
    model = empty_model(encoder, connector, language, image_token_id, saved_dtype(config))
    linear = config.get("connector_type") == "linear"
    return Published(
        model=model,
        tokenizer=tokenizer,
        prompt=parts.prompt or PROMPT,
        transform=encoder.fitted(fit_of(config.get("image_aspect_ratio"), inside(encoder)[1])),
        max_length=int(config.get("tokenizer_model_max_length") or 2048),
        report=load_named(
            model, _files(source), naming(encoder, linear=linear), source=source, allow=allow
        ),
    )


def naming(encoder: EncoderConfig, *, linear: bool = False) -> Naming:
    """The names of that composition, theirs and ours."""
    tower = "vision_tower._vision_tower.vision_model."
    return Naming(
        prefixes=(
            (tower, inside(encoder)[0]),
            ("connector._connector.", "connector.layers." + ("0." if linear else "")),
            ("language_model.", "language_model."),
        ),
        unread=either(COMPUTED, *tower_unread(tower, encoder)),
    )


def tower_unread(tower: str, encoder: EncoderConfig) -> list[str]:
    """Patterns of what no language model reads of a tower whose names begin so."""
    used, whole = depth(encoder)
    unread = [layers_from(f"{tower}encoder.layers.", used, whole)]
    if isinstance(inside(encoder)[1], SiglipEncoderConfig):
        unread.append(tower.replace(".", r"\.") + POOLING_HEAD)
    return unread


def has(source: str, name: str) -> bool:
    """Whether a folder or hub id holds that file."""
    try:
        checkpoint_file(source, (name,))
    except CheckpointError:
        return False
    return True


def _files(source: str) -> Iterator[dict[str, torch.Tensor]]:
    if has(source, "adapter_config.json"):
        raise CheckpointError(
            "holds LoRA adapters that are not merged",
            file=source,
            remedy="Merge them with TinyLLaVA Factory first",
        )
    if any(has(source, name) for name in WEIGHTS):
        yield from shards(source)
        return
    for folder, prefix in FOLDERS.items():
        tensors = read_tensors(checkpoint_file(source, (f"{folder}/pytorch_model.bin",)))
        yield {prefix + name: tensor for name, tensor in tensors.items()}


def _encoder_of(config: dict[str, Any], parts: Parts) -> EncoderConfig:
    """The tower's config stands in the model's own; old exports only name it."""
    # of a mixture ("mof:...") only one tower is named here, and `tower_of` refuses its connector
    name = str(config.get("vision_model_name_or_path", "")).rpartition(":")[2]
    data = config.get("vision_config")
    if parts.vision_tower or not data or "hidden_size" not in data:
        name, data = tower_data(name, parts.vision_tower)
    return tower_of(
        name or None,
        data,
        layer=int(config.get("vision_feature_layer", -2)),
        feature=str(config.get("vision_feature_select_strategy", "patch")),
    )


def _language_of(config: dict[str, Any], parts: Parts) -> dict[str, Any]:
    data = config.get("text_config")
    if parts.language is None and data and data.get("model_type"):
        return architecture_from(data).to_dict()
    return language_named(parts.language or str(config["llm_model_name_or_path"]))


def language_named(source: str) -> dict[str, Any]:
    """The config of a language model that a checkpoint only names.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        found: dict[str, Any] = AutoConfig.from_pretrained(source).to_dict()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read the language model's config: {error}",
            file=source,
            remedy="Give its folder: language, or --language FOLDER",
        ) from error
    return found
