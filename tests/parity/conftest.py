"""Tiny random reference models of transformers; ours are built from them by the real converters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

IMAGE = 98
VOCABULARY = 99
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": None,
}

MakeLlava = Callable[..., LlavaForConditionalGeneration]


def _stir(model: torch.nn.Module) -> None:
    """Norms that begin as ones and zeros would hide a swapped name: make every tensor its own."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)


@pytest.fixture
def make_llava() -> MakeLlava:
    """A tiny LLaVA: `make_llava(language="llama", tower="clip", tied=False, **config)`."""

    def make(
        language: str = "llama", tower: str = "clip", tied: bool = False, **changes: Any
    ) -> LlavaForConditionalGeneration:
        torch.manual_seed(7)
        vision = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[tower](**VISION)
        text = AutoConfig.for_model(language, **TEXT, tie_word_embeddings=tied)
        strategy = {"clip": "default", "siglip": "full"}[tower]
        settings = {
            "image_token_index": IMAGE,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": strategy,
        }
        config = LlavaConfig(vision_config=vision, text_config=text, **(settings | changes))
        model = LlavaForConditionalGeneration(config).eval()
        _stir(model)
        return model

    return make


@pytest.fixture
def pixels() -> torch.Tensor:
    """Two images `[2, 3, 28, 28]`."""
    return torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(3))


Row = Callable[..., torch.Tensor]


@pytest.fixture
def row() -> Row:
    """`row(5, "image", 6)`: a row `[1, L]` of text tokens with `tokens` placeholders an image."""

    def make(*parts: int | str, tokens: int = 16) -> torch.Tensor:
        ids: list[int] = []
        for part in parts:
            ids += [IMAGE] * tokens if isinstance(part, str) else [part]
        return torch.tensor([ids])

    return make
