"""TinyLLaVA Factory's and MedM-VL's folders, written by the test as their code saves them, against a few
lines of torch that do what their code does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from medloupe.errors import CheckpointError, ConfigError
from medloupe.models.encoders.vit3d import NAMES, M3DCLIPEncoderConfig
from medloupe.models.weights import Parts, Published, load_published
from medloupe.models.weights.medm_vl import composition
from medloupe.models.weights.tinyllava import naming
from medloupe.processing.formats import FORMATS
from medloupe.types import ImageInput

# The same operations; the reference splits batches and joins embeddings in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {
    "vocab_size": 600,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
TOWERS: dict[str, Any] = {
    "clip": (CLIPVisionConfig, CLIPVisionModel),
    "siglip": (SiglipVisionConfig, SiglipVisionModel),
}


class Reference:
    """Tower, choice of layer and tokens, projector, language model: as `modeling_tinyllava.py` and
    `modeling_lvlm.py` call them."""

    def __init__(self, tower: str, language: str, *, tied: bool = False) -> None:
        torch.manual_seed(5)
        kind, build = TOWERS[tower]
        self.vision_config = kind(**VISION)
        self.tower = build(self.vision_config).eval()
        self.text_config = AutoConfig.for_model(language, **TEXT, tie_word_embeddings=tied)
        self.llm = AutoModelForCausalLM.from_config(self.text_config).eval()
        self.projector = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 48))
        for module in (self.tower, self.llm, self.projector):
            for parameter in module.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)

    def features(self, pixels: torch.Tensor, layer: int, feature: str) -> torch.Tensor:
        states = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
        return states[:, 1:] if feature == "patch" else states

    def logits(self, before: list[int], image: torch.Tensor, after: list[int]) -> torch.Tensor:
        table = self.llm.get_input_embeddings()
        rows = [table(torch.tensor(before)), image, table(torch.tensor(after))]
        return self.llm(inputs_embeds=torch.cat(rows)[None]).logits

    def part(self, module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
        """Named parameters, as their code saves them: tied ones once."""
        return {prefix + k: v.detach().clone() for k, v in module.named_parameters()}

    def tower_part(self, prefix: str) -> dict[str, torch.Tensor]:
        return self.part(self.tower, f"{prefix}vision_model.")


def logits(published: Published, before: list[int], image: ImageInput, after: list[int]) -> Any:
    model = published.model
    with torch.no_grad():
        (tokens,) = model.image_tokens([image])
        ids = [*before, *[model.config.image_token_id] * len(tokens), *after]
        return model(input_ids=torch.tensor([ids]), images=[image]).logits


@pytest.fixture
def save(tmp_path: Path, tiny: Any) -> Any:
    """`save(config, files)`: a folder of tensors by file name."""

    def write(config: dict[str, Any], files: dict[str, dict[str, torch.Tensor]]) -> str:
        folder = tmp_path / "checkpoint"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        for name, tensors in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            if name.endswith(".bin"):
                torch.save(tensors, folder / name)
            else:
                save_file(tensors, folder / name, metadata={"format": "pt"})
        tiny.tokenizer("bytes", "chatml").save_pretrained(folder)
        return str(folder)

    return write


def tiny_config(reference: Reference, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": "tinyllava",
        "architectures": ["TinyLlavaForConditionalGeneration"],
        "llm_model_name_or_path": "/nowhere/language",
        "vision_model_name_or_path": "/nowhere/tower",
        "connector_type": "mlp2x_gelu",
        "text_config": reference.text_config.to_dict(),
        "vision_config": reference.vision_config.to_dict(),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "patch",
        "image_aspect_ratio": "square",
        "tokenizer_model_max_length": 512,
        "torch_dtype": "float32",
        **changes,
    }


def one_folder(reference: Reference) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "model.safetensors": reference.part(reference.llm, "language_model.")
        | reference.tower_part("vision_tower._vision_tower.")
        | reference.part(reference.projector, "connector._connector.")
    }


def part_folders(reference: Reference) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "language_model/pytorch_model.bin": reference.part(reference.llm, ""),
        "vision_tower/pytorch_model.bin": reference.tower_part(""),
        "connector/pytorch_model.bin": reference.part(reference.projector, "_connector."),
    }


@pytest.mark.parametrize("layout", [one_folder, part_folders])
@pytest.mark.parametrize(
    ("tower", "feature", "tokens"),
    [("clip", "patch", 16), ("clip", "cls_patch", 17), ("siglip", "cls_patch", 16), ("siglip", "patch", 15)],
)  # fmt: skip
def test_tinyllava_says_what_its_code_says(
    save: Any, pixels: Any, layout: Any, tower: str, feature: str, tokens: int
) -> None:
    """The last row is their default: a SigLIP that lost its first patch."""
    reference = Reference(tower, "llama")
    config = tiny_config(reference, vision_feature_select_strategy=feature)
    published = load_published(save(config, layout(reference)))
    with torch.no_grad():
        image = reference.projector(reference.features(pixels[:1], -2, feature))[0]
        wanted = reference.logits([1, 5], image, [6, 7])
    assert len(image) == tokens
    got = logits(published, [1, 5], ImageInput(views=pixels[0]), [6, 7])
    torch.testing.assert_close(got, wanted, **CLOSE)
    assert published.prompt == "vicuna_v1"
    assert published.max_length == 512
    assert published.report.kept == ()


@pytest.mark.parametrize("language", ["phi", "qwen2", "gemma"])
def test_tinyllavas_language_models(save: Any, pixels: Any, language: str) -> None:
    """Gemma scales what it embeds inside its decoder, image tokens too: theirs and ours alike."""
    reference = Reference("siglip", language)
    config = tiny_config(reference, vision_feature_select_strategy="cls_patch")
    published = load_published(save(config, part_folders(reference)))
    with torch.no_grad():
        image = reference.projector(reference.features(pixels[:1], -2, "cls_patch"))[0]
        wanted = reference.logits([1, 5], image, [6, 7])
    got = logits(published, [1, 5], ImageInput(views=pixels[0]), [6, 7])
    torch.testing.assert_close(got, wanted, **CLOSE)


def test_tied_tensors_are_saved_once_and_are_not_missing(save: Any) -> None:
    reference = Reference("clip", "qwen2", tied=True)
    files = part_folders(reference)
    assert "lm_head.weight" not in files["language_model/pytorch_model.bin"]
    published = load_published(save(tiny_config(reference), files))
    assert published.report.kept == ()
    language: Any = published.model.language_model
    assert language.lm_head.weight is language.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("tower", "ratio", "fit"),
    [("clip", "square", "crop"), ("siglip", "square", "stretch"), ("siglip", "pad", "pad")],
)
def test_pixels(save: Any, tower: str, ratio: str, fit: str) -> None:
    reference = Reference(tower, "llama")
    config = tiny_config(reference, image_aspect_ratio=ratio)
    published = load_published(save(config, one_folder(reference)))
    assert published.transform.fit == fit  # type: ignore[attr-defined]


def test_adapters_that_are_not_merged_are_refused(save: Any, tmp_path: Path) -> None:
    reference = Reference("clip", "llama")
    folder = save(tiny_config(reference), part_folders(reference))
    (Path(folder) / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not merged"):
        load_published(folder)


def test_mixtures_and_resamplers_of_tinyllava_are_refused(save: Any) -> None:
    reference = Reference("clip", "llama")
    for kind in ("resampler", "qformer", "mof_mlp"):
        with pytest.raises(ConfigError, match=f"projector '{kind}'"):
            load_published(save(tiny_config(reference, connector_type=kind), {}))


# MedM-VL


def medm_config(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "lvlm",
        "architectures": ["LVLMForConditionalGeneration"],
        "lvlm_llm_type": "qwen2",
        "lvlm_llm_name_or_path": "/nowhere/language",
        "lvlm_llm_max_length": 512,
        "lvlm_encoder_image_type": "siglip",
        "lvlm_encoder_image_name_or_path": "/nowhere/tower",
        "lvlm_encoder_image_select_layer": -1,
        "lvlm_encoder_image_select_feature": "cls_patch",
        "lvlm_connector_image_type": "mlp",
        "lvlm_connector_image_name": "mlp2x_gelu",
        "lvlm_encoder_image3d_type": None,
        "torch_dtype": "float32",
        **changes,
    }


@pytest.fixture
def medm_parts(tmp_path: Path) -> Any:
    """Folders of the parts that the config only names."""

    def write(reference: Reference) -> Parts:
        reference.text_config.save_pretrained(tmp_path / "language")
        reference.vision_config.save_pretrained(tmp_path / "tower")
        return Parts(language=str(tmp_path / "language"), vision_tower=str(tmp_path / "tower"))

    return write


def test_medm_vl_2d(save: Any, medm_parts: Any, pixels: Any) -> None:
    reference = Reference("siglip", "qwen2")
    tensors = (
        reference.part(reference.llm, "llm.")
        | reference.tower_part("encoder_image.encoder.")
        | reference.part(reference.projector, "connector_image.connector.")
    )
    folder = save(medm_config(), {"model.safetensors": tensors})
    published = load_published(folder, medm_parts(reference))
    with torch.no_grad():
        image = reference.projector(reference.features(pixels[:1], -1, "cls_patch"))[0]
        wanted = reference.logits([1, 5], image, [6, 7])
    got = logits(published, [1, 5], ImageInput(views=pixels[0]), [6, 7])
    torch.testing.assert_close(got, wanted, **CLOSE)
    assert published.prompt == "vicuna_v1_interleaved"
    assert published.prompt in FORMATS
    unread = published.report.unread  # SigLIP's pooling head
    assert unread
    assert all(".vision_model.head." in name for name in unread)


def test_medm_vl_ct_chest_reads_slices_through_attention_pooling(
    save: Any, medm_parts: Any
) -> None:
    reference = Reference("siglip", "qwen2")
    torch.manual_seed(6)
    query, attention = torch.randn(16, 32), nn.MultiheadAttention(32, 8, batch_first=True)
    tensors = (
        reference.part(reference.llm, "llm.")
        | reference.tower_part("encoder_image.encoder.")
        | reference.part(reference.projector, "connector_image.connector.")
        | reference.part(attention, "connector_image.attn.")
        | {"connector_image.query": query}
    )
    config = medm_config(lvlm_connector_image_type="attn_pooling")
    folder = save(config, {"model.safetensors": tensors})
    published = load_published(folder, medm_parts(reference))
    slices = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        tokens = reference.features(slices, -1, "cls_patch").flatten(0, 1)[None]
        image = reference.projector(attention(query[None], tokens, tokens)[0])[0]
        wanted = reference.logits([1], image, [6])
    got = logits(published, [1], ImageInput(kind="volume", views=slices), [6])
    torch.testing.assert_close(got, wanted, **CLOSE)


def m3d_tensors(prefix: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(8)
    with torch.device("meta"):
        shapes = M3DCLIPEncoderConfig().build().trunk.state_dict()
    return {
        prefix + NAMES.published(k): torch.empty(v.shape, device="meta") for k, v in shapes.items()
    }


@pytest.mark.parametrize("kinds", ["volume", "both"])
def test_medm_vl_with_a_3d_encoder_maps_every_name_both_ways(medm_parts: Any, kinds: str) -> None:
    """M3D-CLIP's tower exists in one size, so this is on the meta device."""
    from medloupe.models.vlm import VisionLanguageModel, VLMConfig

    reference = Reference("siglip", "qwen2")
    changes: dict[str, Any] = {
        "lvlm_encoder_image3d_type": "m3dclip",
        "lvlm_encoder_image3d_name_or_path": "/nowhere/m3d",
        "lvlm_encoder_image3d_select_layer": -1,
        "lvlm_encoder_image3d_select_feature": "patch",
        "lvlm_connector_image3d_type": "spatial_pooling",
        "lvlm_connector_image3d_name": "mlp2x_gelu",
    }
    theirs = reference.part(reference.llm, "llm.") | m3d_tensors("encoder_image3d.encoder.")
    with torch.device("meta"):
        volumes = nn.Sequential(nn.Linear(768, 48), nn.GELU(), nn.Linear(48, 48))
    theirs |= reference.part(volumes, "connector_image3d.connector.")
    if kinds == "both":
        theirs |= reference.tower_part("encoder_image.encoder.")
        theirs |= reference.part(reference.projector, "connector_image.connector.")
    else:
        changes["lvlm_encoder_image_type"] = None
    encoder, connector, names = composition(medm_config(**changes), medm_parts(reference))
    config = VLMConfig(
        encoder=encoder.to_dict(),
        connector=connector.to_dict(),
        language=reference.text_config.to_dict(),
    )
    with torch.device("meta"):
        ours = VisionLanguageModel(config).state_dict()
    read = {k: v for k, v in theirs.items() if not names.unread.fullmatch(k)}
    assert {names.ours(k): v.shape for k, v in read.items()} == {
        k: v.shape for k, v in ours.items()
    }
    assert {names.theirs(k) for k in ours} == set(read)
    for name in ("language_encoder.x", "mm_vision_proj.weight", "logit_scale"):
        assert names.unread.fullmatch(f"encoder_image3d.encoder.{name}")


def test_what_medm_vl_only_names_is_asked_for(save: Any, medm_parts: Any) -> None:
    reference = Reference("siglip", "qwen2")
    folder, parts = save(medm_config(), {}), medm_parts(reference)
    with pytest.raises(CheckpointError, match="--vision-tower"):
        load_published(folder, Parts(language=parts.language))
    with pytest.raises(CheckpointError, match="--language"):
        load_published(folder, Parts(vision_tower=parts.vision_tower))
    with pytest.raises(ConfigError, match="reads no images"):
        load_published(save(medm_config(lvlm_encoder_image_type=None), {}), parts)
    with pytest.raises(ConfigError, match="connector 'qformer'"):
        load_published(save(medm_config(lvlm_connector_image_type="qformer"), {}), parts)


def test_gelu_is_the_exact_one(save: Any, pixels: Any) -> None:
    """torch's nn.GELU, in theirs and ours: the tanh form differs by more than the tolerance above."""
    x = torch.linspace(-3, 3, 50)
    assert (F.gelu(x) - F.gelu(x, approximate="tanh")).abs().max() > 1e-4


def test_names_cover_the_other_direction() -> None:
    reference = Reference("clip", "llama")
    from medloupe.models.weights.published import tower_of

    encoder = tower_of(None, reference.vision_config.to_dict(), layer=-2, feature="patch")
    names = naming(encoder)
    assert names.theirs("connector.layers.2.bias") == "connector._connector.2.bias"
    assert names.theirs("encoder.tower.pre_layrnorm.bias") == (
        "vision_tower._vision_tower.vision_model.pre_layrnorm.bias"
    )
