"""Grouping, pooling and means against plain loops; LiteGPT's and MedM-VL's sizes on the meta device.

Tolerances: gradients are float32 sums over up to 288 tokens in another order (rtol 1e-4, atol 2e-5).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from medloupe.models.connectors.grouped import GroupedConnector, GroupedConnectorConfig
from medloupe.models.connectors.mlp import MLPConnector, MLPConnectorConfig
from medloupe.models.connectors.pooling import MeanSlicesConnectorConfig, PooledConnectorConfig
from medloupe.types import ImageLayout

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
VOLUME = ImageLayout(depth=4, rows=4, columns=6)
Reference = Callable[[torch.Tensor], torch.Tensor]


def mlp(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Linear layers with the exact GELU between them."""
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for place, linear in enumerate(linears):
        x = x @ linear.weight.T + linear.bias
        if place < len(linears) - 1:
            x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return x


def same(module: nn.Module, grid: ImageLayout, reference: Reference, channels: int = 5) -> None:
    """Equal outputs, and equal gradients of features and parameters, for the same loss."""
    features = torch.randn(3, grid.tokens, channels)
    results = []
    for forward in (lambda x: module(x, grid), reference):
        module.zero_grad()
        x = features.clone().requires_grad_()
        out = forward(x)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out, x.grad, *(parameter.grad for parameter in module.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    assert results[0][0].shape[1] == module.layout(grid).tokens


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_grouped_tokens(depth: int, norm: bool) -> None:
    config = GroupedConnectorConfig(group=4, depth=depth, hidden=20, norm=norm)
    module = config.build(5, 12)

    def reference(x: torch.Tensor) -> torch.Tensor:
        if norm:
            mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
            x = (x - mean) / torch.sqrt(variance + 1e-5)
        groups = [torch.cat([x[:, i + k] for k in range(4)], dim=-1) for i in range(0, 96, 4)]
        return mlp(module.layers, torch.stack(groups, dim=1))

    same(module, VOLUME, reference)


def test_groups_end_with_a_slice_and_the_last_is_filled_with_zeros() -> None:
    module = GroupedConnectorConfig(group=5, pad=True).build(5, 12)
    grid = ImageLayout(depth=2, rows=3, columns=4)

    def reference(x: torch.Tensor) -> torch.Tensor:
        zero = torch.zeros_like(x[:, 0])
        groups = []
        for start in (0, 12):
            for i in range(0, 12, 5):
                cells = [x[:, start + i + k] if i + k < 12 else zero for k in range(5)]
                groups.append(torch.cat(cells, dim=-1))
        return mlp(module.layers, torch.stack(groups, dim=1))

    same(module, grid, reference)
    assert module.layout(grid) == ImageLayout(depth=2, rows=1, columns=3)


@pytest.mark.parametrize("mode", ["average", "max"])
@pytest.mark.parametrize("window", [(1, 2, 2), (2, 2, 3), (4, 1, 1)])
def test_spatial_pooling(window: tuple[int, int, int], mode: str) -> None:
    config = PooledConnectorConfig(
        window=window, mode=mode, connector=MLPConnectorConfig(hidden=20)
    )
    module = config.build(5, 12)
    assert isinstance(module.connector, MLPConnector)
    layers = module.connector.layers
    d, r, c = window

    def reference(x: torch.Tensor) -> torch.Tensor:
        blocks = []
        for i in range(0, VOLUME.depth, d):
            for j in range(0, VOLUME.rows, r):
                for k in range(0, VOLUME.columns, c):
                    cells = torch.stack(
                        [
                            x[:, ((i + a) * VOLUME.rows + j + b) * VOLUME.columns + k + e]
                            for a in range(d)
                            for b in range(r)
                            for e in range(c)
                        ]
                    )
                    blocks.append(cells.mean(0) if mode == "average" else cells.amax(0))
        return mlp(layers, torch.stack(blocks, dim=1))

    same(module, VOLUME, reference)


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("place", ["before", "after"])
def test_mean_over_slices(place: str, depth: int) -> None:
    """Eq. 7 takes the mean before the connector, MedM-VL's public code after it."""
    module = MeanSlicesConnectorConfig(place=place).build(5, 12)
    grid = VOLUME.model_copy(update={"depth": depth})
    (layers,) = (part for part in module.modules() if isinstance(part, nn.Sequential))

    def reference(x: torch.Tensor) -> torch.Tensor:
        slices = [x[:, i * 24 : (i + 1) * 24] for i in range(depth)]
        if place == "before":
            return mlp(layers, sum(slices[1:], slices[0]) / depth)
        done = [mlp(layers, one) for one in slices]
        return sum(done[1:], done[0]) / depth

    same(module, grid, reference)
    assert module.layout(grid) == ImageLayout(rows=4, columns=6)


def grouped_on_meta(channels: int, **fields: int) -> GroupedConnector:
    with torch.device("meta"):
        return GroupedConnectorConfig.parse(fields).build(channels, 4096)


# Tokens and channels of the encoders, the group, and the input width of the first layer.
LITEGPT = [
    pytest.param(ImageLayout(rows=1, columns=245), 5, 3840, id="both"),
    pytest.param(ImageLayout(rows=14, columns=14), 4, 3072, id="biomedclip"),
    pytest.param(ImageLayout(rows=7, columns=7), 1, 768, id="pubmedclip"),
]


@pytest.mark.parametrize(("grid", "group", "joined"), LITEGPT)
def test_litegpt_at_its_published_size(grid: ImageLayout, group: int, joined: int) -> None:
    """Names in its code: `language_proj.0` (new) and `language_proj.2` (MiniGPT-v2's `llama_proj`)."""
    published = {
        "language_proj.0.weight": (5632, joined),
        "language_proj.0.bias": (5632,),
        "language_proj.2.weight": (4096, 5632),
        "language_proj.2.bias": (4096,),
    }
    module = grouped_on_meta(768, group=group, hidden=5632)
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert {k.replace("language_proj.", "layers."): v for k, v in published.items()} == own
    assert module.layout(grid).tokens == 49
    features = torch.randn(1, grid.tokens, 768, device="meta")
    assert module(features, grid).shape == (1, 49, 4096)


def test_minigpt_v2_has_the_one_layer_that_litegpt_takes_over() -> None:
    """1,024 tokens of 1,408 channels in groups of four: `llama_proj`, 5632 -> 4096."""
    module = grouped_on_meta(1408, group=4, depth=1)
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert own == {"layers.0.weight": (4096, 5632), "layers.0.bias": (4096,)}
    assert module.layout(ImageLayout(rows=32, columns=32)).tokens == 256
    last = grouped_on_meta(768, group=5, hidden=5632).layers[2]
    assert tuple(last.weight.shape) == own["layers.0.weight"]


def test_m3d_pools_2048_tokens_to_256() -> None:
    """MedM-VL's public names are `connector.0` and `connector.2` inside its `SpatialPooling`."""
    with torch.device("meta"):
        module = PooledConnectorConfig(window=(2, 2, 2)).build(768, 2048)
    grid = ImageLayout(depth=8, rows=16, columns=16)
    assert module.layout(grid) == ImageLayout(depth=4, rows=8, columns=8)
    assert module(torch.randn(1, 2048, 768, device="meta"), grid).shape == (1, 256, 2048)
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert own == {
        "connector.layers.0.weight": (2048, 768),
        "connector.layers.0.bias": (2048,),
        "connector.layers.2.weight": (2048, 2048),
        "connector.layers.2.bias": (2048,),
    }
