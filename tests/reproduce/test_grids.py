"""Every published grid: its rows resolve, fit together and come in an order that can run."""

from __future__ import annotations

import pytest
import torch

from medloupe.errors import ConfigError
from medloupe.models.adapters import AdapterConfig
from medloupe.models.encoders.hf_vision import SiglipEncoderConfig
from medloupe.models.vlm import image_layouts
from medloupe.recipes.config import RunConfig
from medloupe.reproduce import Grid, Measure, Row
from medloupe.reproduce.grids import GRIDS
from medloupe.reproduce.papers.index import made_grid
from medloupe.reproduce.parts import SmallLanguage, SmallTower

ROWS = [(name, row.label) for name in GRIDS for row in made_grid(name).rows]


@pytest.mark.parametrize(("name", "label"), ROWS)
def test_a_row_is_a_model(name: str, label: str) -> None:
    made = made_grid(name)
    config = made.config(label, 2)
    assert (config.seed, config.train.seed) == (2, 2)
    assert RunConfig.parse(config.to_dict()) == config
    encoder = config.model.encoder
    if isinstance(encoder, SiglipEncoderConfig):
        tower = made.parts["tower"]
        assert isinstance(tower, SmallTower)
        shape = {
            "model_type": "siglip_vision_model",
            "hidden_size": tower.width,
            "intermediate_size": 4 * tower.width,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "image_size": tower.image_size,
            "patch_size": tower.patch_size,
        }
        encoder = encoder.model_copy(update={"source": None, "architecture": shape})
    with torch.device("meta"):
        built = encoder.build()
        channels = {kind: built.for_kind(kind).channels for kind in sorted(built.kinds)}
        connector = config.model.connector.build_for(channels, 192)
    layouts = image_layouts(built, connector)
    assert layouts.image or layouts.volume
    adapter = config.model.adapter
    if adapter is not None:
        with torch.device("meta"):
            assert trained_by(adapter, made) > 0


def trained_by(adapter: AdapterConfig, made: Grid) -> int:
    """The parameters of an adapter on the grid's language model; its encoder's weights are not there."""
    data = adapter.to_dict()
    data["encoder"]["source"] = None
    language = made.parts["language"]
    assert isinstance(language, SmallLanguage)
    built = AdapterConfig.parse(data).build(language.width, language.layers)
    return sum(p.numel() for p in built.parameters())


def test_lora_has_as_many_parameters_as_hia() -> None:
    made = made_grid("hia")
    adapter = made.config("base + HiA", 0).model.adapter
    assert adapter is not None
    lora = made.config("base + LoRA", 0).train.stages[0].lora
    assert lora is not None
    language = made.parts["language"]
    assert isinstance(language, SmallLanguage)
    sides = 4 * 2 * language.width + 3 * (language.width + language.hidden)  # attention, MLP
    with torch.device("meta"):
        wanted = trained_by(adapter, made)
    assert lora.rank * language.layers * sides == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("name", GRIDS)
def test_a_row_begins_with_an_earlier_one(name: str) -> None:
    made = made_grid(name)
    labels = [row.label for row in made.rows]
    for number, label in enumerate(labels):
        start = made.start(label)
        assert start is None or start in labels[:number]
    tasks = set(made.base.data.to_dict()["tasks"])
    assert {task for measure in made.measures for task in measure.tasks} <= tasks
    asked = made.base.evaluate.benchmark.scorers
    assert {"closed", "box"} <= asked.keys(), "every kind of answer has a scorer"
    named = {scorer.name for scorers in asked.values() for scorer in scorers}
    assert {measure.scorer for measure in made.measures} <= named


def test_rows_differ_and_grids_share() -> None:
    keys = {
        name: [made_grid(name).key(row.label, 0) for row in made_grid(name).rows] for name in GRIDS
    }
    assert all(len(set(found)) == len(found) for found in keys.values())
    every = [key for found in keys.values() for key in found]
    assert len(set(every)) < len(every)


def test_mistakes_are_named(tiny_grid: Grid) -> None:
    with pytest.raises(ConfigError, match="did you mean 'scales'"):
        made_grid("scale")
    with pytest.raises(ConfigError, match="a claim is about 'two'"):
        Grid.parse(tiny_grid.to_dict() | {"rows": [Row(label="one").to_dict()]})
    with pytest.raises(ConfigError, match="two rows have one label"):
        Grid.parse(tiny_grid.to_dict() | {"rows": [tiny_grid.rows[0].to_dict()] * 2})


def test_a_measure_has_a_score_a_row() -> None:
    with pytest.raises(ConfigError, match=r"bleu_4\.coco is one number for all rows"):
        Measure.parse({"label": "BLEU", "scorer": "bleu_4.coco", "tasks": ["report"]})


def test_a_part_of_a_part_changes_the_key_and_none_is_made_of_itself() -> None:
    made = made_grid("stages")
    language = made.parts["language"]
    assert isinstance(language, SmallLanguage)
    other = made.model_copy(
        update={"parts": {**made.parts, "language": language.model_copy(update={"steps": 1})}}
    )
    assert other.key("one stage", 0) != made.key("one stage", 0)
    data = made.to_dict()
    data["parts"]["encoder"]["language"] = "made:encoder"
    with pytest.raises(ConfigError, match="'encoder' is made of itself"):
        Grid.parse(data)
    data["parts"]["encoder_2"] = made.parts["encoder"].to_dict()
    assert made.named(["made:encoder_2"]) == []
