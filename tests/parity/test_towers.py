"""CLIP, SigLIP and DINO towers against transformers at every choice of layer, tokens and image size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

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
# kind of tower -> our encoder, transformers' classes, prefix tokens, fields of its config
TOWERS: dict[str, tuple[str, Any, Any, int, dict[str, Any]]] = {
    "clip": ("clip", CLIPVisionConfig, CLIPVisionModel, 1, {}),
    "clip_gelu": ("clip", CLIPVisionConfig, CLIPVisionModel, 1, {"hidden_act": "gelu"}),
    "siglip": ("siglip", SiglipVisionConfig, SiglipVisionModel, 0, {}),
    "dinov2": ("dinov2", Dinov2Config, Dinov2Model, 1, {}),
    "dinov2_registers": (
        "dinov2",
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        4,
        {"num_register_tokens": 3},
    ),
    "dinov3": ("dinov3", DINOv3ViTConfig, DINOv3ViTModel, 3, {"num_register_tokens": 2}),
}
every_tower = pytest.mark.parametrize("kind", list(TOWERS))
# Same arithmetic in the same order on the same tensors: only the last bits of attention may differ.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def saved_tower(kind: str, folder: Path, image_size: int = 28) -> Any:
    torch.manual_seed(1)
    _, config, model, _, fields = TOWERS[kind]
    tower = model(config(image_size=image_size, **(SIZES | fields))).eval()
    stir(tower)
    tower.save_pretrained(folder)
    return tower


def stir(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)


def ours(kind: str, folder: Path, **fields: Any) -> Any:
    name = TOWERS[kind][0] if kind in TOWERS else kind
    config = EncoderConfig.parse({"name": name, "source": str(folder), **fields}).resolved()
    # A saved config names no file but its architecture, and builds without the folder.
    encoder = EncoderConfig.parse(config.to_dict()).build()
    encoder.load_pretrained()
    return encoder.eval()


@pytest.mark.parametrize("image_size", [28, 30])  # 30 is no multiple of the patch: the rest is cut
@pytest.mark.parametrize("layer", [-1, -2, 1])
@every_tower
def test_hidden_state_of_each_layer(tmp_path: Path, kind: str, layer: int, image_size: int) -> None:
    tower = saved_tower(kind, tmp_path, image_size)
    pixels = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        features = ours(kind, tmp_path, layer=layer)(pixels)
    torch.testing.assert_close(features, states[layer][:, TOWERS[kind][3] :], **CLOSE)
    assert features.shape == (2, 16, 32)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("clip", "class_token"),
        ("dinov2", "prefix_tokens"),
        ("dinov2_registers", "prefix_tokens"),
        ("dinov3", "prefix_tokens"),
    ],
)
def test_prefix_tokens_are_kept_on_request(tmp_path: Path, kind: str, field: str) -> None:
    tower = saved_tower(kind, tmp_path)
    pixels = torch.randn(1, 3, 28, 28)
    encoder = ours(kind, tmp_path, layer=-2, **{field: "keep"})
    with torch.no_grad():
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        torch.testing.assert_close(encoder(pixels), states[-2], **CLOSE)
    assert encoder.layout == ImageLayout(rows=1, columns=16 + TOWERS[kind][3])


def test_siglip_has_no_field_that_could_drop_a_patch(tmp_path: Path) -> None:
    saved_tower("siglip", tmp_path)
    for field in ("class_token", "prefix_tokens"):
        with pytest.raises(ConfigError, match="unknown field"):
            ours("siglip", tmp_path, **{field: "drop"})


@pytest.mark.parametrize("layer", [-1, -2])
@every_tower
def test_post_norm(tmp_path: Path, kind: str, layer: int) -> None:
    tower = saved_tower(kind, tmp_path)
    pixels = torch.randn(1, 3, 28, 28)
    norms = {"dinov2": "layernorm", "dinov2_registers": "layernorm", "dinov3": "norm"}
    norm = tower.get_submodule(norms.get(kind, "post_layernorm"))
    with torch.no_grad():
        whole = tower(pixel_values=pixels, output_hidden_states=True)
        wanted = norm(whole.hidden_states[layer])
        features = ours(kind, tmp_path, layer=layer, post_norm=True)(pixels)
        if not kind.startswith("clip") and layer == -1:
            torch.testing.assert_close(wanted, whole.last_hidden_state)
    torch.testing.assert_close(features, wanted[:, TOWERS[kind][3] :], **CLOSE)


@every_tower
def test_gradients_equal(tmp_path: Path, kind: str) -> None:
    """Of every tensor that is read, from the same weighted sum of the features."""
    tower = saved_tower(kind, tmp_path)
    encoder = ours(kind, tmp_path, layer=-2)
    first = TOWERS[kind][3]
    pixels, weights = torch.randn(2, 3, 28, 28), torch.randn(2, 16, 32)
    (encoder(pixels) * weights).sum().backward()
    states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    (states[-2][:, first:] * weights).sum().backward()
    wanted = {key: one.grad for key, one in tower.named_parameters() if one.grad is not None}
    given = {k: one.grad for k, one in encoder.tower.named_parameters() if one.grad is not None}
    wanted = {key: grad for key, grad in wanted.items() if grad.any() or key in given}
    assert given.keys() == wanted.keys()
    for key, grad in given.items():
        # Sums over all tokens in another order: relative to the largest number of each tensor.
        scale = float(wanted[key].abs().max())
        torch.testing.assert_close(grad, wanted[key], rtol=1e-4, atol=1e-5 * scale + 1e-6)


@pytest.mark.parametrize("size", [42, 49, 21])
@every_tower
def test_another_image_size_interpolates_positions(tmp_path: Path, kind: str, size: int) -> None:
    tower = saved_tower(kind, tmp_path)
    pixels = torch.randn(2, 3, size, size)
    asked = {} if kind.startswith("dino") else {"interpolate_pos_encoding": True}
    encoder = ours(kind, tmp_path, layer=-2, image_size=size)
    with torch.no_grad():
        states = tower(pixel_values=pixels, output_hidden_states=True, **asked).hidden_states
        features = encoder(pixels)
    assert encoder.layout == ImageLayout(rows=size // 7, columns=size // 7)
    torch.testing.assert_close(features, states[-2][:, TOWERS[kind][3] :], **CLOSE)


def test_an_image_smaller_than_a_patch_is_refused(tmp_path: Path) -> None:
    saved_tower("clip", tmp_path)
    with pytest.raises(ConfigError, match="image_size 6 holds no patch of 7 pixels"):
        ours("clip", tmp_path, image_size=6)


@pytest.mark.parametrize("size", [28, 42, 44])
@pytest.mark.parametrize("post_norm", [False, True])
def test_naflex_siglip2_on_squares(tmp_path: Path, size: int, post_norm: bool) -> None:
    """The reference's patches are cut by `unfold`, whose order (channel, row, column) is put right."""
    torch.manual_seed(1)
    tower = Siglip2VisionModel(Siglip2VisionConfig(num_patches=16, **SIZES)).eval()
    stir(tower)
    tower.save_pretrained(tmp_path)
    pixels, side = torch.randn(2, 3, size, size), size // 7
    cut = pixels[..., : side * 7, : side * 7]
    patches = torch.nn.functional.unfold(cut, 7, stride=7).transpose(1, 2)
    patches = patches.unflatten(-1, (3, 49)).transpose(-1, -2).flatten(2)
    with torch.no_grad():
        whole = tower(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(2, side * side, dtype=torch.long),
            spatial_shapes=torch.tensor([[side, side]] * 2),
            output_hidden_states=True,
        )
        features = ours("siglip2", tmp_path, image_size=size, post_norm=post_norm)(pixels)
    wanted = whole.last_hidden_state if post_norm else whole.hidden_states[-1]
    # The reference masks nothing but through a mask, and so takes another attention kernel.
    torch.testing.assert_close(features, wanted, rtol=1e-5, atol=1e-5)


def test_naflex_gradients_reach_the_pixels_and_patches(tmp_path: Path) -> None:
    tower = Siglip2VisionModel(Siglip2VisionConfig(num_patches=16, **SIZES)).eval()
    tower.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 28, 28, requires_grad=True)
    encoder = ours("siglip2", tmp_path)
    encoder(pixels).pow(2).sum().backward()
    assert pixels.grad is not None
    assert bool((pixels.grad != 0).all())
    assert encoder.tower.embeddings.patch_embedding.weight.grad.any()


def test_layers_above_the_one_that_is_read_are_not_built(tmp_path: Path) -> None:
    saved_tower("clip", tmp_path)
    names = ours("clip", tmp_path, layer=-3).state_dict()
    assert {key.split(".")[3] for key in names if ".layers." in key} == {"0", "1"}


@pytest.mark.parametrize("layer", [0, 5, -5])
def test_a_layer_that_is_not_there_is_refused(tmp_path: Path, layer: int) -> None:
    saved_tower("clip", tmp_path)
    with pytest.raises(ConfigError, match=f"layer {layer} is not one of 4 layers"):
        ours("clip", tmp_path, layer=layer)


@every_tower
def test_a_tower_is_kept_in_bfloat16_and_takes_float32_views(tmp_path: Path, kind: str) -> None:
    saved_tower(kind, tmp_path)
    pixels = torch.randn(2, 3, 42, 42)
    with torch.no_grad():
        exact = ours(kind, tmp_path, layer=-1, image_size=42)(pixels)
        encoder = ours(kind, tmp_path, layer=-1, image_size=42, dtype="bfloat16")
        features = encoder(pixels)
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    assert features.dtype is torch.bfloat16
    # bfloat16 keeps 8 bits: 2**-8 a step, through four layers.
    assert float((features.float() - exact).abs().mean() / exact.abs().mean()) < 0.03


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_registers", "dinov3"])
def test_dino_holds_no_mask_token(tmp_path: Path, kind: str) -> None:
    """Nothing would ever train it, and a file of the whole model would carry it."""
    tower = saved_tower(kind, tmp_path)
    left = tower.state_dict().keys() - ours(kind, tmp_path).tower.state_dict().keys()
    assert left == {"embeddings.mask_token"}


def test_dino_is_the_same_in_training_mode(tmp_path: Path) -> None:
    """DINOv3 rescales its rotary positions at random while it trains."""
    saved_tower("dinov3", tmp_path)
    encoder = ours("dinov3", tmp_path)
    pixels = torch.randn(1, 3, 28, 28)
    assert torch.equal(encoder.train()(pixels), encoder.eval()(pixels))


# Checkpoints as they are published: pairs of towers, older names, and what is wrong with some.

TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 60}
PAIRS: dict[str, Callable[[], Any]] = {
    "clip": lambda: CLIPModel(
        CLIPConfig(
            vision_config=SIZES | {"image_size": 28, "hidden_act": "quick_gelu"},
            text_config=TEXT | {"num_attention_heads": 2, "eos_token_id": 2, "bos_token_id": 1},
            projection_dim=8,
        )
    ),
    "siglip": lambda: SiglipModel(
        SiglipConfig(
            vision_config=SIZES | {"image_size": 28},
            text_config=TEXT | {"num_attention_heads": 2, "eos_token_id": 2, "bos_token_id": 1},
        )
    ),
}


TWO = ("vision", "text")


def saved_pair(kind: str, folder: Path) -> Any:
    torch.manual_seed(2)
    pair = PAIRS[kind]().eval()
    stir(pair)
    pair.save_pretrained(folder)
    return pair


@pytest.mark.parametrize("kind", list(PAIRS))
@pytest.mark.parametrize("layer", [-1, -2])
def test_the_vision_half_of_a_published_pair(tmp_path: Path, kind: str, layer: int) -> None:
    """PubMedCLIP, DFN5B and SigLIP are published as both towers; the names are those of the files."""
    pair = saved_pair(kind, tmp_path)
    # Files of older versions of transformers hold these buffers too.
    numbers = {f"{half}_model.embeddings.position_ids": torch.arange(17)[None] for half in TWO}
    changed(tmp_path, lambda tensors: tensors.update(numbers))
    published = load_file(tmp_path / "model.safetensors")
    assert "vision_model.encoder.layers.3.mlp.fc1.weight" in published
    assert "text_model.encoder.layers.0.mlp.fc1.weight" in published
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        states = pair.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
        features = ours(kind, tmp_path, layer=layer)(pixels)
    first = 1 if kind == "clip" else 0
    torch.testing.assert_close(features, states[layer][:, first:], **CLOSE)


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if part in key]:
            del tensors[key]

    return change


def test_missing_tensors_are_counted_and_the_first_named(tmp_path: Path) -> None:
    saved_tower("clip", tmp_path)
    changed(tmp_path, without("layers.1.mlp"))
    with pytest.raises(
        CheckpointError, match=r"lacks 4 tensors, the first encoder\.layers\.1\.mlp\.fc1\.bias"
    ):
        ours("clip", tmp_path)


def test_a_missing_tensor_above_the_layer_that_is_read_is_no_matter(tmp_path: Path) -> None:
    saved_tower("clip", tmp_path)
    changed(tmp_path, without("layers.3."))
    ours("clip", tmp_path, layer=-2)


def test_a_tensor_that_fits_nothing_is_an_error_unless_it_is_allowed(tmp_path: Path) -> None:
    saved_tower("clip", tmp_path)
    changed(tmp_path, lambda t: t.update({"adapter.weight": torch.ones(2)}))
    with pytest.raises(
        CheckpointError, match=r"1 tensors of .* the first adapter\.weight"
    ) as caught:
        ours("clip", tmp_path)
    assert "allow_unused" in str(caught.value)
    ours("clip", tmp_path, allow_unused=["adapter."])


def test_a_tensor_of_another_shape_is_an_error(tmp_path: Path) -> None:
    saved_tower("clip", tmp_path)
    changed(tmp_path, lambda t: t.update({key_of(t, "class_embedding"): torch.ones(31)}))
    with pytest.raises(CheckpointError, match="class_embedding"):
        ours("clip", tmp_path)


def key_of(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(key for key in tensors if part in key)


@pytest.mark.parametrize(("name", "kind"), [("siglip", "clip"), ("clip", "siglip")])
def test_a_checkpoint_of_another_family_is_named(tmp_path: Path, name: str, kind: str) -> None:
    saved_tower(kind, tmp_path)
    with pytest.raises(CheckpointError, match=f"is a '{kind}_vision_model' checkpoint"):
        EncoderConfig.parse({"name": name, "source": str(tmp_path)}).resolved()


def test_siglip_says_what_reads_naflex(tmp_path: Path) -> None:
    Siglip2VisionModel(Siglip2VisionConfig(num_patches=16, **SIZES)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="the encoder 'siglip' reads 'siglip'"):
        ours("siglip", tmp_path)


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read a vision tower"):
        ours("clip", tmp_path / "nowhere")
    tmp_path.joinpath("empty").mkdir()
    with pytest.raises(CheckpointError, match="cannot read a vision tower"):
        ours("clip", tmp_path / "empty")


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    saved_tower("clip", tmp_path / "tower")
    config = EncoderConfig.parse({"name": "clip", "source": str(tmp_path / "tower")}).resolved()
    shutil.rmtree(tmp_path / "tower")
    with pytest.raises(CheckpointError, match="cannot load a vision tower"):
        config.build().load_pretrained()


# Published sizes on the meta device: the names and shapes of the files, written from their layout.


def clip_names(width: int, hidden: int, depth: int, patch: int, positions: int) -> dict[str, Any]:
    """The vision half of a published CLIP, as transformers' files name it."""
    square, both = (width, width), ("weight", "bias")
    names: dict[str, Any] = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": (positions, width),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        names |= {f"{norm}.{leaf}": (width,) for leaf in both}
    for number in range(depth):
        layer = f"encoder.layers.{number}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            names[f"{layer}.self_attn.{part}.weight"] = square
            names[f"{layer}.self_attn.{part}.bias"] = (width,)
        for norm in ("layer_norm1", "layer_norm2"):
            names |= {f"{layer}.{norm}.{leaf}": (width,) for leaf in both}
        names[f"{layer}.mlp.fc1.weight"], names[f"{layer}.mlp.fc1.bias"] = (
            (hidden, width),
            (hidden,),
        )
        names[f"{layer}.mlp.fc2.weight"], names[f"{layer}.mlp.fc2.bias"] = (width, hidden), (width,)
    return names


def siglip_names(width: int, hidden: int, depth: int, patch: int, positions: int) -> dict[str, Any]:
    """Like CLIP's, without a class token and the norm before the layers, with a bias to the patches."""
    names = clip_names(width, hidden, depth, patch, positions)
    del names["embeddings.class_embedding"]
    names = {key: shape for key, shape in names.items() if not key.startswith("pre_layrnorm")}
    return names | {"embeddings.patch_embedding.bias": (width,)}


# hub id -> encoder, its config as published, (names, their sizes), (rows, channels) of the features
PUBLISHED: dict[str, Any] = {
    "DFN5B-CLIP-ViT-H-14-378": (
        "clip",
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "image_size": 378,
            "patch_size": 14,
            "hidden_act": "quick_gelu",
        },
        clip_names(1280, 5120, 32, 14, 730),
        (27, 1280),
    ),
    "pubmed-clip-vit-base-patch32": (
        "clip",
        {"hidden_size": 768, "intermediate_size": 3072, "image_size": 224, "patch_size": 32},
        clip_names(768, 3072, 12, 32, 50),
        (7, 768),
    ),
    "clip-vit-large-patch14-336": (
        "clip",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
        clip_names(1024, 4096, 24, 14, 577),
        (24, 1024),
    ),
    "siglip-base-patch16-256": (
        "siglip",
        {"hidden_size": 768, "intermediate_size": 3072, "image_size": 256, "patch_size": 16},
        siglip_names(768, 3072, 12, 16, 256),
        (16, 768),
    ),
}


@pytest.mark.parametrize("hub_id", list(PUBLISHED))
def test_published_sizes_map_one_to_one(hub_id: str) -> None:
    name, sizes, names, (rows, channels) = PUBLISHED[hub_id]
    config = EncoderConfig.parse({"name": name, "architecture": sizes, "layer": -1}).resolved()
    with torch.device("meta"):
        encoder: Any = config.build()
        features = encoder(torch.zeros(1, 3, config.image_size, config.image_size))  # type: ignore[attr-defined]
    assert {key: tuple(one.shape) for key, one in encoder.tower.state_dict().items()} == names
    assert encoder.layout == ImageLayout(rows=rows, columns=rows)
    assert features.shape == (1, rows * rows, channels)
    assert encoder.channels == channels


def test_the_activation_is_the_checkpoints_own() -> None:
    """OpenAI's CLIP and DFN5B have quick GELU; a tower with the other gives other features."""
    pixels = torch.randn(1, 3, 28, 28)
    given = []
    for activation in ("quick_gelu", "gelu"):
        torch.manual_seed(0)
        architecture = SIZES | {"image_size": 28, "hidden_act": activation}
        encoder = EncoderConfig.parse({"name": "clip", "architecture": architecture}).build().eval()
        given.append(encoder(pixels))
    assert not torch.allclose(*given, atol=1e-3)
    assert CLIPVisionConfig().hidden_act == "quick_gelu"


def test_the_resolved_config_holds_the_whole_tower(tmp_path: Path) -> None:
    """It is saved with every model: cutting a layer must not change what it says."""
    saved_tower("dinov3", tmp_path)
    config = EncoderConfig.parse({"name": "dinov3", "source": str(tmp_path), "layer": 2})
    resolved = config.resolved()
    resolved.build()
    assert json.loads(resolved.to_json())["architecture"]["num_hidden_layers"] == 4
    assert resolved.resolved() == resolved
