"""ResNet and ConvNeXt against transformers, at every stride and at odd sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
)

from medloupe.errors import CheckpointError, ConfigError
from medloupe.models.encoders import EncoderConfig
from medloupe.types import ImageLayout

CONFIGS: dict[str, Any] = {
    "resnet": lambda: ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[2, 1, 2, 1]
    ),
    "convnext": lambda: ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1], layer_scale_init_value=0.3
    ),
}
MODELS: dict[str, Any] = {"resnet": ResNetModel, "convnext": ConvNextModel}
HEADS: dict[str, Any] = {
    "resnet": ResNetForImageClassification,
    "convnext": ConvNextForImageClassification,
}
every_network = pytest.mark.parametrize("kind", list(CONFIGS))
# The same convolutions on the same tensors.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def saved(kind: str, folder: Path, model: Any = None) -> Any:
    torch.manual_seed(3)
    network = (model or MODELS[kind])(CONFIGS[kind]()).eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor += 0.1 * torch.randn_like(tensor)
    network.save_pretrained(folder)
    return network


def ours(kind: str, folder: Path, **fields: Any) -> Any:
    config = EncoderConfig.parse({"name": kind, "source": str(folder), **fields}).resolved()
    encoder = EncoderConfig.parse(config.to_dict()).build()
    encoder.load_pretrained()
    return encoder.eval()


def wanted_map(network: Any, pixels: torch.Tensor, stride: int) -> torch.Tensor:
    """The output of the stage of that stride, from the reference's own hidden states."""
    states = network(pixels, output_hidden_states=True).hidden_states
    chosen: torch.Tensor = states[{4: 1, 8: 2, 16: 3, 32: 4}[stride]]
    return chosen


@pytest.mark.parametrize("image_size", [64, 100, 65])
@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@every_network
def test_the_map_of_each_stride(tmp_path: Path, kind: str, stride: int, image_size: int) -> None:
    network = saved(kind, tmp_path)
    pixels = torch.randn(2, 3, image_size, image_size)
    encoder = ours(kind, tmp_path, stride=stride, image_size=image_size)
    with torch.no_grad():
        wanted = wanted_map(network, pixels, stride)
        features = encoder(pixels)
    side = wanted.shape[-1]
    assert encoder.layout == ImageLayout(rows=side, columns=side)
    assert encoder.channels == wanted.shape[1]
    torch.testing.assert_close(features, wanted.flatten(2).transpose(1, 2), **CLOSE)


@every_network
def test_gradients_equal(tmp_path: Path, kind: str) -> None:
    network = saved(kind, tmp_path)
    encoder = ours(kind, tmp_path, stride=16, image_size=64)
    pixels = torch.randn(2, 3, 64, 64)
    wanted = wanted_map(network, pixels, 16)
    weights = torch.randn_like(wanted)
    (wanted * weights).sum().backward()
    (encoder.train()(pixels) * weights.flatten(2).transpose(1, 2)).sum().backward()
    reference = {key: one.grad for key, one in network.named_parameters()}
    for key, parameter in encoder.tower.named_parameters():
        # Sums over whole maps: relative to the largest number of each tensor.
        scale = float(reference[key].abs().max())
        torch.testing.assert_close(
            parameter.grad, reference[key], rtol=1e-4, atol=1e-5 * scale + 1e-6
        )


@every_network
def test_a_published_classifier_is_read_without_its_head(tmp_path: Path, kind: str) -> None:
    network = saved(kind, tmp_path, HEADS[kind])
    pixels = torch.randn(1, 3, 64, 64)
    body = network.get_submodule(kind)
    encoder = ours(kind, tmp_path, stride=32, image_size=64)
    with torch.no_grad():
        wanted = body(pixels).last_hidden_state.flatten(2).transpose(1, 2)
        torch.testing.assert_close(encoder(pixels), wanted, **CLOSE)


def test_convnext_norm_of_every_cell(tmp_path: Path) -> None:
    network = saved("convnext", tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    encoder = ours("convnext", tmp_path, image_size=64, post_norm=True)
    with torch.no_grad():
        cells = network(pixels).last_hidden_state.flatten(2).transpose(1, 2)
        torch.testing.assert_close(encoder(pixels), network.layernorm(cells), **CLOSE)
    with pytest.raises(ConfigError, match="post_norm is of the last stage only"):
        ours("convnext", tmp_path, image_size=64, stride=16, post_norm=True)


def test_batch_norms_keep_their_statistics_in_training(tmp_path: Path) -> None:
    saved("resnet", tmp_path)
    encoder = ours("resnet", tmp_path, image_size=64)
    pixels = torch.randn(2, 3, 64, 64) * 5
    before = {key: value.clone() for key, value in encoder.named_buffers()}
    quiet = encoder(pixels)
    assert torch.equal(encoder.train()(pixels), quiet)
    for key, value in encoder.named_buffers():
        assert torch.equal(value, before[key]), key


def test_a_checkpoint_that_lacks_a_stage_is_refused(tmp_path: Path) -> None:
    network = saved("resnet", tmp_path)
    state = {k: v for k, v in network.state_dict().items() if "stages.2" not in k}
    network.save_pretrained(tmp_path, state_dict=state)
    ours("resnet", tmp_path, stride=8)
    with pytest.raises(CheckpointError, match=r"lacks \d+ tensors, the first encoder\.stages\.2"):
        ours("resnet", tmp_path, stride=16)


def test_published_sizes() -> None:
    """ResNet-50 at 448 gives HiA's 14 x 14 = 196 tokens of 2048 channels, at 672 its 441."""
    for name, size, side, channels, stride in (
        ("resnet", 448, 14, 2048, 32),
        ("resnet", 672, 21, 2048, 32),
        ("resnet", 224, 14, 1024, 16),
        ("convnext", 224, 7, 768, 32),
    ):
        with torch.device("meta"):
            data = {"name": name, "image_size": size, "stride": stride}
            encoder: Any = EncoderConfig.parse(data).build()
            features = encoder(torch.zeros(1, 3, size, size))
            whole = MODELS[name](MODELS[name].config_class())
        assert features.shape == (1, side * side, channels)
        assert encoder.layout == ImageLayout(rows=side, columns=side)
        own = {key: one.shape for key, one in encoder.tower.state_dict().items()}
        kept = {key: one.shape for key, one in whole.state_dict().items() if key in own}
        assert own == kept
        left = whole.state_dict().keys() - own.keys()
        above = ("encoder.stages.3", "layernorm")
        assert all(key.startswith(above) for key in left)


def test_an_image_below_the_stride_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image_size 16 is below the stride 32"):
        EncoderConfig.parse({"name": "convnext", "image_size": 16}).build()
