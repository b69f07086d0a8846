"""Conversation + images -> the model's input, one way for training, evaluation and serving."""

from medloupe.processing.boxes import BoxEncoding
from medloupe.processing.collate import collate
from medloupe.processing.images import ImageSource
from medloupe.processing.packing import pack_branches
from medloupe.processing.processor import Processor, ProcessorConfig

__all__ = ["BoxEncoding", "ImageSource", "Processor", "ProcessorConfig", "collate", "pack_branches"]
