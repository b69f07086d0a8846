"""What each connector makes of a grid, and what it refuses, with the field that has to change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medloupe.errors import ConfigError
from medloupe.models.connectors import Connector, ConnectorConfig
from medloupe.models.connectors.queries import sine_cosine_line
from medloupe.models.connectors.words import WordsConnectorConfig
from medloupe.models.encoders import Encoder
from medloupe.models.vlm import image_layouts
from medloupe.types import ImageLayout, ImageLayouts, Views

PLANE = ImageLayout(rows=14, columns=14)
SMALL = {"queries": 6, "heads": 2}
FORMER = {"name": "q_former", "queries": 6, "width": 16, "depth": 1, "heads": 2, "inner": 24}
PERCEIVER = {"name": "perceiver", "queries": 6, "depth": 1, "heads": 2, "head_size": 4}
POOLED = {"name": "pooled", "window": [2, 2, 2], "connector": {"name": "grouped", "group": 7}}


def build(config: Any, channels: int = 8) -> Connector:
    return ConnectorConfig.parse(config).build(channels, 12)


@pytest.mark.parametrize(
    ("config", "grid", "wanted"),
    [
        ({"name": "grouped", "group": 4}, PLANE, (1, 1, 49)),
        ({"name": "grouped", "group": 1}, PLANE, (1, 14, 14)),
        ({"name": "grouped", "group": 5, "pad": True}, PLANE, (1, 1, 40)),
        ({"name": "grouped", "group": 4}, ImageLayout(depth=3, rows=14, columns=14), (3, 1, 49)),
        ("pooled", PLANE, (1, 7, 7)),
        (POOLED, ImageLayout(depth=4, rows=14, columns=14), (2, 1, 7)),
        ("mean_slices", ImageLayout(depth=9, rows=2, columns=3), (1, 2, 3)),
        ({"name": "mean_slices", "place": "after", "connector": {"name": "grouped", "group": 2}},
         ImageLayout(depth=9, rows=2, columns=3), (1, 1, 3)),
        ("attention_pooling", PLANE, (1, 1, 256)),
        ({"name": "attention_pooling"}, ImageLayout(depth=32, rows=16, columns=16), (1, 1, 256)),
        (PERCEIVER, ImageLayout(depth=5, rows=2, columns=2), (1, 1, 6)),
        (FORMER, PLANE, (1, 1, 6)),
    ],
)  # fmt: skip
def test_layout(config: Any, grid: ImageLayout, wanted: tuple[int, int, int]) -> None:
    connector = build(config)
    layout = connector.layout(grid)
    assert (layout.depth, layout.rows, layout.columns) == wanted
    tokens = connector(torch.randn(2, grid.tokens, 8), grid)
    assert tokens.shape == (2, layout.tokens, 12)


@pytest.mark.parametrize(
    ("config", "grid", "field", "rule"),
    [
        ("grouped", ImageLayout(rows=1, columns=196), "connector.group",
         "groups of 5 do not divide 196 tokens"),
        ({"name": "grouped", "group": 2}, ImageLayout(depth=2, rows=1, columns=3),
         "connector.group", "groups of 2 do not divide 3 tokens"),
        ("pooled", ImageLayout(rows=14, columns=7), "connector.window",
         r"\(1, 2, 2\) does not divide the grid \(1, 14, 7\)"),
        (POOLED, PLANE, "connector.window", r"does not divide the grid \(1, 14, 14\)"),
        (PERCEIVER | {"max_slices": 4}, ImageLayout(depth=5, rows=1, columns=1),
         "connector.max_slices", "5 slices, positions for 4"),
    ],
)  # fmt: skip
def test_a_grid_that_does_not_fit_is_refused(
    config: Any, grid: ImageLayout, field: str, rule: str
) -> None:
    connector = build(config)
    with pytest.raises(ConfigError, match=rule) as caught:
        connector.layout(grid)
    assert caught.value.fault.field == field
    with pytest.raises(ConfigError, match=rule):
        connector(torch.randn(1, grid.tokens, 8), grid)


def test_without_positions_there_is_no_limit_to_slices() -> None:
    grid = ImageLayout(depth=200, rows=1, columns=1)
    assert build(FORMER | {"max_slices": 4}).layout(grid).tokens == 6


@pytest.mark.parametrize(
    "config", [{"name": "attention_pooling", "heads": 3}, FORMER | {"heads": 3}]
)
def test_heads_that_do_not_divide_the_width_are_refused(config: Any) -> None:
    with pytest.raises(ConfigError, match="3 heads do not divide"):
        build(config)


@pytest.mark.parametrize("config", [{"name": "attention_pooling"} | SMALL, PERCEIVER, FORMER])
def test_queries_stand_for_no_place(config: Any) -> None:
    """As many queries as places would pass a count: 6 tokens of 2x3 places."""
    grid = ImageLayout(rows=2, columns=3)
    with pytest.raises(ConfigError, match="stand for no place"):
        build(config).grid_tokens(torch.randn(1, 6, 8), grid)
    inside = build({"name": "mean_slices", "connector": config})
    with pytest.raises(ConfigError, match="stand for no place"):
        inside.grid_tokens(torch.randn(1, 6, 8), grid)


@pytest.mark.parametrize("place", ["before", "after"])
def test_words_can_be_said_of_pooled_places(place: str) -> None:
    words = WordsConnectorConfig(words=("bright", "dark"), keep=2, position=0).to_dict()
    connector = build({"name": "mean_slices", "place": place, "connector": words})
    connector.learn_words(lambda text: [len(text)], torch.randn(20, 12))
    grid = ImageLayout(depth=3, rows=2, columns=2)
    features = torch.randn(2, 12, 8)
    assert connector(features, grid).shape == (2, 5, 12)
    assert connector.grid_tokens(features, grid).shape == (2, 4, 12)
    assert bool((connector(features, grid) != 0).any())


BOTH = {"name": "by_kind", "image": "linear", "volume": {"name": "attention_pooling"} | SMALL}


class TestByKind:
    def test_each_kind_has_its_width_and_its_layout(self) -> None:
        config = ConnectorConfig.parse(BOTH)
        both = config.build_for({"image": 6, "volume": 8}, 12)
        image, volume = both.for_kind("image"), both.for_kind("volume")
        assert image(torch.randn(1, 196, 6), PLANE).shape == (1, 196, 12)
        assert volume(torch.randn(1, 196, 8), PLANE).shape == (1, 6, 12)
        names = {name.partition(".")[0] for name, _ in both.named_parameters()}
        assert names == {"image", "volume"}

    def test_words_reach_both(self) -> None:
        words = {"name": "words", "words": ["bright"], "keep": 2, "words_per_place": 1}
        both = build({"name": "by_kind", "image": words, "volume": words})
        both.learn_words(lambda text: [len(text)], torch.ones(20, 12))
        for kind in ("image", "volume"):
            assert bool(both.for_kind(kind).get_buffer("neutral_D").all())

    def test_an_encoder_of_one_kind_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="the encoder takes no volumes"):
            ConnectorConfig.parse(BOTH).build_for({"image": 8}, 12)

    def test_it_stands_outside(self) -> None:
        with pytest.raises(ConfigError, match="by_kind stands outside"):
            ConnectorConfig.parse({"name": "pooled", "connector": BOTH})

    def test_other_connectors_refuse_two_widths(self) -> None:
        with pytest.raises(ConfigError, match=r"6 for images and 8 for volumes.*by_kind"):
            ConnectorConfig.parse("pooled").build_for({"image": 6, "volume": 8}, 12)


class Units(Encoder):
    """One token grid a unit, as tiles and slices have; or the whole volume at once."""

    kinds = frozenset({"image", "volume"})
    channels = 8

    def __init__(self, cuts: bool, depth: int = 1) -> None:
        super().__init__()
        self.cuts = cuts
        self.layout = ImageLayout(depth=depth, rows=4, columns=4)

    def forward(self, views: Views) -> torch.Tensor:
        raise NotImplementedError

    def load_pretrained(self) -> None:
        raise NotImplementedError


class TestImageLayouts:
    def layouts(self, config: Any, encoder: Encoder) -> ImageLayouts:
        return image_layouts(encoder, build(config))

    @pytest.mark.parametrize(
        ("config", "tokens"),
        [
            ("mlp", 7 * 16),
            ({"name": "grouped", "group": 5, "pad": True}, 7 * 4),
            ("pooled", 7 * 4),
            ("mean_slices", 16),
            ({"name": "mean_slices", "place": "after"}, 16),
            ({"name": "attention_pooling"} | SMALL, 6),
            (PERCEIVER, 6),
            (FORMER, 6),
        ],
    )
    def test_the_processor_counts_what_seven_slices_become(self, config: Any, tokens: int) -> None:
        connector = build(config)
        counted = image_layouts(Units(cuts=True), connector).tokens("volume", lambda: 7)
        seven = ImageLayout(depth=7, rows=4, columns=4)
        assert counted == tokens == connector.layout(seven).tokens

    def test_a_window_over_slices_needs_a_volume_of_fixed_depth(self) -> None:
        config = {"name": "pooled", "window": [2, 2, 2]}
        assert self.layouts(config, Units(cuts=False, depth=8)).tokens("volume", int) == 16
        with pytest.raises(ConfigError, match="any number, the first is 1"):
            self.layouts(config, Units(cuts=True))

    def test_positions_for_exactly_the_slices_of_a_volume_are_enough(self) -> None:
        config = PERCEIVER | {"max_slices": 8}
        assert self.layouts(config, Units(cuts=False, depth=8)).tokens("volume", int) == 6


def test_sine_positions_differ_and_take_odd_widths() -> None:
    line = sine_cosine_line(64, 33)
    assert line.shape == (64, 33)
    distances = torch.cdist(line, line) + 9 * torch.eye(64)
    assert distances.min() > 0.3
