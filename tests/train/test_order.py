from __future__ import annotations

import random

import pytest

from medloupe.train.order import WINDOW, BatchOrder
from medloupe.train.stages import StageConfig, TrainConfig

LENGTHS = random.Random(3).choices(range(10, 500), k=103)
STAGE = {"name": "a", "objective": {"name": "language"}, "trainable": ["connector"]}


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (1, 8), (7, 7), (8, 3), (103, 4), (103, 1000)])
def test_every_row_once_an_epoch(rows: int, size: int) -> None:
    order = BatchOrder(LENGTHS[:rows], size, seed=5)
    assert order.per_epoch == -(-rows // size)
    for epoch in range(3):
        batches = [order.batch(epoch * order.per_epoch + n) for n in range(order.per_epoch)]
        assert sorted(row for batch in batches for row in batch) == list(range(rows))
        assert all(1 <= len(batch) <= size for batch in batches)


def test_the_order_is_a_function_of_seed_and_number_alone() -> None:
    straight = BatchOrder(LENGTHS, 4, seed=5)
    expected = [straight.batch(n) for n in range(80)]
    jumping = BatchOrder(LENGTHS, 4, seed=5)
    numbers = random.Random(0).sample(range(80), 80)
    assert {n: jumping.batch(n) for n in numbers} == dict(enumerate(expected))
    assert BatchOrder(LENGTHS, 4, seed=5).batch(70) == expected[70]
    assert [BatchOrder(LENGTHS, 4, seed=6).batch(n) for n in range(80)] != expected
    assert expected[: straight.per_epoch] != expected[straight.per_epoch : 2 * straight.per_epoch]


def test_batches_hold_rows_of_similar_length() -> None:
    order = BatchOrder(LENGTHS[: 4 * WINDOW], 4, seed=5)
    batches = [[LENGTHS[row] for row in order.batch(n)] for n in range(order.per_epoch)]
    # one window holds all rows, so they are cut from the sorted list; the batches are shuffled
    assert sorted(v for b in batches for v in b) == [v for b in sorted(batches) for v in b]
    assert batches != sorted(batches)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"lora": {"rank": 2}}, "lora needs"),
        ({"learning_rates": {"encoder": 1.0}}, "do not train"),
        ({"trainable": []}, "trainable"),
        ({"trainable": ["encodr"]}, "encoder"),
        ({"steps": 0}, "steps"),
        ({"name": "a/b"}, "name"),
        ({"learning_rte": 1.0}, "learning_rate"),
    ],
)
def test_stages_that_do_not_fit_are_refused(changes: dict[str, object], text: str) -> None:
    StageConfig.parse(STAGE)
    with pytest.raises(ValueError, match=text):
        StageConfig.parse({**STAGE, **changes})


def test_stage_names_differ_and_yaml_gives_the_same_back(tmp_path: object) -> None:
    with pytest.raises(ValueError, match="one name"):
        TrainConfig.parse({"stages": [STAGE, STAGE]})
    config = TrainConfig.parse({"stages": [STAGE, {**STAGE, "name": "b", "steps": 3}], "seed": 2})
    assert TrainConfig.parse(config.to_dict()) == config
