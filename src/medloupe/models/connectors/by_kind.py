"""One connector for 2D images and another for volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from medloupe.errors import ConfigError
from medloupe.models.connectors.base import Connector, ConnectorConfig, Kind
from medloupe.types import ImageLayout


class ByKindConnectorConfig(ConnectorConfig):
    """`image` connects the 2D images of a conversation, `volume` the volumes; the encoder takes both."""

    image: ConnectorConfig
    volume: ConnectorConfig

    def build(self, channels: int, width: int) -> ByKindConnector:
        return self.build_for({"image": channels, "volume": channels}, width)

    def build_for(self, channels: Mapping[Kind, int], width: int) -> ByKindConnector:
        lacking = [kind for kind in ("image", "volume") if kind not in channels]
        if lacking:
            raise ConfigError(
                f"the encoder takes no {lacking[0]}s, so one of the two connectors would idle",
                field="model.connector",
                remedy="Name the other connector alone, or use an encoder of both kinds",
            )
        return ByKindConnector(
            self.image.build(channels["image"], width), self.volume.build(channels["volume"], width)
        )


class ByKindConnector(Connector):
    """See `ByKindConnectorConfig`; it never runs itself, only the connector of a kind does."""

    def __init__(self, image: Connector, volume: Connector) -> None:
        super().__init__()
        self.image, self.volume = image, volume

    def for_kind(self, kind: Kind) -> Connector:
        return self.image if kind == "image" else self.volume

    def forward(self, features_NTC: torch.Tensor, grid: ImageLayout) -> torch.Tensor:
        del features_NTC, grid
        raise AssertionError("ask for_kind: one of the two connectors runs")

    def layout(self, grid: ImageLayout) -> ImageLayout:
        del grid
        raise AssertionError("ask for_kind: each of the two connectors has its own layout")

    def load_pretrained(self) -> None:
        self.image.load_pretrained()
        self.volume.load_pretrained()

    def learn_words(self, encode: Callable[[str], Sequence[int]], table_VD: torch.Tensor) -> None:
        self.image.learn_words(encode, table_VD)
        self.volume.learn_words(encode, table_VD)
