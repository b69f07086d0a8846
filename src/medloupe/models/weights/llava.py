"""Weights between this model and the checkpoints of other projects: transformers' LLaVA, both ways.

Names are mapped by whole prefixes, and every tensor is accounted for on both sides: one that fits
nothing, is missing, or has another shape is an error with its name. Two differences are bridged, and
neither changes what the model says. Our vision tower ends at the layer that is read, so the layers
above it are left out on import, and an export has the shorter tower with `vision_feature_layer=-1`.
LLaVA looks up the image token's embedding before writing over it, so where ours lies outside the
vocabulary, an export grows both tables by rows of zeros. The image token is never generated.
Source: Liu et al. 2023, and `LlavaForConditionalGeneration` of transformers 5.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from medloupe.errors import CheckpointError, ConfigError
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.models.encoders.checkpoints import checkpoint_file, read_json
from medloupe.models.encoders.hf_vision import (
    CLIPEncoderConfig,
    HFVisionTower,
    Siglip2EncoderConfig,
    SiglipEncoderConfig,
)
from medloupe.models.language import architecture_from
from medloupe.models.vlm import VisionLanguageModel, VLMConfig
from medloupe.models.weights.naming import LoadReport, Naming, either, layers_from, load_named
from medloupe.models.weights.published import (
    POOLING_HEAD,
    Parts,
    Published,
    fit_of,
    tokenizer_of,
    unfilled,
)

# (LLaVA's prefix, ours): no prefix of one side begins another of that side.
LLAVA_PREFIXES = (
    ("model.vision_tower.", "encoder.tower."),
    ("model.multi_modal_projector.linear_1.", "connector.layers.0."),
    ("model.multi_modal_projector.linear_2.", "connector.layers.2."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
VOCABULARY_TABLES = ("model.language_model.embed_tokens.weight", "lm_head.weight")
# LLaVA puts a bare linear head on the decoder, so only families whose own head is that can cross.
LLAVA_LANGUAGES = ("llama", "mistral", "qwen2", "qwen3")
# The conversation of LLaVA's training, by language model.
PROMPTS = {"llama": "vicuna_v1", "mistral": "mistral_instruct", "qwen2": "qwen_1_5"}


def is_llava(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's config is of this kind."""
    return config.get("model_type") == "llava" and "text_config" in config


def load_llava(
    source: str, config: dict[str, Any], parts: Parts, *, allow: Collection[str] = ()
) -> Published:
    """A folder or hub id in transformers' format, its tokenizer, its prompt and what makes its pixels.

    The prompt is the conversation of LLaVA's own training for that language model: transformers' chat
    template leaves its system prompt out.

    Raises:
        CheckpointError, ConfigError: see `from_llava`; also a language model whose prompt is not known.
    """
    model, report = _from_llava(_read(source, allow), source, allow)
    tokenizer = tokenizer_of(parts.tokenizer or source)[0]
    family = str(architecture_from(model.config.language).model_type)
    prompt = parts.prompt or PROMPTS.get(family)
    if prompt is None:
        raise CheckpointError(
            f"the prompt that a LLaVA of {family!r} was trained with is not known",
            file=source,
            remedy="Name it: prompt, or --prompt NAME",
        )
    encoder = EncoderConfig.parse(model.config.encoder)
    del config
    return Published(
        model=model,
        tokenizer=tokenizer,
        prompt=prompt,
        transform=encoder.fitted(_pixels(source, encoder)),
        max_length=2048,
        report=report,
    )


def from_llava(source: LlavaForConditionalGeneration | Path) -> VisionLanguageModel:
    """Our model with the weights of a LLaVA model, or of a folder in transformers' format.

    Raises:
        CheckpointError: the folder cannot be read, or a tensor fits nothing, is missing, or has another
            shape.
        ConfigError: a part that this model has no equal of.
    """
    if isinstance(source, LlavaForConditionalGeneration):
        return _from_llava(source, "the model", ())[0]
    if not (source / "config.json").is_file():
        raise CheckpointError("not a saved model: no config.json", file=str(source))
    return _from_llava(_read(str(source), ()), source, ())[0]


def _from_llava(
    llava: LlavaForConditionalGeneration, source: str | Path, allow: Collection[str]
) -> tuple[VisionLanguageModel, LoadReport]:
    settings: Any = llava.config
    language = settings.text_config
    _refuse_language(str(language.model_type))
    config = VLMConfig(
        encoder=_encoder_of(settings).to_dict(),
        connector=_connector_of(settings).to_dict(),
        language=language.to_dict(),
        attention="eager" if language._attn_implementation == "eager" else "sdpa",
        image_token_id=settings.image_token_id,
    )
    model = unfilled(config, llava.dtype)
    assert isinstance(model.encoder, HFVisionTower)
    names = Naming(prefixes=LLAVA_PREFIXES, unread=_unread(settings, model.encoder))
    report = load_named(model, [llava.state_dict()], names, source=source, allow=allow)
    model.generation_config = _never_saying(llava.generation_config, {settings.image_token_id})
    model.train(False)
    return model, report


def to_llava(model: VisionLanguageModel) -> LlavaForConditionalGeneration:
    """The LLaVA model with these weights; its logits over our vocabulary equal ours.

    Parts of several dtypes are widened to the one that holds them all, since LLaVA has one.

    Raises:
        ConfigError: the composition is not LLaVA's; the message names the field.
        CheckpointError: a tensor fits nothing (an adapter that is not merged), or one is missing.
    """
    config: Any = _llava_config(model)
    llava = LlavaForConditionalGeneration(config)
    tensors = renamed(model.state_dict(), to_llava=True)
    rows = int(config.text_config.vocab_size)
    for key in VOCABULARY_TABLES:
        grown = rows - len(tensors[key]) if key in tensors else 0
        if grown > 0:
            tensors[key] = F.pad(tensors[key], (0, 0, 0, grown))
    widest = reduce(torch.promote_types, {p.dtype for p in model.parameters()})
    nn.Module.to(llava, dtype=widest)
    _fill(llava, tensors)
    llava.generation_config = _never_saying(
        model.generation_config,
        {
            config.image_token_id,
            *range(architecture_from(model.config.language).vocab_size, rows),
        },
    )
    llava.train(False)
    return llava


def renamed(tensors: dict[str, torch.Tensor], *, to_llava: bool) -> dict[str, torch.Tensor]:
    """The same tensors under the other side's names.

    Raises:
        CheckpointError: a name that no prefix fits.
    """
    table = LLAVA_PREFIXES if to_llava is False else tuple((b, a) for a, b in LLAVA_PREFIXES)
    result = {}
    for key, tensor in tensors.items():
        found = next((pair for pair in table if key.startswith(pair[0])), None)
        if found is None:
            raise CheckpointError(
                f"tensor {key!r} fits nothing in {'a LLaVA' if to_llava else 'our'} model",
                remedy="Merge adapters first" if to_llava else "",
            )
        result[found[1] + key.removeprefix(found[0])] = tensor
    return result


def _never_saying(generation: GenerationConfig | None, tokens: set[int]) -> GenerationConfig:
    """A copy that suppresses these: placeholders are read, and an answer that held one would be cut off
    from its image."""
    result = copy.deepcopy(generation) if generation is not None else GenerationConfig()
    result.suppress_tokens = sorted({*(result.suppress_tokens or []), *tokens})
    return result


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copy the tensors in; every one must have its place, and every place its tensor."""
    own = model.state_dict()
    for key in sorted(own.keys() | tensors.keys()):
        if key not in own:
            raise CheckpointError(f"tensor {key!r} fits nothing in {type(model).__name__}")
        if key not in tensors:
            raise CheckpointError(f"tensor {key!r} of {type(model).__name__} is missing")
        if own[key].shape != tensors[key].shape:
            given, wanted = tuple(tensors[key].shape), tuple(own[key].shape)
            raise CheckpointError(f"tensor {key!r} has shape {given}, the model wants {wanted}")
    model.load_state_dict(tensors)


def _read(source: str, allow: Collection[str]) -> LlavaForConditionalGeneration:
    """Read a checkpoint; transformers would fill missing tensors with noise and drop those left over."""
    try:
        read: Any = LlavaForConditionalGeneration.from_pretrained(
            source,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below by name
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot read a LLaVA model: {error}", file=source) from error
    model, report = read
    faults = [f"tensor {key!r} is missing" for key in report["missing_keys"]]
    faults += [
        f"tensor {key!r} fits nothing"
        for key in report["unexpected_keys"]
        if not key.startswith(tuple(allow))
    ]
    faults += [
        f"tensor {key!r} has shape {tuple(given)}, the model wants {tuple(wanted)}"
        for key, given, wanted in report["mismatched_keys"]
    ]
    if faults:
        raise CheckpointError("; ".join(sorted(faults)[:3]), file=source)
    assert isinstance(model, LlavaForConditionalGeneration)
    return model


def _pixels(source: str, encoder: EncoderConfig) -> ImageTransform:
    """The fit that the checkpoint's image processor says; without one, the tower's own."""
    try:
        said = read_json(checkpoint_file(source, ("preprocessor_config.json",)))
    except CheckpointError:
        return fit_of(None, encoder)
    if said.get("do_pad"):
        return fit_of("pad", encoder)
    return ImageTransform(fit="crop" if said.get("do_center_crop") else "stretch")


def _refuse_language(family: str) -> None:
    if family not in LLAVA_LANGUAGES:
        raise ConfigError(
            f"a LLaVA model of {family!r} cannot be converted",
            field="language.model_type",
            remedy=f"These can: {', '.join(LLAVA_LANGUAGES)}",
        )


def _encoder_of(llava: Any) -> EncoderConfig:
    """Our encoder's config for LLaVA's tower, layer and choice of tokens."""
    vision, layer = llava.vision_config, llava.vision_feature_layer
    every = llava.vision_feature_select_strategy == "full"
    if not isinstance(layer, int):
        raise ConfigError(
            f"features of several layers {layer} have no equal here", field="vision_feature_layer"
        )
    if isinstance(vision, CLIPVisionConfig):
        return CLIPEncoderConfig(
            architecture=vision.to_diff_dict(),
            image_size=vision.image_size,
            layer=layer,
            class_token="keep" if every else "drop",
        )
    if not isinstance(vision, SiglipVisionConfig):
        raise ConfigError(
            f"vision tower {vision.model_type!r} has no equal here (clip and siglip have)",
            field="vision_config.model_type",
        )
    if not every:
        raise ConfigError(
            "SigLIP has no class token, and the strategy 'default' would drop its first patch",
            field="vision_feature_select_strategy",
        )
    return SiglipEncoderConfig(
        architecture=vision.to_diff_dict(), image_size=vision.image_size, layer=layer
    )


def _connector_of(llava: Any) -> ConnectorConfig:
    if llava.projector_hidden_act != "gelu":
        raise ConfigError(
            f"the activation {llava.projector_hidden_act!r} has no equal here (gelu has)",
            field="projector_hidden_act",
        )
    if not llava.multimodal_projector_bias:
        raise ConfigError(
            "a projector without bias has no equal here", field="multimodal_projector_bias"
        )
    return MLPConnectorConfig(depth=2)


def _unread(llava: Any, encoder: HFVisionTower) -> re.Pattern[str]:
    """Names of the tensors whose output LLaVA never reads: layers above, SigLIP's pooling head."""
    used = int(encoder.tower.config.num_hidden_layers)
    tower = "model.vision_tower."
    above = layers_from(f"{tower}encoder.layers.", used, int(llava.vision_config.num_hidden_layers))
    head = isinstance(llava.vision_config, SiglipVisionConfig)
    return either(above, *([re.escape(tower) + POOLING_HEAD] if head else []))


def _llava_config(model: VisionLanguageModel) -> LlavaConfig:
    """LLaVA's config for this composition."""
    if model.adapter is not None:
        raise ConfigError(
            f"LLaVA has no adapter between layers of its language model; this model has "
            f"{model.config.adapter['name']!r}",
            field="adapter",
            remedy="Serve it with MedLoupe, or export the model that it was put on",
        )
    language = architecture_from(model.config.language)
    _refuse_language(str(language.model_type))
    encoder = EncoderConfig.parse(model.config.encoder)
    _refuse_connector(ConnectorConfig.parse(model.config.connector), int(language.hidden_size))
    tower = model.encoder
    if (
        not isinstance(encoder, CLIPEncoderConfig | SiglipEncoderConfig)
        or isinstance(encoder, Siglip2EncoderConfig)
        or not isinstance(tower, HFVisionTower)
        or encoder.post_norm
    ):
        plain = isinstance(tower, HFVisionTower) and tower.config.post_norm
        what = "post_norm" if plain else repr(encoder.name)
        raise ConfigError(
            f"LLaVA reads a CLIP or SigLIP tower before its last norm; this model has {what}",
            field="encoder",
        )
    if model.config.image_token_id is None:
        raise ConfigError("the model has no image token", field="image_token_id")
    _refuse_stretched(tower)
    every = isinstance(encoder, SiglipEncoderConfig) or tower.keep_prefix
    language.vocab_size = max(int(language.vocab_size), model.config.image_token_id + 1)
    build = cast(Callable[..., LlavaConfig], LlavaConfig)
    return build(
        vision_config=copy.deepcopy(tower.tower.config),
        text_config=language,
        image_token_index=model.config.image_token_id,
        image_seq_length=model.layouts.tokens("image", lambda: 1),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full" if every else "default",
        attn_implementation=model.config.attention,
    )


def _refuse_stretched(tower: HFVisionTower) -> None:
    """LLaVA does not stretch position embeddings over another grid."""
    if tower.interpolates:
        raise ConfigError(
            f"LLaVA's tower takes images of its own size, this one {tower.config.image_size}",
            field="encoder.image_size",
        )


def _refuse_connector(connector: ConnectorConfig, width: int) -> None:
    """LLaVA's projector is the MLP of two layers, as wide as the language model, and nothing else."""
    plain = MLPConnectorConfig(depth=2)
    if not isinstance(connector, MLPConnectorConfig):
        raise ConfigError(
            f"LLaVA has no connector {connector.name!r}",
            field="connector",
            remedy="Its equal is {name: mlp, depth: 2}",
        )
    for field in type(connector).model_fields:
        value, wanted = getattr(connector, field), getattr(plain, field)
        if value != wanted and not (field == "hidden" and value == width):
            raise ConfigError(
                f"LLaVA's connector has {field} {wanted}, this one {value}",
                field=f"connector.{field}",
                remedy="Its equal is {name: mlp, depth: 2}",
            )
