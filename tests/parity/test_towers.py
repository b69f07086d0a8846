"""CLIP and SigLIP towers against transformers at every choice of layer and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from medloupe.errors import CheckpointError, ConfigError
from medloupe.models.encoders import EncoderConfig
from medloupe.types import ImageLayout

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "patch_size": 7,
}


def saved_tower(kind: str, folder: Path, image_size: int = 28) -> Any:
    torch.manual_seed(1)
    config, model = {
        "clip": (CLIPVisionConfig, CLIPVisionModel),
        "siglip": (SiglipVisionConfig, SiglipVisionModel),
    }[kind]
    tower = model(config(image_size=image_size, **SIZES)).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    tower.save_pretrained(folder)
    return tower


def ours(kind: str, folder: Path, **fields: Any) -> Any:
    config = EncoderConfig.parse({"name": kind, "source": str(folder), **fields}).resolved()
    # A saved config names no file but its architecture, and builds without the folder.
    encoder = EncoderConfig.parse(config.to_dict()).build()
    encoder.load_pretrained()
    return encoder.eval()


@pytest.mark.parametrize("image_size", [28, 30])  # 30 is no multiple of the patch: the rest is cut
@pytest.mark.parametrize("layer", [-1, -2, -4, 1, 4])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_hidden_state_of_each_layer(tmp_path: Path, kind: str, layer: int, image_size: int) -> None:
    tower = saved_tower(kind, tmp_path, image_size)
    pixels = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        features = ours(kind, tmp_path, layer=layer)(pixels)
    first = 1 if kind == "clip" else 0
    torch.testing.assert_close(features, states[layer][:, first:], rtol=1e-6, atol=1e-6)
    assert features.shape == (2, 16, 32)


def test_clip_keeps_its_class_token_on_request(tmp_path: Path) -> None:
    tower = saved_tower("clip", tmp_path)
    pixels = torch.randn(1, 3, 28, 28)
    encoder = ours("clip", tmp_path, layer=-2, class_token="keep")
    with torch.no_grad():
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        torch.testing.assert_close(encoder(pixels), states[-2], rtol=1e-6, atol=1e-6)
    assert encoder.layout == ImageLayout(rows=1, columns=17)


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_post_norm(tmp_path: Path, kind: str, layer: int) -> None:
    tower = saved_tower(kind, tmp_path)
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        whole = tower(pixel_values=pixels, output_hidden_states=True)
        wanted = tower.post_layernorm(whole.hidden_states[layer])
        features = ours(kind, tmp_path, layer=layer, post_norm=True)(pixels)
        if kind == "siglip" and layer == -1:
            torch.testing.assert_close(wanted, whole.last_hidden_state)
    first = 1 if kind == "clip" else 0
    torch.testing.assert_close(features, wanted[:, first:], rtol=1e-6, atol=1e-6)


def test_layers_above_the_one_that_is_read_are_not_built(tmp_path: Path) -> None:
    saved_tower("clip", tmp_path)
    names = ours("clip", tmp_path, layer=-3).state_dict()
    assert {key.split(".")[3] for key in names if ".layers." in key} == {"0", "1"}


@pytest.mark.parametrize("layer", [0, 5, -5])
def test_a_layer_that_is_not_there_is_refused(tmp_path: Path, layer: int) -> None:
    saved_tower("clip", tmp_path)
    with pytest.raises(ConfigError, match=f"layer {layer} is not one of 4 layers"):
        ours("clip", tmp_path, layer=layer)


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read a vision tower"):
        ours("clip", tmp_path / "nowhere")
