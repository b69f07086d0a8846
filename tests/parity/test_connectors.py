"""The MLP connector against a few lines of plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from medloupe.errors import ConfigError
from medloupe.models.connectors.mlp import (
    LinearConnectorConfig,
    MLPConnectorConfig,
    sine_cosine_grid,
)
from medloupe.types import ImageLayout

GRID = ImageLayout(rows=4, columns=6)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("position", [0, 8])
@pytest.mark.parametrize("window", [1, 2])
def test_depth_window_and_position(depth: int, position: int, window: int) -> None:
    config = MLPConnectorConfig(depth=depth, window=window, position=position, hidden=20)
    connector = config.build(5, 12)
    features = torch.randn(3, 24, 5)
    rows, columns = 4 // window, 6 // window
    tokens = []
    for i in range(rows):
        for j in range(columns):
            cells = [
                features[:, (i * window + a) * 6 + j * window + b]
                for a in range(window)
                for b in range(window)
            ]
            if position:
                cells.append(
                    sine_cosine_grid(rows, columns, position)[i * columns + j].expand(3, -1)
                )
            tokens.append(torch.cat(cells, 1))
    x = torch.stack(tokens, 1)
    linears = [layer for layer in connector.layers if isinstance(layer, torch.nn.Linear)]
    assert len(linears) == depth
    for place, linear in enumerate(linears):
        x = x @ linear.weight.T + linear.bias
        if place < depth - 1:
            x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    torch.testing.assert_close(connector(features, GRID), x, rtol=1e-5, atol=1e-5)
    assert (connector.layout(GRID).rows, connector.layout(GRID).columns) == (rows, columns)


def test_positions_by_hand() -> None:
    """Two rows and one column, frequencies 1/2 and 1 turn: cell centres at 1/4 and 3/4."""
    grid = sine_cosine_grid(2, 1, 8)
    half = math.sqrt(0.5)
    row0 = [half, 1.0, half, 0.0]  # sin(pi/4), sin(pi/2), cos(pi/4), cos(pi/2)
    row1 = [half, -1.0, -half, 0.0]
    column = [1.0, 0.0, 0.0, -1.0]  # the centre of the only column is 1/2
    wanted = torch.tensor([row0 + column, row1 + column])
    torch.testing.assert_close(grid, wanted, rtol=0, atol=1e-6)


def test_no_two_cells_share_a_position() -> None:
    grid = sine_cosine_grid(14, 14, 32)
    distances = torch.cdist(grid, grid) + 9 * torch.eye(len(grid))
    assert distances.min() > 0.05


def test_linear_is_one_linear_layer() -> None:
    connector = LinearConnectorConfig().build(5, 12)
    features = torch.randn(2, 24, 5)
    (linear,) = connector.layers
    assert torch.equal(connector(features, GRID), F.linear(features, linear.weight, linear.bias))


def test_a_window_that_does_not_divide_the_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="window 3 does not divide the 4x6 token grid"):
        MLPConnectorConfig(window=3).build(5, 12).layout(GRID)
