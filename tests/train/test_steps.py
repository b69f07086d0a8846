from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from medloupe.errors import ConfigError, TrainingError
from medloupe.models.adapters import AdapterConfig
from medloupe.train import Trainer
from medloupe.train.log import read_log
from medloupe.train.objectives.language import LanguageObjectiveConfig
from medloupe.train.optimizer import build_optimizer, trained_parameters
from medloupe.train.stages import TrainConfig

PARTS = ("encoder", "connector", "language_model")


def steps(out: Path, event: str = "step") -> list[dict[str, Any]]:
    return [row for row in read_log(out / "train.jsonl") if row["event"] == event]


def config(*stages: Any, **fields: Any) -> TrainConfig:
    return TrainConfig(stages=stages, **fields)


@pytest.mark.parametrize("pack", [False, True])
def test_accumulating_equals_one_large_batch(
    tiny: ModuleType, lab: Any, tmp_path: Path, pack: bool
) -> None:
    """All rows of the epoch are in every step, so only the cut into micro-batches differs."""
    rows = 9 if pack else 25  # 8 images and a text, or 8 x 3 questions and a text
    cut = 3 if pack else 5
    after = {}
    for name, size, count in (("whole", rows, 1), ("parts", cut, rows // cut)):
        stage = tiny.language_stage(
            objective={"name": "language", "pack": pack},
            trainable=("connector", "language_model"),
            batch_size=size,
            accumulate=count,
            steps=4,
            clip=0.5,
        )
        trainer = lab.trainer(tmp_path / name, config(stage))
        trainer.fit()
        after[name] = trainer.model.state_dict()
    whole, parts = steps(tmp_path / "whole"), steps(tmp_path / "parts")
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in parts] == pytest.approx([r[key] for r in whole], rel=1e-4)
    assert [r["tokens"] for r in parts] == [r["tokens"] for r in whole]
    # AdamW's first steps have the size of the rate whatever the gradient's: where that is nothing but
    # rounding, weights may differ by some of it; measured: a mean of 2e-7 against rates of 3e-3
    apart = {name: (after["parts"][name] - tensor).abs() for name, tensor in after["whole"].items()}
    assert max(float(a.float().mean()) for a in apart.values()) < 1e-5


class Poisoned(Trainer):
    """The gradient of chosen steps is infinite, while their loss is not."""

    at: tuple[int, ...] = (3, 4)
    seen: int = 0

    def backward(self, loss: torch.Tensor) -> None:
        self.seen += 1
        super().backward(loss * float("inf") if self.seen in self.at else loss)


def test_a_step_with_an_infinite_gradient_changes_nothing(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    weights: list[torch.Tensor] = []

    def hook(_: int, model: Any) -> dict[str, float]:
        weights.append(torch.cat([p.flatten() for p in model.connector.parameters()]).clone())
        return {}

    run = config(tiny.language_stage(steps=6), evaluate_every=1, max_refused=3)
    lab.trainer(tmp_path, run, hook=hook, trainer=Poisoned).fit()
    moved = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert moved == [True, False, False, True, True]
    assert torch.isfinite(weights[-1]).all()
    refused = steps(tmp_path, "refused")
    assert [r["step"] for r in refused] == [3, 4]
    assert [r["step"] for r in steps(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert refused[0]["grad_norm"] in ("inf", "nan")
    ids = {c.id for c in lab.dataset.conversations}
    assert refused[0]["rows"]
    assert set(refused[0]["rows"]) <= ids


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_loss_that_stays_non_finite_ends_the_run(
    tiny: ModuleType, lab: Any, tmp_path: Path, bad: str
) -> None:
    model = lab.model()
    with torch.no_grad():
        model.language_model.model.norm.weight[0] = float(bad)
    before = {name: p.clone() for name, p in model.connector.named_parameters()}
    run = config(tiny.language_stage("broken", steps=9), max_refused=3)
    with pytest.raises(TrainingError, match="3 steps in a row") as caught:
        lab.trainer(tmp_path, run, model=model).fit()
    assert "stage broken, step 3" in str(caught.value)
    refused = steps(tmp_path, "refused")
    assert [r["step"] for r in refused] == [1, 2, 3]
    assert caught.value.fault.row == ", ".join(refused[-1]["rows"][:8])
    assert all(torch.equal(p, before[name]) for name, p in model.connector.named_parameters())
    assert list((tmp_path / "checkpoints").glob("*")) == []
    with pytest.raises(TrainingError):  # the same folder may be used again: nothing was written
        lab.trainer(tmp_path, run, model=model).fit()
    assert len(steps(tmp_path, "refused")) == 3


@pytest.mark.parametrize(
    ("trainable", "lora"),
    [
        (("connector",), False),
        (("encoder", "connector"), False),
        (("encoder",), False),
        (("language_model",), False),
        (("connector", "language_model"), True),
        (("language_model",), True),
        (PARTS, False),
    ],
)
def test_what_trains_moves_and_what_is_frozen_does_not(
    tiny: ModuleType, lab: Any, tmp_path: Path, trainable: tuple[str, ...], lora: bool
) -> None:
    before = lab.model().state_dict()
    stage = tiny.language_stage(
        trainable=trainable, steps=2, lora={"rank": 2, "alpha": 64.0} if lora else None
    )
    trainer = lab.trainer(tmp_path, config(stage))
    trainer.fit()
    after = trainer.model.state_dict()
    assert after.keys() == before.keys()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in moved} == set(trainable)
    if not lora:
        assert {n for n, _ in trainer.model.named_parameters() if n.startswith(trainable)} <= moved
    elif "language_model" in trainable:
        adapted = {n for n in moved if n.startswith("language_model")}
        assert adapted == {n for n in before if n.endswith("_proj.weight")}
    (row,) = steps(tmp_path, "stage")
    assert set(row["trainable"]) == set(trainable)
    assert set(row["frozen"]) == set(PARTS) - set(trainable)
    if not lora:
        counted = {
            part: sum(p.numel() for p in trainer.model.get_submodule(part).parameters())
            for part in trainable
        }
        assert row["trainable"] == counted
    assert row["steps"] == 2
    assert not any(p.requires_grad for p in trainer.model.parameters())
    assert not trainer.model.training


def test_learning_rates_by_part_and_decay_by_shape(tiny: ModuleType, lab: Any) -> None:
    stage = tiny.language_stage(
        trainable=PARTS,
        learning_rate=1e-3,
        learning_rates={"encoder": 1e-5, "language_model": 2e-4},
        weight_decay=0.1,
    )
    model = lab.model()
    optimizer = build_optimizer(model, stage)
    groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    rates = {"encoder": 1e-5, "connector": 1e-3, "language_model": 2e-4}
    named = trained_parameters(model)
    assert tuple(named) == PARTS
    for part, parameters in named.items():
        for name, parameter in parameters:
            group = groups[id(parameter)]
            assert (group["peak"], group["lr"]) == (rates[part], rates[part])
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0), name
    total = sum(len(g["params"]) for g in optimizer.param_groups)
    assert total == sum(len(p) for p in named.values()) == len(groups)


def test_the_adapters_encoder_may_have_a_rate_of_its_own(tiny: ModuleType, lab: Any) -> None:
    adapter = AdapterConfig.parse(
        {
            "name": "hia",
            "encoder": {"name": "efficientnet_lite0", "image_size": 64},
            "queries": 2,
            "width": 8,
            "layers": 1,
        }
    )
    model = lab.model()
    model.adapter = adapter.build(width=16, depth=4)
    for rates, own, rest in (
        ({"adapter.encoder": 1e-5}, 1e-5, 1e-3),
        ({"adapter": 1e-4, "adapter.encoder": 1e-5}, 1e-5, 1e-4),
        ({"adapter": 1e-4}, 1e-4, 1e-4),
        ({}, 1e-3, 1e-3),
    ):
        stage = tiny.language_stage(
            trainable=("adapter",), learning_rate=1e-3, learning_rates=rates, weight_decay=0.1
        )
        optimizer = build_optimizer(model, stage)
        groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
        assert {id(p) for p in model.adapter.parameters()} <= set(groups)
        for name, parameter in model.adapter.named_parameters():
            group = groups[id(parameter)]
            assert group["peak"] == (own if name.startswith("encoder.") else rest)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    with pytest.raises(ConfigError, match="do not train"):
        tiny.language_stage(trainable=("connector",), learning_rates={"adapter.encoder": 1e-5})


def test_a_part_with_a_smaller_rate_moves_less(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    before = lab.model().state_dict()
    stage = tiny.language_stage(
        trainable=("connector", "language_model"),
        learning_rate=1e-2,
        learning_rates={"language_model": 1e-5},
        steps=1,
        warmup=0.0,
    )
    trainer = lab.trainer(tmp_path, config(stage))
    trainer.fit()
    far = {"connector": 0.0, "language_model": 0.0}
    for name, tensor in trainer.model.state_dict().items():
        part = name.split(".")[0]
        if part in far:
            far[part] = max(far[part], float((tensor - before[name]).abs().max()))
    # the first step of AdamW moves a weight by its rate
    assert far == pytest.approx({"connector": 1e-2, "language_model": 1e-5}, rel=1e-2)


def test_the_log_counts_tokens_and_padding(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    stage = tiny.language_stage(batch_size=9, steps=1)
    lab.trainer(tmp_path, config(stage)).fit()
    (row,) = steps(tmp_path)
    model = lab.model()
    objective = LanguageObjectiveConfig().build(lab.context(model))
    lengths = list(objective.lengths)
    assert len(lengths) == 9  # one row an image with its three questions, and the text
    assert row["tokens"] == sum(lengths)
    padding = max(lengths) * 9 - sum(lengths)
    assert row["padding_share"] == pytest.approx(padding / (max(lengths) * 9), abs=1e-4)
    assert 0 <= row["data_wait_share"] <= 1
    assert row["tokens_per_second"] > 0


def test_nothing_to_train_on(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    stage = tiny.language_stage(objective={"name": "language", "tasks": ["no such"]})
    with pytest.raises(TrainingError, match="no training conversation"):
        lab.trainer(tmp_path / "a", config(stage)).fit()
    model = lab.model()
    model.language_model.to(torch.bfloat16)
    stage = tiny.language_stage(trainable=("language_model",))
    with pytest.raises(TrainingError, match="small updates would be lost"):
        lab.trainer(tmp_path / "b", config(stage), model=model).fit()


def test_a_later_stage_without_rows_is_refused_before_the_first_trains(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    first = tiny.language_stage("first")
    empty = {"name": "language", "tasks": ["no such"]}
    refused = [
        (
            {"objective": empty},
            r"train\.stages\.last.*wants no such; the data have.*of the tasks .*"
            r"--set train\.stages\.last\.objective\.tasks=",
        ),
        (
            {"curriculum": {"attribute": "widht"}},
            r"train\.stages\.last\.curriculum\.attribute.*no row has the attribute 'widht'.*"
            r"--set train\.stages\.last\.curriculum=null",
        ),
    ]
    for number, (fields, message) in enumerate(refused):
        last = tiny.language_stage("last", **fields)
        folder = tmp_path / str(number)
        with pytest.raises(TrainingError, match=message):
            lab.trainer(folder, config(first, last)).fit()
        assert not (folder / "train.jsonl").exists()
    ground = tiny.language_stage("last", objective={"name": "grounding"}, trainable=("connector",))
    bare = replace(lab.dataset, records=())
    with pytest.raises(TrainingError, match=r"records.*--set train\.stages\.last\.objective="):
        lab.trainer(tmp_path / "g", config(first, ground), dataset=bare).fit()
    assert not (tmp_path / "g" / "train.jsonl").exists()


def test_kept_features_are_those_of_the_encoder(tiny: ModuleType, lab: Any) -> None:
    context = lab.context(lab.model())
    kept = LanguageObjectiveConfig().build(replace(context, frozen_encoder=True))
    live = LanguageObjectiveConfig().build(context)
    assert kept.lengths == live.lengths
    for rows in ([0, 3, 8], [7], [8]):  # row 8 has no image
        one, other = kept.micro(rows), live.micro(rows)
        assert all(image.views is None for image in one.batch.images)
        assert all(image.features is None for image in other.batch.images)
        with torch.no_grad():
            for known, image in zip(
                one.batch.images, context.model.encode(other.batch.images), strict=True
            ):
                torch.testing.assert_close(known.features, image.features)
            torch.testing.assert_close(kept.loss(one), live.loss(other))
