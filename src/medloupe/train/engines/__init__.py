"""Engines: how the processes of a run share a stage's work. Adding one is one file here and one line in
`EngineConfig.table`."""

from medloupe.train.engines.base import Engine, EngineConfig, Losses

__all__ = ["Engine", "EngineConfig", "Losses"]
