"""MiniGPT-v2's checkpoint into a LiteGPT-like composition: names as MiniGPT-4's code saves them, sums
against peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from medloupe.errors import CheckpointError
from medloupe.models.connectors.grouped import GroupedConnectorConfig
from medloupe.models.encoders.hf_vision import CLIPEncoderConfig
from medloupe.models.vlm import VisionLanguageModel, VLMConfig
from medloupe.models.weights.minigpt import load_minigpt

RANK, ALPHA = 4, 16
LAYER = "llama_model.base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight"
# One product of matrices in two orders.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
VISION = CLIPVisionConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=28,
    patch_size=7,
)
TEXT = LlamaConfig(
    vocab_size=99,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
)


def composition(**connector: Any) -> VisionLanguageModel:
    torch.manual_seed(1)
    given = {"group": 4, "depth": 2, "hidden": 88} | connector
    config = VLMConfig(
        encoder=CLIPEncoderConfig(architecture=VISION.to_diff_dict()).resolved().to_dict(),
        connector=GroupedConnectorConfig(**given).to_dict(),
        language=TEXT.to_dict(),
        image_token_id=98,
    )
    return VisionLanguageModel(config)


def adapted(language: LlamaForCausalLM) -> peft.PeftModel:
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(language, config)


def checkpoint(*, old: bool, width: int = 88) -> dict[str, torch.Tensor]:
    """What requires a gradient, and buffers: `runner_base.py` saves those two."""
    torch.manual_seed(2)
    wrapped = adapted(LlamaForCausalLM(TEXT))
    named = {k: torch.randn_like(v) for k, v in wrapped.named_parameters() if v.requires_grad}
    tensors = {f"llama_model.{k}": v for k, v in named.items()}
    if old:
        tensors = {k.replace(".default", ""): v for k, v in tensors.items()}
    tensors["llama_proj.weight"] = torch.randn(48, width)
    tensors["llama_proj.bias"] = torch.randn(48)
    buffer = "llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq"
    return tensors | {buffer: torch.zeros(6)}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def save(tensors: dict[str, torch.Tensor]) -> Path:
        file = tmp_path / "checkpoint_stage3.pth"
        torch.save({"model": tensors, "optimizer": {}, "config": {}, "epoch": 3}, file)
        return file

    return save


@pytest.mark.parametrize("old", [True, False], ids=["old peft", "new peft"])
def test_lora_is_added_to_the_weights_as_peft_adds_it(write: Any, old: bool) -> None:
    model, tensors = composition(), checkpoint(old=old)
    wanted = adapted(copy.deepcopy(model.language_model))
    named = {k.removeprefix("llama_model."): v for k, v in tensors.items() if "lora" in k}
    if old:
        named = {k.replace(".weight", ".default.weight"): v for k, v in named.items()}
    assert not wanted.load_state_dict(named, strict=False).unexpected_keys
    merged = wanted.merge_and_unload().state_dict()
    report = load_minigpt(model, write(tensors))
    for name, tensor in model.language_model.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], **CLOSE)
    assert torch.equal(model.connector.layers[2].weight, tensors["llama_proj.weight"])
    assert torch.equal(model.connector.layers[2].bias, tensors["llama_proj.bias"])
    changed = [
        f"language_model.model.layers.{n}.self_attn.{p}_proj.weight" for n in (0, 1) for p in "qv"
    ]
    assert report.loaded == tuple(
        sorted([*changed, "connector.layers.2.bias", "connector.layers.2.weight"])
    )
    # LiteGPT's first layer is new, and the report says so
    assert {n for n in report.kept if n.startswith("connector.")} == {
        "connector.layers.0.weight",
        "connector.layers.0.bias",
    }
    assert len(report.loaded) + len(report.kept) == len(model.state_dict())
    assert [n.rpartition(".")[2] for n in report.unread] == ["inv_freq"]
    assert any("not loaded, as they were" in line for line in report.lines())


@pytest.mark.parametrize("old", [True, False], ids=["old peft", "new peft"])
def test_lora_goes_into_adapters_where_the_model_has_them(write: Any, old: bool) -> None:
    model, tensors = composition(), checkpoint(old=old)
    before = copy.deepcopy(model.language_model).state_dict()
    model.language_model = adapted(model.language_model)
    report = load_minigpt(model, write(tensors))
    own = model.language_model.state_dict()
    pairs = 0
    for name, tensor in tensors.items():
        if "lora" not in name:
            continue
        ours = name.removeprefix("llama_model.")
        ours = ours.replace(".weight", ".default.weight") if old else ours
        assert torch.equal(own[ours], tensor)
        assert f"language_model.{ours}" in report.loaded
        pairs += 1
    assert pairs == 8
    base = own["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"]
    assert torch.equal(base, before["model.layers.0.self_attn.q_proj.weight"])


def test_minigpts_own_connector_is_the_projection_alone(write: Any) -> None:
    model, tensors = composition(depth=1, hidden=None), checkpoint(old=True, width=128)
    report = load_minigpt(model, write(tensors), parts=("connector",))
    assert torch.equal(model.connector.layers[0].weight, tensors["llama_proj.weight"])
    assert report.loaded == ("connector.layers.0.bias", "connector.layers.0.weight")
    assert len([n for n in report.unread if "lora" in n]) == 8


def test_one_part_alone(write: Any) -> None:
    model, file = composition(), write(checkpoint(old=True))
    before = copy.deepcopy(model.state_dict())
    report = load_minigpt(model, file, parts=("language_model",))
    assert all(n.startswith("language_model.") for n in report.loaded)
    assert {"llama_proj.weight", "llama_proj.bias"} <= set(report.unread)
    for name in before:
        if name.startswith("connector."):
            assert torch.equal(model.state_dict()[name], before[name])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"visual_encoder.blocks.0.attn.qkv.weight": torch.zeros(2)}, "fit nothing .*visual_encoder"),
        ({"llama_proj.weight": torch.zeros(48, 7)}, r"has shape \(48, 7\), the model wants \(48, "),
        ({LAYER.format(9): torch.zeros(4, 48)}, "layers.9.* fits nothing"),
        (
            {LAYER.format(0): torch.zeros(4, 9)},
            r"is for \(48, 9\), the model's weight is \(48, 48\)",
        ),
        ({"llama_proj.weight": None, "llama_proj.bias": None}, "holds no projection weights"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_nothing_is_changed(
    write: Any, change: dict[str, Any], rule: str
) -> None:
    model = composition()
    before = copy.deepcopy(model.state_dict())
    tensors = {k: v for k, v in (checkpoint(old=True) | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=rule):
        load_minigpt(model, write(tensors))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_stray_tensor_is_allowed_by_name(write: Any) -> None:
    stray = {"visual_encoder.blocks.0.attn.qkv.weight": torch.zeros(2)}
    file = write(checkpoint(old=True) | stray)
    report = load_minigpt(composition(), file, allow=("visual_encoder.",))
    assert report.allowed == tuple(stray)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no checkpoint of MiniGPT-4"):
        load_minigpt(composition(), tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        load_minigpt(composition(), tmp_path / "b.pth")


def test_at_published_size_the_projection_and_lora_fit_litegpt(write: Any) -> None:
    """5632 -> 4096, and r 64 on q_proj and v_proj of Llama-2-7B; shapes on the meta device."""
    text = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    with torch.device("meta"):
        connector = GroupedConnectorConfig(group=5, hidden=5632).build(768, 4096)
        llama = LlamaForCausalLM(text)
    assert connector.layers[0].weight.shape == (5632, 3840)
    assert connector.layers[2].weight.shape == (4096, 5632)
    names = {f"language_model.{k}": v.shape for k, v in llama.state_dict().items()}
    from medloupe.models.weights.minigpt import LORA

    theirs = [
        f"llama_model.base_model.model.model.layers.{layer}.self_attn.{p}_proj.lora_{side}.weight"
        for layer in range(32)
        for p in "qv"
        for side in "AB"
    ]
    found = [LORA.fullmatch(name) for name in theirs]
    assert all(found)
    modules = {f"language_model.{match['module']}.weight" for match in found if match}
    assert len(modules) == 64
    assert {tuple(names[module]) for module in modules} == {(4096, 4096)}
