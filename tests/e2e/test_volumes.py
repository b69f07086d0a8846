"""Volumes end to end, as a user runs them: train, kill, resume, evaluate, ask; by slices and in 3D."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medloupe.cli.chat import converse
from medloupe.errors import ImageError
from medloupe.generate import ChatSession, Predictor
from medloupe.recipes import run
from medloupe.recipes.config import RunConfig
from medloupe.types import ImageRef

COMMAND = (sys.executable, "-c", "from medloupe.cli import main; main()")

RUN = """
name: volumes
data:
  {{name: starter, patients: 20, slices_per_patient: 1, series_per_patient: 0, volumes_per_patient: 1,
   size: 64, volume_size: 24, languages: [en]}}
model:
  encoder: {encoder}
  connector: {connector}
  language: {{source: {language}}}
processor:
  boxes: {{scale: 100}}
  transform: {transform}
train:
  save_every: 2
  stages:
  - name: align
    objective: {{name: language, tasks: [{tasks}]}}
    trainable: [connector]
    learning_rate: 0.003
    steps: 4
    batch_size: 3
    precision: fp32
  - name: tune
    objective: {{name: language, tasks: [{tasks}]}}
    trainable: [encoder, connector, language_model]
    learning_rate: 0.001
    lora: {{rank: 2, dropout: 0.1}}
    steps: 8
    batch_size: 2
    precision: fp32
evaluate:
  benchmark:
    {{name: volumes, tasks: [{tasks}], max_new_tokens: 6, limit: 3, resamples: 100}}
store: {store}
"""
VOLUMES = ("volume_presence", "volume_rec")
SLICES = {
    "encoder": "{name: slices, chunk: 16, encoder: {name: efficientnet_lite0, image_size: 64, "
    "stride: 32}}",
    "connector": "{name: attention_pooling, queries: 6, heads: 4}",
    "transform": "{name: slices, selection: {count: 5}}",
    "tasks": ", ".join((*VOLUMES, "presence")),
}
MEAN = {"connector": "mean_slices", "tasks": ", ".join(VOLUMES)}
CUBE = {
    "encoder": "{name: vit3d, shape: [8, 24, 24], patch: [4, 8, 8], "
    "size: {width: 24, depth: 2, heads: 2, hidden: 32}}",
    "connector": "{name: pooled, window: [2, 3, 3]}",
    "transform": "{name: volume, smooth: false}",
    "tasks": ", ".join(VOLUMES),
}


def written(folder: Path, language: Path, fields: dict[str, str]) -> Path:
    path = folder / "my.yaml"
    text = RUN.format(language=language, store=folder / "views", **fields)
    path.write_text(text, encoding="utf-8")
    return path


def losses(folder: Path) -> list[tuple[str, int, float, float]]:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text("utf-8").splitlines()]
    return [
        (row["stage"], row["step"], row["loss"], row["grad_norm"])
        for row in rows
        if row["event"] == "step"
    ]


@pytest.fixture(scope="module")
def by_slices(
    medloupe: Callable[..., Any], language: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Slices of volumes and pictures through one encoder, trained: `my.yaml`, `run/`, `views/`."""
    folder = tmp_path_factory.mktemp("slices")
    medloupe("train", written(folder, language, SLICES), "--out", folder / "run")
    return folder


def volume_of(data: Path) -> Path:
    return min(data.rglob("*.nii*"))


def evaluated(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of `eval.jsonl` by their type."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in (folder / "eval.jsonl").read_text("utf-8").splitlines():
        lines.setdefault(json.loads(line)["type"], []).append(json.loads(line))
    return lines


def test_a_killed_run_resumes_to_the_same_losses(
    by_slices: Path, medloupe: Callable[..., Any], environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["train", by_slices / "my.yaml", "--data", by_slices / "run/data", "--out", out]
    with subprocess.Popen(
        [*COMMAND, *map(str, words)], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "train tune" in line:
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert 4 <= len(losses(out)) < 12
    medloupe(*words, "--resume")
    assert losses(out) == losses(by_slices / "run")
    names = [folder / "model/model.safetensors" for folder in (out, by_slices / "run")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_what_was_decoded_is_kept_where_the_run_says(by_slices: Path) -> None:
    kept = sum(file.stat().st_size for file in (by_slices / "views").rglob("*"))
    assert kept > 8 * 5 * 64 * 64 * 4  # most of 14 training volumes, five slices each


def test_it_is_evaluated_with_boxes_in_three_dimensions(
    by_slices: Path, medloupe: Callable[..., Any]
) -> None:
    done = medloupe("evaluate", "--model", by_slices / "run")
    assert "volume_rec" in done.out
    lines = evaluated(by_slices / "run")
    assert {row["task"] for row in lines["row"]} == {*VOLUMES, "presence"}
    asked = [row for row in lines["row"] if row["task"] == "volume_rec"]
    assert all(row["images"][0]["kind"] == "volume" for row in asked)
    assert all(row["truth_boxes"][0]["z1"] is not None for row in asked)
    assert all("swapped" in row["others"] for row in asked)  # another patient's volume
    scored = {score["id"] for score in lines["score"] if score["value"] is not None}
    assert scored >= {row["id"] for row in asked}
    assert "volume_rec" in (by_slices / "run/report.html").read_text("utf-8")


def test_a_volume_and_a_picture_are_asked_about(
    by_slices: Path, medloupe: Callable[..., Any], tmp_path: Path
) -> None:
    """The order on the command line does not matter: pictures come first."""
    nifti, png = volume_of(by_slices / "run/data"), tmp_path / "a.png"
    Image.fromarray(np.full((30, 40), 90, np.uint8)).save(png)
    words = ["ask", "--model", by_slices / "run", "--volume", nifti, "--image", png]
    asked = medloupe(*words, "Is there a ring lesion?")
    predict = run.load(by_slices / "run/model", root=tmp_path)
    refs = [ImageRef(uri=str(png)), ImageRef(uri=str(nifti), kind="volume")]
    said = ChatSession(predict, name="ask").ask("Is there a ring lesion?", refs)
    assert asked.out.splitlines()[0] == said.text.splitlines()[0]


def test_volumes_in_a_conversation(
    by_slices: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nifti = volume_of(by_slices / "run/data")
    lines = [f"/volume {nifti}", "Where?", f"/image {nifti} 3", "And here?", "/volume", "/volumes"]
    left = iter([*lines, "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(left))
    converse(run.load(by_slices / "run/model", root=Path()), [], modality="MR")
    said = capsys.readouterr()
    assert len(said.out.splitlines()) >= 2
    assert "not a volume command" in said.err
    assert "unknown command '/volumes'" in said.err


@pytest.mark.parametrize("composition", ["3D", "mean"])
def test_other_compositions_go_the_same_way(
    by_slices: Path, language: Path, tmp_path: Path, composition: str
) -> None:
    data, out = by_slices / "run/data", tmp_path / "run"
    config = RunConfig.from_yaml(
        written(tmp_path, language, CUBE if composition == "3D" else SLICES | MEAN)
    )
    saved = run.train(config, data, out, progress=lambda *_: None)
    assert [row[1] for row in losses(out)] == [*range(1, 5), *range(1, 9)]
    model = run.load(saved, root=data).model
    assert model.layouts.volume is not None
    assert model.layouts.volume.tokens == (1 if composition == "3D" else 4)
    assert (model.layouts.image is None) == (composition == "3D")
    log = run.evaluate(saved, data, out, progress=lambda *_: None)
    assert {row.task for row in log.rows} >= set(VOLUMES)
    if composition == "3D":  # a store changes no bit
        plain = config.model_copy(update={"store": None})
        run.train(plain, data, tmp_path / "plain", progress=lambda *_: None)
        assert losses(tmp_path / "plain") == losses(out)


def test_a_picture_for_an_encoder_of_volumes(language: Path, tmp_path: Path) -> None:
    config = RunConfig.from_yaml(written(tmp_path, language, CUBE))
    model, processor, images = run.build(config, tmp_path)
    Image.fromarray(np.full((30, 40), 90, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a volume is wanted.*model with a 2D encoder"):
        ChatSession(Predictor(model, processor, images)).ask("Side?", [ImageRef(uri="a.png")])
