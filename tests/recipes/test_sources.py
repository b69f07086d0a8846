"""A stage trains on a mixture of prepared sets, and nothing trains on a leak that nobody named."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from medloupe.data.dataset import load_dataset, write_dataset
from medloupe.errors import CheckpointError, LeakError
from medloupe.recipes import load_run, run
from medloupe.recipes.config import RunConfig
from medloupe.recipes.prepare import prepare
from medloupe.recipes.sources import load_run_data, mixed_folders


def silent(what: str, done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def config(language: Path) -> RunConfig:
    return load_run(
        "starter_tiny",
        [
            f"model.language.source={language}",
            "data.patients=8",
            "data.slices_per_patient=2",
            "train.stages.instruct.steps=3",
            "train.stages.ground.steps=1",
        ],
    )


@pytest.fixture(scope="module")
def prepared(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small starters, `one` and `two`, with other images and other patients."""
    folder = tmp_path_factory.mktemp("prepared")
    for seed, name in enumerate(("one", "two")):
        data = config.data.with_overrides([f"seed={seed}"])
        prepare(data, folder / name, root=None, progress=silent)
    for name in ("conversations.jsonl", "records.jsonl"):
        file = folder / "two" / name  # both call their patients p00000, and are of one publisher
        renamed = file.read_text("utf-8").replace('"patient_id": "p', '"patient_id": "q')
        file.write_text(renamed, "utf-8")
    return folder


def mixed(config: RunConfig, prepared: Path) -> RunConfig:
    """The second stage mixes both sets, three rows of the first to one of the second."""
    data = yaml.safe_load(config.to_yaml())
    data["train"]["stages"][1]["mixture"] = {
        "sources": [
            {"name": "first", "data": str(prepared / "one"), "weight": 3},
            {"name": "second", "data": str(prepared / "two"), "weight": 1},
        ],
        "samples": 8,
    }
    return RunConfig.parse(data)


def test_a_stage_trains_on_its_mixture(config: RunConfig, prepared: Path, tmp_path: Path) -> None:
    both = mixed(config, prepared)
    assert mixed_folders(both) == [str(prepared / "one"), str(prepared / "two")]
    said: list[str] = []
    run.train(both, prepared / "one", tmp_path, progress=silent, tell=said.append)
    assert sum(line.startswith("data starter") for line in said) == 3  # one stage has no mixture
    assert all("licence" in line for line in said if line.startswith("data"))
    manifest = json.loads((tmp_path / "model/manifest.json").read_text("utf-8"))
    assert manifest["mixtures"] == {
        str(prepared / name): load_dataset(prepared / name).fingerprint() for name in ("one", "two")
    }
    assert manifest["audit"]["leak"] == ""
    data = load_run_data(both, prepared / "one")
    merged = data.of(both.train.stages[1])
    assert {row.id.partition(":")[0] for row in merged.conversations} == {"first", "second"}
    assert data.of(both.train.stages[0]) is data.own


def test_a_mixture_with_other_data_does_not_resume(
    config: RunConfig, prepared: Path, tmp_path: Path
) -> None:
    sets = tmp_path / "sets"
    shutil.copytree(prepared, sets)
    both = mixed(config, sets)
    run.train(both, sets / "one", tmp_path / "run", progress=silent)
    changed = load_dataset(sets / "two")
    card = changed.card.model_copy(update={"counts": {}})
    write_dataset(changed.root, card, changed.conversations[1:], changed.records)
    with pytest.raises(CheckpointError, match="another data"):
        run.train(both, sets / "one", tmp_path / "run", resume=True, progress=silent)


def leaking(prepared: Path, folder: Path) -> Path:
    """A training image saved once more, in another format, in place of a test image."""
    shutil.copytree(prepared / "one", folder)
    data = load_dataset(folder)
    train = next(row for row in data.conversations if row.split == "train").images[0]
    test = next(row for row in data.conversations if row.split == "test").images[0]
    Image.open(folder / train.uri).save(folder / "copy.tif")
    text = (folder / "conversations.jsonl").read_text("utf-8")
    records = (folder / "records.jsonl").read_text("utf-8")
    for name, lines in (("conversations.jsonl", text), ("records.jsonl", records)):
        changed = lines.replace(test.uri, "copy.tif")
        if test.sha256:
            own = hashlib.sha256((folder / "copy.tif").read_bytes()).hexdigest()
            changed = changed.replace(test.sha256, own)
        (folder / name).write_text(changed, "utf-8")
    return folder


def test_training_refuses_a_leak_unless_told_by_name(
    config: RunConfig, prepared: Path, tmp_path: Path
) -> None:
    data = leaking(prepared, tmp_path / "data")
    with pytest.raises(LeakError, match=r"identical pixels.*audit\.allow_leak=true"):
        run.train(config, data, tmp_path / "run", progress=silent)
    assert not (tmp_path / "run").exists()
    told: list[str] = []
    allowed = config.with_overrides(["audit.allow_leak=true"])
    run.train(allowed, data, tmp_path / "run", progress=silent, tell=told.append)
    assert any("allowed by name" in line for line in told)
    manifest = json.loads((tmp_path / "run/model/manifest.json").read_text("utf-8"))
    assert manifest["audit"]["leak"] == "1 images with identical pixels on two sides"


def test_a_mixture_may_not_hold_what_the_run_is_tested_on(
    config: RunConfig, prepared: Path, tmp_path: Path
) -> None:
    """The own set is clean; a source trains on one of its test images under another name."""
    other = tmp_path / "two"
    shutil.copytree(prepared / "two", other)
    own = load_dataset(prepared / "one")
    test = next(row for row in own.conversations if row.split == "test").images[0]
    source = load_dataset(other)
    train = next(row for row in source.conversations if row.split == "train").images[0]
    shutil.copy(prepared / "one" / test.uri, other / train.uri)
    for name in ("conversations.jsonl", "records.jsonl"):
        lines = (other / name).read_text("utf-8")
        (other / name).write_text(lines.replace(train.sha256 or "-", test.sha256 or "-"), "utf-8")
    both = mixed(config, prepared)
    stages = yaml.safe_load(both.to_yaml())
    stages["train"]["stages"][1]["mixture"]["sources"][1]["data"] = str(other)
    with pytest.raises(LeakError, match="identical file"):
        run.train(RunConfig.parse(stages), prepared / "one", tmp_path / "run", progress=silent)
