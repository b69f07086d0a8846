"""Where adapters may sit, what saving and merging them keeps, and what merging in bfloat16 costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from medloupe.errors import CheckpointError, ConfigError
from medloupe.models.low_rank import (
    LowRankConfig,
    attach,
    carried_adapters,
    inject,
    is_adapter,
    merge,
    save_adapters,
)
from medloupe.models.vlm import VisionLanguageModel

KINDS = ["lora", "dora", "rslora"]
FAMILIES = ["llama", "qwen3", "phi3", "gemma", "gpt2"]
IMAGE_TOKENS = [98] * 4


def learned(model: nn.Module, scale: float = 0.1) -> None:
    """As if the adapters had been trained: fresh ones change nothing."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter += scale * torch.randn_like(parameter)


def said(model: VisionLanguageModel, pixels: torch.Tensor) -> torch.Tensor:
    row = torch.tensor([[1, 5, *IMAGE_TOKENS, 6, 7]])
    with torch.no_grad():
        return model.eval()(input_ids=row, pixel_values=pixels[:1]).logits.float()


def adapted(model: nn.Module) -> set[str]:
    return {n.rpartition(".lora_A")[0] for n in model.state_dict() if ".lora_A." in n}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapters_change_nothing_and_all_linear_layers_carry_one(
    make_model, pixels, family: str, kind: str
) -> None:
    model = make_model(family)
    before, linears = said(model, pixels), set()
    for name, module in model.language_model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D") and name != "lm_head":
            linears.add(f"language_model.{name}")
    attach(model, "language_model", LowRankConfig(rank=2, kind=kind))
    assert adapted(model) == linears
    torch.testing.assert_close(said(model, pixels), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_brings_its_adapters_back(
    make_model, pixels, tmp_path: Path, kind: str, tied: bool
) -> None:
    model = make_model(tied=tied)
    attach(model, "language_model", LowRankConfig(rank=2, kind=kind, dropout=0.1))
    attach(model, "encoder", LowRankConfig(rank=3, kind=kind, targets=("q_proj", "mlp.fc1")))
    learned(model)
    wanted = said(model, pixels)
    model.save_pretrained(tmp_path)
    again = VisionLanguageModel.load(tmp_path)
    assert carried_adapters(again) == carried_adapters(model)
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert torch.equal(said(again, pixels), wanted)
    for part in ("language_model", "encoder"):
        merge(again, part)
    assert carried_adapters(again) == {}
    assert again.state_dict().keys() == make_model(tied=tied).state_dict().keys()
    # float32: the sum is rounded once before instead of after the product with the input
    torch.testing.assert_close(said(again, pixels), wanted, rtol=1e-4, atol=1e-4)
    again.save_pretrained(tmp_path / "merged")
    assert json.loads((tmp_path / "merged/config.json").read_text())["low_rank"] == {}


def test_adapters_of_a_bfloat16_model_are_float32_there_and_after_loading(
    make_model, tmp_path: Path
) -> None:
    model = make_model()
    model.language_model.to(torch.bfloat16)
    model.config.language["dtype"] = "bfloat16"  # as a published model's config says
    attach(model, "language_model", LowRankConfig(rank=2))
    model.save_pretrained(tmp_path)
    for one in (model, VisionLanguageModel.load(tmp_path)):
        types = {(is_adapter(n), p.dtype) for n, p in one.language_model.named_parameters()}
        assert types == {(True, torch.float32), (False, torch.bfloat16)}


def test_what_merging_into_bfloat16_costs(make_model, pixels) -> None:
    """The change is rounded to bfloat16, and so is the sum: each by at most 2**-8 of itself. Against the
    same model in float32 that is no more than what bfloat16 arithmetic is off by anyway: both 1.4 %."""
    model = make_model()
    part = model.language_model
    part.to(torch.bfloat16)
    attach(model, "language_model", LowRankConfig(rank=2))
    learned(model, scale=0.004)
    wanted = {}
    for name in sorted(adapted(part)):
        layer = part.get_submodule(name)
        change = layer.get_delta_weight("default")
        wanted[name] = layer.base_layer.weight.detach().float(), change.detach().float()
    exact = make_model()
    own = {name.replace(".base_layer", ""): tensor for name, tensor in part.state_dict().items()}
    own |= {f"{name}.weight": weight + change for name, (weight, change) in wanted.items()}
    exact.language_model.load_state_dict(own, strict=False)
    truth, kept = said(exact, pixels), said(model, pixels)
    merge(model, "language_model")
    lost = []
    for name, (weight, change) in wanted.items():
        merged = part.get_submodule(name).weight.detach()
        assert merged.dtype is torch.bfloat16
        off = (merged.float() - (weight + change)).abs()
        bound = 2**-8 * ((weight + change).abs() + 1.01 * change.abs())
        assert bool((off <= bound).all()), name
        lost.append((merged.float() == weight).float().mean())
    assert (
        float(torch.stack(lost).mean()) > 0.03
    )  # measured 0.06: changes that are not there any more
    off_kept, off_merged = (float((x - truth).norm()) for x in (kept, said(model, pixels)))
    assert off_merged < 1.3 * off_kept < 0.03 * float(truth.norm())


def test_targets_by_name(make_model) -> None:
    model = make_model()
    attach(model, "language_model", LowRankConfig(targets=("q_proj", "1.mlp.up_proj")))
    layers = "language_model.model.layers"
    assert adapted(model) == {
        f"{layers}.0.self_attn.q_proj",
        f"{layers}.1.self_attn.q_proj",
        f"{layers}.1.mlp.up_proj",
    }
    with pytest.raises(ConfigError, match="did you mean 'q_proj'"):
        attach(make_model(), "language_model", LowRankConfig(targets=("qproj",)))
    with pytest.raises(ConfigError, match="no linear layer is named 'proj'"):  # not inside a name
        attach(make_model(), "language_model", LowRankConfig(targets=("proj",)))


def test_an_output_head_that_is_the_embedding_table_carries_none(make_model) -> None:
    head = LowRankConfig(targets=("lm_head",))
    with pytest.raises(ConfigError, match="output head is the embedding table"):
        attach(make_model(tied=True), "language_model", head)
    model = make_model()
    attach(model, "language_model", head)
    assert adapted(model) == {"language_model.lm_head"}


def test_only_the_part_is_touched(make_model) -> None:
    """A module that stands elsewhere in the model, as an adapter does, is nobody's linear layer."""
    model = make_model()
    model.add_module("adapter", nn.Linear(32, 32))
    for part in ("language_model", "encoder"):
        attach(model, part, LowRankConfig(rank=2))
    assert {name.partition(".")[0] for name in adapted(model)} == {"language_model", "encoder"}


def test_linear_layers_that_torchs_attention_reads_itself_are_left_out() -> None:
    """It takes the output layer's weight and never calls the layer: an adapter would be dead."""
    part = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "dense": nn.Linear(8, 8)})
    inject(part, LowRankConfig(rank=2))
    assert adapted(part) == {"dense"}


def test_other_adapters_than_those_it_carries_are_refused(make_model) -> None:
    model = make_model()
    attach(model, "language_model", LowRankConfig(rank=2))
    attach(model, "language_model", LowRankConfig(rank=2))
    with pytest.raises(ConfigError, match=r'carries adapters.*"rank":2.*"rank":4.*merge'):
        attach(model, "language_model", LowRankConfig(rank=4))


def test_nothing_to_save(make_model, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="carries no adapters"):
        save_adapters(make_model(), "language_model", tmp_path)
