"""Tiles: which grid, where each original pixel goes, and that pixels and geometry agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.image_processing_utils import select_best_resolution

from medloupe.errors import ConfigError
from medloupe.imaging.tiles import LLAVA_NEXT_GRIDS, S2Grid, Tile, TiledTransform
from medloupe.imaging.transforms import ImageTransform
from medloupe.types import Box, MedicalImage

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SIDE = st.one_of(st.integers(1, 3000), st.sampled_from([1, 2, 5000]))
GRIDS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6)


def tiling(size: int = 32, **fields: object) -> TiledTransform:
    fit = fields.pop("fit", "pad")
    transform = ImageTransform(size=size, fit=fit, interpolation="bilinear", **PLAIN)  # type: ignore[arg-type]
    return TiledTransform(transform=transform, **fields)  # type: ignore[arg-type]


@given(SIDE, SIDE)
def test_the_grid_is_the_one_llava_next_chooses(width, height):
    pinpoints = [[336 * rows, 336 * columns] for rows, columns in LLAVA_NEXT_GRIDS]
    rows, columns = select_best_resolution((height, width), pinpoints)
    assert tiling(336).choose(width, height) == (rows // 336, columns // 336)


def test_the_grid_by_hand():
    grids = ((1, 1), (1, 2), (2, 1), (2, 2))
    assert tiling(100, grids=grids).choose(200, 100) == (1, 2)  # fits without loss or waste
    assert tiling(100, grids=grids[::-1]).choose(90, 80) == (1, 1)  # more would be empty
    assert tiling(100, grids=grids).choose(50, 3000) == (2, 1)


@given(SIDE, SIDE, GRIDS, st.sampled_from(["pad", "stretch"]), st.data())
def test_every_original_pixel_lies_in_exactly_one_tile(width, height, grids, fit, data):
    tiles = tiling(grids=tuple(grids), fit=fit, overview=False).tiles(width, height)
    pixels = [(0, 0), (width - 1, height - 1)]
    pixels += data.draw(
        st.lists(st.tuples(st.integers(0, width - 1), st.integers(0, height - 1)), max_size=5)
    )
    for column, row in pixels:
        assert sum(tile.holds(column + 0.5, row + 0.5) for tile in tiles) == 1


@given(SIDE, SIDE, GRIDS, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_points_come_back_and_the_parts_of_a_box_make_it_up(width, height, grids, x, y, u, v):
    tiles = tiling(grids=tuple(grids), overview=False).tiles(width, height)
    (x1, x2), (y1, y2) = sorted((x * width, u * width)), sorted((y * height, v * height))
    box = Box(label="a", x1=x1, y1=y1, x2=x2, y2=y2)
    area = 0.0
    for tile in tiles:
        geometry = tile.geometry
        again = geometry.back(geometry.forward([[x1, y1]]))[0]
        assert again.tolist() == pytest.approx([x1, y1], abs=1e-6)
        part = tile.part_of(box)
        if part is not None:
            assert 0 <= part.x1 <= part.x2 <= geometry.view[0]
            assert 0 <= part.y1 <= part.y2 <= geometry.view[1]
            whole = geometry.back_box(part)
            area += (whole.x2 - whole.x1) * (whole.y2 - whole.y1)
    assert area == pytest.approx((x2 - x1) * (y2 - y1), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("width", "height"), [(90, 60), (31, 77), (300, 90)])
def test_a_disc_is_in_the_tile_that_the_geometry_says(width, height):
    centre = np.array([width * 0.7, height * 0.4])
    y, x = np.mgrid[:height, :width] + 0.5
    radius = min(width, height) / 12
    disc = 255.0 * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2)
    y0, x0 = np.argwhere(disc > 0).mean(axis=0) + 0.5
    image = MedicalImage(array=disc.astype(np.float32)[None], units="stored", window=(128.0, 256.0))
    cutter = tiling(64)
    views, tiles = cutter.apply(image), cutter.tiles(width, height)
    assert views.shape == (len(tiles), 3, 64, 64)
    assert np.array_equal(views[0], cutter.transform.apply(image))
    rows, columns = np.mgrid[:64, :64] + 0.5
    total, found = 0.0, np.zeros(2)
    for view, tile in zip(views[1:, 0], tiles[1:], strict=True):
        places = np.stack([columns.ravel(), rows.ravel()], axis=1)
        originals = tile.geometry.back(places)
        found += (originals * view.ravel()[:, None]).sum(axis=0)
        total += view.sum()
    assert np.allclose(found / total, (x0, y0), atol=0.3)


def test_the_mosaic_is_one_picture():
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 128)).astype(np.float32)
    image = MedicalImage(array=noise, units="stored", window=(128.0, 256.0))
    views = tiling(64, grids=((1, 2),)).apply(image)
    assert np.allclose(np.concatenate([views[1, 0], views[2, 0]], axis=1), noise[0] / 255)


def test_a_single_tile_is_not_shown_twice():
    image = MedicalImage(array=np.ones((1, 9, 9), np.float32), units="stored")
    assert len(tiling(grids=((1, 1),)).apply(image)) == 1
    assert len(tiling(grids=((1, 1),), overview=False).apply(image)) == 1
    assert len(tiling(grids=((2, 2),), overview=False).apply(image)) == 4


@settings(max_examples=30)
@given(SIDE, SIDE)
def test_scales_cover_the_image_once_each(width, height):
    transform = ImageTransform(size=1134)
    tiles = S2Grid().tiles(width, height, transform)
    assert [tile.level for tile in tiles] == [0] + [1] * 4 + [2] * 9
    assert all(tile.geometry.view == (378, 378) for tile in tiles)
    for x, y in [(0.5, 0.5), (width - 0.5, height - 0.5), (width / 2 + 0.1, height / 2 + 0.1)]:
        for level in range(3):
            assert sum(t.holds(x, y) for t in tiles if t.level == level) == 1


def test_scales_by_hand():
    tiles = S2Grid(scales=(10, 20)).tiles(40, 40, ImageTransform(size=20))
    place = [(t.level, t.row, t.column) for t in tiles]
    assert place == [(0, 0, 0), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)]
    last: Tile = tiles[-1]
    assert last.geometry.forward([[20, 20], [40, 40]]).tolist() == [[0, 0], [10, 10]]
    assert tiles[0].geometry.forward([[40, 20]]).tolist() == [[10, 5]]


def test_scales_that_do_not_fit():
    with pytest.raises(ConfigError, match="multiples of the first"):
        S2Grid.parse({"scales": [378, 700]})
    with pytest.raises(ConfigError, match="largest scale 1134"):
        S2Grid().tiles(10, 10, ImageTransform(size=224))


def test_it_is_a_value():
    value = tiling(336, grids=((1, 2), (2, 1)))
    assert TiledTransform.parse(value.to_dict()) == value
    with pytest.raises(ConfigError, match="version"):
        TiledTransform.parse({"version": 2})
