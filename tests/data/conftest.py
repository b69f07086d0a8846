"""Small real files and rows from which the tests of this room build their data sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Row = dict[str, Any]


@pytest.fixture
def png(tmp_path: Path) -> Callable[..., str]:
    """Writes a grey PNG of its own content (`seed`) below tmp_path and returns its uri."""

    def write(uri: str, *, width: int = 40, height: int = 30, seed: int = 0) -> str:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
        (tmp_path / uri).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / uri)
        return uri

    return write


@pytest.fixture
def row() -> Callable[..., Row]:
    """A plain conversation row: `row("a", "a.png", split="test")`."""

    def make(name: str, *uris: str, answer: str | None = "no", **fields: Any) -> Row:
        images = [{"type": "image", "uri": uri} for uri in uris]
        question = [*images, {"type": "text", "text": "Is there a lesion?"}]
        messages: list[Row] = [{"role": "user", "content": question}]
        if answer is not None:
            content = [{"type": "text", "text": answer}]
            messages.append({"role": "assistant", "content": content})
        return {"id": name, "messages": messages, **fields}

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (dicts, or raw lines) and a card as they are, without any check."""

    def write(*rows: Row | str, records: list[Row] | None = None, **card: Any) -> Path:
        def lines(items: Any) -> str:
            return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in items)

        (tmp_path / "dataset.json").write_text(json.dumps({"name": "tiny", **card}))
        (tmp_path / "conversations.jsonl").write_text(lines(rows))
        if records is not None:
            (tmp_path / "records.jsonl").write_text(lines(records))
        return tmp_path

    return write


@pytest.fixture
def progress() -> Callable[[str, int, int], None]:
    """A progress callback that shows nothing."""
    return lambda *_: None
