"""Adapters against the papers' formulas in plain torch, and against plain peft.

float32 on both sides; the orders of the sums differ, so that numbers of order one agree to 1e-5.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, LlamaConfig

from medloupe.models.low_rank import LowRankConfig, attach, inject, is_adapter, save_adapters
from medloupe.models.vlm import VisionLanguageModel, VLMConfig

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
KINDS = ["lora", "dora", "rslora"]
RANK, ALPHA = 4, 6.0
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
TARGETS = ("q_proj", "o_proj", "down_proj")


def composed(family: str) -> VisionLanguageModel:
    """A tiny model with learned adapters on nothing yet."""
    torch.manual_seed(9)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    )
    return VisionLanguageModel(
        VLMConfig(
            encoder={"name": "clip", "architecture": vision.to_diff_dict(), "image_size": 28},
            connector="mlp",
            language=AutoConfig.for_model(family, **SIZES).to_dict(),
            image_token_id=98,
        )
    ).eval()


def stir(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter += 0.2 * torch.randn_like(parameter)


def by_formula(kind: str, weight: torch.Tensor, learned: dict[str, torch.Tensor]) -> torch.Tensor:
    """The adapted weight. LoRA: W + (a / r) B A. rsLoRA: a / sqrt(r). DoRA: m * V / ||V||, V that of
    LoRA and its row norms taken as constants (Liu et al. 2024, sections 4.1 and 4.3)."""
    share = ALPHA / math.sqrt(RANK) if kind == "rslora" else ALPHA / RANK
    total = weight + share * learned["lora_B"] @ learned["lora_A"]
    if kind != "dora":
        return total
    norms = total.detach().norm(dim=1, keepdim=True)
    return learned["lora_magnitude_vector"][:, None] * total / norms


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_forward_and_gradients_are_those_of_the_formula(family: str, kind: str) -> None:
    model = composed(family)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES)).eval()
    plain.load_state_dict(model.language_model.state_dict())
    config = LowRankConfig(kind=kind, rank=RANK, alpha=ALPHA, targets=TARGETS)
    attach(model, "language_model", config)
    stir(model)
    ids, probe = torch.arange(1, 21)[None], torch.randn(1, 20, 99)
    ours = model(input_ids=ids).logits
    (ours * probe).sum().backward()

    mine = {n: p for n, p in model.language_model.named_parameters() if is_adapter(n)}
    leaves = {n: p.detach().clone().requires_grad_() for n, p in mine.items()}
    weights = dict(plain.state_dict())
    for layer in sorted({n.partition(".lora_")[0] for n in leaves}):
        learned = {
            n.removeprefix(f"{layer}.").partition(".")[0]: p
            for n, p in leaves.items()
            if n.startswith(f"{layer}.lora_")
        }
        weights[f"{layer}.weight"] = by_formula(kind, weights[f"{layer}.weight"], learned)
    theirs = functional_call(plain, weights, kwargs={"input_ids": ids}).logits
    (theirs * probe).sum().backward()
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert len(leaves) == 2 * len(TARGETS) * (3 if kind == "dora" else 2)
    for name, parameter in mine.items():
        torch.testing.assert_close(parameter.grad, leaves[name].grad, rtol=1e-3, atol=1e-4)
        assert float(leaves[name].grad.abs().max()) > 1e-3, name


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_saved_alone_load_in_plain_peft(kind: str, tmp_path: Path) -> None:
    model = composed("llama")
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES)).eval()
    plain.load_state_dict(model.language_model.state_dict())
    attach(model, "language_model", LowRankConfig(kind=kind, rank=RANK, alpha=ALPHA, dropout=0.1))
    stir(model)
    save_adapters(model, "language_model", tmp_path)
    assert {f.name for f in tmp_path.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    given = {n: t for n, t in model.language_model.state_dict().items() if is_adapter(n)}
    read = {n: t for n, t in theirs.base_model.model.state_dict().items() if is_adapter(n)}
    assert read.keys() == given.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in given.items())
    ids = torch.arange(1, 21)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, theirs(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma", "qwen3"])
def test_fresh_adapters_are_those_that_peft_draws(family: str) -> None:
    """Same layers, same numbers from the same seed."""
    settings = AutoConfig.for_model(family, **SIZES, tie_word_embeddings=False)
    ours, theirs = (AutoModelForCausalLM.from_config(settings) for _ in range(2))
    torch.manual_seed(3)
    inject(ours, LowRankConfig(rank=RANK, alpha=ALPHA))
    torch.manual_seed(3)
    spec = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    wrapped = peft.get_peft_model(theirs, spec).base_model.model
    drawn = {n: t for n, t in wrapped.state_dict().items() if is_adapter(n)}
    assert {n for n in ours.state_dict() if is_adapter(n)} == drawn.keys()
    for name, tensor in drawn.items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    trains = {n for n, p in wrapped.named_parameters() if p.requires_grad}
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == trains


def test_names_and_shapes_at_the_size_of_llama_3_8b() -> None:
    settings = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        ours, theirs = (AutoModelForCausalLM.from_config(settings) for _ in range(2))
        inject(ours, LowRankConfig(rank=128, alpha=256, kind="dora"))
        spec = peft.LoraConfig(r=128, lora_alpha=256, target_modules="all-linear", use_dora=True)
        wrapped = peft.get_peft_model(theirs, spec).base_model.model
    wanted = {n: t.shape for n, t in wrapped.state_dict().items()}
    assert {n: t.shape for n, t in ours.state_dict().items()} == wanted
