from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest

from medloupe.train.optimizer import build_optimizer, schedule, set_rates

ROOT = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("total", "warmup", "floor", "expected"),
    [
        # two steps up, then cos at 0, 1/4, 1/2, 3/4 of half a turn
        (6, 1 / 3, 0.0, [0.5, 1.0, 1.0, (1 + ROOT) / 2, 0.5, (1 - ROOT) / 2]),
        (4, 0.0, 0.0, [1.0, (1 + ROOT) / 2, 0.5, (1 - ROOT) / 2]),
        # the floor takes the place of zero: 0.2 + 0.8 x
        (4, 0.0, 0.2, [1.0, 0.2 + 0.4 * (1 + ROOT), 0.6, 0.2 + 0.4 * (1 - ROOT)]),
        (4, 0.0, 1.0, [1.0] * 4),
        # a share of a step is rounded up
        (10, 0.03, 0.0, [1.0, 1.0, (1 + math.cos(math.pi / 9)) / 2]),
        (1, 0.0, 0.0, [1.0]),
        (1, 0.5, 0.0, [1.0]),
        (4, 0.75, 0.0, [1 / 3, 2 / 3, 1.0, 1.0]),
    ],
)
def test_schedule_by_hand(total: int, warmup: float, floor: float, expected: list[float]) -> None:
    found = [schedule(step, total, warmup, floor) for step in range(len(expected))]
    assert found == pytest.approx(expected, abs=1e-12)


def test_rates_keep_the_ratio_of_the_parts(tiny: ModuleType, lab: Any) -> None:
    stage = tiny.language_stage(
        trainable=("encoder", "connector"),
        learning_rate=1e-2,
        learning_rates={"encoder": 1e-4},
        warmup=0.5,
        min_learning_rate=0.1,
    )
    model = lab.model()
    model.language_model.requires_grad_(False)
    optimizer = build_optimizer(model, stage)
    seen = []
    for step in range(4):
        factor = set_rates(optimizer, stage, step, 4)
        rates = sorted({g["lr"] for g in optimizer.param_groups})
        seen.append((factor, *rates))
    # up: 1/2, 1; down: 0.1 + 0.9 x cosine share of 1, 1/2
    assert seen == [
        pytest.approx(row)
        for row in [(0.5, 5e-5, 5e-3), (1, 1e-4, 1e-2), (1, 1e-4, 1e-2), (0.55, 5.5e-5, 5.5e-3)]
    ]
