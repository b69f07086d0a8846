"""Several scales of one image through one encoder, joined along channels (S2, "scaling on scales", Shi et
al. 2024; Llama3-Med, section "Hierarchical Multi-Scale Encoding").

The view is one square tensor at the largest scale, normalised once. Each scale is a bicubic resize of it
without antialiasing, cut into tiles of the encoder's own size; every tile is encoded on its own, the
tiles' grids are put together again and area-pooled in float32 to the smallest scale's grid. So the
number of tokens stays that of one tile, and the channels of all scales stand side by side, small first.
Shapes: N images, K tiles of an image over all scales, T tokens and C channels of a tile.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch.nn import functional as F

from medloupe.errors import ConfigError
from medloupe.imaging.views import ViewTransform
from medloupe.models.encoders.base import Encoder, EncoderConfig, PlaneEncoderConfig
from medloupe.models.resolution.units import encode_in_chunks
from medloupe.types import ImageLayout, Views


class ScalesConfig(EncoderConfig):
    """`scales` in pixels, each a multiple of the smallest, which is the encoder's own size. `chunk` is
    the number of tiles encoded at once (see `encode_in_chunks`); None takes all of a batch."""

    encoder: EncoderConfig
    scales: tuple[int, ...] = Field(default=(378, 756, 1134), min_length=1)
    chunk: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _grow(self) -> Self:
        if list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"scales {self.scales} do not grow")
        if any(scale % self.scales[0] for scale in self.scales):
            raise ValueError(f"scales {self.scales} are not multiples of the smallest")
        return self

    def resolved(self) -> Self:
        return self.model_copy(update={"encoder": self.encoder.resolved()})

    def fitted(self, transform: ViewTransform) -> ViewTransform:
        return self._whole().fitted(transform)

    def build(self) -> ScalesEncoder:
        return ScalesEncoder(self)

    def _whole(self) -> PlaneEncoderConfig:
        """The encoder as if it took the largest scale: it differs from the real one in size alone."""
        inner = self.encoder.resolved()
        if not isinstance(inner, PlaneEncoderConfig) or inner.image_size != self.scales[0]:
            size = inner.image_size if isinstance(inner, PlaneEncoderConfig) else "no size"
            raise ConfigError(
                f"the smallest scale is {self.scales[0]}, the encoder {inner.name!r} has {size}",
                field="model.encoder.scales",
                remedy="Begin the scales with the size of a 2D encoder",
            )
        return inner.model_copy(update={"image_size": self.scales[-1]})


class ScalesEncoder(Encoder):
    """See the module's docstring."""

    def __init__(self, config: ScalesConfig) -> None:
        super().__init__()
        config._whole()
        self.scales, self.chunk = config.scales, config.chunk
        self.encoder = config.encoder.build()
        self.layout = self.encoder.layout
        if self.layout.rows != self.layout.columns:
            raise ConfigError(
                f"the tokens of {config.encoder.name!r} stand on no square grid "
                f"({self.layout.rows}x{self.layout.columns})",
                field="model.encoder.encoder",
                remedy="Drop its prefix tokens",
            )
        self.channels = self.encoder.channels * len(self.scales)
        tiles = sum((scale // self.scales[0]) ** 2 for scale in self.scales)
        self.passes = tiles * self.encoder.passes

    def forward(self, views: Views) -> torch.Tensor:
        assert isinstance(views, torch.Tensor)
        images, base = len(views), self.scales[0]
        tiles = [cut_tiles(self._scaled(views, scale), scale // base) for scale in self.scales]
        counts = [scale_tiles.shape[1] for scale_tiles in tiles]
        tiles_MCHW = torch.cat(tiles, dim=1).flatten(0, 1)
        features_MTC = encode_in_chunks(self.encoder, tiles_MCHW, self.chunk)
        features_NKTC = features_MTC.unflatten(0, (images, sum(counts)))
        scales = [
            pool_tiles(part, scale // base, self.layout)
            for part, scale in zip(features_NKTC.split(counts, dim=1), self.scales, strict=True)
        ]
        return torch.cat(scales, dim=-1)

    def load_pretrained(self) -> None:
        self.encoder.load_pretrained()

    def _scaled(self, views_N3HW: torch.Tensor, scale: int) -> torch.Tensor:
        if views_N3HW.shape[-1] == scale:
            return views_N3HW
        small = F.interpolate(views_N3HW.float(), size=(scale, scale), mode="bicubic")
        return small.to(views_N3HW.dtype)


def cut_tiles(pictures_N3HW: torch.Tensor, side: int) -> torch.Tensor:
    """`[N, side * side, 3, H / side, W / side]`, row-major."""
    rows = pictures_N3HW.chunk(side, dim=-2)
    return torch.stack([tile for row in rows for tile in row.chunk(side, dim=-1)], dim=1)


def pool_tiles(features_NKTC: torch.Tensor, side: int, grid: ImageLayout) -> torch.Tensor:
    """The features of side x side tiles put together and area-pooled to the grid of one, `[N, T, C]`."""
    if side == 1:
        return features_NKTC[:, 0]
    tiles = features_NKTC.unflatten(2, (grid.rows, grid.columns)).unflatten(1, (side, side))
    # N, tile row, tile column, row, column, C -> N, C, all rows, all columns
    whole_NCRS = tiles.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    pooled = F.interpolate(whole_NCRS.float(), size=(grid.rows, grid.columns), mode="area")
    return pooled.flatten(2).transpose(1, 2).to(features_NKTC.dtype)
