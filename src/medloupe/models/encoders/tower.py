"""An encoder around a network of transformers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from medloupe.models.encoders.base import Encoder
from medloupe.models.encoders.checkpoints import fill, read_tower, source_of

DType = Literal["float32", "bfloat16"]


class TowerEncoder(Encoder):
    """Holds the network as `tower`, in evaluation mode also while it trains.

    Dropout, stochastic depth, jittered positions and the statistics of small batches would give a
    frozen tower other features in training than in evaluation. Two things do follow the mode: low-rank
    adapters, and whether a layer may be computed again (its parts stay in evaluation mode).
    """

    tower: PreTrainedModel

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.tower.train(False)
        for module in self.tower.modules():
            if isinstance(module, LoraLayer):
                module.train(mode)
            elif isinstance(module, GradientCheckpointingLayer):
                module.training = mode
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the weights are kept in."""
        return next(self.tower.parameters()).dtype

    def load_tower(
        self, source: str | None, name: str, *, unread: Iterable[str], allowed: Iterable[str]
    ) -> None:
        """Load the tower from a checkpoint of transformers; see `checkpoints.read_tower`."""
        found = source_of(source, name)
        tensors = read_tower(self.tower, found, unread=tuple(unread), allowed=tuple(allowed))
        fill(self.tower, found, tensors)


def in_dtype(encoder: torch.nn.Module, dtype: DType) -> None:
    """Keep the encoder's weights in that dtype."""
    encoder.to(getattr(torch, dtype))
