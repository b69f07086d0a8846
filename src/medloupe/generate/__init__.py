"""Answers from a model: one prefill per image, batched greedy decoding, chat."""

from medloupe.generate.chat import ChatSession
from medloupe.generate.predictor import GenerateConfig, Predictor

__all__ = ["ChatSession", "GenerateConfig", "Predictor"]
