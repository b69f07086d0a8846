"""Every published kind of encoder inside the composed model: composed from its checkpoint, saved, loaded.

Loading builds on the meta device and fills in what the file holds, so buffers that no file holds
(rotary frequencies, window indices) must come back by themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    ResNetConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from medloupe.models.encoders import EncoderConfig
from medloupe.models.encoders.hf_vision import CLIPEncoderConfig
from medloupe.models.low_rank import LowRankConfig, inject
from medloupe.models.vlm import VisionLanguageModel, VLMConfig
from medloupe.types import ImageInput

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
VIT = {"width": 16, "depth": 2, "heads": 2, "hidden": 24}
SWIN = SwinConfig(
    image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2
)
LANGUAGE = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def tower(config: Any, **fields: Any) -> dict[str, Any]:
    return {"architecture": config.to_diff_dict(), "image_size": 40, **fields}


ENCODERS: dict[str, dict[str, Any]] = {
    "clip": {"name": "clip", **tower(CLIPVisionConfig(**SIZES))},
    "siglip": {"name": "siglip", **tower(SiglipVisionConfig(**SIZES))},
    "siglip2": {
        "name": "siglip2",
        **tower(Siglip2VisionConfig(**(SIZES | {"num_patches": 16}))),
    },
    "dinov2": {"name": "dinov2", **tower(Dinov2Config(**SIZES))},
    "dinov2_registers": {
        "name": "dinov2",
        **tower(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=2)),
    },
    "dinov3": {"name": "dinov3", **tower(DINOv3ViTConfig(**SIZES, num_register_tokens=2))},
    "hf_vit": {"name": "hf_vision", **tower(ViTConfig(**SIZES))},
    "hf_swin": {"name": "hf_vision", **tower(SWIN, image_size=32)},
    "biomedclip": {"name": "biomedclip", "size": VIT, "image_size": 48, "native_size": 32},
    "resnet": {
        "name": "resnet",
        **tower(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]), stride=8),
    },
    "convnext": {
        "name": "convnext",
        **tower(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), stride=8),
    },
    "m3d_clip": {"name": "m3d_clip", "size": VIT, "shape": [8, 32, 32]},
    "vit3d": {"name": "vit3d", "size": VIT, "shape": [8, 32, 32]},
}
KEPT_IN = [name for name in ENCODERS if name != "vit3d"]


def composed(name: str, **fields: Any) -> VisionLanguageModel:
    torch.manual_seed(0)
    encoder = EncoderConfig.parse(ENCODERS[name] | fields).resolved()
    config = VLMConfig(
        encoder=encoder.to_dict(),
        connector={"name": "linear"},
        language=LANGUAGE,
        image_token_id=39,
    )
    model = VisionLanguageModel(config)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def an_image(model: VisionLanguageModel) -> ImageInput:
    config: Any = EncoderConfig.parse(model.config.encoder)
    if "volume" in model.encoder.kinds:
        return ImageInput(kind="volume", views=torch.randn(1, *config.shape))
    return ImageInput(views=torch.randn(3, config.image_size, config.image_size))


@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_saved_model_gives_the_same_image_tokens(tmp_path: Path, name: str) -> None:
    model = composed(name)
    image = an_image(model)
    model.save_pretrained(tmp_path)
    loaded = VisionLanguageModel.load(tmp_path).eval()
    with torch.no_grad():
        (before,), (after,) = model.image_tokens([image]), loaded.image_tokens([image])
    assert torch.equal(before, after)
    assert before.shape == (model.encoder.layout.tokens, 24)
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", KEPT_IN)
def test_an_encoder_in_bfloat16_is_loaded_in_it(tmp_path: Path, name: str) -> None:
    """The other parts keep their own dtype, and the features reach them."""
    model = composed(name, dtype="bfloat16")
    image = an_image(model)
    model.save_pretrained(tmp_path)
    loaded = VisionLanguageModel.load(tmp_path).eval()
    for one in (model, loaded):
        assert {p.dtype for p in one.encoder.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in one.language_model.parameters()} == {torch.float32}
        assert {p.dtype for p in one.connector.parameters()} == {torch.float32}
    with torch.no_grad():
        (before,), (after,) = model.image_tokens([image]), loaded.image_tokens([image])
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_it_is_built_without_memory(name: str) -> None:
    """`plan` counts published sizes this way."""
    with torch.device("meta"):
        encoder = EncoderConfig.parse(ENCODERS[name]).build()
    assert {tensor.device.type for tensor in encoder.state_dict().values()} == {"meta"}


def test_the_saved_config_names_its_source_and_needs_it_no_more(tmp_path: Path) -> None:
    model = composed("dinov2")
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["encoder"]
    assert saved["architecture"]["model_type"] == "dinov2"
    assert saved["image_size"] == 40


def test_a_tower_that_trains_computes_its_layers_again_and_drops_in_its_adapters() -> None:
    """The layers follow the mode where it is asked for; their parts, which draw numbers, do not."""
    tower = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, patch_size=14, attention_dropout=0.5,
    )  # fmt: skip
    config = CLIPEncoderConfig(architecture=tower.to_diff_dict(), image_size=28)
    encoder = config.build().train()
    views = torch.randn(2, 3, 28, 28)
    assert torch.equal(encoder(views), encoder(views))
    calls: list[int] = []
    first = next(m for m in encoder.modules() if isinstance(m, GradientCheckpointingLayer))
    first.self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    encoder.tower.activation_checkpointing_enable({"use_reentrant": False})
    encoder(views).sum().backward()
    assert len(calls) == 2
    calls.clear()
    encoder.eval()
    encoder(views).sum().backward()
    assert len(calls) == 1
    inject(encoder, LowRankConfig(rank=2, dropout=0.5))
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert torch.equal(encoder.eval()(views), encoder(views))
    encoder.train()
    assert not torch.equal(encoder(views), encoder(views))
