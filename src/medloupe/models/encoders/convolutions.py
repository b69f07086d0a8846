"""ResNet and ConvNeXt of transformers, cut after the stage whose map is read.

Any input size: the map has one cell for each `stride` pixels, rounded up for ResNet and down for
ConvNeXt, which cuts the image into patches.
Source: He et al. 2016; Liu et al. 2022.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    PretrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
)

from medloupe.errors import ConfigError
from medloupe.imaging.transforms import IMAGENET_MEAN, IMAGENET_STD
from medloupe.models.encoders.base import PlaneEncoderConfig
from medloupe.models.encoders.checkpoints import config_from
from medloupe.models.encoders.tower import DType, TowerEncoder, in_dtype
from medloupe.types import ImageLayout, Views


class _ConvolutionConfig(PlaneEncoderConfig):
    """Fields that both share; see `hf_vision` for `source`, `architecture`, `dtype`, `allow_unused`."""

    source: str | None = None
    architecture: dict[str, Any] | None = None
    image_size: int = 224
    stride: Literal[4, 8, 16, 32] = 32
    dtype: DType = "float32"
    allow_unused: tuple[str, ...] = ()
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    hf_kind: ClassVar[type[PretrainedConfig]]
    hf_class: ClassVar[type[PreTrainedModel]]

    def hf_config(self) -> Any:
        """The whole network's config of transformers."""
        if self.architecture is not None:
            return self.hf_kind.from_dict(self.architecture)
        if self.source is not None:
            return config_from(self.source, self.hf_kind, self.name)
        return self.hf_kind()  # the family's usual size

    def resolved(self) -> Self:
        if self.architecture is not None:
            return self
        return self.model_copy(update={"architecture": self.hf_config().to_diff_dict()})

    def stages(self) -> int:
        """How many stages make the map of `stride`."""
        return self.stride.bit_length() - 2

    def cut(self) -> Any:
        """The config of the network up to the map that is read.

        Raises:
            ConfigError: the network has no such map.
        """
        whole, stages = self.hf_config(), self.stages()
        if stages > len(whole.depths):
            raise ConfigError(
                f"no map of stride {self.stride}: the network has {len(whole.depths)} stages",
                field="stride",
            )
        # What names stages in transformers' config would still name those that are cut.
        data = {k: v for k, v in whole.to_dict().items() if k not in STAGE_NAMES}
        data |= {key: list(data[key])[:stages] for key in ("hidden_sizes", "depths")}
        if "num_stages" in data:
            data["num_stages"] = stages
        return self.hf_kind.from_dict(data)

    def side(self) -> int:
        """Cells of the map along each side."""
        raise NotImplementedError

    def build(self) -> ConvolutionEncoder:
        return ConvolutionEncoder(self.resolved())


STAGE_NAMES = ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices")


class ResNetEncoderConfig(_ConvolutionConfig):
    """He et al. 2016; without a source or an architecture ResNet-50: 7 x 7 x 2048 at 224 pixels."""

    hf_kind = ResNetConfig
    hf_class = ResNetModel

    def side(self) -> int:
        return -(-self.image_size // self.stride)


class ConvNextEncoderConfig(_ConvolutionConfig):
    """Liu et al. 2022; without a source or an architecture ConvNeXt-T. `post_norm` applies the norm that
    stands before the classifier to every cell of the last map."""

    post_norm: bool = False

    hf_kind = ConvNextConfig
    hf_class = ConvNextModel

    def side(self) -> int:
        return self.image_size // self.stride


class ConvolutionEncoder(TowerEncoder):
    """The network up to the map that is read; a cell is a token."""

    def __init__(self, config: _ConvolutionConfig) -> None:
        super().__init__()
        hf = config.cut()
        self.config, self.channels = config, int(hf.hidden_sizes[-1])
        self.stages = len(config.hf_config().depths)
        self.tower = config.hf_class(hf)
        normed = isinstance(config, ConvNextEncoderConfig) and config.post_norm
        if normed and self.stages != config.stages():
            raise ConfigError("post_norm is of the last stage only", field="post_norm")
        self.norm_is_read = normed
        if isinstance(config, ConvNextEncoderConfig) and not normed:
            self.tower.layernorm = nn.Identity()
        side = config.side()
        if side < 1:
            raise ConfigError(
                f"image_size {config.image_size} is below the stride {config.stride}",
                field="image_size",
            )
        self.layout = ImageLayout(rows=side, columns=side)
        in_dtype(self, config.dtype)

    def forward(self, views: Views) -> torch.Tensor:
        assert isinstance(views, torch.Tensor)
        pixels = views.to(self.dtype)
        features: torch.Tensor = self.tower(pixels).last_hidden_state.flatten(2).transpose(1, 2)
        return self.tower.get_submodule("layernorm")(features) if self.norm_is_read else features

    def load_pretrained(self) -> None:
        """Load the network from `source`; stages above the map that is read are left out."""
        above = [f"encoder.stages.{n}." for n in range(self.config.stages(), self.stages)]
        self.load_tower(
            self.config.source,
            self.config.name,
            unread=("classifier.", "layernorm.", *above),
            allowed=self.config.allow_unused,
        )
