"""predict and evaluate as a user types them, on the finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydicom.data import get_testdata_file

from medloupe.cli.evaluate import evaluate
from medloupe.cli.predict import predict
from medloupe.errors import ConfigError


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("CT_small.dcm", "SC_rgb_rle_2frame.dcm"):
        found = get_testdata_file(name)
        assert isinstance(found, str)
        shutil.copy(found, folder / name)
    (folder / "cut.dcm").write_bytes((folder / "CT_small.dcm").read_bytes()[:5000])
    (folder / "readme.txt").write_text("not an image")
    return folder


def test_a_folder_is_answered_whole_and_in_parts(
    finished: Path, medloupe: Any, scans: Path, tmp_path: Path
) -> None:
    words = [
        *("predict", finished / "run", scans, tmp_path / "out.jsonl"),
        *("--question", "Is there a lesion?", "--option", "yes", "--option", "no"),
        *("--max-new-tokens", "6", "--set", "precision=fp32"),
    ]
    part = medloupe(*words, "--shard", "1/2")
    assert "other parts are not answered yet" in part.out
    joined = medloupe(*words, "--shard", "2/2")
    assert "rows: 4, 1 of them with an error" in joined.out
    assert "1 files are no images" in joined.out
    lines = {line["id"]: line for line in read(tmp_path / "out.jsonl")}
    assert set(lines) == {
        "CT_small.dcm", "SC_rgb_rle_2frame.dcm#0", "SC_rgb_rle_2frame.dcm#1", "cut.dcm",
    }  # fmt: skip
    assert lines.pop("cut.dcm")["error"]
    for line in lines.values():
        assert line["error"] == ""
        assert 0 < line["confidence"] <= 1
        assert sum(line["option_probs"].values()) == pytest.approx(1)
    refused = medloupe("predict", finished / "run", scans, tmp_path / "x.jsonl", code=2)
    assert "--question" in refused.err


SET = {
    "--endpoint-model": {"endpoint_model": "m"},
    "--model-set": {"model_set": ["longest=64"]},
    "--permission": {"permission": "phantoms only"},
    "--trust-code": {"trust_code": True},
}
URL = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("who", "options"),
    [
        ({"model": "runs/first"}, ("--endpoint-model", "--model-set", "--permission")),
        ({"model": "hf:model"}, ("--endpoint-model", "--permission")),
        ({"model": URL}, ("--trust-code",)),
        ({"endpoint": URL}, ("--trust-code",)),
        ({"predictions": Path("file.jsonl")}, tuple(SET)),
    ],
    ids=str,
)
def test_options_that_would_change_nothing_are_refused(
    who: dict[str, Any], options: tuple[str, ...], tmp_path: Path
) -> None:
    for option in options:
        with pytest.raises(ConfigError, match=f"{option} changes nothing with"):
            evaluate(**who, **SET[option], data=tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "option"),
    [
        ("runs/first", "--endpoint-model"),
        ("runs/first", "--permission"),
        ("hf:model", "--endpoint-model"),
        ("hf:model", "--permission"),
        (URL, "--trust-code"),
    ],
)
def test_predict_refuses_them_too(model: str, option: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{option} changes nothing with"):
        predict(model, tmp_path, tmp_path / "out.jsonl", **SET[option])


def test_slices_of_lines_and_an_endpoint_that_is_no_url(tmp_path: Path) -> None:
    lines = tmp_path / "q.jsonl"
    lines.write_text('{"id": "a", "question": "x"}\n')
    with pytest.raises(ConfigError, match="--slices changes nothing"):
        predict("hf:model", lines, tmp_path / "out.jsonl", slices=True)
    with pytest.raises(ConfigError, match="--endpoint takes a url"):
        evaluate(endpoint="hf:model", data=tmp_path, out=tmp_path)


def test_an_evaluation_in_parts_equals_the_whole(
    finished: Path, medloupe: Any, tmp_path: Path
) -> None:
    few = (
        "--set",
        "benchmark.limit=2",
        "--set",
        "generate.precision=fp32",
        "--set",
        "generate.option_probs=true",
        "--set",
        "probes=[swapped]",
    )
    words = ("evaluate", "--model", finished / "run", *few)
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    medloupe(*words, "--out", whole)
    assert "part 1 of 2 is answered" in medloupe(*words, "--out", shared, "--shard", "1/2").out
    refused = medloupe(*words, "--out", shared, code=2)
    assert "--resume" in refused.err
    assert "report: " in medloupe(*words, "--out", shared, "--resume").out

    def said(folder: Path) -> list[tuple[str, str]]:
        lines = read(folder / "eval.jsonl")
        return [(line["id"], line["prediction"]) for line in lines if line["type"] == "row"]

    assert said(shared) == said(whole)
    rows = [line for line in read(whole / "eval.jsonl") if line["type"] == "row"]
    closed = [row for row in rows if row["options"]]
    assert closed
    assert all(sum(row["option_probs"]) == pytest.approx(1) for row in closed)
    # the answers that a model gave, as a file that anybody might have written
    lines = [json.dumps({"id": row["id"], "answer": row["prediction"]}) for row in rows]
    (tmp_path / "file.jsonl").write_text("\n".join(lines[1:]))
    done = medloupe(
        *("evaluate", "--predictions", tmp_path / "file.jsonl", "--data", finished / "run/data"),
        *("--out", tmp_path / "file", "--set", "benchmark.limit=2"),
    )
    assert "1 rows without an answer" in done.out
    refused = medloupe("evaluate", code=2)
    assert "--predictions" in refused.err
