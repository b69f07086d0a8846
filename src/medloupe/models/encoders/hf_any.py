"""Any vision model that transformers' AutoModel builds, by its name alone.

What its features are is found by a forward pass on the meta device (shapes without numbers), and
refused where they are no square grid behind a known number of prefix tokens: a class token, DeiT's
second one, registers. The families of `hf_vision` know their tokens and positions: prefer those.
Shapes: N images, S pixels a side, T tokens, G cells a side, C channels.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from medloupe.errors import CheckpointError, ConfigError
from medloupe.imaging.transforms import IMAGENET_MEAN, IMAGENET_STD
from medloupe.imaging.views import ViewTransform
from medloupe.models.encoders.base import PlaneEncoderConfig
from medloupe.models.encoders.checkpoints import depth_of
from medloupe.models.encoders.tower import DType, TowerEncoder, in_dtype
from medloupe.types import ImageLayout, Views

# Parts that make a pooled output, which is never read: put out of the way where they hold weights.
POOLED = ("pooler", "head")
# Of checkpoints: those parts, heads of tasks, the other half of a pair of towers, mask tokens.
UNREAD = (
    *(f"{name}." for name in POOLED),
    *("classifier.", "cls_classifier.", "distillation_classifier.", "lm_head.", "decoder."),
    *("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias"),
    *("mask_token", "embeddings.mask_token"),
)


class HFVisionEncoderConfig(PlaneEncoderConfig):
    """A transformers vision model by name.

    `source` is a folder or a hub id, `architecture` the model's config as plain data with its
    `model_type`. With `post_norm` the features are the model's `last_hidden_state`; without, its last
    hidden state before the final norm. `layer` is -1, or counts the layers of a model that can be cut
    after one. `image_size` 0 is the model's own, mean and std those that the source states, else
    ImageNet's. `prefix` is the number of tokens before the patches, where it is not a usual one;
    `prefix_tokens` drops or keeps them. `dtype` is what the weights are kept in.
    """

    source: str | None = None
    architecture: dict[str, Any] | None = None
    image_size: int = 0
    layer: int = -1
    post_norm: bool = True
    prefix: int | None = None
    prefix_tokens: Literal["drop", "keep"] = "drop"
    dtype: DType = "float32"
    allow_unused: tuple[str, ...] = ()
    mean: tuple[float, float, float] | None = None  # type: ignore[assignment]
    std: tuple[float, float, float] | None = None  # type: ignore[assignment]

    def hf_config(self) -> Any:
        """The model's config of transformers; of a pair of towers the vision half's.

        Raises:
            ConfigError: there is nothing to read it from.
            CheckpointError: the source cannot be read.
        """
        if self.architecture is not None:
            if "model_type" not in self.architecture:
                raise ConfigError("the architecture names no model_type", field="architecture")
            return AutoConfig.for_model(**self.architecture)
        if self.source is None:
            raise ConfigError(
                f"encoder {self.name!r} needs a source (folder or hub id) or an architecture",
                field="source",
            )
        try:
            whole = AutoConfig.from_pretrained(self.source)
        except (OSError, ValueError) as error:  # no such source; no such model type
            raise CheckpointError(
                f"cannot read a vision model from {self.source!r}: {error}"
            ) from None
        return whole.vision_config if "vision_config" in whole.to_dict() else whole

    def resolved(self) -> Self:
        if self.architecture is not None and self.image_size and self.mean and self.std:
            return self
        hf = self.hf_config()
        published = {} if self.source is None else _preprocessing(self.source)
        return self.model_copy(
            update={
                "architecture": hf.to_diff_dict(),
                "image_size": self.image_size or _native_size(hf),
                "mean": self.mean or tuple(published.get("image_mean", IMAGENET_MEAN)),
                "std": self.std or tuple(published.get("image_std", IMAGENET_STD)),
            }
        )

    def fitted(self, transform: ViewTransform) -> ViewTransform:
        return PlaneEncoderConfig.fitted(self.resolved(), transform)

    def build(self) -> HFVisionEncoder:
        return HFVisionEncoder(self.resolved())


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """Features as the model gives them: tokens `[N, prefix + G * G, C]`, or a map with its channels
    first or last."""

    form: Literal["tokens", "channels_first", "channels_last"]
    side: int
    channels: int
    prefix: int = 0

    def tokens(self, features: torch.Tensor) -> torch.Tensor:
        """`[N, prefix + G * G, C]`."""
        if self.form == "channels_first":
            return features.flatten(2).transpose(1, 2)
        return features.flatten(1, 2) if self.form == "channels_last" else features


class HFVisionEncoder(TowerEncoder):
    """The model, and where its patches stand among its tokens."""

    def __init__(self, config: HFVisionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        hf = config.hf_config()
        self.layers = _layers(hf, config.layer)
        used = depth_of(config.layer, self.layers)
        if used < self.layers:
            hf.num_hidden_layers = used
        with torch.device("meta"):
            self.tower = _built(hf)
            self.told = _told(self.tower, config.image_size)
            shape = self._probed(states=used + 1 if used < self.layers else None)
        self.tower = _built(hf)
        self.arrangement = arrangement(shape, hf, config.image_size, config.prefix)
        self.channels, side = self.arrangement.channels, self.arrangement.side
        kept = self.arrangement.prefix if config.prefix_tokens == "keep" else 0
        self.dropped = self.arrangement.prefix - kept
        self.layout = (
            ImageLayout(rows=1, columns=side * side + kept)
            if kept
            else ImageLayout(rows=side, columns=side)
        )
        in_dtype(self, config.dtype)

    def forward(self, views: Views) -> torch.Tensor:
        assert isinstance(views, torch.Tensor)
        output = self.tower(
            pixel_values=views.to(self.dtype),
            output_hidden_states=not self.config.post_norm,
            **self.told,
        )
        return self.arrangement.tokens(self._features(output))[:, self.dropped :]

    def load_pretrained(self) -> None:
        """Load the model from `source`; layers above the one that is read are left out."""
        used = depth_of(self.config.layer, self.layers)
        above = [
            f"{name}.{number}."
            for name, part in self.tower.named_modules()
            if isinstance(part, nn.ModuleList) and len(part) == used
            for number in range(used, self.layers)
        ]
        self.load_tower(
            self.config.source,
            self.config.name,
            unread=(*UNREAD, *above),
            allowed=self.config.allow_unused,
        )

    def _features(self, output: Any) -> torch.Tensor:
        features = output.last_hidden_state if self.config.post_norm else output.hidden_states[-1]
        return cast(torch.Tensor, features)

    def _probed(self, states: int | None) -> torch.Size:
        """The shape of the features of two images; `states` is how many hidden states there must be
        in a model that was cut.

        Raises:
            ConfigError: the model takes no such images, or does not give what is asked for.
        """
        size, kind = self.config.image_size, self.tower.config.model_type
        try:
            output = self.tower(
                pixel_values=torch.zeros(2, 3, size, size), output_hidden_states=True, **self.told
            )
        except (TypeError, ValueError, RuntimeError) as error:  # as each model says no
            raise ConfigError(
                f"{kind!r} takes no plain images of {size} pixels: {error}", field="image_size"
            ) from None
        if "last_hidden_state" not in output:
            raise ConfigError(f"{kind!r} gives no last_hidden_state", field="architecture")
        given = output.get("hidden_states")
        if states is not None and (given is None or len(given) != states):
            raise ConfigError(f"{kind!r} cannot be cut after a layer", field="layer")
        if not self.config.post_norm and (given is None or given[-1] is output.last_hidden_state):
            raise ConfigError(
                f"{kind!r} gives no hidden state before its last norm", field="post_norm"
            )
        return self._features(output).shape


def arrangement(
    shape: torch.Size, hf: Any, image_size: int, prefix: int | None = None
) -> Arrangement:
    """How the features of two images, of that shape, stand on a square grid.

    Raises:
        ConfigError: they do not.
    """
    kind = hf.model_type
    if len(shape) == 4:
        _, first, second, third = shape
        if first == second == third or (first != second and second != third):
            raise ConfigError(
                f"{kind!r} gives a map of {list(shape[1:])}, which has no square grid"
            )
        if second == third:
            return Arrangement(form="channels_first", side=second, channels=first)
        return Arrangement(form="channels_last", side=first, channels=third)
    if len(shape) != 3 or shape[0] != 2:
        raise ConfigError(f"{kind!r} gives features of shape {list(shape)} for two images")
    tokens, channels = shape[1:]
    known = _prefixes(hf) if prefix is None else (prefix,)
    full = _patches(hf, image_size)
    found = [count for count in known if full is not None and tokens - count == full]
    if not found and (full is None or tokens < full):  # patches are merged on the way up
        found = [count for count in known if _is_square(tokens - count)]
    if len(found) != 1:
        raise ConfigError(
            f"{kind!r} gives {tokens} tokens for {image_size} pixels, which are no square grid behind "
            f"{' or '.join(map(str, known))} prefix tokens",
            field="prefix",
            remedy="If others stand before the patches, say how many in prefix",
        )
    side = math.isqrt(tokens - found[0])
    return Arrangement(form="tokens", side=side, channels=channels, prefix=found[0])


def _prefixes(hf: Any) -> tuple[int, ...]:
    """The numbers of prefix tokens that a model can have: none, a class token, DeiT's distillation
    token, registers."""
    data = hf.to_dict()
    if "mask_ratio" in data:
        raise ConfigError(f"{hf.model_type!r} drops and shuffles patches at random")
    registers = int(data.get("num_register_tokens") or 0)
    if registers:
        return (1 + registers,)
    return (2,) if hf.model_type == "deit" else (0, 1)


def _patches(hf: Any, image_size: int) -> int | None:
    """How many patches the image is cut into, where the model says how large they are."""
    patch = hf.to_dict().get("patch_size")
    return (image_size // patch) ** 2 if isinstance(patch, int) else None


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _layers(hf: Any, layer: int) -> int:
    """How many layers the model has; 1 where it is made of stages, of which only the last is read.

    Raises:
        ConfigError: another is asked for.
    """
    count = hf.to_dict().get("num_hidden_layers")
    if count is None and layer != -1:
        raise ConfigError(
            f"{hf.model_type!r} is made of stages, and only layer -1 can be read", field="layer"
        )
    return int(count or 1)


def _native_size(hf: Any) -> int:
    """The side of the model's own images.

    Raises:
        ConfigError: it states none, or they are not square.
    """
    size = hf.to_dict().get("image_size")
    sides = {size} if isinstance(size, int) else set(size or ())
    if len(sides) != 1:
        raise ConfigError(
            f"{hf.model_type!r} states no size of square images",
            field="image_size",
            remedy="Set image_size",
        )
    return int(sides.pop())


def _built(hf: Any) -> PreTrainedModel:
    """The model with random weights, without what makes a pooled output.

    Raises:
        ConfigError: it is no vision model of transformers, or takes more than pixels.
    """
    try:
        model: PreTrainedModel = AutoModel.from_config(hf)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"transformers builds no vision model for {hf.model_type!r}: {error}",
            field="architecture",
        ) from None
    parameters = inspect.signature(model.forward).parameters
    needed = [name for name, one in parameters.items() if one.default is one.empty]
    needed = [name for name in needed if parameters[name].kind is not inspect.Parameter.VAR_KEYWORD]
    if "pixel_values" not in parameters or set(needed) - {"pixel_values"}:
        raise ConfigError(
            f"{hf.model_type!r} takes {', '.join(needed or parameters)}, not pixel_values alone",
            field="architecture",
        )
    for name, part in list(model.named_children()):
        if name in POOLED and any(True for _ in part.parameters()):
            setattr(model, name, nn.Identity())
    return model


def _told(model: PreTrainedModel, image_size: int) -> dict[str, Any]:
    """What the model must be told to take images of that size."""
    asks = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    own = model.config.to_dict().get("image_size")
    return {"interpolate_pos_encoding": True} if asks and own != image_size else {}


def _preprocessing(source: str) -> dict[str, Any]:
    """The settings of the checkpoint's image processor; empty where it has none."""
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:
        return {}
    return dict(settings)
