"""`medloupe synthesize` as a user types it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from medloupe.data.dataset import load_dataset

COMMAND = (sys.executable, "-c", "from medloupe.cli import main; main()")


def medloupe(*words: str | Path, code: int = 0) -> str:
    """What the command says, on both channels."""
    done = subprocess.run(
        [*COMMAND, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def written(teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path) -> Path:
    """A config file of a teacher that has its price."""
    price = {"prompt": 3.0, "completion": 15.0}
    teacher = {
        "name": "openai",
        "base_url": f"{teacher_server.url}/v1",
        "model": "m",
        "price": price,
    }
    path = tmp_path / "captions.yaml"
    path.write_text(yaml.safe_dump({"source": {"path": str(write_rows(8))}, "teachers": [teacher]}))
    return path


def test_the_estimate_is_shown_and_agreed_to(
    teacher_server: Any, written: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = medloupe("synthesize", written, "--out", out, code=2)
    assert "8 rows, 8 to ask" in said
    assert "<= 0." in said
    assert "Pass --yes, or set limits.cost" in said
    assert not teacher_server.bodies
    said = medloupe("synthesize", written, "--out", out, "--yes")
    assert "8 accepted, 0 rejected" in said
    assert len(load_dataset(out).conversations) == 8
    assert "images and turns by domain" in said
    assert "samples.html" in said
    page = (out / "samples.html").read_text()
    assert "Specimen 0003 shows" in page, "rows stand beside their source"
    account = json.loads((out / "account.json").read_text())
    assert account["teachers"][0]["cost"] > 0
    said = medloupe("synthesize", written, "--out", out)
    assert "8 conversations" in said
    assert len(teacher_server.bodies) == 8, "finished: nothing is asked, of the user or the teacher"


def test_a_budget_in_the_config_agrees_and_stops(
    teacher_server: Any, written: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("synthesize", written, "--out", out, "--set", "teachers.0.concurrency=1")
    said = medloupe(*words, "--set", "limits.requests=3", code=2)
    assert "limits.requests = 3" in said
    assert "5 rows are not answered yet" in said
    said = medloupe(*words, "--set", "limits.requests=100")
    assert "5 to ask, 3 done before" in said
    assert "8 accepted" in said
    said = medloupe(*words, "--set", "seed=9", code=2)
    assert "field 'seed'" in said
    assert "this folder was begun with 0, the config now says 9" in said


def test_an_interrupt_waits_for_what_is_under_way(
    teacher_server: Any, written: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["synthesize", str(written), "--out", str(out), "--yes"]
    words += ["--set", "teachers.0.concurrency=1"]
    child = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )

    def behave(number: int, body: dict[str, Any]) -> str:
        if number == 3:
            child.send_signal(signal.SIGINT)
        return "ok"

    teacher_server.behave = behave
    said, _ = child.communicate(timeout=120)
    assert child.returncode == 2, said
    assert "stopped: interrupted" in said
    assert "Traceback" not in said
    with sqlite3.connect(out / "journal.db") as db:
        states = dict(db.execute("SELECT state, COUNT(*) FROM requests GROUP BY state"))
    assert states == {"answered": len(teacher_server.bodies)}, "nothing was lost"
    assert len(teacher_server.bodies) < 8
    medloupe("synthesize", written, "--out", out, "--yes", "--set", "teachers.0.concurrency=1")
    assert len(teacher_server.bodies) == 8


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("teachers.0.modle=x", "did you mean 'model'"),
        ("prompts=captoin", "did you mean 'caption'"),
        ("source.path=nowhere", "no such file or folder"),
        ("filters=[lenght]", "did you mean 'length'"),
        ("teachers.0.key_env=NOT_SET_HERE", "NOT_SET_HERE is not set"),
    ],
)
def test_mistakes_are_named(
    teacher_server: Any, written: Path, tmp_path: Path, change: str, named: str
) -> None:
    said = medloupe(
        "synthesize", written, "--out", tmp_path / "o", "--yes", "--set", change, code=2
    )
    assert named in said
    assert "Traceback" not in said
    assert not teacher_server.bodies


def test_a_prepared_set_is_read_by_its_records(teacher_server: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "dataset.json").write_text(json.dumps({"name": "mine", "licence": "CC0"}))
    image = {"type": "image", "modality": "CT"}
    records = [
        {
            "id": "a",
            "patient_id": "p",
            "images": [image | {"uri": "a.png"}],
            "report": {"findings": "A smooth band.", "impression": "Nothing else."},
        },
        {
            "id": "b",
            "patient_id": "p",
            "images": [image | {"uri": "b.png"}],
            "report": {"findings": "The band has grown."},
            "prior": "a",
        },
        {"id": "c", "images": [image | {"uri": "c.png"}], "labels": ["cyst"]},
    ]
    (source / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    teacher = {"name": "openai", "base_url": f"{teacher_server.url}/v1", "model": "m"}
    path = tmp_path / "c.yaml"
    stated = {"path": str(source), "pairs": True}
    path.write_text(yaml.safe_dump({"source": stated, "teachers": [teacher], "filters": ["turns"]}))
    medloupe("synthesize", path, "--out", tmp_path / "out")
    rows = {row.id: row for row in load_dataset(tmp_path / "out").conversations}
    assert [ref.uri for ref in rows["b"].images] == [str(source / f"{k}.png") for k in "ab"]
    assert rows["a"].licence == "CC0"
    assert rows["a"].attributes["modality"] == "CT"
    lines = (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()
    kinds = {r["id"]: r["kind"] for r in (json.loads(line)["row"] for line in lines)}
    assert kinds == {"a": "report", "b": "pair", "c": "labels"}


@pytest.mark.parametrize("words", [("--workers", "2"), ("--address", "auto")])
def test_what_is_of_a_cluster_needs_the_cluster(
    teacher_server: Any, written: Path, tmp_path: Path, words: tuple[str, str]
) -> None:
    said = medloupe("synthesize", written, "--out", tmp_path / "out", "--yes", *words, code=2)
    assert "Pass --engine ray" in said
    assert not teacher_server.bodies
