"""What a published checkpoint brings beside its weights, and the parts that its loaders share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from medloupe.errors import CheckpointError, ConfigError
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.views import ViewTransform
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.connectors.mlp import LinearConnectorConfig, MLPConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.models.encoders.checkpoints import config_data
from medloupe.models.encoders.hf_vision import CLIPEncoderConfig, SiglipEncoderConfig
from medloupe.models.encoders.trimmed import TrimmedConfig
from medloupe.models.language import architecture_from
from medloupe.models.vlm import IMAGE_TOKEN, VisionLanguageModel, VLMConfig
from medloupe.models.weights.naming import LoadReport

# Every tensor that a SigLIP tower's pooling head has, which no language model reads.
POOLING_HEAD = r"head\..*"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Where a checkpoint's parts lie if not where it says: folders or hub ids. `prompt` overrides the
    format that its family was trained with."""

    vision_tower: str | None = None
    language: str | None = None
    tokenizer: str | None = None
    prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """A loaded checkpoint. `prompt` names the format of `processing.formats` that it was trained with;
    `transform` makes its pixels."""

    model: VisionLanguageModel
    tokenizer: PreTrainedTokenizerBase
    prompt: str
    transform: ViewTransform
    max_length: int
    report: LoadReport


def tower_of(
    source: str | None, data: dict[str, Any], *, layer: int, feature: str
) -> EncoderConfig:
    """The encoder for a vision tower's plain config; `feature` is "patch" or "cls_patch".

    LLaVA's, TinyLLaVA's and MedM-VL's code drops the first token for "patch" whatever the tower, so
    a SigLIP that was trained with it has lost a patch (compat: `trimmed`).

    Raises:
        ConfigError: a tower or a choice of tokens that has no equal here.
    """
    if feature not in ("patch", "cls_patch"):
        raise ConfigError(f"unknown choice of tokens {feature!r} (patch, cls_patch)")
    family = str(data.get("model_type")).removesuffix("_vision_model")
    if family == "clip":
        return CLIPEncoderConfig(
            source=source,
            architecture=_architecture("clip_vision_model", data),
            layer=layer,
            class_token="drop" if feature == "patch" else "keep",
        ).resolved()
    if family == "siglip":
        whole = SiglipEncoderConfig(
            source=source, architecture=_architecture("siglip_vision_model", data), layer=layer
        ).resolved()
        return TrimmedConfig(encoder=whole) if feature == "patch" else whole
    raise ConfigError(f"vision tower {family!r} has no equal here (clip and siglip have)")


def tower_data(source: str, override: str | None) -> tuple[str, dict[str, Any]]:
    """Where a vision tower lies, and its config.

    Raises:
        CheckpointError: it cannot be read from there.
    """
    place = override or source
    try:
        return place, config_data(place)
    except CheckpointError as error:
        raise CheckpointError(
            error.fault.rule, remedy="Give its folder: vision_tower, or --vision-tower FOLDER"
        ) from error


def inside(encoder: EncoderConfig) -> tuple[str, Any]:
    """The name of the tower's module below `encoder.`, and the tower's config."""
    if isinstance(encoder, TrimmedConfig):
        return "encoder.encoder.tower.", encoder.encoder
    return "encoder.tower.", encoder


def depth(encoder: EncoderConfig) -> tuple[int, int]:
    """(layers that are built, layers of the whole tower)."""
    _, tower = inside(encoder)
    whole = int(tower.hf_config().num_hidden_layers)
    return (whole + 1 + tower.layer if tower.layer < 0 else tower.layer), whole


def projector(kind: str) -> ConnectorConfig:
    """The connector that LLaVA and its descendants name so.

    Raises:
        ConfigError: it has no equal here.
    """
    if kind == "linear":
        return LinearConnectorConfig()
    found = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if found is None:
        raise ConfigError(f"projector {kind!r} has no equal here (linear and mlpNx_gelu have)")
    return MLPConnectorConfig(depth=int(found[1]))


def text_config(family: str, data: dict[str, Any]) -> dict[str, Any]:
    """A language model's config out of one that also holds everything else."""
    known = set(AutoConfig.for_model(family).to_dict()) | {"rope_theta", "rope_scaling"}
    own = {key: value for key, value in data.items() if key in known}
    fields = own | {"model_type": family, "architectures": None}
    return architecture_from(fields).to_dict()


def empty_model(
    encoder: EncoderConfig,
    connector: ConnectorConfig,
    language: dict[str, Any],
    image_token_id: int,
    dtype: torch.dtype,
) -> VisionLanguageModel:
    """The model to be filled; its tensors hold nothing of meaning."""
    config = VLMConfig(
        encoder=encoder.to_dict(),
        connector=connector.to_dict(),
        language=language | {"dtype": str(dtype).removeprefix("torch.")},
        image_token_id=image_token_id,
    )
    model = unfilled(config, dtype)
    model.generation_config = GenerationConfig(suppress_tokens=[image_token_id])
    ends = architecture_from(language)
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, field, getattr(ends, field))
    model.train(False)
    return model


def unfilled(config: VLMConfig, dtype: torch.dtype) -> VisionLanguageModel:
    """The model without first weights. Parameters alone are cast: buffers (rotary frequencies) stay
    exact."""
    with no_init_weights():
        model = VisionLanguageModel(config)
    model.language_model.tie_weights()  # a step of the initialisation that was left out
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def tokenizer_of(source: str) -> tuple[PreTrainedTokenizerBase, int]:
    """The tokenizer with our image token, and that token's id.

    Raises:
        CheckpointError: there is none that transformers can read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"cannot read a tokenizer: {error}",
            file=source,
            remedy="A tokenizer.model needs: pip install sentencepiece protobuf. Or give another "
            "folder: tokenizer, or --tokenizer FOLDER",
        ) from error
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, False)
    return tokenizer, int(tokenizer.get_vocab()[IMAGE_TOKEN])


def fit_of(ratio: str | None, tower: Any) -> ImageTransform:
    """LLaVA's `image_aspect_ratio`: `pad` fills a square up with the mean colour before resizing; else
    the tower's own image processor works, which crops for CLIP and stretches for SigLIP.

    Raises:
        ConfigError: it cuts images into tiles, which needs what this loader does not build.
    """
    if ratio == "pad":
        return ImageTransform(fit="pad", padding="mean")
    if ratio in (None, "square"):
        return ImageTransform(fit="crop" if isinstance(tower, CLIPEncoderConfig) else "stretch")
    raise ConfigError(
        f"image_aspect_ratio {ratio!r} has no equal here (pad and square have)",
        field="image_aspect_ratio",
    )


def saved_dtype(data: dict[str, Any]) -> torch.dtype:
    """The dtype that a config states for its weights; float32 where it states none."""
    return getattr(torch, str(data.get("torch_dtype") or data.get("dtype") or "float32"))  # type: ignore[no-any-return]


def _architecture(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    config: PretrainedConfig = AutoConfig.for_model(
        kind, **{key: value for key, value in data.items() if key != "model_type"}
    )
    return config.to_diff_dict()
