"""Who sees whom: by hand, dense against FlexAttention, and which families obey."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import flex_attention as integration

from medloupe.errors import ConfigError
from medloupe.models import attention
from medloupe.models.attention import (
    BLOCKS,
    block_mask,
    branch_mask,
    documents,
    mask_plan,
)
from medloupe.models.logits import HeadRule, head_rule

# A prefix of two with branches of two and one, a row without branches, one place of padding.
SEGMENTS = torch.tensor([[0, 0, 1, 1, 2, 0, 0, -1]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 2, 0, 1, 0]])
SEES = [
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 0, 0, 0, 0],
    [1, 1, 0, 0, 1, 0, 0, 0],
    [0, 0, 0, 0, 0, 1, 0, 0],
    [0, 0, 0, 0, 0, 1, 1, 0],
    [0, 0, 0, 0, 0, 0, 0, 1],
]
# Of two positions, its own included: from place 4 the one before is place 1.
NEAR = [
    [1, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0],
    [0, 1, 1, 0, 0, 0, 0, 0],
    [0, 0, 1, 1, 0, 0, 0, 0],
    [0, 1, 0, 0, 1, 0, 0, 0],
    [0, 0, 0, 0, 0, 1, 0, 0],
    [0, 0, 0, 0, 0, 1, 1, 0],
    [0, 0, 0, 0, 0, 0, 0, 1],
]


@pytest.mark.parametrize(("window", "expected"), [(None, SEES), (2, NEAR), (9, SEES)])
def test_masks_by_hand(window: int | None, expected: list[list[int]]) -> None:
    mask = branch_mask(SEGMENTS, POSITIONS, torch.float32, window)
    assert mask.shape == (1, 1, 8, 8)
    assert (mask[0, 0] == 0).int().tolist() == expected
    assert mask.min() == torch.finfo(torch.bfloat16).min
    half = branch_mask(SEGMENTS, POSITIONS, torch.float16, window)
    assert half.isfinite().all()


def test_documents_begin_at_position_0_of_segment_0() -> None:
    assert documents(SEGMENTS, POSITIONS).tolist() == [[1, 1, 1, 1, 1, 2, 2, 2]]


def random_rows(length: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of documents with branches, and padding at the end of the second."""
    maker = torch.Generator().manual_seed(4)
    segments, positions = [], []
    for row in range(2):
        kinds: list[int] = []
        places: list[int] = []
        while len(kinds) < length:
            prefix, *branches = torch.randint(1, 40, (4,), generator=maker).tolist()
            kinds += [0] * prefix
            places += range(prefix)
            for number, branch in enumerate(branches, start=1):
                kinds += [number] * branch
                places += range(prefix, prefix + branch)
        kinds, places = kinds[:length], places[:length]
        if row:
            kinds[-30:], places[-30:] = [-1] * 30, [0] * 30
        segments.append(kinds)
        positions.append(places)
    return torch.tensor(segments), torch.tensor(positions)


@pytest.mark.parametrize("window", [None, 5, 50])
def test_block_masks_say_what_dense_ones_do(window: int | None) -> None:
    segments, positions = random_rows()
    blocks = block_mask(segments, positions, window)
    places = torch.arange(200)
    row = torch.arange(2)[:, None, None]
    found = blocks.mask_mod(row, row, places[None, :, None], places[None, None])
    dense = branch_mask(segments, positions, torch.float32, window)
    assert torch.equal(found, dense[:, 0] == 0)
    # a block that is left out holds nothing that anybody sees
    for one in range(2):
        for down in range(2):
            for across in range(2):
                tile = found[one, 128 * down : 128 * down + 128, 128 * across : 128 * across + 128]
                assert bool(blocks.to_dense()[one, 0, down, across]) == bool(tile.any())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 5])
def test_flex_attention_gives_what_sdpa_gives(window: int | None) -> None:
    segments, positions = random_rows()
    maker = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(2, 2, 200, 16, generator=maker) for _ in range(3))
    wanted = scaled_dot_product_attention(
        query, key, value, branch_mask(segments, positions, torch.float32, window)
    )
    found = flex_attention(query, key, value, block_mask=block_mask(segments, positions, window))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.3,
}
WINDOWED = {"sliding_window": 6}
EAGER = ("gemma2", "gpt_oss", "mpt", "gpt_neo", "bloom", "rwkv")
ALTERNATE = {"use_sliding_window": True, "max_window_layers": 1, **WINDOWED}


def _kind(family: str) -> str:
    return "eager" if family in EAGER else "sdpa"


def language(family: str, **fields: Any) -> Any:
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **SMALL | fields)
    return AutoModelForCausalLM.from_config(config, attn_implementation=_kind(family)).eval()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("family", "fields"),
    [("llama", {}), ("mistral", WINDOWED), ("qwen2", ALTERNATE), ("qwen3", ALTERNATE)],
)
def test_a_model_gives_the_same_under_block_masks(
    monkeypatch: pytest.MonkeyPatch, family: str, fields: dict[str, Any]
) -> None:
    """Forward alone: on a CPU FlexAttention has no backward. Not compiled, which takes a minute."""

    def plain(*args: Any, training: bool, **kwargs: Any) -> Any:
        del training
        return flex_attention(*args, **kwargs)

    monkeypatch.setattr(integration, "compile_friendly_flex_attention", plain)
    dense, blocks = language(family, **fields), language(family, **fields)
    blocks.set_attn_implementation(BLOCKS)
    assert blocks.config._attn_implementation == BLOCKS
    segments, positions = random_rows()
    tokens = torch.randint(50, segments.shape, generator=torch.Generator().manual_seed(6))
    plan = mask_plan(blocks)
    assert plan == mask_plan(dense)
    masks = [plan.masks(segments, positions, torch.float32, blocks=b) for b in (False, True)]
    with torch.no_grad():
        wanted, found = (
            model(tokens, attention_mask=mask, position_ids=positions).logits
            for model, mask in zip((dense, blocks), masks, strict=True)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        # and what is no block mask goes through sdpa: padding, and generation
        padding = (segments >= 0).long()
        assert torch.equal(
            blocks(tokens, attention_mask=padding).logits,
            dense(tokens, attention_mask=padding).logits,
        )
        greedy = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(
            blocks.generate(tokens[:1, :20], **greedy), dense.generate(tokens[:1, :20], **greedy)
        )


LAYERS = {"num_hidden_layers": 3}
# What each family is told, by name and by its settings.
OBEY: dict[str, tuple[dict[str, Any], dict[str | None, int | None]]] = {
    "biogpt": ({}, {None: None}),
    "gemma": ({"head_dim": 8}, {None: None}),
    "glm4": ({"head_dim": 8}, {None: None}),
    "gpt2": ({}, {None: None}),
    "gpt_neox": ({}, {None: None}),
    "granite": ({"attention_multiplier": 0.3}, {None: None}),
    "llama": ({}, {None: None}),
    "mistral": ({"sliding_window": None}, {None: None}),
    "mixtral": ({"sliding_window": None}, {None: None}),
    "olmo2": ({}, {None: None}),
    "opt": ({"word_embed_proj_dim": 32}, {None: None}),
    "phi": ({}, {None: None}),
    "phi3": ({}, {None: None}),
    "qwen2": ({}, {None: None}),
    "qwen3": ({"head_dim": 8}, {None: None}),
    "smollm3": ({}, {None: None}),
    "stablelm": ({}, {None: None}),
    "starcoder2": ({}, {None: None}),
    "falcon": ({}, {None: None}),
    "mistral-window": ({"sliding_window": 4096}, {None: 4096}),
    "phi3-window": ({"sliding_window": 2047}, {None: 2047}),
    "qwen2-window": (
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
        {"full_attention": None, "sliding_attention": 64},
    ),
    "gemma2-window": (
        {"head_dim": 8, "sliding_window": 4096},
        {"full_attention": None, "sliding_attention": 4096},
    ),
    "gemma3_text-window": (
        {"head_dim": 8, "sliding_window": 512, "num_hidden_layers": 7},
        {"full_attention": None, "sliding_attention": 512},
    ),
    "gpt_oss-window": (
        {"head_dim": 8, "num_local_experts": 4},
        {"full_attention": None, "sliding_attention": 128},
    ),
}


def empty(family: str, fields: dict[str, Any]) -> Any:
    """Without weights: only its config is looked at."""
    config = AutoConfig.for_model(family, **fields)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation=_kind(family))


@pytest.mark.parametrize("name", OBEY)
def test_families_that_obey(name: str) -> None:
    fields, windows = OBEY[name]
    fields = SMALL | LAYERS | fields
    plan = mask_plan(empty(name.removesuffix("-window"), fields))
    assert dict(plan.windows) == windows
    assert plan.sees_everything is ("window" not in name)


SHAPE = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("family", "fields", "why"),
    [
        ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2}, "packed rows have the loss"),
        (
            "gpt_neo",
            {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
            "packed rows have the loss",
        ),
        (
            "jamba",
            SHAPE | {"num_hidden_layers": 8, "num_key_value_heads": 2},
            "packed rows have the loss",
        ),
        ("recurrent_gemma", SHAPE | {"num_hidden_layers": 3}, "packed rows have the loss"),
        (
            "qwen3_next",
            SHAPE | {"num_hidden_layers": 4, "head_dim": 16, "num_experts": 4},
            "packed rows have the loss",
        ),
        ("falcon", {"alibi": True}, "ValueError"),
        ("bloom", {}, "ValueError"),
        ("rwkv", {"num_hidden_layers": 2}, "narrow copy of it fails"),
    ],
)
def test_families_that_do_not(family: str, fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        mask_plan(empty(family, fields))
    assert f"{family!r}" in str(caught.value)
    assert "pack=false" in str(caught.value)


def test_windows_are_part_of_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """With masks that forget windows, no family that has one passes."""

    def forgetful(segments: Any, positions: Any, dtype: Any, window: Any = None) -> torch.Tensor:
        del window
        return branch_mask(segments, positions, dtype)

    monkeypatch.setattr(attention, "branch_mask", forgetful)
    model = language("mistral", sliding_window=6, num_hidden_layers=1, vocab_size=51)
    with pytest.raises(ConfigError, match="'mistral': on a narrow copy packed rows have the loss"):
        mask_plan(model)


def test_who_asks_first_does_not_matter() -> None:
    """An evaluation under autocast, say; and torch's generator goes on as before."""
    model = language("gemma2", num_hidden_layers=1, head_dim=8, sliding_window=6)
    before = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert mask_plan(model).windows == {"sliding_attention": 6}
        assert head_rule(model) == HeadRule(cap=30.0)
    assert torch.equal(torch.get_rng_state(), before)
