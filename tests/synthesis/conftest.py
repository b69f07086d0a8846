"""A teacher on a socket of this machine, and rows to ask it about."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from by_path import loaded

HERE = Path(__file__).resolve().parent
_FINDINGS = (
    "a round lesion",
    "smooth borders",
    "a thin wall",
    "scattered dark spots",
    "a pale band",
)


@pytest.fixture
def teacher_server() -> Iterator[Any]:
    """A server that answers as it should until it is told otherwise."""
    pytest.importorskip(
        "httpx", reason='needs the synthesis extra: pip install "medloupe[synthesis]"'
    )
    with loaded(HERE / "server.py").serving() as server:
        yield server


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """`write_rows(12)`: a JSONL file of captions, each with an image name of its own."""

    def write(number: int, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        with path.open("w", encoding="utf-8") as stream:
            for k in range(number):
                row = {
                    "id": f"row-{k:04d}",
                    "text": f"Specimen {k:04d} shows {_FINDINGS[k % 5]} beside {_FINDINGS[k * 7 % 5]}.",
                    "images": f"{k:04d}.png",
                    "modality": "histology",
                    "licence": "CC-BY-4.0",
                    "patient_id": f"p{k}",
                    "split": "train",
                }
                stream.write(json.dumps(row) + "\n")
        return path

    return write
