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
import torch
from PIL import Image

from medloupe.generate import ChatSession
from medloupe.recipes import run
from medloupe.types import ImageRef

COMMAND = (sys.executable, "-c", "from medloupe.cli import main; main()")

RUN = """
name: volumes
data:
  {{name: starter, patients: 10, slices_per_patient: 2, series_per_patient: 0, volumes_per_patient: 1,
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
    return next(iter(sorted(data.rglob("*.nii*"))))


def evaluated(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and scores of `eval.jsonl`."""
    lines = [json.loads(line) for line in (folder / "eval.jsonl").read_text("utf-8").splitlines()]
    return ([one for one in lines if one["type"] == kind for kind in ("row",)],
            [one for one in lines if one["type"] == "score"])  # fmt: skip


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
    assert kept > 10 * 5 * 64 * 64 * 4  # ten volumes of five slices


def test_it_is_evaluated_with_boxes_in_three_dimensions(
    by_slices: Path, medloupe: Callable[..., Any]
) -> None:
    done = medloupe("evaluate", "--model", by_slices / "run")
    assert "volume_rec" in done.out
    rows, scores = evaluated(by_slices / "run")
    tasks = {row["task"] for row in rows}
    assert tasks == {*VOLUMES, "presence"}
    asked = [row for row in rows if row["task"] == "volume_rec"]
    assert all(row["images"][0]["kind"] == "volume" for row in asked)
    assert all(row["truth_boxes"][0]["z1"] is not None for row in asked)
    assert {score["id"] for score in scores if score["scorer"] == "BoxIoU"} or scores
    assert 'id="training"' in (by_slices / "run/report.html").read_text("utf-8")


def test_a_volume_and_a_picture_are_asked_about(
    by_slices: Path, medloupe: Callable[..., Any], tmp_path: Path
) -> None:
    data = by_slices / "run/data"
    nifti = volume_of(data)
    Image.fromarray(np.full((30, 40), 90, np.uint8)).save(tmp_path / "a.png")
    words = ["ask", "--model", by_slices / "run", "--volume", nifti]
    alone = medloupe(*words, "Is there a ring lesion?")
    both = medloupe(*words, "--image", tmp_path / "a.png", "Is there a ring lesion?")
    assert alone.out.strip()
    assert both.out.strip()
    predict = run.load(by_slices / "run/model", root=data)
    session = ChatSession(predict, name="ask")
    said = session.ask("Is there a ring lesion?", [ImageRef(uri=str(nifti), kind="volume")])
    assert alone.out.splitlines()[0] == said.text.splitlines()[0]  # the model that was saved
    lines = [f"/volume {nifti}", "Where?", f"/image {nifti} 3", "And here?", "/volume", "/volumes"]
    talk = medloupe("chat", "--model", by_slices / "run", stdin="\n".join(lines))
    assert len(talk.out.splitlines()) >= 2
    assert "not a volume command" in talk.err
    assert "unknown command '/volumes'" in talk.err


def test_a_3d_encoder_goes_the_same_way(
    by_slices: Path, language: Path, medloupe: Callable[..., Any], tmp_path: Path
) -> None:
    data, out = by_slices / "run/data", tmp_path / "run"
    path = written(tmp_path, language, CUBE)
    medloupe("train", path, "--data", data, "--out", out)
    assert len(losses(out)) == 12
    model = run.load(out / "model", root=data).model
    assert model.layouts.image is None
    assert model.layouts.volume is not None
    assert model.layouts.volume.tokens == 1
    medloupe("evaluate", "--model", out, "--data", data)
    rows, _ = evaluated(out)
    assert {row["task"] for row in rows} == set(VOLUMES)
    refused = medloupe(
        "ask", "--model", out, "--image", volume_of(data), "--frame", "3", "Side?", code=2
    )
    assert "this model's encoder reads volumes" in refused.err
    assert "Traceback" not in refused.err
    assert torch.isfinite(model.encoder.trunk.positions).all()
