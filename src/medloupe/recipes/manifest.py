"""Where a result comes from: config, code, data, packages, hardware, seeds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import medloupe
from medloupe.data.dataset import Dataset
from medloupe.recipes.config import RunConfig

PACKAGES = ("medloupe", "torch", "transformers", "tokenizers", "peft", "numpy", "pillow", "pydicom")


def run_manifest(config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """JSON values; `date` is UTC."""
    return {
        "model": config.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "config_fingerprint": config.fingerprint(),
        "data_fingerprint": dataset.fingerprint(),
        "data": dataset.card.to_dict(),
        "seeds": {"run": config.seed, "train": config.train.seed},
        **surroundings(),
    }


def surroundings() -> dict[str, Any]:
    """Code revision, package versions and hardware of this process."""
    return {
        "code_revision": code_revision(Path(medloupe.__file__).parent),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
    }


def code_revision(folder: Path) -> str | None:
    """The commit of a checkout, "+changes" where files differ from it; None for an installed package.

    A package that merely lies below somebody's checkout (in a .venv) is not part of it.
    """
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
    commit = _git(folder, "rev-parse", "HEAD")
    if tracked is None or commit is None:
        return None
    return commit + ("+changes" if _git(folder, "status", "--porcelain", "--", ".") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
