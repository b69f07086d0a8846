"""Vision towers of transformers by family: CLIP, SigLIP, SigLIP2, DINOv2 and DINOv3.

`layer` counts as in LLaVA: -1 is the last layer's output, -2 the one before. Only the layers that are
used are built, so checkpoints carry no dead weights. CLIP puts one class token before the patches, DINO
also its registers; SigLIP has none, and nothing is dropped from it.
An `image_size` other than the tower's own stretches the position embeddings over the new grid.
Shapes: N images, S pixels a side, G patches a side, T tokens, C channels, P numbers of a patch.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self, cast

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PretrainedConfig,
    PreTrainedModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from medloupe.errors import ConfigError
from medloupe.imaging.transforms import IMAGENET_MEAN, IMAGENET_STD
from medloupe.models.encoders.base import PlaneEncoderConfig
from medloupe.models.encoders.checkpoints import config_data, config_from, depth_of
from medloupe.models.encoders.tower import DType, TowerEncoder, in_dtype
from medloupe.types import ImageLayout, Views

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class _VisionTowerConfig(PlaneEncoderConfig):
    """Fields that all towers share.

    `source` is a folder or a hub id; `architecture` the transformers config as plain data, filled by
    `resolved()` and saved with every checkpoint. `image_size` 0 is the tower's own. `dtype` is what the
    weights are kept in; a tower that is to be trained needs float32. `allow_unused` names tensors of
    the checkpoint (or prefixes) that may fit nothing.
    """

    source: str | None = None
    architecture: dict[str, Any] | None = None
    image_size: int = 0
    layer: int = -1
    post_norm: bool = False
    dtype: DType = "float32"
    allow_unused: tuple[str, ...] = ()

    # The other half of a published pair of towers, and heads: they are never read.
    unread: ClassVar[tuple[str, ...]] = ()
    # The norm that the tower's own output lacks; None where it has it.
    final_norm: ClassVar[str | None] = None
    # Whether the tower interpolates its position embeddings only when it is told to.
    asks_for_size: ClassVar[bool] = False
    layers_at: ClassVar[str] = "encoder.layers"

    def hf_kind(self) -> type[PretrainedConfig]:
        raise NotImplementedError

    def hf_class(self) -> type[PreTrainedModel]:
        raise NotImplementedError

    def hf_config(self) -> Any:
        """The whole tower's config of transformers.

        Raises:
            ConfigError: the config names neither a source nor an architecture.
            CheckpointError: the source cannot be read, or is of another family.
        """
        if self.architecture is not None:
            return self.hf_kind().from_dict(self.architecture)
        if self.source is None:
            raise ConfigError(
                f"encoder {self.name!r} needs a source (folder or hub id) or an architecture",
                field="source",
            )
        return config_from(self.source, self.hf_kind(), self.name)

    def prefix_tokens_of(self, hf: Any) -> int:
        """How many tokens stand before the patches."""
        del hf
        return 0

    @property
    def keeps_prefix(self) -> bool:
        return False

    def resolved(self) -> Self:
        if self.architecture is not None and self.image_size:
            return self
        hf = self.hf_config()
        return self.model_copy(
            update={
                "architecture": hf.to_diff_dict(),
                "image_size": self.image_size or native_size(hf),
            }
        )

    def build(self) -> HFVisionTower:
        return HFVisionTower(self.resolved())


class CLIPEncoderConfig(_VisionTowerConfig):
    """Radford et al. 2021. LLaVA uses layer -2 without the class token."""

    layer: int = -2
    class_token: Literal["drop", "keep"] = "drop"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    unread = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
    final_norm = "post_layernorm"
    asks_for_size = True

    def hf_kind(self) -> type[PretrainedConfig]:
        return CLIPVisionConfig

    def hf_class(self) -> type[PreTrainedModel]:
        return CLIPVisionModel

    def prefix_tokens_of(self, hf: Any) -> int:
        del hf
        return 1

    @property
    def keeps_prefix(self) -> bool:
        return self.class_token == "keep"


class SiglipEncoderConfig(_VisionTowerConfig):
    """Zhai et al. 2023, and SigLIP2's checkpoints of one size. Every token is a patch."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    unread = ("text_model.", "logit_scale", "logit_bias", "head.")
    asks_for_size = True

    def hf_kind(self) -> type[PretrainedConfig]:
        return SiglipVisionConfig

    def hf_class(self) -> type[PreTrainedModel]:
        return SiglipVisionModel


class Siglip2EncoderConfig(SiglipEncoderConfig):
    """SigLIP2's NaFlex checkpoints (Tschannen et al. 2025), here on square images of one size.

    SigLIP2's other checkpoints have SigLIP's architecture and are read by `siglip`.
    """

    asks_for_size = False

    def hf_kind(self) -> type[PretrainedConfig]:
        return Siglip2VisionConfig

    def hf_class(self) -> type[PreTrainedModel]:
        return Siglip2VisionModel

    def build(self) -> HFVisionTower:
        return NaFlexTower(self.resolved())


class _DinoConfig(_VisionTowerConfig):
    """What DINOv2 and DINOv3 share: a class token, registers, a mask token that is never read."""

    prefix_tokens: Literal["drop", "keep"] = "drop"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    unread = ("embeddings.mask_token",)

    def prefix_tokens_of(self, hf: Any) -> int:
        return 1 if isinstance(hf, Dinov2Config) else 1 + int(hf.num_register_tokens)

    @property
    def keeps_prefix(self) -> bool:
        return self.prefix_tokens == "keep"

    def build(self) -> HFVisionTower:
        return DinoTower(self.resolved())


class Dinov2EncoderConfig(_DinoConfig):
    """Oquab et al. 2023, and its checkpoints with registers (Darcet et al. 2023)."""

    layers_at = "encoder.layer"

    def hf_kind(self) -> type[PretrainedConfig]:
        return Dinov2WithRegistersConfig if self._with_registers() else Dinov2Config

    def hf_class(self) -> type[PreTrainedModel]:
        return Dinov2WithRegistersModel if self._with_registers() else Dinov2Model

    def _with_registers(self) -> bool:
        data = self.architecture
        if data is None:
            data = {} if self.source is None else config_data(self.source)
        return data.get("model_type") == Dinov2WithRegistersConfig.model_type


class Dinov3EncoderConfig(_DinoConfig):
    """Siméoni et al. 2025: rotary positions, so any image size is its own."""

    layers_at = "model.layer"

    def hf_kind(self) -> type[PretrainedConfig]:
        return DINOv3ViTConfig

    def hf_class(self) -> type[PreTrainedModel]:
        return DINOv3ViTModel


class HFVisionTower(TowerEncoder):
    """A transformers vision tower cut after the layer that is read."""

    def __init__(self, config: _VisionTowerConfig) -> None:
        super().__init__()
        hf = config.hf_config()
        self.config, self.channels = config, int(hf.hidden_size)
        self.layers = int(hf.num_hidden_layers)
        hf.num_hidden_layers = depth_of(config.layer, self.layers)
        if isinstance(hf, SiglipVisionConfig | Siglip2VisionConfig):
            hf.vision_use_head = False
        self.tower = config.hf_class()(hf)
        self.interpolates = config.asks_for_size and config.image_size != native_size(hf)
        self.prefix_tokens = config.prefix_tokens_of(hf)
        self.keep_prefix = config.keeps_prefix
        self.layout = patch_layout(
            config.image_size, hf.patch_size, self.prefix_tokens if self.keep_prefix else 0
        )
        in_dtype(self, config.dtype)

    def forward(self, views: Views) -> torch.Tensor:
        assert isinstance(views, torch.Tensor)
        features = self._features(views.to(self.dtype))
        return features if self.keep_prefix else features[:, self.prefix_tokens :]

    def _features(self, pixels_N3SS: torch.Tensor) -> torch.Tensor:
        """Every token of the layer that is read, normalised where the config says so."""
        arguments = self._arguments(pixels_N3SS)
        if self.config.final_norm is not None:
            hidden = self.tower(**arguments).last_hidden_state
            norm = self.tower.get_submodule(self.config.final_norm)
            return cast(torch.Tensor, norm(hidden) if self.config.post_norm else hidden)
        if self.config.post_norm:
            return cast(torch.Tensor, self.tower(**arguments).last_hidden_state)
        last = self.tower.config.num_hidden_layers
        states = self.tower(**arguments, output_hidden_states=[last]).hidden_states
        return cast(torch.Tensor, states[last])

    def _arguments(self, pixels_N3SS: torch.Tensor) -> dict[str, Any]:
        told = {"interpolate_pos_encoding": True} if self.interpolates else {}
        return {"pixel_values": pixels_N3SS, **told}

    def load_pretrained(self) -> None:
        """Load the tower from `source`; layers above the one that is read are left out."""
        used = int(self.tower.config.num_hidden_layers)
        above = (f"{self.config.layers_at}.{number}." for number in range(used, self.layers))
        self.load_tower(
            self.config.source,
            self.config.name,
            unread=(*self.config.unread, *above),
            allowed=self.config.allow_unused,
        )


class NaFlexTower(HFVisionTower):
    """SigLIP2's NaFlex takes patches of any grid; here the whole batch has one square grid."""

    def _arguments(self, pixels_N3SS: torch.Tensor) -> dict[str, Any]:
        patches_NTP = square_patches(pixels_N3SS, int(self.tower.config.patch_size))
        grid = torch.tensor([[self.layout.rows, self.layout.columns]])
        return {
            "pixel_values": patches_NTP,
            "pixel_attention_mask": None,  # no row is padded
            "spatial_shapes": grid.expand(len(patches_NTP), 2),
        }


class DinoTower(HFVisionTower):
    """DINO without its mask token, which only pretraining reads."""

    def __init__(self, config: _DinoConfig) -> None:
        super().__init__(config)
        embeddings = self.tower.get_submodule("embeddings")
        blank = torch.zeros_like(embeddings.get_parameter("mask_token"), requires_grad=False)
        del embeddings.mask_token
        embeddings.register_buffer("mask_token", blank, persistent=False)


def square_patches(pixels_N3SS: torch.Tensor, patch: int) -> torch.Tensor:
    """`[N, G * G, patch * patch * 3]`, row-major, the channels of a pixel together."""
    side = pixels_N3SS.shape[-1] // patch
    whole = pixels_N3SS[..., : side * patch, : side * patch]
    cells = whole.unflatten(-1, (side, patch)).unflatten(-3, (side, patch))  # N 3 G p G p
    patches: torch.Tensor = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return patches


def native_size(hf: Any) -> int:
    """The side of the square images that a tower was trained on.

    Raises:
        ConfigError: they were not square.
    """
    if hf.model_type == Siglip2VisionConfig.model_type:
        return math.isqrt(hf.num_patches) * int(hf.patch_size)
    size = hf.image_size
    if isinstance(size, int):
        return size
    rows, columns = size
    if rows != columns:
        raise ConfigError(f"the tower takes images of {rows} x {columns}, not square ones")
    return int(rows)


def patch_layout(image_size: int, patch: int, prefix: int) -> ImageLayout:
    """The grid of patches, or, where `prefix` tokens are kept before them, one row of all tokens.

    Raises:
        ConfigError: no patch fits into the image.
    """
    side = image_size // patch
    if side < 1:
        raise ConfigError(
            f"image_size {image_size} holds no patch of {patch} pixels", field="image_size"
        )
    if prefix:
        return ImageLayout(rows=1, columns=side * side + prefix)
    return ImageLayout(rows=side, columns=side)
