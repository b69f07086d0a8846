"""Connectors: image tokens -> the language model's width."""

from medloupe.models.connectors.base import Connector, ConnectorConfig

__all__ = ["Connector", "ConnectorConfig"]
