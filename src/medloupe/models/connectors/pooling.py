"""Fewer tokens by pooling over space or slices, before another connector.

Shapes: N images, T tokens, P pooled tokens, C channels, D language-model width.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, PositiveInt
from torch.nn import functional as F

from medloupe.errors import ConfigError
from medloupe.models.connectors.base import Connector, ConnectorConfig
from medloupe.models.connectors.by_kind import ByKindConnectorConfig
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.types import ImageLayout


def _one_kind(connector: ConnectorConfig) -> ConnectorConfig:
    if isinstance(connector, ByKindConnectorConfig):
        raise ValueError("by_kind stands outside: put this connector inside it, for one kind")
    return connector


Inner = Annotated[ConnectorConfig, AfterValidator(_one_kind)]


class PooledConnectorConfig(ConnectorConfig):
    """`window` is (slices, rows, columns) and divides the grid: M3D and MedM-VL pool the 8x16x16 tokens
    of a volume by (2, 2, 2), a 2D grid has windows of one slice. `connector` gets what is pooled."""

    window: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 2, 2)
    mode: Literal["average", "max"] = "average"
    connector: Inner = MLPConnectorConfig()

    def build(self, channels: int, width: int) -> PooledConnector:
        return PooledConnector(self, self.connector.build(channels, width))


class MeanSlicesConnectorConfig(ConnectorConfig):
    """The mean over an image's slices, place by place: any number of slices becomes one.

    `place` "before" is MedM-VL's eq. 7. Its public code takes the mean of what `connector` gives for
    each slice ("after"), which is another function where the connector is not linear.
    """

    place: Literal["before", "after"] = "before"
    connector: Inner = MLPConnectorConfig()

    def build(self, channels: int, width: int) -> Connector:
        inner = self.connector.build(channels, width)
        return MeanSlicesConnector(inner) if self.place == "before" else MeanTokensConnector(inner)


class OuterConnector(Connector, abc.ABC):
    """Holds the connector that makes tokens of what it pools."""

    def __init__(self, connector: Connector) -> None:
        super().__init__()
        self.connector = connector

    def load_pretrained(self) -> None:
        self.connector.load_pretrained()

    def learn_words(self, encode: Callable[[str], Sequence[int]], table_VD: torch.Tensor) -> None:
        self.connector.learn_words(encode, table_VD)


class PoolingConnector(OuterConnector):
    """Pools features before `connector`, which knows nothing of it."""

    @abc.abstractmethod
    def pooled(self, grid: ImageLayout) -> ImageLayout:
        """The grid that the inner connector sees."""

    @abc.abstractmethod
    def pool(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        """`[N, P, C]` on the grid `pooled(grid)`."""

    def layout(self, grid: ImageLayout) -> ImageLayout:
        return self.connector.layout(self.pooled(grid))

    def forward(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        inside = self.pooled(grid)
        tokens: torch.Tensor = self.connector(self.pool(features_NTC, grid), inside)
        return tokens

    def grid_tokens(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        inside = self.pooled(grid)
        return self.connector.grid_tokens(self.pool(features_NTC, grid), inside)


class PooledConnector(PoolingConnector):
    """See `PooledConnectorConfig`."""

    def __init__(self, config: PooledConnectorConfig, connector: Connector) -> None:
        super().__init__(connector)
        self.window, self.mode = config.window, config.mode

    def pooled(self, grid: ImageLayout) -> ImageLayout:
        sides = (grid.depth, grid.rows, grid.columns)
        pairs = list(zip(sides, self.window, strict=True))
        if any(side % window for side, window in pairs):
            raise ConfigError(
                f"the window {self.window} does not divide the grid {sides} (slices, rows, columns)",
                field="connector.window",
                remedy="Choose divisors; for an image that is cut into slices or tiles, of which "
                "there can be any number, the first is 1",
            )
        depth, rows, columns = (side // window for side, window in pairs)
        return ImageLayout(depth=depth, rows=rows, columns=columns)

    def pool(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        reduce = F.avg_pool3d if self.mode == "average" else F.max_pool3d
        maps: torch.Tensor = features_NTC.transpose(1, 2)
        maps = maps.unflatten(2, (grid.depth, grid.rows, grid.columns))
        return reduce(maps, self.window).flatten(2).transpose(1, 2)


class MeanSlicesConnector(PoolingConnector):
    """The mean over slices before the connector."""

    def pooled(self, grid: ImageLayout) -> ImageLayout:
        return one_slice(grid)

    def pool(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        mean: torch.Tensor = features_NTC.unflatten(1, (grid.depth, -1)).mean(1)
        return mean


class MeanTokensConnector(OuterConnector):
    """The mean over slices after the connector, which sees each slice on its own. S slices."""

    def layout(self, grid: ImageLayout) -> ImageLayout:
        return self.connector.layout(one_slice(grid))

    def forward(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        return self._mean(self.connector, features_NTC, grid)

    def grid_tokens(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        return self._mean(self.connector.grid_tokens, features_NTC, grid)

    def _mean(
        self,
        connect: Callable[[torch.Tensor, ImageLayout], torch.Tensor],
        features_NTC: torch.Tensor,
        grid: ImageLayout,
    ) -> torch.Tensor:
        slices = features_NTC.unflatten(1, (grid.depth, -1)).flatten(0, 1)
        tokens_NSUD = connect(slices, one_slice(grid)).unflatten(0, (-1, grid.depth))
        mean: torch.Tensor = tokens_NSUD.mean(1)
        return mean


def one_slice(grid: ImageLayout) -> ImageLayout:
    return grid.model_copy(update={"depth": 1})
