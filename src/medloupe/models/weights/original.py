"""Checkpoints in LLaVA's original naming: LLaVA-1.5, Qilin-Med-VL, LLaVA-Med v1.5.

One folder or hub id: a language model's config with `mm_` fields, its tensors beside
`model.mm_projector`, and, where the tower was trained, `model.vision_tower.vision_tower`; otherwise the
tower is loaded from `mm_vision_tower`. The conversation that a checkpoint was trained with is not in it:
it follows from the language model here, and can be named.
Source: LLaVA, `llava/model` (llava_arch.py, multimodal_encoder, multimodal_projector).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from medloupe.errors import ConfigError
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.connectors.mlp import LinearConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.models.encoders.hf_vision import SiglipEncoderConfig
from medloupe.models.vlm import VisionLanguageModel
from medloupe.models.weights.naming import (
    COMPUTED,
    LoadReport,
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
    text_config,
    tokenizer_of,
    tower_data,
    tower_of,
)

# model_type of the checkpoint -> (the language model's, the conversation of its training)
FAMILIES = {
    "llava": ("llama", "vicuna_v1"),
    "llava_llama": ("llama", "vicuna_v1"),
    "llava_mistral": ("mistral", "mistral_instruct"),
    "llava_qwen": ("qwen2", "qwen_1_5"),
}
TOWER = "model.vision_tower.vision_tower.vision_model."


def is_original(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's config is of this kind."""
    return "mm_vision_tower" in config and config.get("model_type") in FAMILIES


def load_original(
    source: str, config: dict[str, Any], parts: Parts, *, allow: Collection[str] = ()
) -> Published:
    """The checkpoint, its tokenizer, its prompt and what makes its pixels.

    Raises:
        CheckpointError: it cannot be read, or a tensor fits nothing, is missing, or has another shape.
        ConfigError: a choice that has no equal here.
    """
    _refuse(config)
    family, prompt = FAMILIES[str(config["model_type"])]
    encoder, connector = _parts_of(config, parts)
    fit = encoder.fitted(fit_of(config.get("image_aspect_ratio"), inside(encoder)[1]))
    tokenizer, image_token_id = tokenizer_of(parts.tokenizer or source)
    language = text_config(family, config)
    model = empty_model(encoder, connector, language, image_token_id, saved_dtype(config))
    report = load_named(
        model,
        shards(source),
        naming(encoder, connector),
        source=source,
        allow=allow,
        absent="encoder.",
    )
    return Published(
        model=model,
        tokenizer=tokenizer,
        prompt=parts.prompt or prompt,
        transform=fit,
        max_length=int(config.get("tokenizer_model_max_length") or 2048),
        report=_with_tower(model, encoder, report),
    )


def naming(encoder: EncoderConfig, connector: ConnectorConfig) -> Naming:
    """The names of that composition, theirs and ours."""
    used, whole = depth(encoder)
    below, tower = inside(encoder)
    linear = isinstance(connector, LinearConnectorConfig)
    unread = [COMPUTED, layers_from(f"{TOWER}encoder.layers.", used, whole)]
    if isinstance(tower, SiglipEncoderConfig):
        unread.append(TOWER.replace(".", r"\.") + POOLING_HEAD)
    return Naming(
        prefixes=(
            (TOWER, below),
            ("model.mm_projector.", "connector.layers." + ("0." if linear else "")),
            ("model.embed_tokens.", "language_model.model.embed_tokens."),
            ("model.layers.", "language_model.model.layers."),
            ("model.norm.", "language_model.model.norm."),
            ("lm_head.", "language_model.lm_head."),
        ),
        unread=either(*unread),
    )


def _parts_of(config: dict[str, Any], parts: Parts) -> tuple[EncoderConfig, ConnectorConfig]:
    place, tower = tower_data(str(config["mm_vision_tower"]), parts.vision_tower)
    encoder = tower_of(
        place,
        tower,
        layer=int(config.get("mm_vision_select_layer", -2)),
        feature=str(config.get("mm_vision_select_feature", "patch")),
    )
    return encoder, projector(str(config.get("mm_projector_type", "linear")))


def _refuse(config: dict[str, Any]) -> None:
    """Choices that change what the model reads and that are not built here."""
    if config.get("mm_use_im_start_end"):
        raise ConfigError(
            "words round images that are tokens of their own have no equal here",
            field="mm_use_im_start_end",
        )
    if config.get("s2"):
        raise ConfigError("several scales are not read from such a checkpoint", field="s2")


def _with_tower(
    model: VisionLanguageModel, encoder: EncoderConfig, report: LoadReport
) -> LoadReport:
    """Load the tower from its own place where the checkpoint leaves it out."""
    if not any(name.startswith("encoder.") for name in report.kept):
        return report
    dtype = next(model.encoder.parameters()).dtype
    model.encoder.load_pretrained()
    model.encoder.to(dtype)
    source = inside(encoder)[1].source
    said = f"encoder: {len(report.kept):,} tensors from {source}"
    return report.model_copy(update={"elsewhere": (said,)})
