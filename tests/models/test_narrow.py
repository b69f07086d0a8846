"""The copy on which families are tried: as deep as the original, and narrow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from medloupe.models.narrow import VOCABULARY, WINDOW, narrow_copy, narrow_fields, undisturbed


def test_what_becomes_of_each_field() -> None:
    """Qwen2.5-1.5B's shape, with windows."""
    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151_936,
        use_sliding_window=True,
        sliding_window=4096,
        max_window_layers=21,
        eos_token_id=151_643,
    )
    before = config.to_dict()
    after = narrow_fields(config)
    changed = {name: after[name] for name in after if after[name] != before[name]}
    assert changed == {
        "hidden_size": 256,  # two heads of 128 each
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": VOCABULARY,
        "sliding_window": WINDOW,
        "eos_token_id": None,
    }
    assert after["layer_types"] == ["full_attention"] * 21 + ["sliding_attention"] * 7


@pytest.mark.parametrize(
    ("family", "fields", "kept"),
    [
        ("gpt2", {}, {"n_embd": 128, "n_head": 2, "n_layer": 12, "n_positions": 1024}),
        ("mixtral", {}, {"num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 256}),
        ("opt", {}, {"ffn_dim": 128, "word_embed_proj_dim": 128, "num_hidden_layers": 12}),
        ("recurrent_gemma", {}, {"attention_window_size": WINDOW, "lru_width": 512}),
    ],
)
def test_names_of_other_families(family: str, fields: dict[str, Any], kept: dict[str, int]) -> None:
    after = narrow_fields(AutoConfig.for_model(family, **fields))
    assert {name: after[name] for name in kept} == kept


def test_a_copy_is_the_same_each_time_and_in_float32() -> None:
    config = AutoConfig.for_model("llama", num_hidden_layers=2, dtype="bfloat16")
    with undisturbed():
        one = narrow_copy(config, "sdpa")
        two = narrow_copy(config, "sdpa")
    assert not one.training
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert ours.dtype is torch.float32
        assert torch.equal(ours, theirs)


def test_a_family_that_stays_wide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medloupe.models.narrow._MOST_PARAMETERS", 1000)
    with undisturbed(), pytest.raises(ValueError, match=r"it has [\d,]+ parameters"):
        narrow_copy(AutoConfig.for_model("llama", num_hidden_layers=2), "sdpa")


def test_nothing_around_disturbs_what_is_tried_and_the_other_way_round() -> None:
    before = torch.get_rng_state()
    around = (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"))
    with around[0], around[1], around[2], undisturbed():
        layer = torch.nn.Linear(3, 3)
        numbers = layer(torch.randn(2, 3))
        assert numbers.dtype is torch.float32
        assert numbers.device.type == "cpu"
        (gradient,) = torch.autograd.grad(numbers.sum(), [layer.weight])
    assert gradient.shape == (3, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_trying_touches_no_generator_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.manual_seed` would seed those of GPUs too, which nobody sets back."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with undisturbed():
        narrow_copy(
            LlamaConfig(hidden_size=64, num_attention_heads=2, num_hidden_layers=2), "eager"
        )
    assert seeded == []
