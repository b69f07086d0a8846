"""The chunked loss is plain cross-entropy, for every head and whatever a family makes of it."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from medloupe.models import logits as module
from medloupe.models.logits import CHUNK_BYTES, HeadRule, chunk_of, head_rule, summed_cross_entropy

TOKENS, WIDTH, WORDS = 23, 8, 31
RULES = [HeadRule(), HeadRule(scale=0.25), HeadRule(cap=3.0)]


def plain(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module, rule: HeadRule) -> Any:
    raw = head(hidden).float()
    logits = raw * rule.scale if rule.cap is None else torch.tanh(raw / rule.cap) * rule.cap
    return F.cross_entropy(logits, targets, reduction="sum")


def drawn(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    maker = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, WIDTH, generator=maker).to(dtype).requires_grad_()
    return hidden, torch.randint(WORDS, (TOKENS,), generator=maker)


def made_head(kind: str) -> nn.Module:
    torch.manual_seed(2)
    head: nn.Module = nn.Linear(WIDTH, WORDS, bias=kind == "bias")
    if kind == "frozen":
        head.requires_grad_(False)
    if kind == "low rank":
        spec = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
        head = peft.inject_adapter_in_model(spec, nn.Sequential(head))
    return head


def learned(loss: torch.Tensor, hidden: torch.Tensor, head: nn.Module) -> list[torch.Tensor]:
    trained = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    for tensor in trained:
        tensor.grad = None
    (loss / 7).backward()
    return [tensor.grad for tensor in trained if tensor.grad is not None]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["plain", "bias", "frozen", "low rank"])
@pytest.mark.parametrize("chunk", [1, 5, 23, 1000])
def test_loss_and_gradients(kind: str, rule: HeadRule, chunk: int) -> None:
    head = made_head(kind)
    hidden, targets = drawn()
    wanted = plain(hidden, targets, head, rule)
    expected = learned(wanted, hidden, head)
    found = summed_cross_entropy(hidden, targets, head, rule, chunk=chunk)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    assert len(expected) == {"plain": 2, "bias": 3, "frozen": 1, "low rank": 3}[kind]
    for ours, theirs in zip(learned(found, hidden, head), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_head_that_is_the_embedding_table_gets_both_gradients() -> None:
    table = nn.Embedding(WORDS, WIDTH)
    head = nn.Linear(WIDTH, WORDS, bias=False)
    head.weight = table.weight
    _, targets = drawn()
    ids = torch.arange(TOKENS)
    found = []
    for chunk in (None, 4):
        table.weight.grad = None
        hidden = torch.tanh(table(ids))
        if chunk is None:
            loss = plain(hidden, targets, head, HeadRule())
        else:
            loss = summed_cross_entropy(hidden, targets, head, chunk=chunk)
        loss.backward()
        assert table.weight.grad is not None
        found.append(table.weight.grad.clone())
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_runs_agree_to_the_bit_and_nothing_is_kept_without_gradients() -> None:
    head, (hidden, targets) = made_head("plain"), drawn()
    runs = []
    for _ in range(2):
        loss = summed_cross_entropy(hidden, targets, head, chunk=6)
        runs.append([loss.detach(), *(g.clone() for g in learned(loss, hidden, head))])
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))
    with torch.no_grad():
        assert torch.equal(summed_cross_entropy(hidden, targets, head, chunk=6), runs[0][0])
    hidden = hidden.detach()
    head.requires_grad_(False)
    assert not summed_cross_entropy(hidden, targets, head, chunk=6).requires_grad


def test_without_labels_the_loss_is_zero_and_so_are_gradients() -> None:
    head, (hidden, targets) = made_head("plain"), drawn()
    loss = summed_cross_entropy(hidden[:0], targets[:0], head, chunk=6)
    assert float(loss.detach()) == 0
    assert not any(gradient.any() for gradient in learned(loss, hidden, head))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_half_precision(weights: torch.dtype) -> None:
    """Under autocast, and with a head that is kept in bfloat16: as the plain loss in the same types."""
    head = made_head("plain").to(weights)
    hidden, targets = drawn(weights)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = plain(hidden, targets, head, HeadRule())
        expected = learned(wanted, hidden, head)
        found = summed_cross_entropy(hidden, targets, head, chunk=23)
        ours = learned(found, hidden, head)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype is weights
        torch.testing.assert_close(one.float(), other.float(), rtol=2e-2, atol=2e-3)


def test_no_more_than_a_chunk_exists_at_a_time() -> None:
    head, (hidden, targets) = made_head("plain"), drawn()
    sizes: list[int] = []
    head.register_forward_hook(lambda *args: sizes.append(len(args[2])))
    summed_cross_entropy(hidden, targets, head, chunk=6).backward()
    assert sizes == [6, 6, 6, 5]  # each made once, in the forward pass
    assert chunk_of(49_152) * 49_152 * 4 <= CHUNK_BYTES < (chunk_of(49_152) + 1) * 49_152 * 4
    assert chunk_of(10**9) == 1


SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def language(family: str, fields: dict[str, Any]) -> Any:
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **SHAPE | fields)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize(
    ("family", "fields", "rule"),
    [
        ("llama", {}, HeadRule()),
        ("gpt2", {}, HeadRule()),
        ("opt", {"word_embed_proj_dim": 16, "ffn_dim": 24}, HeadRule()),
        ("gemma2", {"head_dim": 8, "num_key_value_heads": 1, "final_logit_softcapping": 7.0},
         HeadRule(cap=7.0)),
        ("granite", {"logits_scaling": 16.0}, HeadRule(scale=1 / 16)),
        ("cohere", {"logit_scale": 0.125}, HeadRule(scale=0.125)),
    ],
)  # fmt: skip
def test_what_families_make_of_their_heads(
    family: str, fields: dict[str, Any], rule: HeadRule
) -> None:
    """Read off a copy, true of the model."""
    model = language(family, fields)
    assert head_rule(model) == rule
    ids = torch.arange(12)[None]
    with torch.no_grad():
        last = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        ours = rule.finish(model.get_output_embeddings()(last))
        torch.testing.assert_close(ours, model(ids).logits, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_read_off_is_left_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that adds a number, one that reads something else than its base's last hidden states, and
    one whose copy cannot be made."""
    given, copy = module._given, module.narrow_copy

    def shifted(model: Any) -> Any:
        raw, logits = given(model)
        return raw, logits + 1

    monkeypatch.setattr(module, "_given", shifted)
    assert head_rule(language("llama", {"vocab_size": 41})) is None

    def halving(*args: Any) -> Any:
        model = copy(*args)
        model.get_output_embeddings().register_forward_pre_hook(lambda _, args: args[0] / 2)
        return model

    monkeypatch.setattr(module, "_given", given)
    monkeypatch.setattr(module, "narrow_copy", halving)
    assert head_rule(language("llama", {"vocab_size": 42})) is None
    config = AutoConfig.for_model("rwkv", num_hidden_layers=2, hidden_size=8, vocab_size=9)
    assert head_rule(AutoModelForCausalLM.from_config(config)) is None
