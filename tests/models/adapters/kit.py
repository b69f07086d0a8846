"""A tiny model of any family with an adapter, and what feeds it. Loaded by path from the conftest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    ResNetConfig,
    Siglip2VisionConfig,
)

from medloupe.models.adapters import AdapterConfig, decoder_layers
from medloupe.models.adapters.hia import HiaConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.models.vlm import VisionLanguageModel, VLMConfig
from medloupe.processing import ImageSource, Processor, collate
from medloupe.types import Batch, Conversation, ModelInput

DEPTH, WIDTH = 4, 32
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.2,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
# The families that papers build on; layers of the last five give tensors or tuples in their own ways.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": SIZES | {"num_key_value_heads": 2},
    "qwen3": GROUPED,
    "mistral": GROUPED | {"sliding_window": None},
    "phi": SIZES,
    "phi3": SIZES,
    "gemma": GROUPED,
    "gemma2": GROUPED | {"query_pre_attn_scalar": 8, "sliding_window": 512},
    "gpt_neox": SIZES,
    "falcon": {k: v for k, v in SIZES.items() if k != "intermediate_size"},
    "gpt2": {
        "n_embd": WIDTH,
        "n_layer": DEPTH,
        "n_head": 4,
        "n_positions": 512,
        "initializer_range": 0.2,
    },
    "opt": {
        **{k: v for k, v in SIZES.items() if k != "intermediate_size"},
        "ffn_dim": 48,
        "word_embed_proj_dim": WIDTH,
    },
    "mixtral": GROUPED | {"num_local_experts": DEPTH, "sliding_window": None},
}
# 16 channels or more: with 8, the backward of a 1 x 1 convolution of stride 2 on channels-last maps
# overwrites foreign memory when two threads run (oneDNN 3.12, in torch 2.13).
RESNET = ResNetConfig(
    embedding_size=16, hidden_sizes=[16, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"
).to_diff_dict()
TOWER = CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
).to_diff_dict()


def base_encoder() -> EncoderConfig:
    """4 tokens an image of 28 pixels."""
    return EncoderConfig.parse(
        {"name": "clip", "architecture": TOWER, "image_size": 28, "layer": -1}
    )


def resnet(size: int = 64) -> dict[str, Any]:
    """16 channels, a token for each 8 pixels."""
    return {"name": "resnet", "architecture": RESNET, "image_size": size, "stride": 8}


CONVNEXT = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]).to_diff_dict()
SIGLIP2 = Siglip2VisionConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_patches=4
).to_diff_dict()
ENCODERS: dict[str, dict[str, Any]] = {
    "resnet": resnet(),
    "efficientnet_lite0": {"name": "efficientnet_lite0", "stride": 8},
    "convnext": {"name": "convnext", "architecture": CONVNEXT, "stride": 8},
    "siglip2": {"name": "siglip2", "architecture": SIGLIP2},
}


def hia(**fields: Any) -> HiaConfig:
    """Six queries, four heads, after layers 1 and 2 of four."""
    config = AdapterConfig.parse(
        {"name": "hia", "encoder": resnet(), "queries": 6, "heads": 4} | fields
    )
    assert isinstance(config, HiaConfig)
    return config


def stir(module: torch.nn.Module, spread: float = 0.3) -> None:
    """As if it had been trained: a fresh adapter changes nothing."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += spread * torch.randn_like(parameter)


def tiny_vlm(
    vocabulary: int, adapter: AdapterConfig | None, family: str = "llama", **language: Any
) -> VisionLanguageModel:
    """Weights of the base do not depend on whether there is an adapter."""
    torch.manual_seed(5)
    fields = FAMILIES[family] | {"vocab_size": vocabulary} | language
    model = VisionLanguageModel(
        VLMConfig(
            encoder=base_encoder().to_dict(),
            connector={"name": "mlp"},
            language=AutoConfig.for_model(family, **fields).to_dict(),
            attention="eager" if family == "gemma2" else "sdpa",
            image_token_id=vocabulary - 1,
        )
    )
    with torch.no_grad():  # pixels must matter as much as words
        for layer in (m for m in model.connector.modules() if isinstance(m, torch.nn.Linear)):
            layer.weight.normal_(std=0.5)
    if adapter is not None:
        model.put_on(adapter)
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A model, and what feeds it."""

    model: VisionLanguageModel
    processor: Processor
    images: ImageSource

    def rows(self, *conversations: Conversation) -> list[ModelInput]:
        return [self.processor.encode(c, self.images.size_of) for c in conversations]

    def batch(self, *conversations: Conversation) -> Batch:
        rows = self.rows(*conversations)
        refs = [image for row in rows for image in row.images]
        return collate(rows, pad_id=0, images=self.images.inputs(refs))

    def logits(self, *conversations: Conversation) -> torch.Tensor:
        """`[B, L, V]` of rows padded on the right."""
        batch = self.batch(*conversations)
        with torch.no_grad():
            output = self.model(
                input_ids=batch.input_ids,
                images=batch.images,
                segments=batch.segments,
                position_ids=batch.position_ids,
                anchors=batch.anchors,
            )
        logits: torch.Tensor = output.logits
        return logits

    def loss(self, *conversations: Conversation) -> torch.Tensor:
        batch = self.batch(*conversations)
        return self.model.label_loss(
            batch.input_ids,
            batch.labels,
            batch.position_ids,
            batch.segments,
            self.model.image_tokens(batch.images),
            self.model.details(batch.images),
            batch.anchors,
        )[0]

    def hidden(self, *conversations: Conversation) -> list[torch.Tensor]:
        """What goes into each decoder layer."""
        batch = self.batch(*conversations)
        seen: list[torch.Tensor] = []
        handles = [
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
            for layer in decoder_layers(self.model.language_model)
        ]
        with torch.no_grad():
            self.model(
                input_ids=batch.input_ids,
                images=batch.images,
                segments=batch.segments,
                position_ids=batch.position_ids,
                anchors=batch.anchors,
            )
        for handle in handles:
            handle.remove()
        return seen
