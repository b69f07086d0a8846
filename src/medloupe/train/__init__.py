"""Stages, objectives and the loop that trains them."""

from medloupe.train.loop import Trainer
from medloupe.train.stages import CurriculumConfig, LoraConfig, StageConfig, TrainConfig

__all__ = ["CurriculumConfig", "LoraConfig", "StageConfig", "TrainConfig", "Trainer"]
