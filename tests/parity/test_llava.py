"""The composed model against transformers' LLaVA, weights carried by the converter in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlavaForConditionalGeneration

from medloupe.errors import CheckpointError, ConfigError
from medloupe.models.vlm import plain_images
from medloupe.models.weights import LLAVA_LANGUAGES, LLAVA_PREFIXES, from_llava, to_llava

# The same operations in the same order: on one thread the logits are equal to the last bits.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def both(model: Any, llava: Any, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return model(**inputs).logits, llava(**inputs).logits


@pytest.mark.parametrize("language", LLAVA_LANGUAGES)
def test_logits_and_greedy_tokens_of_one_image(make_llava, row, pixels, language: str) -> None:
    llava = make_llava(language)
    model = from_llava(llava)
    ids = row(1, 5, "image", 6, 7)
    ours, theirs = both(model, llava, input_ids=ids, pixel_values=pixels[:1])
    torch.testing.assert_close(ours, theirs, **CLOSE)
    inputs = {"input_ids": ids, "pixel_values": pixels[:1], "attention_mask": torch.ones_like(ids)}
    said = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    wanted = llava.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert said.tolist() == wanted.tolist()
    assert len(set(said[0, ids.shape[1] :].tolist())) > 2  # not one token over and over


def test_the_image_matters(make_llava, row, pixels) -> None:
    """Otherwise equality above would say nothing about the vision part."""
    model = from_llava(make_llava())
    ids = row(1, "image", 6)
    first, second = (model(input_ids=ids, pixel_values=image[None]).logits for image in pixels)
    assert (first - second).abs().max() > 1e-2


def test_two_images_in_one_row_keep_their_order(make_llava, row, pixels) -> None:
    llava = make_llava()
    model = from_llava(llava)
    ids = row(1, "image", 5, 6, "image", 7)
    ours, theirs = both(model, llava, input_ids=ids, pixel_values=pixels)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    swapped, _ = both(model, llava, input_ids=ids, pixel_values=pixels.flip(0))
    assert (ours - swapped).abs().max() > 1e-2


def test_batch_with_left_padding(make_llava, row, pixels) -> None:
    llava = make_llava()
    model = from_llava(llava)
    long, short = row(1, "image", 5, 6, 7, 8), row(1, "image", 9)
    gap = long.shape[1] - short.shape[1]
    ids = torch.cat([long, torch.cat([torch.zeros(1, gap, dtype=torch.long), short], 1)])
    mask = (ids != 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    ours, theirs = both(model, llava, position_ids=positions, **inputs)
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], **CLOSE)
    alone, _ = both(model, llava, input_ids=short, pixel_values=pixels[1:])
    torch.testing.assert_close(ours[1, gap:], alone[0], **CLOSE)
    said = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert said.tolist() == llava.generate(**inputs, max_new_tokens=8, do_sample=False).tolist()


@pytest.mark.parametrize("layer", [-1, -2, -3, 1, 3])
@pytest.mark.parametrize(
    ("tower", "strategy"), [("clip", "default"), ("clip", "full"), ("siglip", "full")]
)
def test_every_layer_and_token_choice_both_ways(
    make_llava, row, pixels, tower: str, strategy: str, layer: int
) -> None:
    llava = make_llava(
        tower=tower, vision_feature_layer=layer, vision_feature_select_strategy=strategy
    )
    model = from_llava(llava)
    ids = row(1, "image", 6, tokens=17 if (tower, strategy) == ("clip", "full") else 16)
    inputs = {"input_ids": ids, "pixel_values": pixels[:1]}
    ours, theirs = both(model, llava, **inputs)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    back, _ = both(to_llava(model), llava, **inputs)
    torch.testing.assert_close(back, theirs, **CLOSE)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_an_export_reloads_in_plain_transformers(
    make_llava, row, pixels, tmp_path: Path, tower: str, tied: bool
) -> None:
    llava = make_llava(tower=tower, tied=tied)
    model = from_llava(llava)
    to_llava(model).save_pretrained(tmp_path)
    exported = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    config = exported.config
    assert (config.vision_feature_layer, config.vision_config.num_hidden_layers) == (-1, 2)
    assert (config.image_token_id, config.image_seq_length) == (98, 16)
    ids = row(1, "image", 6, 7)
    ours, theirs = both(model, exported, input_ids=ids, pixel_values=pixels[:1])
    torch.testing.assert_close(ours, theirs, **CLOSE)
    again = from_llava(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_loss_is_theirs(make_llava, row, pixels) -> None:
    llava = make_llava()
    model = from_llava(llava)
    ids = row(1, "image", 5, 6, 7, 2)
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < 18, -100)
    inputs = {"input_ids": ids, "labels": labels, "pixel_values": pixels[:1]}
    wanted = llava(**inputs).loss
    torch.testing.assert_close(model(**inputs).loss, wanted, **CLOSE)
    total, count = model.label_loss(
        ids,
        labels,
        torch.arange(ids.shape[1])[None],
        torch.zeros_like(ids),
        model.image_tokens(plain_images(pixels[:1])),
    )
    assert count == 3
    torch.testing.assert_close(total / count, wanted, **CLOSE)


def test_an_image_token_beyond_the_vocabulary_is_grown_and_never_said(
    make_llava, row, pixels, tmp_path: Path
) -> None:
    model = from_llava(make_llava())
    model.config.image_token_id = 101  # what `compose` makes: added to the tokenizer, not the table
    to_llava(model).save_pretrained(tmp_path)
    exported = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    ids = row(1, "image", 6, 7).masked_fill_(row(1, "image", 6, 7) == 98, 101)
    inputs = {"input_ids": ids, "pixel_values": pixels[:1]}
    ours, theirs = both(model, exported, **inputs)
    assert theirs.shape[-1] == 102
    torch.testing.assert_close(ours, theirs[..., :99], **CLOSE)
    assert exported.generation_config.suppress_tokens == [98, 99, 100, 101]
    with (
        torch.no_grad()
    ):  # every real logit below the new ones' zero: only suppression keeps them out
        exported.lm_head.weight[:99] *= 1e-3
    said = exported.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert said[0, ids.shape[1] :].max() < 98


def test_the_image_token_is_never_an_answer(make_llava, row, pixels) -> None:
    llava = make_llava()
    inputs = {"input_ids": row(1, "image", 6, 7), "pixel_values": pixels[:1]}
    with torch.no_grad():
        hidden = llava.model(**inputs).last_hidden_state[0, -1]
        llava.lm_head.weight[98] = 100 * hidden
    assert int(llava(**inputs).logits[0, -1].argmax()) == 98
    for model in (from_llava(llava), to_llava(from_llava(llava))):
        said = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert 98 not in said[0, 19:].tolist()


def test_parts_of_several_dtypes_are_widened(make_llava) -> None:
    model = from_llava(make_llava())
    model.language_model.to(torch.bfloat16)
    exported = to_llava(model)
    assert {p.dtype for p in exported.parameters()} == {torch.float32}
    table = model.language_model.lm_head.weight
    assert torch.equal(exported.lm_head.weight, table.float())
    half = from_llava(make_llava().to(torch.bfloat16))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_no_prefix_begins_another() -> None:
    for side in zip(*LLAVA_PREFIXES, strict=True):
        assert not [(a, b) for a in side for b in side if a != b and a.startswith(b)]


def test_a_tensor_that_fits_nothing_is_named(make_llava) -> None:
    model = from_llava(make_llava())
    model.register_parameter("stray", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(CheckpointError, match=r"tensor 'stray' fits nothing"):
        to_llava(model)
    llava = make_llava()
    llava.model.vision_tower.encoder.layers[0].register_parameter(
        "extra", torch.nn.Parameter(torch.zeros(1))
    )
    with pytest.raises(CheckpointError, match=r"fit nothing .*vision_tower.encoder.layers.0.extra"):
        from_llava(llava)


def test_a_tensor_of_another_shape_is_named(make_llava) -> None:
    llava = make_llava()
    llava.resize_token_embeddings(120)
    llava.config.text_config.vocab_size = 99  # a config that lags behind its tables
    with pytest.raises(CheckpointError, match=r"has shape \(120, 48\), the model wants \(99, 48\)"):
        from_llava(llava)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_a_damaged_folder_is_named_not_filled_with_noise(
    make_llava, tmp_path: Path, damage: str
) -> None:
    make_llava().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = next(key for key in tensors if "linear_1.weight" in key)
    if damage == "missing":
        del tensors[name]
    elif damage == "unexpected":
        tensors["somewhere.else"] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(5, 5)
    save_file(tensors, file, metadata={"format": "pt"})
    wanted = {
        "missing": r"linear_1\.weight' is missing",
        "unexpected": "'somewhere.else' fits nothing",
        "shape": r"linear_1\.weight' has shape \(5, 5\), the model wants \(48, 32\)",
    }
    with pytest.raises(CheckpointError, match=wanted[damage]):
        from_llava(tmp_path)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        from_llava(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read a LLaVA model"):
        from_llava(tmp_path)


@pytest.mark.parametrize(
    ("part", "changes", "field"),
    [
        ("connector", {"name": "mlp", "depth": 2, "position": 8}, "connector.position"),
        ("connector", {"name": "mlp", "depth": 2, "window": 2}, "connector.window"),
        ("connector", {"name": "mlp", "depth": 2, "hidden": 64}, "connector.hidden"),
        ("connector", {"name": "mlp", "depth": 3}, "connector.depth"),
        ("connector", {"name": "linear"}, "connector"),
        ("encoder", {"post_norm": True}, "encoder"),
        ("encoder", {"name": "efficientnet_lite0", "image_size": 64}, "encoder"),
        ("language", "gpt2", "language.model_type"),
        ("image_token_id", None, "image_token_id"),
    ],
)
def test_other_compositions_are_refused_with_the_field(
    make_llava, part: str, changes: Any, field: str
) -> None:
    config = from_llava(make_llava()).config
    if part == "language":
        small = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 99}
        config.language = AutoConfig.for_model(changes, **small).to_dict()
    elif part == "encoder" and "name" not in changes:
        config.encoder = config.encoder | changes
    else:
        setattr(config, part, changes)
    model = type(from_llava(make_llava()))(config)
    with pytest.raises(ConfigError) as caught:
        to_llava(model)
    assert caught.value.fault.field == field


def test_a_connector_as_wide_as_the_language_model_is_llavas(make_llava) -> None:
    config = from_llava(make_llava()).config
    config.connector = {"name": "mlp", "depth": 2, "hidden": 48}
    assert to_llava(type(from_llava(make_llava()))(config)).config.text_config.hidden_size == 48


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vision_feature_layer": [-2, -1]}, "vision_feature_layer"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias"),
        ({"tower": "siglip", "vision_feature_select_strategy": "default"}, "vision_feature_select_strategy"),
        ({"vision_feature_layer": 0}, "layer"),
        ({"language": "gemma"}, "language.model_type"),
    ],
)  # fmt: skip
def test_llavas_without_an_equal_are_refused(make_llava, changes: Any, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_llava(make_llava(**changes))
    assert caught.value.fault.field == field


def test_the_saved_config_of_an_export_is_plain(make_llava, tmp_path: Path) -> None:
    """Nothing of ours may be needed to read it."""
    to_llava(from_llava(make_llava())).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "medloupe" not in text
    assert json.loads(text)["model_type"] == "llava"
