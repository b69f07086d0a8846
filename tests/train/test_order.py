from __future__ import annotations

import random

import pytest

from medloupe.errors import TrainingError
from medloupe.processing.packing import Budget, Cost
from medloupe.train.objectives.base import ease_of
from medloupe.train.order import WINDOW, BatchOrder, CurriculumOrder, portions, share
from medloupe.train.stages import CurriculumConfig, StageConfig, TrainConfig
from medloupe.types import Record

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


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_processes_share_each_batch(world: int) -> None:
    """However many there are, together they have its rows, each once, and about as many tokens."""
    order = BatchOrder(LENGTHS, 8, seed=5)
    for number in range(2 * order.per_epoch):
        rows = order.batch(number)
        shares = [share(rows, LENGTHS, rank, world) for rank in range(world)]
        assert sorted(row for mine in shares for row in mine) == sorted(rows)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert all(sorted(mine, key=rows.index) == mine for mine in shares)
    assert share(rows, LENGTHS, 0, 1) == rows


def test_long_rows_are_dealt_out_there_and_back() -> None:
    lengths = [10, 80, 30, 70, 20, 60, 50, 40]  # the longest: 1, 3, 5, 6, 7, 2, 4, 0
    assert share(range(8), lengths, 0, 2) == [0, 1, 6, 7]
    assert share(range(8), lengths, 1, 2) == [2, 3, 4, 5]
    assert share([3], lengths, 1, 2) == []


def curriculum(start: float, ramp: int) -> CurriculumOrder:
    ease = [float(-row) for row in range(100)]  # row 0 is the easiest
    config = CurriculumConfig(attribute="width", start=start)
    return CurriculumOrder(BatchOrder([1] * 100, 4, seed=5), ease, ramp, config)


def test_a_batch_is_cut_where_any_part_of_the_budget_is_full() -> None:
    """Tokens of text, then encoder passes; row 4 alone is more than the budget."""
    text, passes = [3, 3, 3, 1, 9, 2], [1, 1, 1, 3, 1, 1]
    costs = [Cost(text_tokens=t, passes=p) for t, p in zip(text, passes, strict=True)]
    budget = Budget(text_tokens=6, passes=3)
    assert portions(range(6), costs, budget) == [[0, 1], [2], [3], [4], [5]]
    assert portions([5, 0, 3], costs, budget) == [[5, 0], [3]]
    assert portions([], costs, budget) == []


def test_a_curriculum_lets_in_harder_rows_step_by_step() -> None:
    order = curriculum(start=0.2, ramp=50)
    hardest = [max(order.batch(n)) for n in range(50)]
    # of 100 rows 20 at first; after 25 of 50 batches 0.2 + 0.8 / 2 = 60
    assert all(row < 20 + 80 * n / 50 + 1 for n, row in enumerate(hardest))
    assert max(hardest[40:]) > 80
    assert all(len(set(order.batch(n))) == 4 for n in range(50))


def test_after_the_ramp_every_row_comes_once_an_epoch_and_any_batch_can_be_asked_for() -> None:
    order, plain = curriculum(start=0.2, ramp=7), BatchOrder([1] * 100, 4, seed=5)
    assert [order.batch(7 + n) for n in range(60)] == [plain.batch(n) for n in range(60)]
    fresh = curriculum(start=0.2, ramp=7)
    assert [fresh.batch(n) for n in (31, 3, 6, 0)] == [order.batch(n) for n in (31, 3, 6, 0)]


def test_the_easiest_pool_is_never_smaller_than_a_batch() -> None:
    assert sorted(curriculum(start=0.01, ramp=9).batch(0)) == [0, 1, 2, 3]


def case(name: str, **attributes: str) -> Record:
    return Record(id=name, attributes=attributes)


def test_ease_is_that_of_the_hardest_case_and_infinite_without_the_attribute() -> None:
    rows = [[case("a", width="3"), case("b", width="1.5")], [case("c")], []]
    assert ease_of(rows, "width") == [1.5, float("inf"), float("inf")]
    with pytest.raises(TrainingError, match="no row has the attribute 'widht'"):
        ease_of(rows, "widht")
    with pytest.raises(
        TrainingError, match=r"row 'd', field 'attributes.width': 'wide' is no number"
    ):
        ease_of([[case("d", width="wide")]], "width")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"lora": {"rank": 2}}, "lora needs"),
        ({"learning_rates": {"encoder": 1.0}}, "do not train"),
        ({"trainable": []}, "trainable"),
        ({"trainable": ["encodr"]}, "encoder"),
        ({"steps": 0}, "steps"),
        ({"curriculum": {"attribute": "width", "start": 0}}, "start"),
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
