"""Tiny composed models, and a tiny language model with its tokenizer as a folder on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, PreTrainedTokenizerFast

from medloupe.models.vlm import VisionLanguageModel, VLMConfig

IMAGE = 98  # beyond the vocabulary, as `compose` makes it
TEXT = {
    "vocab_size": 98,
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
GPT2 = {"vocab_size": 98, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1}
MakeModel = Callable[..., VisionLanguageModel]


def stir(model: torch.nn.Module, scale: float = 0.2) -> None:
    """At the usual starting scale a tiny model hardly looks at its input."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn_like(parameter)


@pytest.fixture
def make_model() -> MakeModel:
    """`make_model(family, tied=False, connector=..., encoder=...)`: 4 tokens an image of 28 pixels."""

    def make(
        family: str = "llama", *, tied: bool = False, connector: Any = "mlp", encoder: Any = None
    ) -> VisionLanguageModel:
        torch.manual_seed(11)
        vision = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
        )
        fields = GPT2 | {"eos_token_id": 2} if family == "gpt2" else TEXT
        config = VLMConfig(
            encoder=encoder
            or {"name": "clip", "architecture": vision.to_diff_dict(), "image_size": 28},
            connector=connector,
            language=AutoConfig.for_model(
                family, **fields, tie_word_embeddings=tied or family == "gpt2"
            ).to_dict(),
            image_token_id=IMAGE,
        )
        model = VisionLanguageModel(config).eval()
        stir(model)
        return model

    return make


@pytest.fixture
def pixels() -> torch.Tensor:
    """Two images `[2, 3, 28, 28]`."""
    return torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def language_folder(tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer of whole words, saved in the hub's format."""
    torch.manual_seed(4)
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{n}" for n in range(94))]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "language"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TEXT)).save_pretrained(folder)
    return folder
