"""Stages, objectives and the loop that trains them."""

from medloupe.train.loop import Trainer
from medloupe.train.stages import LoraConfig, StageConfig, TrainConfig

__all__ = ["LoraConfig", "StageConfig", "TrainConfig", "Trainer"]
