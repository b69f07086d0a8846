"""Several encoders of one image, each with its own view, joined along tokens or along channels.

Along tokens (LiteGPT, section 3.1: BiomedCLIP's 196 tokens, then PubMedCLIP's 49) all encoders must be
equally wide. Along channels the grids are aligned first: every map is resized to the finest one.
Shapes: N images, T tokens, C channels, R rows and S columns of a map.
"""

from __future__ import annotations

from typing import Literal, Self, cast

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from medloupe.errors import ConfigError
from medloupe.imaging.composed import SeveralTransform
from medloupe.imaging.views import ViewTransform
from medloupe.models.encoders.base import Encoder, EncoderConfig
from medloupe.types import ImageLayout, Views


class JoinedConfig(EncoderConfig):
    """`encoders` in the order in which their tokens (or channels) stand."""

    encoders: tuple[EncoderConfig, ...] = Field(min_length=2)
    axis: Literal["tokens", "channels"] = "tokens"

    def resolved(self) -> Self:
        return self.model_copy(update={"encoders": tuple(e.resolved() for e in self.encoders)})

    def fitted(self, transform: ViewTransform) -> ViewTransform:
        given = (
            transform.transforms
            if isinstance(transform, SeveralTransform)
            else (transform,) * len(self.encoders)
        )
        if len(given) != len(self.encoders):
            raise ConfigError(
                f"{len(self.encoders)} encoders, {len(given)} transforms",
                field="processor.transform.transforms",
                remedy="Give one transform each, in the order of the encoders",
            )
        fitted = [e.fitted(t) for e, t in zip(self.encoders, given, strict=True)]
        return SeveralTransform(transforms=tuple(fitted))

    def build(self) -> JoinedEncoder:
        return JoinedEncoder(self)


class JoinedEncoder(Encoder):
    """See the module's docstring; `encoders` are numbered in the checkpoint."""

    def __init__(self, config: JoinedConfig) -> None:
        super().__init__()
        self.axis = config.axis
        self.encoders = nn.ModuleList(encoder.build() for encoder in config.encoders)
        parts = self._parts()
        names = [encoder.name for encoder in config.encoders]
        if any(part.cuts or part.kinds != {"image"} for part in parts):
            raise ConfigError(
                f"2D encoders can be joined, and these are not all: {names}",
                field="model.encoder.encoders",
            )
        widths = [part.channels for part in parts]
        self.passes = sum(part.passes for part in parts)
        if self.axis == "channels":
            self.channels, self.layout = sum(widths), _finest(parts)
            return
        if len(set(widths)) > 1:
            have = ", ".join(f"{n} {w}" for n, w in zip(names, widths, strict=True))
            raise ConfigError(
                f"joined along tokens, encoders must be equally wide; these are: {have}",
                field="model.encoder.axis",
                remedy="Join them along channels",
            )
        tokens = sum(part.layout.tokens for part in parts)
        self.channels, self.layout = widths[0], ImageLayout(rows=1, columns=tokens)

    def forward(self, views: Views) -> torch.Tensor:
        assert isinstance(views, tuple)
        parts = self._parts()
        features = [part(view) for part, view in zip(parts, views, strict=True)]
        if self.axis == "tokens":
            return torch.cat(features, dim=1)
        grids = [part.layout for part in parts]
        aligned = [align(one, grid, self.layout) for one, grid in zip(features, grids, strict=True)]
        return torch.cat(aligned, dim=-1)

    def load_pretrained(self) -> None:
        for part in self._parts():
            part.load_pretrained()

    def _parts(self) -> list[Encoder]:
        return [cast(Encoder, part) for part in self.encoders]


def align(features_NTC: torch.Tensor, grid: ImageLayout, to: ImageLayout) -> torch.Tensor:
    """Tokens on `grid` resized to the grid `to`, bilinearly between cell centres."""
    if (grid.rows, grid.columns) == (to.rows, to.columns):
        return features_NTC
    maps_NCRS = features_NTC.transpose(1, 2).unflatten(2, (grid.rows, grid.columns))
    resized = F.interpolate(maps_NCRS.float(), size=(to.rows, to.columns), mode="bilinear")
    return resized.flatten(2).transpose(1, 2).to(features_NTC.dtype)


def _finest(parts: list[Encoder]) -> ImageLayout:
    """The grid to which all others are resized.

    Raises:
        ConfigError: they differ, and one is no grid but a row of tokens.
    """
    grids = [part.layout for part in parts]
    finest = max(grids, key=lambda grid: grid.tokens)
    if any(grid != finest for grid in grids) and any(min(g.rows, g.columns) == 1 for g in grids):
        shapes = ", ".join(f"{grid.rows}x{grid.columns}" for grid in grids)
        raise ConfigError(
            f"tokens in a row cannot be laid over a grid; the encoders' grids are {shapes}",
            field="model.encoder.axis",
            remedy="Drop prefix tokens, or join along tokens",
        )
    return finest
