"""What a connector is: it maps encoder tokens to language-model tokens and says how many come out.

Shapes: N images, T tokens in, U tokens out, C encoder channels, D language-model width.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from medloupe.config import ComponentConfig
from medloupe.types import ImageLayout


class Connector(nn.Module, abc.ABC):
    """Maps `features_NTC` to `tokens_NUD`; `layout` is the grid of the U tokens."""

    layout: ImageLayout

    @abc.abstractmethod
    def forward(self, features_NTC: torch.Tensor) -> torch.Tensor:
        """Project the encoder's tokens."""


class ConnectorConfig(ComponentConfig):
    """Base of all connector configs."""

    family: ClassVar[str] = "connector"
    table: ClassVar[Mapping[str, str]] = {
        "linear": "medloupe.models.connectors.mlp:LinearConnectorConfig",
        "mlp": "medloupe.models.connectors.mlp:MLPConnectorConfig",
    }

    @abc.abstractmethod
    def build(self, channels: int, width: int, layout: ImageLayout) -> Connector:
        """The module with random weights, from `channels` to `width`, for images of `layout`."""
