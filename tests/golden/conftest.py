"""Loads the tiny parts by path, since test folders are no packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

NAME, FILE = "medloupe_tiny", Path(__file__).resolve().parents[1] / "train" / "tiny.py"


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
