"""Stages, objectives, engines and the loop that trains them."""

from medloupe.train.engines import Engine, EngineConfig
from medloupe.train.loop import Trainer
from medloupe.train.signals import StoppedError
from medloupe.train.stages import (
    BestConfig,
    CurriculumConfig,
    LoraConfig,
    StageConfig,
    TrainConfig,
)

__all__ = [
    "BestConfig",
    "CurriculumConfig",
    "Engine",
    "EngineConfig",
    "LoraConfig",
    "StageConfig",
    "StoppedError",
    "TrainConfig",
    "Trainer",
]
