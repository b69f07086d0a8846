"""MedM-VL's checkpoints: one folder whose config only names its parts.

2D is an encoder and an MLP. CT-Chest reads the slices of a volume through the same encoder and attention
pooling (a picture is then one slice), or a 3D encoder and spatial pooling; both kinds together are a
composition by kind. The language model's and the encoders' configs come from where the config says, or
from folders that the caller names.
Source: MedM-VL, `lvlm/model` (configuration_lvlm.py, modeling_lvlm.py, connector, encoder).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from medloupe.errors import ConfigError
from medloupe.imaging.composed import ByKindTransform, SlicesTransform
from medloupe.imaging.slices import SliceSelection
from medloupe.imaging.transforms import ImageTransform, Window
from medloupe.imaging.views import ViewTransform
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.connectors.attention_pooling import AttentionPoolingConfig
from medloupe.models.connectors.by_kind import ByKindConnectorConfig
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.connectors.pooling import PooledConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.models.encoders.vit3d import NAMES as M3D
from medloupe.models.encoders.vit3d import M3DCLIPEncoderConfig
from medloupe.models.resolution.by_kind import ByKindConfig
from medloupe.models.resolution.units import SlicesConfig
from medloupe.models.weights.naming import (
    COMPUTED,
    Naming,
    either,
    layers_from,
    load_named,
    shards,
)
from medloupe.models.weights.published import (
    Parts,
    Published,
    empty_model,
    fit_of,
    inside,
    projector,
    saved_dtype,
    tokenizer_of,
    tower_data,
    tower_of,
)
from medloupe.models.weights.tinyllava import has, language_named, tower_unread

PROMPT = "vicuna_v1_interleaved"
HEADS = 8
SLICES = 32
CT = Window(mode="custom", centre=0.0, width=2000.0)  # HU from -1000 to 1000


@dataclass(frozen=True, kw_only=True)
class _Half:
    """What reads one kind of image, and its names."""

    encoder: EncoderConfig
    connector: ConnectorConfig
    prefixes: tuple[tuple[str, str], ...]
    unread: tuple[str, ...] = ()


def is_medm_vl(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's config is of this kind."""
    return config.get("model_type") == "lvlm"


def load_medm_vl(
    source: str, config: dict[str, Any], parts: Parts, *, allow: Collection[str] = ()
) -> Published:
    """The checkpoint, its tokenizer, its prompt and what makes its pixels.

    Raises:
        CheckpointError: it cannot be read, or a tensor fits nothing, is missing, or has another shape.
        ConfigError: a choice that has no equal here.
    """
    encoder, connector, names = composition(config, parts)
    named = str(config["lvlm_llm_name_or_path"])
    language = language_named(parts.language or named)
    place = parts.tokenizer or (source if has(source, "tokenizer_config.json") else None)
    tokenizer, image_token_id = tokenizer_of(place or parts.language or named)
    model = empty_model(encoder, connector, language, image_token_id, saved_dtype(config))
    return Published(
        model=model,
        tokenizer=tokenizer,
        prompt=parts.prompt or PROMPT,
        transform=_transform(encoder),
        max_length=int(config.get("lvlm_llm_max_length") or 2048),
        report=load_named(model, shards(source), names, source=source, allow=allow),
    )


def composition(
    config: dict[str, Any], parts: Parts
) -> tuple[EncoderConfig, ConnectorConfig, Naming]:
    """Encoder, connector and names of such a config.

    Raises:
        CheckpointError: a part's config cannot be read.
        ConfigError: it reads no images, or has a part without an equal here.
    """
    flat = config.get("lvlm_encoder_image_type") is not None
    volume = config.get("lvlm_encoder_image3d_type") is not None
    if not flat and not volume:
        raise ConfigError("the checkpoint reads no images", field="lvlm_encoder_image_type")
    halves = [_flat(config, parts)] if flat else []
    halves += [_volume(config)] if volume else []
    inner = ("image.", "volume.") if flat and volume else ("",)
    names = Naming(
        prefixes=(
            ("llm.", "language_model."),
            *(
                (theirs, ours.replace(".", f".{kind}", 1))
                for kind, half in zip(inner, halves, strict=True)
                for theirs, ours in half.prefixes
            ),
        ),
        unread=either(COMPUTED, *(pattern for half in halves for pattern in half.unread)),
    )
    if len(halves) == 1:
        return halves[0].encoder, halves[0].connector, names
    first, second = halves
    return (
        ByKindConfig(image=first.encoder, volume=second.encoder),
        ByKindConnectorConfig(image=first.connector, volume=second.connector),
        names,
    )


def _flat(config: dict[str, Any], parts: Parts) -> _Half:
    """The encoder of pictures, and of the slices of volumes where attention pooling takes them."""
    place, data = tower_data(str(config["lvlm_encoder_image_name_or_path"]), parts.vision_tower)
    tower = tower_of(
        place,
        data,
        layer=int(config["lvlm_encoder_image_select_layer"]),
        feature=str(config["lvlm_encoder_image_select_feature"]),
    )
    kind, shape = config["lvlm_connector_image_type"], str(config["lvlm_connector_image_name"])
    layers = projector(shape)
    theirs = "encoder_image.encoder.vision_model."
    unread = tuple(tower_unread(theirs, tower))
    if kind == "mlp":
        prefixes = (
            (theirs, inside(tower)[0]),
            ("connector_image.connector.", "connector.layers."),
        )
        return _Half(encoder=tower, connector=layers, prefixes=prefixes, unread=unread)
    if kind != "attn_pooling" or not isinstance(layers, MLPConnectorConfig):
        raise ConfigError(
            f"connector {kind!r} has no equal here (mlp, attn_pooling)",
            field="lvlm_connector_image_type",
        )
    queries = (int(data["image_size"]) // int(data["patch_size"])) ** 2
    return _Half(
        encoder=SlicesConfig(encoder=tower),
        connector=AttentionPoolingConfig(queries=queries, heads=HEADS, depth=layers.depth),
        prefixes=(
            (theirs, inside(tower)[0].replace("encoder.", "encoder.encoder.", 1)),
            ("connector_image.query", "connector.query"),
            ("connector_image.attn.", "connector.attention."),
            ("connector_image.connector.", "connector.layers."),
        ),
        unread=unread,
    )


def _volume(config: dict[str, Any]) -> _Half:
    """M3D-CLIP's tower and 2 x 2 x 2 pooling."""
    kinds = config["lvlm_encoder_image3d_type"], config["lvlm_connector_image3d_type"]
    if kinds != ("m3dclip", "spatial_pooling"):
        raise ConfigError(
            f"encoder and connector {kinds} have no equal here (m3dclip with spatial_pooling)",
            field="lvlm_encoder_image3d_type",
        )
    feature = config["lvlm_encoder_image3d_select_feature"]
    encoder = M3DCLIPEncoderConfig(
        layer=int(config["lvlm_encoder_image3d_select_layer"]),
        class_token="drop" if feature == "patch" else "keep",
    )
    theirs = "encoder_image3d.encoder."
    layers = projector(str(config["lvlm_connector_image3d_name"]))
    with torch.device("meta"):
        tower = encoder.build().trunk
    used, whole = len(tower.blocks), encoder.size.depth
    return _Half(
        encoder=encoder,
        connector=PooledConnectorConfig(window=(2, 2, 2), connector=layers),
        prefixes=(
            *(
                (theirs + M3D.published(name), f"encoder.trunk.{name}")
                for name in tower.state_dict()
            ),
            ("connector_image3d.connector.", "connector.connector.layers."),
        ),
        unread=(
            re.escape(theirs) + r"(language_encoder|mm_vision_proj|mm_language_proj)\..*",
            re.escape(theirs) + r"(logit_scale|vision_encoder\.norm\..*)",
            layers_from(f"{theirs}vision_encoder.blocks.", used, whole),
        ),
    )


def _transform(encoder: EncoderConfig) -> ViewTransform:
    """SigLIP's processor stretches, CLIP's crops; volumes have 32 slices, their HU cut at +-1000."""
    if isinstance(encoder, ByKindConfig):
        image, volume = _transform(encoder.image), _transform(encoder.volume)
        return ByKindTransform(image=image, volume=volume)
    if isinstance(encoder, M3DCLIPEncoderConfig):
        return encoder.fitted(ImageTransform(window=CT))
    if isinstance(encoder, SlicesConfig):
        plane = fit_of(None, inside(encoder.encoder)[1]).model_copy(update={"window": CT})
        slices = SlicesTransform(transform=plane, selection=SliceSelection(count=SLICES))
        return encoder.fitted(slices)
    return encoder.fitted(fit_of(None, inside(encoder)[1]))
