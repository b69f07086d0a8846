"""Tiny random models with real tokenizers and images: every weight wide enough that answers differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from medloupe.generate import GenerateConfig, Predictor
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders.hf_vision import CLIPEncoderConfig
from medloupe.models.vlm import VisionLanguageModel, VLMConfig
from medloupe.processing import ImageSource, Processor, ProcessorConfig
from medloupe.types import Conversation, Generation, ImageRef, Message, Text

SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>", "<|image|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIDE, PATCH = 24, 8


def byte_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """One token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<|end|>", additional_special_tokens=SPECIAL[1:]
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_language(family: str, vocabulary: int) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.4,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family == "llama":
        return LlamaConfig(**shape).to_dict()
    if family == "qwen2":
        return Qwen2Config(**shape, tie_word_embeddings=True).to_dict()
    if family == "mistral-window":
        return MistralConfig(**shape, sliding_window=24).to_dict()
    assert family == "gpt2"
    return GPT2Config(
        vocab_size=vocabulary,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=512,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
    ).to_dict()


def tiny_model(
    family: str, tokenizer: PreTrainedTokenizerFast, attention: str
) -> VisionLanguageModel:
    tower = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    ).to_diff_dict()
    encoder = CLIPEncoderConfig(architecture=tower, image_size=SIDE, layer=-1)
    torch.manual_seed(7)
    model = VisionLanguageModel(
        VLMConfig(
            encoder=encoder.to_dict(),
            connector=MLPConnectorConfig().to_dict(),
            language=tiny_language(family, len(tokenizer)),
            attention=attention,
            image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        )
    )
    with torch.no_grad():  # pixels must matter as much as words
        for layer in (m for m in model.connector.modules() if isinstance(m, torch.nn.Linear)):
            layer.weight.normal_(std=0.5)
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class Lab:
    """A model and what it needs, with the reference that everything here is compared with."""

    model: VisionLanguageModel
    processor: Processor
    images: ImageSource

    def predictor(self, **fields: Any) -> Predictor:
        config = GenerateConfig(**{"precision": "fp32", "max_new_tokens": 12, **fields})
        return Predictor(self.model, self.processor, self.images, config)

    def ends_at(self, *token_ids: int) -> None:
        """Answers end at these tokens too: a random model hardly ever says its tokenizer's own."""
        own = type(self.processor).end_token_ids.func(self.processor)  # type: ignore[attr-defined]
        self.processor.__dict__["end_token_ids"] = (*own, *token_ids)

    def reference(self, conversation: Conversation, tokens: int = 12) -> tuple[int, ...]:
        """transformers' own greedy generate, one prompt at a time."""
        prompt = self.processor.encode(conversation.without_answer(), self.images.size_of)
        ids = prompt.input_ids[None]
        whole = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            images=self.images.inputs(prompt.images),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=list(self.processor.end_token_ids),
            pad_token_id=0,
        )
        return tuple(whole[0, ids.shape[1] :].tolist())

    def log_probs(self, conversation: Conversation, said: Generation) -> torch.Tensor:
        """Of `said`, by one forward pass over the whole text, without cache."""
        prompt = self.processor.encode(conversation.without_answer(), self.images.size_of)
        answer = torch.tensor(said.token_ids)
        with torch.no_grad():
            logits = self.model(
                input_ids=torch.cat([prompt.input_ids, answer])[None],
                images=self.images.inputs(prompt.images),
            ).logits[0, len(prompt.input_ids) - 1 : -1]
        return logits.log_softmax(-1).gather(1, answer[:, None]).squeeze(1)


@pytest.fixture
def make_lab(tmp_path: Path) -> Callable[..., Lab]:
    """`make_lab("llama", "sdpa", template)`: four noise images `0.png` ... `3.png` below tmp_path."""

    def make(family: str = "llama", attention: str = "sdpa", template: str = CHATML) -> Lab:
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (30, 40), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        tokenizer = byte_tokenizer(template)
        model = tiny_model(family, tokenizer, attention)
        transform = ImageTransform(size=SIDE)
        processor = Processor(
            ProcessorConfig(transform=transform),
            tokenizer,
            model.layouts,
            model.config.image_token_id,
        )
        return Lab(model=model, processor=processor, images=ImageSource(tmp_path, transform))

    return make


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab()


def user(*parts: str | int) -> Message:
    """Numbers are images."""
    return Message(
        role="user",
        content=tuple(
            ImageRef(uri=f"{part}.png") if isinstance(part, int) else Text(text=part)
            for part in parts
        ),
    )


def model_says(text: str) -> Message:
    return Message(role="assistant", content=(Text(text=text),))


@pytest.fixture
def mixed() -> list[Conversation]:
    """Shared and lone images, several images, several turns, no image, answers to be hidden."""
    messages: dict[str, tuple[Message, ...]] = {
        "a0": (user(0, "Is there a lesion?"), model_says("yes")),
        "text": (user("What is a wedge?"),),
        "b0": (user(1, "Side?"),),
        "a1": (user(0, "Which side is the bright lesion on?"), model_says("left")),
        "two": (user("Before: ", 0, " After: ", 1, " What changed?"),),
        "a2": (user(0, "Plane?"),),
        "turns": (user(0, "Plane?"), model_says("axial"), user("And the side?")),
        "late": (user("Hello."), model_says("Hello."), user(2, "What is it?"), model_says("Pus")),
        "two again": (user("Before: ", 0, " After: ", 1, " Is the ring lesion gone?"),),
        "swapped": (user("Before: ", 1, " After: ", 0, " Is the ring lesion gone?"),),
        "b1": (user(1, "Count the lesions, all of them, on both sides."),),
    }
    return [Conversation(id=name, messages=said) for name, said in messages.items()]
