"""One tiny language model and one finished run, shared by all tests; nothing writes into them.

Commands run as a user runs them: `medloupe ...` in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-c", "from medloupe.cli import main; main()")


@dataclass(frozen=True, kw_only=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    # wide, so that no message is wrapped; one thread, so that runs repeat bit for bit
    return os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def medloupe(environment: dict[str, str]) -> Callable[..., Done]:
    """`medloupe("train", "starter", code=0)`: runs the command and checks its exit code."""

    def run(
        *words: str | Path,
        code: int = 0,
        stdin: str = "",
        path: Path | None = None,
        folder: Path | None = None,
    ) -> Done:
        own = {"PYTHONPATH": str(path)} if path else {}
        done = subprocess.run(
            [*COMMAND, *map(str, words)],
            input=stdin,
            capture_output=True,
            text=True,
            env=environment | own,
            cwd=folder,
            timeout=300,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Done(code=code, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def finished(
    medloupe: Callable[..., Done], language: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The quickstart on an edited YAML file: `my.yaml`, `run/`, and what it said: `said.txt`."""
    folder = tmp_path_factory.mktemp("finished")
    changes = [
        f"model.language.source={language}",
        "train.stages.instruct.steps=24",
        "evaluate.benchmark.limit=8",
    ]
    words = [word for change in changes for word in ("--set", change)]
    shown = medloupe("recipe", "show", "starter_tiny", *words)
    (folder / "my.yaml").write_text(shown.out, encoding="utf-8")
    done = medloupe("quickstart", "--recipe", folder / "my.yaml", "--out", folder / "run")
    (folder / "said.txt").write_text(done.out + done.err, encoding="utf-8")
    return folder
