"""Killed at any moment, also while it saves, a run ends as it would have without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from medloupe.train.log import read_log

KILLS = 20


def test_twenty_kills_change_no_bit(lab: Any, tmp_path: Path) -> None:
    """Each start also makes another number of batches ahead."""
    support = str(Path(__file__).resolve().parents[1] / "support")
    script = str(Path(__file__).with_name("kills.py"))
    done = subprocess.run(
        [sys.executable, script, str(lab.folder), str(tmp_path), str(KILLS)],
        env=os.environ | {"PYTHONPATH": support, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads((tmp_path / "codes.json").read_text())
    assert codes == [0, *[-signal.SIGKILL] * KILLS, 0], done.stderr
    figures = [
        [
            (row["stage"], row["step"], row["loss"], row["grad_norm"], row["tokens"])
            for row in read_log(tmp_path / name / "train.jsonl")
            if row["event"] == "step"
        ]
        for name in ("whole", "broken")
    ]
    assert figures[0] == figures[1]
    assert len(figures[0]) == 32
    for name in ("00-align-end.pt", "01-tune-end.pt"):
        one, other = (
            torch.load(tmp_path / run / "checkpoints" / name, weights_only=True)["parts"]
            for run in ("whole", "broken")
        )
        assert one.keys() == other.keys()
        for part, weights in one.items():
            assert all(torch.equal(tensor, other[part][n]) for n, tensor in weights.items())
    left = sorted(path.name for path in (tmp_path / "broken" / "checkpoints").iterdir())
    assert left == ["00-align-end.pt", "01-tune-end.pt"]
