"""CLIP and SigLIP vision towers of transformers.

`layer` counts as in LLaVA: -1 is the last layer's output, -2 the one before. Only the layers that are
used are built, so checkpoints carry no dead weights. CLIP puts one class token before the patches;
SigLIP has none, and nothing is dropped from it.
"""

from __future__ import annotations

from typing import Any, Literal, Self, cast

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PretrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from medloupe.errors import CheckpointError, ConfigError
from medloupe.models.encoders.base import Encoder, PlaneEncoderConfig
from medloupe.types import ImageLayout, Views


class _VisionTowerConfig(PlaneEncoderConfig):
    """Fields that CLIP and SigLIP share. `source` is a folder or a hub id; `architecture` the
    transformers config as plain data, filled by `resolved()` and saved with every checkpoint."""

    source: str | None = None
    architecture: dict[str, Any] | None = None
    image_size: int = 0
    layer: int = -1
    post_norm: bool = False

    def hf_config(self) -> PretrainedConfig:
        raise NotImplementedError

    def hf_class(self) -> type[PreTrainedModel]:
        raise NotImplementedError

    def resolved(self) -> Self:
        if self.architecture is not None and self.image_size:
            return self
        config = self.hf_config()
        return self.model_copy(
            update={"architecture": config.to_diff_dict(), "image_size": config.image_size}
        )

    def build(self) -> HFVisionTower:
        return HFVisionTower(self.resolved())

    def _config_of(self, kind: type[PretrainedConfig]) -> PretrainedConfig:
        if self.architecture is not None:
            return kind.from_dict(self.architecture)
        if self.source is None:
            raise ConfigError(
                f"encoder {self.name!r} needs a source (folder or hub id) or an architecture",
                field="source",
            )
        try:
            return kind.from_pretrained(self.source)
        except OSError as error:
            raise CheckpointError(
                f"cannot read a vision tower from {self.source!r}: {error}"
            ) from None


class CLIPEncoderConfig(_VisionTowerConfig):
    """Radford et al. 2021. LLaVA uses layer -2 without the class token."""

    layer: int = -2
    class_token: Literal["drop", "keep"] = "drop"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def hf_config(self) -> PretrainedConfig:
        return self._config_of(CLIPVisionConfig)

    def hf_class(self) -> type[PreTrainedModel]:
        return CLIPVisionModel


class SiglipEncoderConfig(_VisionTowerConfig):
    """Zhai et al. 2023. Every token is a patch."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def hf_config(self) -> PretrainedConfig:
        return self._config_of(SiglipVisionConfig)

    def hf_class(self) -> type[PreTrainedModel]:
        return SiglipVisionModel


class HFVisionTower(Encoder):
    """A transformers vision tower cut after the layer that is read."""

    def __init__(self, config: _VisionTowerConfig) -> None:
        super().__init__()
        hf = config.hf_config()
        used = hf.num_hidden_layers + 1 + config.layer if config.layer < 0 else config.layer
        if not 1 <= used <= hf.num_hidden_layers:
            raise ConfigError(
                f"layer {config.layer} is not one of {hf.num_hidden_layers} layers", field="layer"
            )
        if config.image_size != hf.image_size:
            raise ConfigError(
                f"image_size {config.image_size} differs from the tower's {hf.image_size}",
                field="image_size",
            )
        self.config, self.channels = config, int(hf.hidden_size)
        hf.num_hidden_layers = used
        if isinstance(hf, SiglipVisionConfig):
            hf.vision_use_head = False
        self.tower = config.hf_class()(hf)
        side = hf.image_size // hf.patch_size
        self.prefix_tokens = int(isinstance(config, CLIPEncoderConfig))
        self.keep_prefix = isinstance(config, CLIPEncoderConfig) and config.class_token == "keep"
        self.layout = (
            ImageLayout(rows=1, columns=side * side + 1)
            if self.keep_prefix
            else ImageLayout(rows=side, columns=side)
        )

    def forward(self, views: Views) -> torch.Tensor:
        assert isinstance(views, torch.Tensor)
        dtype = next(self.tower.parameters()).dtype
        output = self.tower(
            pixel_values=views.to(dtype), output_hidden_states=not self.config.post_norm
        )
        features = self._normalised(output) if self.config.post_norm else output.hidden_states[-1]
        return features if self.keep_prefix else features[:, self.prefix_tokens :]

    def _normalised(self, output: Any) -> torch.Tensor:
        """SigLIP's `last_hidden_state` is normalised already; CLIP norms only the class token."""
        hidden = output.last_hidden_state
        if isinstance(self.config, SiglipEncoderConfig):
            return cast(torch.Tensor, hidden)
        return cast(torch.Tensor, self.tower.get_submodule("post_layernorm")(hidden))

    def load_pretrained(self) -> None:
        """Load the tower from `source`; layers above the one that is read are left out."""
        source = self.config.source
        if source is None:
            raise CheckpointError(f"encoder {self.config.name!r} names no source to load from")
        try:
            whole = self.config.hf_class().from_pretrained(source)
        except OSError as error:
            raise CheckpointError(f"cannot load a vision tower from {source!r}: {error}") from None
        own, published = self.tower.state_dict(), whole.state_dict()
        missing = [key for key in own if key not in published]
        if missing:
            raise CheckpointError(
                f"{source!r} lacks {len(missing)} tensors, the first {missing[0]}"
            )
        self.tower.load_state_dict({key: published[key] for key in own})
