"""Checkpoints in LLaVA's original naming, written by the test as LLaVA's code saves them, against
transformers' LLaVA with the same weights under its own names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from medloupe.errors import CheckpointError, ConfigError
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders.hf_vision import CLIPEncoderConfig
from medloupe.models.vlm import VisionLanguageModel, VLMConfig
from medloupe.models.weights import Parts, Published, load_published
from medloupe.models.weights.original import naming
from medloupe.processing.formats import FORMATS

# The same operations in the same order: on one thread the logits are equal to the last bits.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FAMILY = {"llama": "llava", "mistral": "llava_mistral", "qwen2": "llava_qwen"}
Tensors = dict[str, torch.Tensor]


def original_name(name: str) -> str:
    """transformers' name -> the original one, from the two sources' module trees."""
    for ours, theirs in (
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.language_model.", "model."),
        ("lm_head.", "lm_head."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(name)


def tensors_of(llava: Any) -> Tensors:
    return {original_name(k): v.clone().contiguous() for k, v in llava.state_dict().items()}


def config_of(llava: Any, tower: Path, **changes: Any) -> dict[str, Any]:
    """A config.json as LLaVA's training writes it."""
    text = llava.config.text_config.to_dict()
    family = text.pop("model_type")
    return text | {
        "model_type": FAMILY[family],
        "architectures": ["LlavaLlamaForCausalLM"],
        "torch_dtype": "float32",
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": 32,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(tower),
        "tokenizer_model_max_length": 1024,
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
        **changes,
    }


def save_tower(llava: Any, folder: Path) -> Path:
    """The tower as its own publisher has it, in transformers' older names."""
    tower = CLIPVisionModel(llava.config.vision_config)
    tower.load_state_dict(llava.model.vision_tower.state_dict())
    tower.save_pretrained(folder)
    return folder


def write_sharded(folder: Path, tensors: Tensors, *, pickled: bool) -> None:
    """Two shards and an index, as `save_pretrained` of any version writes them."""
    names, stem = sorted(tensors), ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    index: dict[str, str] = {}
    for number in range(2):
        part = {name: tensors[name] for name in names[number::2]}
        file = f"{stem[0]}-0000{number + 1}-of-00002.{stem[1]}"
        index |= dict.fromkeys(part, file)
        if pickled:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    (folder / f"{stem[0]}.{stem[1]}.index.json").write_text(text)


@pytest.fixture
def save(tmp_path: Path, tiny: Any) -> Any:
    """`save(llava, with_tower=True, pickled=False, **config)`: a checkpoint folder."""

    def write(
        llava: Any,
        *,
        with_tower: bool = True,
        pickled: bool = False,
        extra: Tensors | None = None,
        **changes: Any,
    ) -> Path:
        folder = tmp_path / "llava"
        folder.mkdir()
        tower = save_tower(llava, tmp_path / "clip")
        tensors = tensors_of(llava) | (extra or {})
        if not with_tower:
            tensors = {k: v for k, v in tensors.items() if "vision_tower" not in k}
        write_sharded(folder, tensors, pickled=pickled)
        config = config_of(llava, tower, **changes)
        (folder / "config.json").write_text(json.dumps(config))
        tiny.tokenizer("legacy", None).save_pretrained(folder)
        return folder

    return write


def same(published: Published, llava: Any, row: Any, pixels: Any) -> None:
    """Logits and greedy tokens; the image token has another number here."""
    ids = row(1, 5, "image", 6, 7)
    ours = ids.masked_fill(ids == 98, published.model.config.image_token_id)
    with torch.no_grad():
        mine = published.model(input_ids=ours, pixel_values=pixels[:1]).logits
        theirs = llava(input_ids=ids, pixel_values=pixels[:1]).logits
    torch.testing.assert_close(mine.float(), theirs.float(), **CLOSE)
    asked = {"pixel_values": pixels[:1], "max_new_tokens": 8, "do_sample": False}
    said = published.model.generate(input_ids=ours, **asked)[0, ids.shape[1] :]
    wanted = llava.generate(input_ids=ids, **asked)[0, ids.shape[1] :]
    assert said.tolist() == wanted.tolist()


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("with_tower", [True, False], ids=["trained tower", "named tower"])
@pytest.mark.parametrize("family", FAMILY)
def test_it_says_what_transformers_llava_says(
    make_llava: Any, save: Any, row: Any, pixels: Any, family: str, with_tower: bool, pickled: bool
) -> None:
    llava = make_llava(family)
    published = load_published(str(save(llava, with_tower=with_tower, pickled=pickled)))
    same(published, llava, row, pixels)
    report = published.report
    assert len(report.loaded) + len(report.kept) == len(published.model.state_dict())
    assert bool(report.elsewhere) is not with_tower
    assert len(report.kept) == (0 if with_tower else len(published.model.encoder.state_dict()))
    # the layer above the one that is read
    layer = {n.split(".layers.")[1].split(".")[0] for n in report.unread}
    assert layer == ({"2"} if with_tower else set())


def test_gradients_are_transformers_llavas(
    make_llava: Any, save: Any, row: Any, pixels: Any
) -> None:
    llava = make_llava()
    model = load_published(str(save(llava))).model
    ids = row(1, 5, "image", 6, 7, 2)
    ours = ids.masked_fill(ids == 98, model.config.image_token_id)
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < 18, -100)
    model(input_ids=ours, pixel_values=pixels[:1], labels=labels).loss.backward()
    llava(input_ids=ids, pixel_values=pixels[:1], labels=labels).loss.backward()
    config = VLMConfig.from_dict(model.config.to_dict())
    assert config.encoder is not None
    names = naming(CLIPEncoderConfig.parse(config.encoder), MLPConnectorConfig(depth=2))
    own, compared = dict(model.named_parameters()), 0
    for name, parameter in llava.named_parameters():
        mine = own.get(names.ours(original_name(name)) or "")
        if mine is not None and parameter.grad is not None:
            assert mine.grad is not None, name
            torch.testing.assert_close(mine.grad, parameter.grad, rtol=1e-4, atol=1e-6)
            compared += 1
    assert compared > 50  # all but the tower's last norm, which is not read


def test_it_brings_its_prompt_its_pixels_and_its_length(make_llava: Any, save: Any) -> None:
    published = load_published(str(save(make_llava())))
    assert published.prompt == "vicuna_v1"
    assert published.max_length == 1024
    transform: Any = published.transform
    assert (transform.fit, transform.padding, transform.size) == ("pad", "mean", 28)
    assert transform.mean == CLIPEncoderConfig.model_fields["mean"].default


@pytest.mark.parametrize(
    ("family", "prompt"),
    [("llama", "vicuna_v1"), ("mistral", "mistral_instruct"), ("qwen2", "qwen_1_5")],
)
def test_the_prompt_follows_the_language_model_or_the_user(
    make_llava: Any, save: Any, family: str, prompt: str
) -> None:
    folder = str(save(make_llava(family)))
    assert load_published(folder).prompt == prompt
    assert load_published(folder, Parts(prompt="llava_llama_2")).prompt == "llava_llama_2"
    assert prompt in FORMATS


@pytest.mark.parametrize("ratio", [None, "square"])
def test_without_padding_clips_processor_crops(make_llava: Any, save: Any, ratio: Any) -> None:
    published = load_published(str(save(make_llava(), image_aspect_ratio=ratio)))
    assert published.transform.fit == "crop"  # type: ignore[attr-defined]


def test_other_projectors_layers_and_tokens(
    make_llava: Any, save: Any, row: Any, pixels: Any
) -> None:
    llava = make_llava(vision_feature_layer=-1, vision_feature_select_strategy="full")
    folder = save(llava, mm_vision_select_layer=-1, mm_vision_select_feature="cls_patch")
    published = load_published(str(folder))
    ids = row(1, "image", 6, tokens=17)
    ours = ids.masked_fill(ids == 98, published.model.config.image_token_id)
    with torch.no_grad():
        mine = published.model(input_ids=ours, pixel_values=pixels[:1]).logits
        theirs = llava(input_ids=ids, pixel_values=pixels[:1]).logits
    torch.testing.assert_close(mine, theirs, **CLOSE)


def test_one_linear_layer(make_llava: Any, save: Any, pixels: Any) -> None:
    """LLaVA's first version: `model.mm_projector.weight`."""
    llava = make_llava()
    folder = save(llava, mm_projector_type="linear")
    tensors = {k: v for k, v in tensors_of(llava).items() if "mm_projector" not in k}
    tensors |= {"model.mm_projector.weight": torch.randn(48, 32)}
    tensors |= {"model.mm_projector.bias": torch.randn(48)}
    write_sharded(folder, tensors, pickled=False)
    model = load_published(str(folder)).model
    with torch.no_grad():
        features = model.encoder(pixels)
        wanted = features @ tensors["model.mm_projector.weight"].T
        wanted = wanted + tensors["model.mm_projector.bias"]
        got = model.connector(features, model.encoder.layout)
    torch.testing.assert_close(got, wanted, **CLOSE)


def test_buffers_that_every_model_computes_are_passed_over(make_llava: Any, save: Any) -> None:
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(6),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(17),
    }
    report = load_published(str(save(make_llava(), extra=extra))).report
    assert set(extra) <= set(report.unread)


def test_half_precision_keeps_its_dtype_and_exact_rotary_frequencies(
    make_llava: Any, save: Any
) -> None:
    llava = make_llava().to(torch.bfloat16)
    model = load_published(str(save(llava, torch_dtype="bfloat16"))).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    frequencies = model.language_model.model.rotary_emb.inv_freq
    fresh = LlamaForCausalLM(llava.config.text_config).model.rotary_emb.inv_freq
    assert torch.equal(frequencies, fresh.float())
    for name, tensor in llava.model.language_model.state_dict().items():
        assert torch.equal(model.language_model.model.state_dict()[name], tensor), name


def test_a_tensor_that_fits_nothing_is_refused_unless_it_is_allowed_by_name(
    make_llava: Any, save: Any
) -> None:
    folder = str(save(make_llava(), extra={"model.image_newline": torch.zeros(48)}))
    with pytest.raises(CheckpointError, match=r"fit nothing .*\(1\): model\.image_newline"):
        load_published(folder)
    report = load_published(folder, allow=("model.image_newline",)).report
    assert report.allowed == ("model.image_newline",)
    assert any("allowed to fit nothing: 1 tensors" in line for line in report.lines())


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"lm_head.weight": None}, r"lacks tensors of the model \(1\), the first 'lm_head.weight'"),
        (
            {"model.mm_projector.2.bias": torch.zeros(3)},
            r"'connector.layers.2.bias' has shape \(3,\), the model wants \(48,\)",
        ),
        (
            {"model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias": None},
            r"lacks tensors .*\(1\).*vision_model\.pre_layrnorm\.bias",
        ),
    ],
)
def test_a_damaged_checkpoint_is_named(
    make_llava: Any, save: Any, change: dict[str, Any], rule: str
) -> None:
    llava = make_llava()
    folder = save(llava)
    tensors: Any = tensors_of(llava) | change
    write_sharded(folder, {k: v for k, v in tensors.items() if v is not None}, pickled=False)
    with pytest.raises(CheckpointError, match=rule):
        load_published(str(folder))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"mm_projector_type": "mlp2x_relu"}, "projector 'mlp2x_relu'"),
        ({"mm_vision_select_feature": "cls"}, "choice of tokens 'cls'"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
        ({"mm_use_im_start_end": True}, "words round images"),
    ],
)
def test_choices_without_an_equal_are_refused(
    make_llava: Any, save: Any, changes: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        load_published(str(save(make_llava(), **changes)))


def test_a_tower_that_lies_elsewhere_is_asked_for(
    make_llava: Any, save: Any, tmp_path: Path, row: Any, pixels: Any
) -> None:
    llava = make_llava()
    folder = save(llava, with_tower=False, mm_vision_tower=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match="--vision-tower"):
        load_published(str(folder))
    parts = Parts(vision_tower=str(tmp_path / "clip"))
    same(load_published(str(folder), parts), llava, row, pixels)


def test_pickles_that_hold_more_than_tensors_are_not_read(make_llava: Any, save: Any) -> None:
    folder = save(make_llava(), pickled=True)
    torch.save({"a": Path("x")}, folder / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        load_published(str(folder))


def test_another_kind_of_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="kind 'bert' is not known"):
        load_published(str(tmp_path))


@pytest.mark.parametrize(
    ("size", "width", "inner", "layers", "heads"),
    [("7B", 4096, 11008, 32, 32), ("13B", 5120, 13824, 40, 40)],
)
def test_at_published_size_every_name_and_shape_maps_both_ways(
    size: str, width: int, inner: int, layers: int, heads: int
) -> None:
    """LLaVA-1.5's module tree, from transformers' parts, on the meta device."""
    text = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    clip = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    encoder = CLIPEncoderConfig(architecture=clip.to_diff_dict(), layer=-2).resolved()
    connector = MLPConnectorConfig(depth=2)
    config = VLMConfig(
        encoder=encoder.to_dict(), connector=connector.to_dict(), language=text.to_dict()
    )
    with torch.device("meta"):
        ours = VisionLanguageModel(config).state_dict()
        theirs = dict(LlamaForCausalLM(text).state_dict())
        tower = CLIPVisionModel(clip).state_dict()
        projector = torch.nn.Sequential(
            torch.nn.Linear(1024, width), torch.nn.GELU(), torch.nn.Linear(width, width)
        ).state_dict()
    theirs |= {f"model.vision_tower.vision_tower.vision_model.{k}": v for k, v in tower.items()}
    theirs |= {f"model.mm_projector.{k}": v for k, v in projector.items()}
    names = naming(encoder, connector)
    read = {k: v for k, v in theirs.items() if not names.unread.fullmatch(k)}
    assert {k.split(".layers.")[1].split(".")[0] for k in theirs.keys() - read.keys()} == {"23"}
    assert {names.ours(k): v.shape for k, v in read.items()} == {
        k: v.shape for k, v in ours.items()
    }
    assert {names.theirs(k) for k in ours} == set(read)
    total = sum(tensor.numel() for tensor in read.values())
    assert round(total / 1e9, 2) == {"7B": 7.05, "13B": 13.34}[size]
