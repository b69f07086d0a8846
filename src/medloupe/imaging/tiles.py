"""One image as several views of the encoder's size: which part of the original each tile shows.

Two ways, each a value. `TiledTransform` is LLaVA-NeXT's AnyRes: of a list of grids the one that
loses least of this image, its tiles row by row, after an overview of the whole. `S2Grid` is the
scales of Llama3-Med: one square view at the largest scale, shown again at every scale and cut into
tiles of the smallest; the pixels are resized in the model, here is where they come from.
Tiles touch and do not overlap. With fit `pad` or `stretch` every original pixel has its centre in
exactly one tile of each level; `crop` leaves out what it crops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from medloupe.config import Config
from medloupe.errors import ConfigError
from medloupe.imaging.geometry import Geometry, clip_box
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.views import Arrays, ViewTransform, single
from medloupe.types import Box, MedicalImage

Side = Annotated[int, Field(ge=1, le=16)]
# The five grids (rows, columns) of LLaVA-NeXT (its `image_grid_pinpoints` divided by 336).
LLAVA_NEXT_GRIDS: Final = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One view of `side` pixels: tile (row, column) of a larger picture, its mosaic.

    `mosaic` maps original pixels to the mosaic's. `level` counts the passes over the image: 0 is the
    overview or the smallest scale.
    """

    mosaic: Geometry
    side: int
    level: int
    row: int
    column: int

    @property
    def geometry(self) -> Geometry:
        """From original pixels to pixels of this tile."""
        corner = -float(self.column * self.side), -float(self.row * self.side)
        cut = Geometry(original=self.mosaic.view, view=(self.side, self.side), offset=corner)
        return self.mosaic.then(cut)

    def holds(self, x: float, y: float) -> bool:
        """Whether the point (x, y) of the original lies in this tile (right and bottom edge not).

        Of all tiles of a mosaic one says yes, also on the edges between them.
        """
        (place,) = np.floor(self.mosaic.forward([[x, y]]) / self.side).astype(int).tolist()
        return bool(place == [self.column, self.row])

    def part_of(self, box: Box) -> Box | None:
        """The part of a box (original pixels) that this tile shows, in tile pixels."""
        return clip_box(self.geometry.forward_box(box), (self.side, self.side))


class TiledTransform(ViewTransform):
    """An overview, then the tiles of the grid (rows, columns) that suits the image best.

    The whole image is fitted into the grid's area as `transform.fit` says, and windowed and
    normalised as the overview is. A grid of one tile is left out where it would repeat the overview.
    """

    version: Literal[1] = 1
    transform: ImageTransform = ImageTransform()
    grids: tuple[tuple[Side, Side], ...] = Field(default=LLAVA_NEXT_GRIDS, min_length=1)
    overview: bool = True

    def choose(self, width: int, height: int) -> tuple[int, int]:
        """The grid (rows, columns) that keeps most of the image's pixels, then wastes least.

        Of equal ones the first. This is LLaVA-NeXT's `select_best_resolution`.
        """
        assert min(width, height) >= 1, f"empty image {width} x {height}"

        def kept_and_waste(grid: tuple[int, int]) -> tuple[int, int]:
            rows, columns = grid[0] * self.transform.size, grid[1] * self.transform.size
            scale = min(columns / width, rows / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - rows * columns

        return max(self.grids, key=kept_and_waste)

    def tiles(self, width: int, height: int) -> tuple[Tile, ...]:
        """The tiles of an original of `width` x `height` pixels, in the order of `apply`."""
        rows, columns = self.choose(width, height)
        side = self.transform.size
        whole = self.transform.geometry(width, height)
        first = _cut(whole, side, level=0) if self.overview else []
        if self.overview and (rows, columns) == (1, 1):
            return tuple(first)
        mosaic = self.transform.geometry(width, height, view=(columns * side, rows * side))
        return (*first, *_cut(mosaic, side, level=len(first)))

    def geometry(self, width: int, height: int) -> Geometry:
        return self.transform.geometry(width, height)

    def units(self, size: tuple[int, ...]) -> int:
        return len(self.tiles(*size[:2]))

    def display(self, image: MedicalImage, *, index: int | None = None) -> NDArray[np.float32]:
        """The tiles before normalising, `[N, 1 or 3, size, size]`. Of a volume: slice `index` (middle).

        Raises:
            ImageError: as `ImageTransform.display`.
        """
        tiles, side = self.tiles(*image.size), self.transform.size
        parts = [self.transform.display(image, index=index)] if self.overview else []
        cut = tiles[len(parts) :]
        if cut:
            view = (cut[-1].column + 1) * side, (cut[-1].row + 1) * side
            mosaic = self.transform.display(image, index=index, view=view)
            for tile in cut:
                top, left = tile.row * side, tile.column * side
                parts.append(mosaic[:, top : top + side, left : left + side])
        channels = max(len(part) for part in parts)
        return np.stack([np.broadcast_to(part, (channels, side, side)) for part in parts])

    def normalise(self, display: Arrays) -> NDArray[np.float32]:
        """`[N, 3, size, size]`."""
        return np.stack([self.transform.normalise(tile) for tile in single(display)])

    def shown(self, image: MedicalImage) -> NDArray[np.uint8]:
        return self.transform.shown(image)


class S2Grid(Config):
    """Scales in pixels, ascending, each a multiple of the first, which is the size of a tile."""

    version: Literal[1] = 1
    scales: tuple[Annotated[int, Field(ge=1)], ...] = (378, 756, 1134)

    @model_validator(mode="after")
    def _multiples(self) -> Self:
        first = self.scales[0] if self.scales else 0
        ascending = sorted(set(self.scales)) == list(self.scales)
        if not first or not ascending or any(scale % first for scale in self.scales):
            raise ValueError(
                f"scales must ascend and be multiples of the first: {list(self.scales)}"
            )
        return self

    def tiles(self, width: int, height: int, transform: ImageTransform) -> tuple[Tile, ...]:
        """Scale by scale, row by row: 1 + 4 + 9 tiles for the default scales.

        `transform` makes the square view at the largest scale.

        Raises:
            ConfigError: its size is not the largest scale.
        """
        largest = self.scales[-1]
        if transform.size != largest:
            raise ConfigError(
                f"the view has {transform.size} pixels a side, the largest scale {largest}",
                field="transform.size",
                remedy=f"Set it to {largest}",
            )
        square = transform.geometry(width, height)
        tiles: list[Tile] = []
        for level, scale in enumerate(self.scales):
            ratio = scale / largest
            resized = Geometry(original=square.view, view=(scale, scale), scale=(ratio, ratio))
            tiles += _cut(square.then(resized), self.scales[0], level=level)
        return tuple(tiles)


def _cut(mosaic: Geometry, side: int, *, level: int) -> list[Tile]:
    """The tiles of a view whose sides are multiples of `side`, row by row."""
    width, height = mosaic.view
    return [
        Tile(mosaic=mosaic, side=side, level=level, row=row, column=column)
        for row in range(height // side)
        for column in range(width // side)
    ]
