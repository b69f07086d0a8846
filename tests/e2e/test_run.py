"""The whole way: recipe -> YAML -> train -> kill -> resume -> evaluate."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

COMMAND = (sys.executable, "-c", "from medloupe.cli import main; main()")


def losses(run: Path) -> list[tuple[str, int, float, float]]:
    """Stage, step, loss and gradient norm of every step."""
    rows = [json.loads(line) for line in (run / "train.jsonl").read_text("utf-8").splitlines()]
    return [
        (row["stage"], row["step"], row["loss"], row["grad_norm"])
        for row in rows
        if row["event"] == "step"
    ]


def test_a_shown_recipe_trains(finished: Path) -> None:
    run = finished / "run"
    assert [row[:2] for row in losses(run)] == [("ground", n) for n in range(1, 5)] + [
        ("instruct", n) for n in range(1, 25)
    ]
    written = {path.name for path in (run / "model").iterdir()}
    assert written >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "medloupe_processor.json",
        "run.yaml",
        "manifest.json",
    }
    # the file the user edited is the one that is kept, field by field
    shown = yaml.safe_load((finished / "my.yaml").read_text("utf-8"))
    assert yaml.safe_load((run / "model" / "run.yaml").read_text("utf-8")) == shown


def test_the_manifest_says_where_a_model_comes_from(finished: Path) -> None:
    manifest: dict[str, Any] = json.loads((finished / "run/model/manifest.json").read_text("utf-8"))
    assert manifest["model"] == "starter_tiny"
    assert manifest["seeds"] == {"run": 0, "train": 0}
    assert manifest["packages"]["torch"]
    assert manifest["hardware"]["cores"] >= 1
    assert len(manifest["config_fingerprint"]) == len(manifest["data_fingerprint"]) == 16
    assert "code_revision" in manifest


def test_a_killed_run_resumes_to_the_same_losses(
    finished: Path, medloupe: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["train", finished / "my.yaml", "--data", finished / "run/data", "--out", run]
    process = subprocess.Popen(
        [*COMMAND, *map(str, words)], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "train instruct" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "".join(said)
    assert len(losses(run)) < 28
    assert not (run / "model").exists()
    medloupe(*words, "--resume")
    assert losses(run) == losses(finished / "run")
    assert (run / "model/model.safetensors").read_bytes() == (
        finished / "run/model/model.safetensors"
    ).read_bytes()


def test_evaluation_writes_log_and_report(finished: Path, medloupe: Any, tmp_path: Path) -> None:
    done = medloupe("evaluate", "--model", finished / "run", "--data", finished / "run/data",
                    "--out", tmp_path, "--set", "benchmark.tasks=[plane, presence]")  # fmt: skip
    assert "presence" in done.out
    assert "findings" not in done.out
    lines = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text("utf-8").splitlines()]
    assert lines[0]["manifest"]["trained"]["model"] == "starter_tiny"
    rows = [line for line in lines if line["type"] == "row"]
    assert {row["task"] for row in rows} == {"plane", "presence"}
    assert len(rows) == 16
    page = (tmp_path / "report.html").read_text("utf-8")
    assert 'id="training"' in page, "the loss curve of the run is not shown"
    assert "instruct" in page


def test_the_quickstart_goes_all_the_way_and_skips_what_is_done(
    finished: Path, medloupe: Any
) -> None:
    run, said = finished / "run", (finished / "said.txt").read_text("utf-8")
    for line in ("[1/5]", "[5/5]", "question", "answer", f"checkpoint  {run}/model", "time "):
        assert line in said
    assert f"report      {run}/report.html" in said
    assert "Traceback" not in said
    assert "Warning" not in said
    files = [run / name for name in ("eval.jsonl", "report.html", "train.jsonl", "model")]
    before = [file.stat().st_mtime_ns for file in files]
    again = medloupe("quickstart", "--recipe", finished / "my.yaml", "--out", run, "--resume")
    assert again.out.count("finished before") == 2
    assert [file.stat().st_mtime_ns for file in files] == before
