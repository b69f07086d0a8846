"""Language models by name: each family loads from a folder in the hub's format, and says through the
composed model what the plain one of transformers says for the same embeddings.

Both sides run the same layers in float32 on the same numbers, so that logits and gradients are equal; only
gradients of image tokens pass through one more sum (1e-6).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.models.language import LanguageConfig, load_language
from medloupe.models.vlm import VisionLanguageModel
from medloupe.processing import Processor, ProcessorConfig

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{n}" for n in range(94))]
SIZES = {
    "vocab_size": 98,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_HEAD_DIM = {k: v for k, v in SIZES.items() if k != "head_dim"}
ALTERNATING = SIZES | {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 8,
}
# The families that issue and papers name, with what is special about each.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": NO_HEAD_DIM,
    "qwen3": SIZES,
    "mistral": SIZES | {"sliding_window": None},
    "phi": NO_HEAD_DIM,  # a head with a bias
    "phi3": NO_HEAD_DIM,  # queries, keys and values in one layer
    "gemma": SIZES,  # scales its embeddings
    "gemma2": ALTERNATING,
    "gemma3_text": ALTERNATING,
    "smollm3": NO_HEAD_DIM | {"no_rope_layers": [1, 0], "layer_types": ["full_attention"] * 2},
    "gpt2": {"vocab_size": 98, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1},
}
TEMPLATE = (
    "{% for message in messages %}{{ {'user': 'w1', 'assistant': 'w3'}[message['role']] }} "
    "{{ message['content'] }} w2 {% endfor %}{% if add_generation_prompt %}w3 {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, and a chat template of its own."""
    core = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    made.chat_template = TEMPLATE
    return made


def settings(family: str, tied: bool = False) -> PretrainedConfig:
    fields = FAMILIES[family] | {"tie_word_embeddings": tied or family == "gpt2"}
    return AutoConfig.for_model(family, **fields)


def published(folder: Path, family: str, tied: bool = False) -> torch.nn.Module:
    """A tiny random model and its tokenizer as a folder; returns what plain transformers loads."""
    torch.manual_seed(4)
    made = AutoModelForCausalLM.from_config(settings(family, tied))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "image_size": 28, "patch_size": 14}
    vision = CLIPVisionConfig(num_hidden_layers=2, num_attention_heads=4, **sizes)
    CLIPVisionModel(vision).save_pretrained(folder)
    return folder


def compose(tower: Path, source: Path, **fields: Any) -> tuple[VisionLanguageModel, Any]:
    torch.manual_seed(6)
    model, words = VisionLanguageModel.compose(
        EncoderConfig.parse({"name": "clip", "source": str(tower)}),
        ConnectorConfig.parse("mlp"),
        LanguageConfig(source=str(source), **fields),
    )
    return model.eval(), words


def asked(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    image = [model.config.image_token_id] * 4
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[1, 5, *image, 6, *image, 7, 8]])
    return {"input_ids": ids, "pixel_values": pixels}


def spliced(model: VisionLanguageModel, plain: Any, inputs: dict[str, torch.Tensor]) -> Any:
    """The embeddings of the row by hand, and the image tokens in them as leaves."""
    with torch.no_grad():
        tokens = model.connector(model.encoder(inputs["pixel_values"]), model.encoder.layout)
    tokens_SD = tokens.flatten(0, 1).requires_grad_()
    table, places = plain.get_input_embeddings(), iter(range(len(tokens_SD)))
    row = [
        tokens_SD[next(places)]
        if token == model.config.image_token_id
        else table(torch.tensor(token))
        for token in inputs["input_ids"][0].tolist()
    ]
    return torch.stack(row)[None], tokens_SD


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_plain_transformers(
    tower: Path, tmp_path: Path, family: str
) -> None:
    plain: Any = published(tmp_path, family)
    model, _ = compose(tower, tmp_path)
    inputs = asked(model)
    embeddings, tokens_SD = spliced(model, plain, inputs)
    wanted = plain(inputs_embeds=embeddings).logits
    ours = model(**inputs).logits
    assert torch.equal(ours, wanted)
    probe = torch.randn_like(ours)
    (ours * probe).sum().backward()
    (wanted * probe).sum().backward()
    own = dict(model.language_model.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, rtol=1e-4, atol=1e-4)
    last = model.connector.layers[-1].bias
    torch.testing.assert_close(last.grad, tokens_SD.grad.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_loaded_and_generating(tower: Path, tmp_path: Path, family: str) -> None:
    plain: Any = published(tmp_path / "language", family)
    model, _ = compose(tower, tmp_path / "language")
    model.save_pretrained(tmp_path / "saved")
    again = VisionLanguageModel.load(tmp_path / "saved").eval()
    inputs = asked(model)
    greedy = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
        said = again.generate(
            **inputs, attention_mask=torch.ones_like(inputs["input_ids"]), **greedy
        )
        row, _ = spliced(model, plain, inputs)
        wanted = plain.generate(
            inputs_embeds=row, attention_mask=torch.ones(row.shape[:2], dtype=torch.long), **greedy
        )
    assert said[0, inputs["input_ids"].shape[1] :].tolist() == wanted[0].tolist()


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi", "gemma", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_grown_table_changes_no_logit_and_holds_the_image_token(
    tower: Path, tmp_path: Path, family: str, tied: bool
) -> None:
    plain: Any = published(tmp_path / "language", family, tied)
    small, _ = compose(tower, tmp_path / "language")
    model, words = compose(tower, tmp_path / "language", resize_embeddings=True)
    image = words.convert_tokens_to_ids("<|image|>")
    assert image == model.config.image_token_id == 98
    tables = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert [len(table) for table in tables] == [99, 99]
    assert (tables[0] is tables[1]) == (tied or family == "gpt2")
    assert all(float(table[98].detach().abs().max()) == 0 for table in tables)
    assert torch.equal(tables[0][:98], plain.get_input_embeddings().weight)
    assert model.config.language["vocab_size"] == 99
    model.connector.load_state_dict(small.connector.state_dict())
    inputs = asked(model)
    with torch.no_grad():
        before, after = small(**inputs).logits, model(**inputs).logits
    # a matrix of another height is multiplied in other blocks, so the sums may round apart
    torch.testing.assert_close(after[..., :98], before, rtol=1e-5, atol=1e-5)
    assert float(after[..., 98].detach().abs().max()) == 0
    model.save_pretrained(tmp_path / "saved")
    again = VisionLanguageModel.load(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, after)
    ours, theirs = again.get_input_embeddings().weight, again.get_output_embeddings().weight
    assert (ours is theirs) == (tied or family == "gpt2")


def test_a_table_with_room_does_not_grow(tower: Path, tmp_path: Path) -> None:
    """Qwen's tables are longer than its tokenizer: the new token finds a row."""
    made = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("qwen2", **(NO_HEAD_DIM | {"vocab_size": 128}))
    )
    made.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model, _ = compose(tower, tmp_path, resize_embeddings=True)
    assert len(model.get_input_embeddings().weight) == 128
    assert torch.equal(model.get_input_embeddings().weight, made.get_input_embeddings().weight)


def test_the_chat_template_is_the_models_own(tower: Path, tmp_path: Path) -> None:
    published(tmp_path / "language", "llama")
    model, words = compose(tower, tmp_path / "language")
    assert words.chat_template == TEMPLATE
    config = ProcessorConfig(transform=ImageTransform(size=28))
    Processor(config, words, model.layouts, model.config.image_token_id).save(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    turns = [{"role": "user", "content": "w5"}]
    rendered = again.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert rendered == "w1 w5 w2 w3 "
    assert Processor.load(tmp_path / "saved").image_token_id == model.config.image_token_id


GGUF_FAMILIES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
}


def write_gguf(file: Path, family: str) -> torch.nn.Module:
    """A tiny random model in the names and the row order of llama.cpp; returns it."""
    gguf = pytest.importorskip("gguf", reason="the extra 'starter' is not installed")
    torch.manual_seed(4)
    fields = NO_HEAD_DIM | {"tie_word_embeddings": False, "max_position_embeddings": 64}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields)).eval()
    name = GGUF_FAMILIES[family]
    writer = gguf.GGUFWriter(file, name)
    for field, value in {
        "context_length": 64,
        "embedding_length": 32,
        "block_count": 2,
        "feed_forward_length": 48,
        "head_count": 4,
        "head_count_kv": 2,
        "layer_norm_rms_eps": made.config.rms_norm_eps,
        "rope_freq_base": 10000.0,
        "vocab_size": 98,
        "tokenizer_model": "gpt2",
        "token_list": [*WORDS[:4], *(chr(33 + n) for n in range(93)), "ab"],
        "token_types": [3] * 4 + [1] * 94,
        "token_merges": ["a b"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }.items():
        getattr(writer, f"add_{field}")(value)
    places = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, name.upper()), 2)
    for key, tensor in made.state_dict().items():
        place, _, kind = key.rpartition(".")
        if name == "llama" and place.endswith(("q_proj", "k_proj")):  # rotated halves side by side
            heads = 4 if place.endswith("q_proj") else 2
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(f"{places.get_name(place)}.{kind}", tensor.contiguous().numpy())
    for write in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{write}")()
    writer.close()
    return made


@pytest.mark.parametrize("family", GGUF_FAMILIES)
def test_gguf_files_say_what_their_models_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setenv("MEDLOUPE_CACHE", str(tmp_path / "cache"))
    made: Any = write_gguf(tmp_path / f"{family}.gguf", family)
    model, words = load_language(LanguageConfig(source=str(tmp_path / f"{family}.gguf")))
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, made(ids).logits)
    assert words.encode("ab!", add_special_tokens=False) == [97, 4]
