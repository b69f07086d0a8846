"""Questions packed behind one image prefix against the same questions as rows of their own.

Equal means the summed loss and the gradient of every parameter, to 1e-5 in fp32. Families that are not
proven here are refused by `refuse_unmaskable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, CLIPVisionConfig

from medloupe.errors import ConfigError
from medloupe.models.attention import PACKABLE, branch_mask, refuse_unmaskable
from medloupe.models.vlm import VisionLanguageModel, VLMConfig, plain_images
from medloupe.processing import collate, pack_branches
from medloupe.types import ImageRef, ModelInput

IMAGE, TOKENS = 98, 4
VISION = CLIPVisionConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=28,
    patch_size=14,
)
USUAL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Families that name their fields otherwise.
OWN = {
    "gpt2": {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "num_key_value_heads": 4},
    "mistral": {"sliding_window": None},
}
QUESTIONS = (((5, 6, 7), (11, 2)), ((8,), (12, 13, 2)), ((9, 9, 10, 3), (14, 2)))


def tiny(family: str, attention: str = "sdpa") -> VisionLanguageModel:
    torch.manual_seed(5)
    fields = OWN["gpt2"] if family == "gpt2" else USUAL | OWN.get(family, {})
    config = VLMConfig(
        encoder={"name": "clip", "architecture": VISION.to_diff_dict(), "image_size": 28},
        connector={"name": "mlp"},
        language=AutoConfig.for_model(family, **fields).to_dict(),
        attention=attention,
        image_token_id=IMAGE,
    )
    model = VisionLanguageModel(config).eval()
    with torch.no_grad():  # at the usual starting scale attention hardly matters
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def rows_of(image: str, questions: Sequence[Any] = QUESTIONS) -> list[ModelInput]:
    rows = []
    for number, (question, answer) in enumerate(questions):
        prompt = [1, 20, *[IMAGE] * TOKENS, *question]
        ids = torch.tensor([*prompt, *answer])
        labels = ids.masked_fill(torch.arange(len(ids)) < len(prompt), -100)
        rows.append(
            ModelInput(
                ids=(f"{image}-{number}",),
                input_ids=ids,
                labels=labels,
                position_ids=torch.arange(len(ids)),
                segments=torch.zeros(len(ids), dtype=torch.long),
                images=(ImageRef(uri=image),),
            )
        )
    return rows


def loss(
    model: VisionLanguageModel, rows: Sequence[ModelInput], pixels: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, int]:
    batch = collate(rows, pad_id=0)
    views = torch.stack([pixels[row.images[0].uri] for row in rows])
    return model.label_loss(
        batch.input_ids,
        batch.labels,
        batch.position_ids,
        batch.segments,
        model.image_tokens(plain_images(views)),
    )


def gradients(model: torch.nn.Module, total: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(ours: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == wanted.keys()
    whole = torch.stack([g.norm() for g in wanted.values()]).norm()
    for name, gradient in wanted.items():
        # Some gradients are zero but for rounding (a key's bias); those are measured by the whole.
        scale = max(float(gradient.norm()), 1e-3 * float(whole))
        assert float((ours[name] - gradient).norm()) <= 1e-5 * scale, name


@pytest.fixture
def pixels() -> dict[str, torch.Tensor]:
    maker = torch.Generator().manual_seed(2)
    return {name: torch.randn(3, 28, 28, generator=maker) for name in ("a.png", "b.png")}


@pytest.mark.parametrize("family", PACKABLE)
def test_packed_equals_separate(family: str, pixels: dict[str, torch.Tensor]) -> None:
    model = tiny(family)
    refuse_unmaskable(model.language_model.config)
    rows = rows_of("a.png")
    (packed,) = pack_branches(rows, image_token_id=IMAGE, max_tokens=200)
    separate = [loss(model, [row], pixels) for row in rows]
    wanted = sum(total for total, _ in separate)
    expected = gradients(model, wanted)
    total, count = loss(model, [packed], pixels)
    assert count == sum(number for _, number in separate) == 7
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=0)
    assert_equal_gradients(gradients(model, total), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_of_two_images_in_a_padded_batch(
    attention: str, pixels: dict[str, torch.Tensor]
) -> None:
    model = tiny("llama", attention)
    rows = rows_of("a.png") + rows_of("b.png", QUESTIONS[:2]) + rows_of("b.png", QUESTIONS[2:])
    packed = pack_branches(rows[:5], image_token_id=IMAGE, max_tokens=200)
    packed.append(rows[5])
    assert len(packed) == 3
    assert len({len(row.input_ids) for row in packed}) == 3
    wanted = sum(loss(model, [row], pixels)[0] for row in rows)
    expected = gradients(model, wanted)
    total, _ = loss(model, packed, pixels)
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=0)
    assert_equal_gradients(gradients(model, total), expected)


def test_the_budget_splits_a_pack_and_changes_nothing(pixels: dict[str, torch.Tensor]) -> None:
    model = tiny("llama")
    rows = rows_of("a.png")
    packed = pack_branches(rows, image_token_id=IMAGE, max_tokens=16)
    assert [len(row.ids) for row in packed] == [2, 1]
    wanted = sum(loss(model, [row], pixels)[0] for row in rows)
    total = sum(loss(model, [row], pixels)[0] for row in packed)
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=0)


def test_without_the_mask_the_loss_would_differ(pixels: dict[str, torch.Tensor]) -> None:
    """The equality above is no accident of a weak model."""
    model = tiny("llama")
    rows = rows_of("a.png")
    (packed,) = pack_branches(rows, image_token_id=IMAGE, max_tokens=200)
    batch = collate([packed], pad_id=0)
    wanted = sum(loss(model, [row], pixels)[0] for row in rows)
    blind, _ = model.label_loss(
        batch.input_ids,
        batch.labels,
        batch.position_ids,
        torch.zeros_like(batch.segments),
        model.image_tokens(plain_images(pixels["a.png"][None])),
    )
    assert abs((blind - wanted).item()) > 1e-3 * wanted.item()


def test_branch_mask_by_hand() -> None:
    """Prefix of two, branches of two and one, one place of padding."""
    mask = branch_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]), torch.float32)[0, 0]
    sees = (mask == 0).int().tolist()
    assert sees == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert mask.min() == torch.finfo(torch.bfloat16).min


@pytest.mark.parametrize(
    ("family", "fields", "why"),
    [
        ("mistral", {"sliding_window": 4}, "sliding window"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "layers"),
        ("gemma2", {}, "sliding_attention"),
        ("qwen3_next", {}, "linear_attention"),
        ("gpt_neo", {}, "not proven for 'gpt_neo'"),
        ("jamba", {}, "not proven for 'jamba'"),
        ("rwkv", {}, "not proven for 'rwkv'"),
        ("mpt", {}, "not proven for 'mpt'"),
        ("bloom", {}, "not proven for 'bloom'"),
        ("falcon", {}, "not proven for 'falcon'"),
    ],
)  # fmt: skip
def test_what_the_mask_does_not_reach_is_refused(
    family: str, fields: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        refuse_unmaskable(AutoConfig.for_model(family, **fields))
    assert "pack=false" in str(caught.value)
