"""EfficientNet-Lite0 against an independent implementation, at every stride and at odd sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from medloupe.errors import MissingExtraError
from medloupe.models.encoders.efficientnet import (
    EfficientNetLite0Config,
    SameConv2d,
    _rename,
    imagenet_weights,
)

reference = pytest.importorskip(
    "efficientnet_lite_pytorch", reason="pip install efficientnet-lite-pytorch"
)
# The reference's first blocks whose output is the map of each stride.
BLOCKS = {8: 5, 16: 11, 32: 16}


def published(image_size: int) -> Any:
    """The reference with the published weights; it works out its padding for one image size."""
    try:
        weights = imagenet_weights()
    except MissingExtraError as error:
        pytest.skip(str(error))
    network = reference.EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


def feature_map(network: Any, pixels: torch.Tensor, stride: int) -> torch.Tensor:
    x = F.relu6(network._bn0(network._conv_stem(pixels)))
    for block in network._blocks[: BLOCKS[stride]]:
        x = block(x)
    return F.relu6(network._bn1(network._conv_head(x))) if stride == 32 else x


@pytest.mark.parametrize("image_size", [224, 225, 97, 64])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_published_weights_give_the_reference_features(stride: int, image_size: int) -> None:
    network = published(image_size)
    encoder = EfficientNetLite0Config(stride=stride, image_size=image_size).build().eval()
    encoder.load_pretrained()
    pixels = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        wanted = feature_map(network, pixels, stride)
        features = encoder(pixels)
    side = wanted.shape[-1]
    assert (encoder.layout.rows, encoder.layout.columns, encoder.channels) == (
        side,
        side,
        wanted.shape[1],
    )
    torch.testing.assert_close(
        features,
        wanted.flatten(2).transpose(1, 2),
        rtol=1e-4,
        atol=1e-5 * float(wanted.abs().max()),
    )


def test_the_reference_map_is_what_its_own_forward_reads() -> None:
    network = published(64)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(feature_map(network, pixels, 32), network.extract_features(pixels))


def test_every_published_tensor_has_a_place() -> None:
    network = published(64)
    own = EfficientNetLite0Config().build().state_dict()
    names = {_rename(key) for key in network.state_dict()}
    assert names - set(own) == {"_fc.weight", "_fc.bias"}
    assert set(own) - names == set()


@pytest.mark.parametrize("size", [5, 6, 7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (1, 1)])
def test_same_padding_puts_the_odd_pixel_right_and_below(
    kernel: int, stride: int, size: int
) -> None:
    """TensorFlow's rule, counted by hand: output ceil(n / s), the window of output 0 begins at
    -(total // 2) where total is the padding."""
    convolution = SameConv2d(1, 1, kernel, stride)
    image = torch.randn(1, 1, size, size)
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    wide = torch.zeros(size + 4 * kernel, size + 4 * kernel)
    wide[2 * kernel : 2 * kernel + size, 2 * kernel : 2 * kernel + size] = image[0, 0]
    result = convolution(image)[0, 0]
    assert result.shape == (out, out)
    for i in range(out):
        for j in range(out):
            top, left = (2 * kernel - total // 2 + k * stride for k in (i, j))
            window = wide[top : top + kernel, left : left + kernel]
            torch.testing.assert_close(
                result[i, j], (window * convolution.weight[0, 0]).sum(), rtol=1e-5, atol=1e-5
            )


def test_batch_norms_keep_their_statistics_in_training() -> None:
    encoder = EfficientNetLite0Config(stride=8, image_size=32).build().train()
    before = {key: value.clone() for key, value in encoder.named_buffers()}
    encoder(torch.randn(2, 3, 32, 32) * 5)
    for key, value in encoder.named_buffers():
        assert torch.equal(value, before[key]), key
