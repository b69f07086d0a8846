"""Adapters across stages: merged or kept, gone on with, resumed, and plans that cannot work."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig

from medloupe.errors import ConfigError
from medloupe.models.low_rank import LowRankConfig, attach, carried_adapters, is_adapter, merge
from medloupe.models.vlm import VisionLanguageModel, VLMConfig
from medloupe.train.log import read_log
from medloupe.train.lora import check_adapters, train_mode
from medloupe.train.stages import LoraConfig, StageConfig, TrainConfig

KEPT = {"rank": 2, "alpha": 64.0, "merge": False}
WITH_TEXT = {"trainable": ("connector", "language_model"), "steps": 2}


def moved(before: dict[str, torch.Tensor], model: VisionLanguageModel) -> set[str]:
    after = model.state_dict()
    assert after.keys() == before.keys()
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def said(model: VisionLanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(1, 41)[None]).logits


def with_towers(lab: Any, tiny: ModuleType) -> VisionLanguageModel:
    """The lab's model with a CLIP tower of as many tokens: convolutions have no linear layer."""
    tower = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
    )
    fields = {k: v for k, v in lab.model().config.to_dict().items() if k != "encoder"}
    encoder = {"name": "clip", "architecture": tower.to_diff_dict(), "image_size": 64}
    model = VisionLanguageModel(VLMConfig(encoder=encoder, **fields))
    tiny.fill(model)
    return model


def test_adapters_sit_in_the_language_model_alone_and_merge_exactly(lab: Any) -> None:
    model = lab.model()
    model.requires_grad_(False)
    plain = set(model.state_dict())
    bare = said(model)
    attach(model, "language_model", LowRankConfig(rank=4, alpha=16.0))
    assert torch.equal(said(model), bare)  # fresh ones change nothing
    added = {n for n in model.state_dict() if "lora_" in n}
    assert added
    assert all(n.startswith("language_model.") for n in added)
    assert not any("lm_head" in n or "embed" in n for n in added)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == added
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    before = said(model)
    merge(model, "language_model")
    assert set(model.state_dict()) == plain
    assert type(model.language_model).__name__ == "LlamaForCausalLM"
    assert carried_adapters(model) == {}
    assert float((before - bare).abs().max()) > 0.05  # the adapters do say something
    assert float((before - said(model)).abs().max()) < 1e-5


def test_kept_adapters_train_alone_and_are_saved_with_the_model(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    before = lab.model().state_dict()
    stage = tiny.language_stage(**WITH_TEXT, lora=KEPT)
    trainer = lab.trainer(tmp_path, TrainConfig(stages=(stage,)))
    trainer.fit()
    model = trainer.model
    assert carried_adapters(model) == {"language_model": LowRankConfig(rank=2, alpha=64.0)}
    for name, tensor in model.state_dict().items():
        plain = name.replace(".base_layer", "")
        if plain in before and not name.startswith("connector"):
            assert torch.equal(tensor, before[plain]), name
    assert not any(p.requires_grad for p in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    again = VisionLanguageModel.load(tmp_path / "saved")
    assert carried_adapters(again) == carried_adapters(model)
    assert moved(model.state_dict(), again) == set()
    assert torch.equal(said(again), said(model))
    merge(again, "language_model")
    assert torch.equal(again.get_input_embeddings().weight, before["language_model.lm_head.weight"])
    torch.testing.assert_close(said(again), said(model), rtol=0, atol=1e-5)


def test_a_checkpoint_holds_kept_adapters_and_nothing_they_leave_alone(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    keep = tiny.language_stage("keep", **WITH_TEXT, lora=KEPT)
    merged = tiny.language_stage("merged", **WITH_TEXT, lora=KEPT | {"merge": True})
    trainer = lab.trainer(tmp_path, TrainConfig(stages=(keep, merged)))
    trainer.fit()
    first, second = (trainer.checkpoints.read(found) for found in trainer.checkpoints.found())
    assert first["low_rank"].keys() == {"language_model"}
    assert all(is_adapter(name) for name in first["parts"]["language_model"])
    assert second["low_rank"] == {}
    assert (
        second["parts"]["language_model"].keys() == lab.model().language_model.state_dict().keys()
    )


def test_what_was_saved_under_the_former_name_is_read(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    """`adapters` in a model's config and in a stage's last checkpoint are low-rank ones."""
    stages = [tiny.language_stage(name, **WITH_TEXT, lora=KEPT) for name in ("one", "two")]
    run = TrainConfig(stages=tuple(stages))
    trainer = lab.trainer(tmp_path, run)
    trainer.fit()
    wanted = trainer.model.state_dict()
    first, second = (found.path for found in trainer.checkpoints.found())
    state = torch.load(first, weights_only=True)
    torch.save({"parts": state["parts"], "adapters": state["low_rank"]}, first)
    second.unlink()
    again = lab.trainer(tmp_path, run)
    again.fit(resume=True)
    assert [n for n, t in again.model.state_dict().items() if not torch.equal(t, wanted[n])] == []
    fields = again.model.config.to_dict()
    former = VLMConfig(**(fields | {"low_rank": None, "adapters": fields["low_rank"]}))
    assert former.low_rank == fields["low_rank"] != {}
    assert "adapters" not in former.to_dict()


def test_a_stage_goes_on_with_kept_adapters_and_may_merge_them(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    """Two stages of two steps, and what the second began with."""
    keep = tiny.language_stage("keep", **WITH_TEXT, lora=KEPT)
    more = tiny.language_stage("more", **WITH_TEXT, lora=KEPT | {"merge": True})
    seen: dict[str, dict[str, torch.Tensor]] = {}

    def note(step: int, model: VisionLanguageModel) -> dict[str, float]:
        seen[f"{len(seen)}"] = {
            n: p.detach().clone() for n, p in model.named_parameters() if is_adapter(n)
        }
        return {}

    run = TrainConfig(stages=(keep, more), evaluate_every=1)
    trainer = lab.trainer(tmp_path, run, hook=note)
    trainer.fit()
    ends = trainer.checkpoints.read(trainer.checkpoints.found()[0])["parts"]["language_model"]
    assert all(torch.equal(seen["1"][f"language_model.{n}"], t) for n, t in ends.items())
    # AdamW's first step moves each number by its rate: the third step began where the second ended.
    rates = [row["rate"] for row in read_log(tmp_path / "train.jsonl") if row["event"] == "step"]
    for name, tensor in seen["2"].items():
        assert float((tensor - seen["1"][name]).abs().max()) <= 1.01 * 3e-3 * rates[2], name
    assert carried_adapters(trainer.model) == {}


class StopError(Exception):
    """Leaves the loop as an interrupt does."""


@pytest.mark.parametrize(("stage", "step"), [("keep", 3), ("rest", 1), ("more", 1), ("more", 3)])
def test_kept_adapters_are_resumed_to_the_same_bits(
    tiny: ModuleType, lab: Any, tmp_path: Path, stage: str, step: int
) -> None:
    """Dropout too: it draws only where adapters train."""
    lora = KEPT | {"dropout": 0.2, "kind": "dora"}
    run = TrainConfig(
        stages=(
            tiny.language_stage("keep", trainable=("language_model",), steps=4, lora=lora),
            tiny.language_stage("rest", trainable=("connector",), steps=2),
            tiny.language_stage("more", trainable=("language_model",), steps=4, lora=lora),
        ),
        save_every=2,
    )

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith(f"train {stage}") and done == step:
            raise StopError

    whole = lab.trainer(tmp_path / "whole", run)
    whole.fit()
    with pytest.raises(StopError):
        lab.trainer(tmp_path / "cut", run, progress=stop).fit()
    resumed = lab.trainer(tmp_path / "cut", run)
    resumed.fit(resume=True)
    assert moved(whole.model.state_dict(), resumed.model) == set()
    losses = [
        [row["loss"] for row in read_log(tmp_path / name / "train.jsonl") if row["event"] == "step"]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 10


def test_adapters_on_the_encoder_and_on_both(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    model = with_towers(lab, tiny)
    before = model.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    stage = tiny.language_stage(
        trainable=("encoder", "language_model"),
        steps=2,
        encoder_lora={"kind": "rslora", "rank": 2, "targets": ["q_proj", "mlp.fc1"]},
        lora={"rank": 2},
    )
    lab.trainer(tmp_path, TrainConfig(stages=(stage,)), model=model).fit()
    changed = moved(before, model)
    in_encoder = {name for name in changed if name.startswith("encoder.")}
    assert in_encoder
    assert all("q_proj.weight" in n or "fc1.weight" in n for n in in_encoder)
    assert {n.partition(".")[0] for n in changed} == {"encoder", "language_model"}
    (row,) = [r for r in read_log(tmp_path / "train.jsonl") if r["event"] == "stage"]
    # the tower's last layer is not read, and not built
    assert row["trainable"]["encoder"] == 2 * (32 + 32) + 2 * (32 + 48)
    assert row["frozen"] == ["connector"]


def test_adapters_that_do_not_train_drop_nothing(lab: Any) -> None:
    model = lab.model()
    attach(model, "language_model", LowRankConfig(rank=2, dropout=0.5))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = torch.arange(1, 41)[None]
    train_mode(model)
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    model.requires_grad_(False)
    train_mode(model)
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert model.training


def test_a_part_without_linear_layers(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    stage = tiny.language_stage("see", trainable=("encoder",), encoder_lora={})
    with pytest.raises(ConfigError, match="no linear layer to adapt") as caught:
        lab.trainer(tmp_path, TrainConfig(stages=(stage,))).fit()
    assert caught.value.fault.field == "stage see, encoder_lora"


def plan(*loras: dict[str, Any] | None, **fields: Any) -> list[StageConfig]:
    """One stage on the language model for each: its adapters, or None for all of it."""
    return [
        StageConfig.parse(
            {
                "name": f"s{number}",
                "objective": {"name": "language"},
                "trainable": ("language_model",),
                "lora": lora,
            }
            | fields
        )
        for number, lora in enumerate(loras)
    ]


@pytest.mark.parametrize(
    ("stages", "quantized", "text"),
    [
        (plan(KEPT, None), False, r"stage s1.*trains all of language_model.*merge to true"),
        (plan(KEPT, KEPT | {"rank": 4}), False, r"stage s1, lora.*the stage has others"),
        (plan({}, KEPT, {}), False, r"stage s2, lora.*the stage has others"),
        (plan(None), True, "quantised weights cannot train.*quantization to none"),
        (plan({}), True, "cannot be merged into quantised weights.*lora.merge to false"),
    ],
)
def test_plans_that_cannot_work(stages: list[StageConfig], quantized: bool, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_adapters(stages, {}, quantized=quantized)


@pytest.mark.parametrize(
    ("stages", "quantized"),
    [
        (plan(KEPT, KEPT | {"merge": True}, None), False),
        (plan({}, {"rank": 4}, None), False),
        (plan(KEPT, KEPT), True),
    ],
)
def test_plans_that_work(stages: list[StageConfig], quantized: bool) -> None:
    check_adapters(stages, {}, quantized=quantized)


def test_what_a_model_brings_along_counts(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    model = lab.model()
    attach(model, "language_model", LowRankConfig(rank=2))
    whole = TrainConfig(stages=(tiny.language_stage(trainable=("language_model",), steps=1),))
    with pytest.raises(ConfigError, match="carries kept adapters"):
        lab.trainer(tmp_path, whole, model=model).fit()
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("field", ["lora", "encoder_lora"])
def test_adapters_need_their_part(field: str) -> None:
    part = {"lora": "language_model", "encoder_lora": "encoder"}[field]
    with pytest.raises(ConfigError, match=f"{field} needs '{part}' in trainable"):
        plan(None, trainable=("connector",), **{field: {}})
    assert LoraConfig(rank=4).adapters() == LowRankConfig(rank=4)
