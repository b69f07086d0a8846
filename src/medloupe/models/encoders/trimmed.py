"""An encoder without its first tokens, whatever they are (compat).

TinyLLaVA's public code drops the first token of every tower for the choice "patch", its default. SigLIP
has no class token, so those checkpoints (TinyLLaVA-Phi-2-SigLIP: 728 tokens of 729) have never seen the
top left patch. New models have no use for this.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field

from medloupe.errors import ConfigError
from medloupe.imaging.views import ViewTransform
from medloupe.models.encoders.base import Encoder, EncoderConfig
from medloupe.types import ImageLayout, Views


class TrimmedConfig(EncoderConfig):
    """`encoder` without its `first` tokens; what is left has no grid and stands in one row."""

    encoder: EncoderConfig
    first: int = Field(default=1, ge=1)

    def resolved(self) -> Self:
        return self.model_copy(update={"encoder": self.encoder.resolved()})

    def fitted(self, transform: ViewTransform) -> ViewTransform:
        return self.encoder.fitted(transform)

    def build(self) -> TrimmedEncoder:
        return TrimmedEncoder(self)


class TrimmedEncoder(Encoder):
    """See `TrimmedConfig`."""

    def __init__(self, config: TrimmedConfig) -> None:
        super().__init__()
        self.encoder, self.first = config.encoder.build(), config.first
        if self.encoder.cuts:
            raise ConfigError(
                f"{config.encoder.name!r} has tokens of several units, which begin anew with each",
                field="model.encoder.encoder",
                remedy="Put the trimmed encoder inside it",
            )
        self.kinds, self.channels = self.encoder.kinds, self.encoder.channels
        self.layout = self._trimmed(self.encoder.layout)
        self.passes = self.encoder.passes

    def forward(self, views: Views) -> torch.Tensor:
        features: torch.Tensor = self.encoder(views)
        return features[:, self.first :]

    def grid(self, views: Views) -> ImageLayout:
        return self._trimmed(self.encoder.grid(views))

    def load_pretrained(self) -> None:
        self.encoder.load_pretrained()

    def _trimmed(self, grid: ImageLayout) -> ImageLayout:
        return ImageLayout(rows=1, columns=grid.tokens - self.first)
