from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from medloupe.errors import ConfigError, TrainingError
from medloupe.imaging.transforms import Geometry, ImageTransform
from medloupe.models.connectors.base import word_directions
from medloupe.models.vlm import plain_encoder
from medloupe.train.log import read_log
from medloupe.train.objectives.grounding import covered_cells
from medloupe.train.stages import TrainConfig
from medloupe.types import Box, ImageLayout

GRID = ImageLayout(rows=4, columns=4)
SQUARE = Geometry.identity((64, 64))  # cells of 16 pixels


@pytest.mark.parametrize(
    ("corners", "cells"),
    [
        ((0, 0, 16, 16), [0]),
        ((16, 0, 48, 32), [1, 2, 5, 6]),
        ((0, 0, 64, 64), list(range(16))),
        ((20, 20, 24, 24), [5]),  # smaller than a cell, inside one
        ((14, 20, 18, 24), [4, 5]),  # half in each of two: more than a quarter of the box
        ((15, 20, 31, 24), [5]),  # 1/16 of the box in cell 4, the rest in 5
        ((60, 60, 64, 64), [15]),
        ((-20, 40, 4, 60), [8, 12]),  # the part inside: 4 x 8 of 80 pixels, and 4 x 12
        ((70, 0, 80, 10), []),
    ],
)
def test_cells_by_hand(corners: tuple[int, int, int, int], cells: list[int]) -> None:
    x1, y1, x2, y2 = corners
    box = Box(label="a", x1=x1, y1=y1, x2=x2, y2=y2)
    assert covered_cells(box, SQUARE, GRID, 0.25) == cells


def test_cells_lie_where_the_view_shows_the_box() -> None:
    # 128 x 64 padded into 64 x 64: half size, 16 rows of padding above
    geometry = ImageTransform(size=64, fit="pad").geometry(128, 64)
    box = Box(label="a", x1=0, y1=0, x2=32, y2=32)
    assert covered_cells(box, geometry, GRID, 0.25) == [4]


def test_directions_are_of_unit_length_and_know_the_word(lab: Any) -> None:
    model = lab.model()
    encode = plain_encoder(lab.context(model).processor.tokenizer)
    table = model.get_input_embeddings().weight.detach()
    found = word_directions(encode, table, ["left", "right", "ring lesion"])
    assert found.shape == (3, 32)
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    assert not found.requires_grad
    again = word_directions(encode, table, ["right", "left"])
    assert torch.allclose(again, found[[1, 0]], atol=1e-5)
    assert float(found[0] @ found[1]) < 0.999


def test_loss_falls_and_only_the_vision_part_moves(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    stage = tiny.language_stage(
        "ground",
        objective={"name": "grounding", "min_count": 2},
        trainable=("encoder", "connector"),
        batch_size=8,
        steps=25,
        learning_rate=3e-3,
    )
    before = lab.model().state_dict()
    trainer = lab.trainer(tmp_path, TrainConfig(stages=(stage,)))
    trainer.fit()
    losses = [row["loss"] for row in read_log(tmp_path / "train.jsonl") if row["event"] == "step"]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    after = trainer.model.state_dict()
    moved = {n.split(".")[0] for n, tensor in after.items() if not torch.equal(tensor, before[n])}
    assert moved == {"encoder", "connector"}
    assert after.keys() == before.keys()


def test_data_without_records_are_refused(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    stage = tiny.language_stage(objective={"name": "grounding"}, trainable=("connector",))
    bare = dataclasses.replace(lab.dataset, records=())
    with pytest.raises(TrainingError, match=r"records\.jsonl|record"):
        lab.trainer(tmp_path, TrainConfig(stages=(stage,)), dataset=bare).fit()


def test_a_connector_without_the_grid_is_refused(
    tiny: ModuleType, lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = tiny.language_stage(
        objective={"name": "grounding", "min_count": 2}, trainable=("connector",)
    )
    trainer = lab.trainer(tmp_path, TrainConfig(stages=(stage,)))
    monkeypatch.setattr(
        trainer.model.connector, "grid_tokens", lambda features, _: features.mean(1, keepdim=True)
    )
    with pytest.raises(ConfigError, match="one token for each of the encoder's"):
        trainer.fit()
