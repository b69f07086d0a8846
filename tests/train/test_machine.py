"""What is done otherwise on another machine or in less memory: the same losses, or a clear refusal."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from medloupe.errors import ConfigError, MissingExtraError
from medloupe.models.adapters import decoder_layers
from medloupe.train.log import read_log
from medloupe.train.machine import compile_layers, moved, pinned, random_state, reseed
from medloupe.train.objectives.language import LanguageObjectiveConfig
from medloupe.train.stages import TrainConfig

BOTH: dict[str, Any] = {"trainable": ("connector", "language_model"), "steps": 5}


def losses(out: Path) -> list[tuple[float, float]]:
    rows = read_log(out / "train.jsonl")
    return [(row["loss"], row["grad_norm"]) for row in rows if row["event"] == "step"]


def fitted(lab: Any, out: Path, stage: Any, **options: Any) -> Any:
    progress = options.pop("progress", lambda *_: None)
    trainer = lab.trainer(out, TrainConfig(stages=(stage,), **options), progress=progress)
    trainer.fit(resume=True)
    return trainer


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.2}])
def test_checkpointing_changes_no_bit(
    tiny: ModuleType, lab: Any, tmp_path: Path, lora: Any
) -> None:
    ran: list[int] = []
    for again in (None, True):
        stage = tiny.language_stage(**BOTH, lora=lora, checkpointing=again)
        runs = 0

        def count(*_: Any) -> None:
            nonlocal runs
            runs += 1

        model = lab.model()
        decoder_layers(model.language_model)[0].mlp.register_forward_pre_hook(count)
        run = TrainConfig(stages=(stage,))
        trainer = lab.trainer(tmp_path / str(again), run, model=model)
        trainer.fit()
        ran.append(runs)
        assert not any(
            layer.gradient_checkpointing for layer in decoder_layers(model.language_model)
        )
    assert ran == [5, 10]
    assert losses(tmp_path / "None") == losses(tmp_path / "True")


class StopError(Exception):
    """Leaves the loop as an interrupt does."""


def test_eight_bit_states_train_and_resume_to_the_same_bits(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the quantized extra")
    stage = tiny.language_stage(**BOTH, optimizer="adamw_8bit")
    whole = fitted(lab, tmp_path / "whole", stage, save_every=2)
    plain = fitted(lab, tmp_path / "plain", tiny.language_stage(**BOTH))
    ours, theirs = ([loss for loss, _ in losses(t.log.path.parent)] for t in (whole, plain))
    assert ours == pytest.approx(theirs, rel=1e-2)
    assert ours != theirs

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("train") and done == 3:
            raise StopError

    with pytest.raises(StopError):
        fitted(lab, tmp_path / "cut", stage, save_every=2, progress=stop)
    saved = torch.load(tmp_path / "cut/checkpoints/00-tune-0000002.pt", weights_only=True)
    table = saved["optimizer"]["language_model.model.embed_tokens.weight"]
    assert table["state1"].dtype == torch.uint8
    again = fitted(lab, tmp_path / "cut", stage, save_every=2)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    wanted = whole.model.state_dict()
    assert all(torch.equal(t, wanted[n]) for n, t in again.model.state_dict().items())


def test_eight_bit_states_where_they_cannot_be(
    tiny: ModuleType, lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = tiny.language_stage(**BOTH, optimizer="adamw_8bit")
    with pytest.raises(ValueError, match="8-bit states cannot be sharded"):
        TrainConfig(stages=(stage,), engine="fsdp2")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(MissingExtraError, match=r"medloupe\[quantized\]"):
        fitted(lab, tmp_path / "a", stage)
    monkeypatch.undo()
    optim = pytest.importorskip("bitsandbytes.optim", reason="needs the quantized extra")

    def fail(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(optim, "AdamW8bit", fail)
    with pytest.raises(ConfigError, match=r"stages\.tune\.optimizer.*no kernel.*adamw"):
        fitted(lab, tmp_path / "b", stage)


def test_layers_are_compiled_where_there_is_a_compiler(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer is marked; the compiler itself runs at the first step, which takes it half a minute."""
    model, cpu = lab.model(), torch.device("cpu")
    layers = decoder_layers(model.language_model)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compile_layers(model, cpu)
    assert [layer._compiled_call_impl for layer in layers] == [None, None]
    monkeypatch.setenv("CXX", sys.executable)
    assert compile_layers(model, cpu)
    assert all(layer._compiled_call_impl is not None for layer in layers)


def test_a_batch_moves_with_all_that_belongs_to_it(lab: Any) -> None:
    """The meta device stands for a GPU: every tensor goes there, and none is left."""
    micro = LanguageObjectiveConfig().build(lab.context(lab.model())).micro([0, 8])
    there = moved(micro, torch.device("meta"))
    assert moved(micro, torch.device("cpu")) is micro
    assert pinned(micro, torch.device("cpu")) is micro
    batch = there.batch
    tensors = [v for v in vars(batch).values() if isinstance(v, torch.Tensor)]
    tensors += [image.views for image in batch.images]
    assert len(tensors) >= 5
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.ids == micro.batch.ids
    assert there.count == micro.count


def test_processes_draw_other_numbers_at_every_step() -> None:
    before = random_state()["cpu"]
    drawn = set()
    for rank in range(1, 4):
        for step in range(4):
            reseed(7, step, rank)
            drawn.add(float(torch.rand(())))
    torch.set_rng_state(before)
    assert len(drawn) == 12


@pytest.mark.skipif(
    "MEDLOUPE_SLOW" not in os.environ or shutil.which("g++") is None,
    reason="compiles for half a minute (set MEDLOUPE_SLOW)",
)
def test_compiled_layers_have_the_same_losses(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    stage = tiny.language_stage(**BOTH)
    fitted(lab, tmp_path / "plain", stage)
    fitted(lab, tmp_path / "compiled", stage, compile=True)
    plain, compiled = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert [loss for loss, _ in compiled] == pytest.approx([loss for loss, _ in plain], rel=1e-5)
