"""Any vision model of transformers by name, against that model; and those that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    BeitConfig,
    BertConfig,
    CLIPConfig,
    CLIPModel,
    ConvNextV2Config,
    DeiTConfig,
    Dinov2WithRegistersConfig,
    HGNetV2Config,
    PixtralVisionConfig,
    PvtConfig,
    ResNetConfig,
    SamVisionConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    YolosConfig,
)

from medloupe.errors import CheckpointError, ConfigError
from medloupe.imaging.transforms import IMAGENET_MEAN, ImageTransform
from medloupe.models.encoders import EncoderConfig
from medloupe.types import ImageLayout

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
# config, prefix tokens, side of the grid at 32 pixels, form of the features
MODELS: dict[str, tuple[Any, int, int, str]] = {
    "vit": (lambda: ViTConfig(**SIZES), 1, 4, "tokens"),
    "deit": (lambda: DeiTConfig(**SIZES), 2, 4, "tokens"),
    "beit": (lambda: BeitConfig(**SIZES, drop_path_rate=0.3), 1, 4, "tokens"),
    "siglip": (lambda: SiglipVisionConfig(**SIZES), 0, 4, "tokens"),
    "dinov2_registers": (
        lambda: Dinov2WithRegistersConfig(**SIZES, num_register_tokens=3),
        4,
        4,
        "tokens",
    ),
    "swin": (
        lambda: SwinConfig(
            image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2
        ),
        0,
        4,
        "tokens",
    ),
    "pvt": (
        lambda: PvtConfig(
            image_size=32,
            num_encoder_blocks=2,
            depths=[1, 1],
            hidden_sizes=[8, 16],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            patch_sizes=[4, 2],
            strides=[4, 2],
            sequence_reduction_ratios=[2, 1],
        ),
        1,
        4,
        "tokens",
    ),
    "resnet": (
        lambda: ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
        0,
        4,
        "channels_first",
    ),
    "convnextv2": (
        lambda: ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
        0,
        4,
        "channels_first",
    ),
    "sam": (
        lambda: SamVisionConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            output_channels=16,
            window_size=2,
            global_attn_indexes=[1],
        ),
        0,
        4,
        "channels_first",
    ),
}


def data(config: Any, **fields: Any) -> dict[str, Any]:
    return {
        "name": "hf_vision",
        "architecture": json.loads(json.dumps(config.to_diff_dict())),
        **fields,
    }


def pair(kind: str, **fields: Any) -> tuple[Any, Any]:
    """Ours and the reference, with the same weights."""
    config = MODELS[kind][0]()
    encoder: Any = EncoderConfig.parse(data(config, image_size=32, **fields)).build()
    torch.manual_seed(5)
    reference = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    wanted = reference.state_dict()
    encoder.tower.load_state_dict({key: wanted[key] for key in encoder.tower.state_dict()})
    return encoder.eval(), reference


@pytest.mark.parametrize("kind", list(MODELS))
def test_features_are_the_models_own_without_its_prefix(kind: str) -> None:
    encoder, reference = pair(kind)
    _, prefix, side, form = MODELS[kind]
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = reference(pixel_values=pixels).last_hidden_state
        features = encoder(pixels)
        assert torch.equal(encoder.train()(pixels), features)  # no dropout, no stochastic depth
    if form == "channels_first":
        wanted = wanted.flatten(2).transpose(1, 2)
    torch.testing.assert_close(features, wanted[:, prefix:], **CLOSE)
    assert encoder.layout == ImageLayout(rows=side, columns=side)
    assert encoder.channels == features.shape[-1]
    assert encoder.arrangement.prefix == prefix


@pytest.mark.parametrize("kind", ["vit", "swin", "resnet"])
def test_gradients_equal(kind: str) -> None:
    encoder, reference = pair(kind)
    pixels = torch.randn(2, 3, 32, 32)
    features = encoder(pixels)
    weights = torch.randn_like(features)
    (features * weights).sum().backward()
    wanted = reference(pixel_values=pixels).last_hidden_state
    if wanted.ndim == 4:
        wanted = wanted.flatten(2).transpose(1, 2)
    (wanted[:, MODELS[kind][1] :] * weights).sum().backward()
    grads = {key: one.grad for key, one in reference.named_parameters()}
    for key, parameter in encoder.tower.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[key], rtol=1e-4, atol=1e-4)


def test_prefix_tokens_layers_and_the_norm() -> None:
    pixels = torch.randn(1, 3, 32, 32)
    kept, reference = pair("vit", prefix_tokens="keep", post_norm=False)
    whole = reference(pixel_values=pixels, output_hidden_states=True)
    torch.testing.assert_close(kept(pixels), whole.hidden_states[-1], **CLOSE)
    assert kept.layout == ImageLayout(rows=1, columns=17)
    for layer in (-2, 1):
        cut, reference = pair("vit", layer=layer)
        whole = reference(pixel_values=pixels, output_hidden_states=True)
        wanted = reference.layernorm(whole.hidden_states[layer])[:, 1:]
        torch.testing.assert_close(cut(pixels), wanted, **CLOSE)
        assert not any("layers.2." in key for key in cut.state_dict())


def test_another_image_size_interpolates_positions() -> None:
    config = ViTConfig(**SIZES)
    encoder: Any = EncoderConfig.parse(data(config, image_size=48)).build().eval()
    reference = AutoModel.from_config(config).eval()
    reference.load_state_dict(encoder.tower.state_dict(), strict=False)
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        whole = reference(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(encoder(pixels), whole[:, 1:], **CLOSE)
    assert encoder.layout == ImageLayout(rows=6, columns=6)


@pytest.mark.parametrize("layer", [-1, -2])
def test_a_published_classifier_by_its_folder(tmp_path: Path, layer: int) -> None:
    model = ViTForImageClassification(ViTConfig(**SIZES)).eval()
    model.save_pretrained(tmp_path)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = EncoderConfig.parse({"name": "hf_vision", "source": str(tmp_path), "layer": layer})
    fitted = config.fitted(ImageTransform())
    assert isinstance(fitted, ImageTransform)
    assert (fitted.size, fitted.mean, fitted.std) == (32, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    encoder = EncoderConfig.parse(config.resolved().to_dict()).build()
    encoder.load_pretrained()
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        states = model.vit(pixels, output_hidden_states=True).hidden_states
        wanted = model.vit.layernorm(states[layer])[:, 1:]
        torch.testing.assert_close(encoder.eval()(pixels), wanted, **CLOSE)


def test_the_vision_half_of_a_pair_and_imagenets_numbers(tmp_path: Path) -> None:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 60}
    text |= {"num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    model = CLIPModel(CLIPConfig(vision_config=SIZES, text_config=text)).eval()
    model.save_pretrained(tmp_path)
    config: Any = EncoderConfig.parse({"name": "hf_vision", "source": str(tmp_path)}).resolved()
    assert config.mean == IMAGENET_MEAN
    encoder = config.build().eval()
    encoder.load_pretrained()
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = model.vision_model(pixels).last_hidden_state[:, 1:]
        torch.testing.assert_close(encoder(pixels), wanted, **CLOSE)


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = ViTForImageClassification(ViTConfig(**SIZES))
    state = {k: v for k, v in model.state_dict().items() if "cls_token" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    encoder = EncoderConfig.parse({"name": "hf_vision", "source": str(tmp_path)}).build()
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors, the first embeddings\.cls_token"):
        encoder.load_pretrained()


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "detection tokens": (YolosConfig(**(SIZES | {"image_size": [32, 32]})), {}, "no square grid"),
    "as many as make another square": (  # 16 patches, a class token, 8 more: 25
        YolosConfig(**(SIZES | {"image_size": [32, 32]}), num_detection_tokens=8),
        {},
        "25 tokens for 32 pixels, which are no square grid",
    ),
    "random masks": (ViTMAEConfig(**SIZES), {}, "drops and shuffles patches at random"),
    "text": (BertConfig(), {"image_size": 32}, "not pixel_values alone"),
    "other inputs": (Siglip2VisionConfig(), {"image_size": 32}, "not pixel_values alone"),
    "one batch of all images": (
        PixtralVisionConfig(**(SIZES | {"num_hidden_layers": 1, "head_dim": 8})),
        {},
        r"features of shape \[1, 32, 32\] for two images",
    ),
    "no last state": (HGNetV2Config(), {"image_size": 64}, "gives no last_hidden_state"),
    "no size": (MODELS["resnet"][0](), {}, "states no size of square images"),
    "no layers": (MODELS["swin"][0](), {"layer": -2}, "made of stages"),
    "a layer too many": (ViTConfig(**SIZES), {"layer": -4}, "is not one of 3 layers"),
    "no state before a norm": (
        BeitConfig(**SIZES),
        {"post_norm": False},
        "no hidden state before its last norm",
    ),
    "a prefix that is not there": (ViTConfig(**SIZES), {"prefix": 2}, "behind 2 prefix tokens"),
    "a pair": (CLIPConfig(), {"image_size": 32}, "takes no plain images"),
}


@pytest.mark.parametrize("why", list(REFUSED))
def test_what_is_no_grid_of_patches_is_refused(why: str) -> None:
    config, fields, message = REFUSED[why]
    with pytest.raises(ConfigError, match=message):
        EncoderConfig.parse(data(config, **fields)).build()


def test_a_name_that_transformers_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing_at_all"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot read a vision model"):
        EncoderConfig.parse({"name": "hf_vision", "source": str(tmp_path)}).build()
    with pytest.raises(ConfigError, match="needs a source"):
        EncoderConfig.parse("hf_vision").build()
