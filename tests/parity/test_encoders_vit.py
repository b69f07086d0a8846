"""BiomedCLIP against transformers' ViT, M3D-CLIP against torch's own transformer, and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from medloupe.errors import CheckpointError, ConfigError
from medloupe.models.encoders import EncoderConfig
from medloupe.models.encoders.biomedclip import NAMES as BIOMEDCLIP
from medloupe.models.encoders.vit import Names, stretched
from medloupe.models.encoders.vit3d import NAMES as M3D
from medloupe.types import ImageLayout

SIZE = {"width": 32, "depth": 3, "heads": 4, "hidden": 48}
# The reference splits q, k and v and adds in another order: a few units in the last place.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
GRADIENTS = {"rtol": 1e-4, "atol": 1e-4}


def biomedclip_names(width: int, hidden: int, depth: int, positions: int) -> dict[str, Any]:
    """The vision trunk of open_clip_pytorch_model.bin: names and shapes."""
    top = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    block = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (hidden, width),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden),
        "mlp.fc2.bias": (width,),
    }
    blocks = {f"blocks.{n}.{key}": shape for n in range(depth) for key, shape in block.items()}
    return {f"visual.trunk.{key}": shape for key, shape in (top | blocks).items()}


def m3d_names(width: int, hidden: int, depth: int, patches: int, voxels: int) -> dict[str, Any]:
    """The vision encoder of M3D-CLIP's model file: names and shapes."""
    top = {
        "cls_token": (1, 1, width),
        "patch_embedding.position_embeddings": (1, patches, width),
        "patch_embedding.patch_embeddings.1.weight": (width, voxels),
        "patch_embedding.patch_embeddings.1.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    block = {
        "mlp.linear1.weight": (hidden, width),
        "mlp.linear1.bias": (hidden,),
        "mlp.linear2.weight": (width, hidden),
        "mlp.linear2.bias": (width,),
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
    }
    blocks = {f"blocks.{n}.{key}": shape for n in range(depth) for key, shape in block.items()}
    return {f"vision_encoder.{key}": shape for key, shape in (top | blocks).items()}


def random_tensors(names: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor its own, so that a swapped name shows."""
    torch.manual_seed(4)
    return {
        key: torch.randn(shape) * 0.2 + (1.0 if "norm" in key and key.endswith("weight") else 0.0)
        for key, shape in names.items()
    }


# BiomedCLIP

BIOMED_REST = {
    "visual.head.proj.weight": torch.ones(4, 32),
    "text.transformer.embeddings.word_embeddings.weight": torch.ones(5, 3),
    "text.proj.0.weight": torch.ones(4, 3),
    "logit_scale": torch.ones(()),
}


def saved_biomedclip(folder: Path, *, image_size: int = 64, safe: bool = False) -> dict[str, Any]:
    """A tiny checkpoint in the published form."""
    positions = (image_size // 16) ** 2 + 1
    tensors = random_tensors(biomedclip_names(32, 48, 3, positions))
    vision = {"timm_model_name": "vit_base_patch16_224", "image_size": image_size}
    config = {"model_cfg": {"embed_dim": 4, "vision_cfg": vision}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    if safe:
        save_file(tensors | BIOMED_REST, folder / "open_clip_model.safetensors")
    else:
        torch.save(tensors | BIOMED_REST, folder / "open_clip_pytorch_model.bin")
    return tensors


def biomedclip(folder: Path, **fields: Any) -> Any:
    data = {"name": "biomedclip", "source": str(folder), "size": SIZE, **fields}
    config = EncoderConfig.parse(data).resolved()
    encoder = EncoderConfig.parse(config.to_dict()).build()
    encoder.load_pretrained()
    return encoder.eval()


def reference_vit(tensors: dict[str, torch.Tensor], image_size: int = 64) -> Any:
    """transformers' ViT with the same tensors."""
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=image_size,
        patch_size=16,
        layer_norm_eps=1e-6,
    )
    model = ViTModel(config, add_pooling_layer=False).eval()
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    state = {}
    for key in model.state_dict():
        part, leaf = key.rsplit(".", 1)
        block = ""
        if part.startswith("layers."):
            _, number, part = part.split(".", 2)
            block = f"blocks.{number}."
        if part in ("attention.q_proj", "attention.k_proj", "attention.v_proj"):
            place = "qkv".index(part[10])
            state[key] = tensors[f"visual.trunk.{block}attn.qkv.{leaf}"].chunk(3)[place]
        elif key in names:
            state[key] = tensors["visual.trunk." + names[key]]
        else:
            state[key] = tensors[f"visual.trunk.{block}{names[part]}.{leaf}"]
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("layer", [-1, -2, 1])
@pytest.mark.parametrize("post_norm", [True, False])
def test_biomedclip_is_transformers_vit(
    tmp_path: Path, layer: int, post_norm: bool, safe: bool
) -> None:
    reference = reference_vit(saved_biomedclip(tmp_path, safe=safe))
    pixels = torch.randn(2, 3, 64, 64)
    encoder = biomedclip(tmp_path, layer=layer, post_norm=post_norm)
    with torch.no_grad():
        wanted = reference(pixels, output_hidden_states=True).hidden_states[layer]
        wanted = reference.layernorm(wanted) if post_norm else wanted
        torch.testing.assert_close(encoder(pixels), wanted[:, 1:], **CLOSE)
    kept = biomedclip(tmp_path, layer=layer, post_norm=post_norm, class_token="keep")
    torch.testing.assert_close(kept(pixels), wanted, **CLOSE)
    assert encoder.layout == ImageLayout(rows=4, columns=4)
    assert kept.layout == ImageLayout(rows=1, columns=17)


@pytest.mark.parametrize("image_size", [96, 48, 70])
def test_biomedclip_interpolates_positions_as_transformers_does(
    tmp_path: Path, image_size: int
) -> None:
    reference = reference_vit(saved_biomedclip(tmp_path))
    pixels = torch.randn(1, 3, image_size, image_size)
    encoder = biomedclip(tmp_path, image_size=image_size)
    with torch.no_grad():
        wanted = reference(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        torch.testing.assert_close(encoder(pixels), wanted, **CLOSE)


def test_biomedclip_gradients(tmp_path: Path) -> None:
    """Of the pixels and of the tensors that stand at both ends of the chain."""
    reference = reference_vit(saved_biomedclip(tmp_path))
    encoder = biomedclip(tmp_path)
    weights = torch.randn(2, 16, 32)
    ours, theirs = (torch.randn(2, 3, 64, 64).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours.data)
    (encoder(ours) * weights).sum().backward()
    (reference(theirs).last_hidden_state[:, 1:] * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **GRADIENTS)
    trunk, blocks = encoder.trunk, reference.layers
    for mine, wanted in (
        (trunk.positions, reference.embeddings.position_embeddings),
        (trunk.class_token, reference.embeddings.cls_token),
        (trunk.patches.weight, reference.embeddings.patch_embeddings.projection.weight),
        (trunk.norm.weight, reference.layernorm.weight),
        (trunk.blocks[0].mlp[0].weight, blocks[0].mlp.fc1.weight),
        (trunk.blocks[2].attention.out.bias, blocks[2].attention.o_proj.bias),
    ):
        torch.testing.assert_close(mine.grad, wanted.grad, **GRADIENTS)
    parts = [getattr(blocks[1].attention, f"{one}_proj").weight.grad for one in "qkv"]
    mine = trunk.blocks[1].attention.qkv.weight.grad
    torch.testing.assert_close(mine, torch.cat(parts), **GRADIENTS)


def test_biomedclip_of_another_architecture_is_named(tmp_path: Path) -> None:
    saved_biomedclip(tmp_path)
    path = tmp_path / "open_clip_config.json"
    path.write_text(path.read_text().replace("base", "large"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="the vision tower is 'vit_large_patch16_224'"):
        biomedclip(tmp_path)


def test_biomedclip_accounts_for_every_tensor(tmp_path: Path) -> None:
    tensors = saved_biomedclip(tmp_path)
    path = tmp_path / "open_clip_pytorch_model.bin"
    lacking = {k: v for k, v in tensors.items() if "blocks.1.mlp" not in k}
    torch.save(lacking, path)
    with pytest.raises(CheckpointError, match=r"lacks 4 tensors, the first .*blocks\.1\.mlp\.fc1"):
        biomedclip(tmp_path)
    torch.save(tensors | {"visual.trunk.fc_norm.weight": torch.ones(32)}, path)
    with pytest.raises(CheckpointError, match=r"1 tensors .* the first visual\.trunk\.fc_norm"):
        biomedclip(tmp_path)
    biomedclip(tmp_path, allow_unused=["visual.trunk.fc_norm."])
    torch.save(tensors | {"visual.trunk.pos_embed": torch.ones(1, 18, 32)}, path)
    with pytest.raises(CheckpointError, match=r"positions of .* is \[1, 18, 32\]"):
        biomedclip(tmp_path)
    path.write_bytes(b"nothing that torch wrote")
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        biomedclip(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="holds none of open_clip_model"):
        biomedclip(tmp_path)


def test_biomedclip_without_a_source_is_the_published_size() -> None:
    with torch.device("meta"):
        encoder: Any = EncoderConfig.parse("biomedclip").build()
        features = encoder(torch.zeros(2, 3, 224, 224))
    assert features.shape == (2, 196, 768)
    assert_one_to_one(encoder.trunk, BIOMEDCLIP, biomedclip_names(768, 3072, 12, 197))


# M3D-CLIP


class ReferenceVolumeViT(nn.Module):
    """Written from the paper and torch's own layers: patches by unfolding, pre-norm, no class
    position."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        get = {k.removeprefix("vision_encoder."): v for k, v in tensors.items()}
        self.top = nn.ParameterDict(
            {k.replace(".", "/"): v.clone() for k, v in get.items() if "blocks" not in k}
        )
        self.layers = nn.ModuleList(self._layer(get, f"blocks.{n}.") for n in range(3))

    def _layer(self, get: dict[str, torch.Tensor], block: str) -> nn.Module:
        layer = nn.TransformerEncoderLayer(
            32, 4, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": get[f"{block}attn.qkv.weight"],
                "self_attn.in_proj_bias": torch.zeros(96),
                "self_attn.out_proj.weight": get[f"{block}attn.out_proj.weight"],
                "self_attn.out_proj.bias": get[f"{block}attn.out_proj.bias"],
                **{
                    f"{part}.{leaf}": get[f"{block}{there}{part}.{leaf}"]
                    for part, there in (
                        ("linear1", "mlp."),
                        ("linear2", "mlp."),
                        ("norm1", ""),
                        ("norm2", ""),
                    )
                    for leaf in ("weight", "bias")
                },
            }
        )
        return layer

    def forward(self, volumes: torch.Tensor) -> list[torch.Tensor]:
        """After each layer, and after the final norm."""
        patches = volumes[:, 0].unfold(1, 4, 4).unfold(2, 16, 16).unfold(3, 16, 16)
        patches = patches.reshape(len(volumes), -1, 4 * 16 * 16)
        name = "patch_embedding/patch_embeddings/1/"
        x = F.linear(patches, self.top[name + "weight"], self.top[name + "bias"])
        x = x + self.top["patch_embedding/position_embeddings"]
        x = torch.cat([self.top["cls_token"].expand(len(x), 1, 32), x], dim=1)
        states = []
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        norm = F.layer_norm(x, (32,), self.top["norm/weight"], self.top["norm/bias"], 1e-5)
        return [*states, norm]


SHAPE = [8, 32, 48]
M3D_REST = {
    "mm_vision_proj.weight": torch.ones(3, 3),
    "mm_language_proj.bias": torch.ones(3),
    "language_encoder.pooler.dense.weight": torch.ones(2, 2),
    "logit_scale": torch.ones(()),
    # Newer MONAI versions write this beside every block and never read it.
    "vision_encoder.blocks.0.norm_cross_attn.weight": torch.ones(32),
}


def saved_m3d(folder: Path, form: str = "model.safetensors") -> dict[str, torch.Tensor]:
    tensors = random_tensors(m3d_names(32, 48, 3, 2 * 2 * 3, 1024))
    if form == "model.safetensors":
        save_file(tensors | M3D_REST, folder / form)
    elif form == "pytorch_model.bin":
        torch.save(tensors | M3D_REST, folder / form)
    else:
        bare = {key.removeprefix("vision_encoder."): value for key, value in tensors.items()}
        torch.save(bare, folder / form)
    return tensors


def m3d(folder: Path, **fields: Any) -> Any:
    data = {"name": "m3d_clip", "source": str(folder), "size": SIZE, "shape": SHAPE}
    config = EncoderConfig.parse(data | {"native_shape": SHAPE} | fields).resolved()
    encoder = EncoderConfig.parse(config.to_dict()).build()
    encoder.load_pretrained()
    return encoder.eval()


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", "pretrained_ViT.bin"])
@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_m3d_clip_is_the_papers_vit(tmp_path: Path, layer: int, form: str) -> None:
    reference = ReferenceVolumeViT(saved_m3d(tmp_path, form)).eval()
    volumes = torch.randn(2, 1, *SHAPE)
    encoder = m3d(tmp_path, layer=layer)
    states = reference(volumes)[:-1]
    wanted = states[layer if layer < 0 else layer - 1]
    torch.testing.assert_close(encoder(volumes), wanted[:, 1:], **CLOSE)
    kept = m3d(tmp_path, layer=layer, class_token="keep")
    torch.testing.assert_close(kept(volumes), wanted, **CLOSE)
    assert encoder.layout == ImageLayout(depth=2, rows=2, columns=3)
    assert kept.layout == ImageLayout(rows=1, columns=13)
    assert encoder.kinds == {"volume"}


def test_m3d_clip_after_the_final_norm_with_gradients(tmp_path: Path) -> None:
    reference = ReferenceVolumeViT(saved_m3d(tmp_path)).train()
    encoder = m3d(tmp_path, post_norm=True)
    weights = torch.randn(2, 12, 32)
    ours = torch.randn(2, 1, *SHAPE, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    features, wanted = encoder(ours), reference(theirs)[-1][:, 1:]
    torch.testing.assert_close(features, wanted, **CLOSE)
    (features * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **GRADIENTS)
    block, layer = encoder.trunk.blocks[1], reference.layers[1]
    for mine, there in (
        (block.attention.qkv.weight, layer.self_attn.in_proj_weight),
        (block.attention.out.weight, layer.self_attn.out_proj.weight),
        (block.mlp[2].bias, layer.linear2.bias),
        (block.norm2.weight, layer.norm2.weight),
        (encoder.trunk.class_token, reference.top["cls_token"]),
        (encoder.trunk.positions, reference.top["patch_embedding/position_embeddings"]),
    ):
        torch.testing.assert_close(mine.grad, there.grad, **GRADIENTS)


def test_a_patch_of_a_volume_is_the_token_at_its_place(tmp_path: Path) -> None:
    """D, H, W order, found by hand: without blocks only the patch that is lit answers."""
    saved_m3d(tmp_path)
    encoder = m3d(tmp_path, layer=1)
    dark = encoder.trunk.patches(torch.zeros(1, 1, *SHAPE))
    for place, (d, h, w) in enumerate((d, h, w) for d in (0, 1) for h in (0, 1) for w in (0, 1, 2)):
        volume = torch.zeros(1, 1, *SHAPE)
        volume[0, 0, 4 * d + 3, 16 * h + 5, 16 * w + 9] = 1
        lit = (encoder.trunk.patches(volume) - dark)[0]
        assert lit.any(-1).nonzero().flatten().tolist() == [place]
        voxel = 3 * 256 + 5 * 16 + 9
        torch.testing.assert_close(lit[place], encoder.trunk.patches.weight[:, voxel])


def test_m3d_clip_of_another_shape_interpolates_positions(tmp_path: Path) -> None:
    tensors = saved_m3d(tmp_path)
    volumes = torch.randn(1, 1, 16, 32, 32)
    encoder = m3d(tmp_path, shape=[16, 32, 32])
    trained = tensors["vision_encoder.patch_embedding.position_embeddings"]
    volume = trained.reshape(1, 2, 2, 3, 32).permute(0, 4, 1, 2, 3)
    resized = F.interpolate(volume, size=(4, 2, 2), mode="trilinear")
    changed = resized.permute(0, 2, 3, 4, 1).reshape(1, 16, 32)
    reference = ReferenceVolumeViT(
        tensors | {"vision_encoder.patch_embedding.position_embeddings": changed}
    )
    torch.testing.assert_close(encoder(volumes), reference(volumes)[-2][:, 1:], **CLOSE)
    assert encoder.layout == ImageLayout(depth=4, rows=2, columns=2)


def test_m3d_clip_accounts_for_every_tensor(tmp_path: Path) -> None:
    tensors = saved_m3d(tmp_path)
    lacking = {k: v for k, v in tensors.items() if not k.endswith("attn.qkv.weight")}
    save_file(lacking, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"lacks 3 tensors, the first .*\.0\.attn\.qkv\.weight"
    ):
        m3d(tmp_path)
    strange = {"vision_encoder.blocks.0.attn.qkv.bias": torch.ones(96)}
    save_file(tensors | strange, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors .* \S*qkv\.bias"):
        m3d(tmp_path)


def test_m3d_clip_without_a_source_is_the_published_size() -> None:
    with torch.device("meta"):
        encoder: Any = EncoderConfig.parse({"name": "m3d_clip", "post_norm": True}).build()
        features = encoder(torch.zeros(1, 1, 32, 256, 256))
    assert features.shape == (1, 2048, 768)
    assert encoder.layout == ImageLayout(depth=8, rows=16, columns=16)
    assert_one_to_one(encoder.trunk, M3D, m3d_names(768, 3072, 12, 2048, 1024))


# The generic one


@pytest.mark.parametrize(
    ("shape", "patch", "grid"),
    [([4, 12, 20], [2, 4, 5], (2, 3, 4)), ([6, 8, 8], [6, 8, 8], (1, 1, 1))],
)
def test_vit3d_of_any_size(shape: list[int], patch: list[int], grid: tuple[int, int, int]) -> None:
    data = {"name": "vit3d", "shape": shape, "patch": patch, "size": SIZE}
    encoder: Any = EncoderConfig.parse(data).build().eval()
    encoder.load_pretrained()  # nothing to load, and no error
    depth, rows, columns = grid
    assert encoder.layout == ImageLayout(depth=depth, rows=rows, columns=columns)
    volumes = torch.randn(2, 1, *shape)
    patches = volumes[:, 0].unfold(1, patch[0], patch[0])
    patches = patches.unfold(2, patch[1], patch[1]).unfold(3, patch[2], patch[2])
    trunk = encoder.trunk
    x = F.linear(patches.reshape(2, depth * rows * columns, -1), *trunk.patches.parameters())
    x = x + trunk.positions
    for block in trunk.blocks:
        layer = nn.MultiheadAttention(32, 4, batch_first=True)
        layer.in_proj_weight, layer.in_proj_bias = block.attention.qkv.parameters()
        layer.out_proj.weight, layer.out_proj.bias = block.attention.out.parameters()
        y = block.norm1(x)
        x = x + layer(y, y, y)[0]
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(encoder(volumes), trunk.norm(x), **CLOSE)


@pytest.mark.parametrize("shape", [[33, 256, 256], [32, 256, 250], [2, 256, 256]])
def test_a_volume_that_patches_do_not_fill_is_refused(shape: list[int]) -> None:
    with pytest.raises(ConfigError, match="is not filled by patches of"):
        EncoderConfig.parse({"name": "vit3d", "shape": shape}).build()


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="width 32 is no multiple of 5 heads"):
        EncoderConfig.parse({"name": "vit3d", "size": {"width": 32, "heads": 5}})


# Names


def assert_one_to_one(trunk: nn.Module, names: Names, published: dict[str, Any]) -> None:
    """Every tensor of ours is one of theirs, of the same shape, and back."""
    own = {key: tuple(tensor.shape) for key, tensor in trunk.state_dict().items()}
    assert {names.published(key): shape for key, shape in own.items()} == published
    assert {names.own(key): shape for key, shape in published.items()} == own


@pytest.mark.parametrize("names", [BIOMEDCLIP, M3D], ids=["biomedclip", "m3d"])
def test_names_of_nothing_are_refused(names: Names) -> None:
    for key in ("text.proj", f"{names.prefix}blocks.0.nothing.weight", f"{names.prefix}nothing"):
        with pytest.raises(CheckpointError):
            names.own(key)


def test_positions_on_their_own_grid_are_not_touched() -> None:
    positions = torch.randn(1, 6, 4)
    assert stretched(positions, (2, 3), (2, 3)) is positions
