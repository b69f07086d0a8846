"""Fixtures shared by every room."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

# The tiny parts are loaded by path, since test folders are no packages.
NAME, FILE = "medloupe_tiny", Path(__file__).resolve().parent / "train" / "tiny.py"


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
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, FILE)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
    return sys.modules[NAME]


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
