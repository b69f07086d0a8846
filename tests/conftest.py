"""Fixtures shared by every room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real, openly licensed data sets beside the project; skips where absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEDLOUPE_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("the real data sets are not here (set MEDLOUPE_SHARED_DATA to their folder)")
    return folder
