"""Answers as JSON lines: of an endpoint, so that no weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from chat_server import Server, serving
from pydicom.data import get_testdata_file

from medloupe.errors import ConfigError
from medloupe.evaluate.predictors.endpoint import EndpointError
from medloupe.evaluate.resume import Shard
from medloupe.recipes.asked import Input, read_input
from medloupe.recipes.predict import Account, ModelSpec, predict
from medloupe.synthesis.types import SynthesisError

pytest.importorskip("httpx", reason='needs httpx: pip install "medloupe[synthesis]"')


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        state.reply = lambda body: (str(body["messages"][0]["content"])[:24], [])
        yield state


@pytest.fixture
def given(tmp_path: Path) -> Input:
    path = tmp_path / "q.jsonl"
    rows: list[dict[str, Any]] = [{"id": f"r{n}", "question": f"Question {n}"} for n in range(20)]
    rows[7] = {"id": "r7", "image": "gone.png", "question": "Question 7"}
    rows[9] = {"id": "r9"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_input(path)


def spec(server: Server, *changes: str) -> ModelSpec:
    fast = ("backoff=0", "concurrency=1", "attempts=1", *changes)
    return ModelSpec(model=server.url, endpoint_model="m", changes=fast)


def run(server: Server, given: Input, out: Path, *changes: str, **fields: Any) -> Account:
    return predict(spec(server, *changes), given, out, progress=lambda *_: None, **fields)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def plain(path: Path) -> list[dict[str, Any]]:
    """Without what differs from run to run."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read(path)]


def test_every_row_is_a_line_in_order(server: Server, given: Input, tmp_path: Path) -> None:
    account = run(server, given, tmp_path / "out.jsonl")
    assert account == Account(rows=20, failed=2, skipped=0, whole=True)
    lines = read(tmp_path / "out.jsonl")
    assert [line["id"] for line in lines] == [f"r{n}" for n in range(20)]
    assert len({tuple(line) for line in lines}) == 1  # the same fields
    assert lines[3]["answer"] == "Question 3"
    assert "gone.png" in lines[7]["error"]
    assert "missing" in lines[9]["error"]
    assert lines[7]["answer"] is None


def test_the_same_command_goes_on(server: Server, given: Input, tmp_path: Path) -> None:
    server.behave = lambda number, _: "ok" if number <= 6 else "401"
    with pytest.raises(EndpointError):
        run(server, given, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    asked = len(server.bodies)
    server.behave = lambda *_: "ok"
    run(server, given, tmp_path / "out.jsonl")
    run(server, given, tmp_path / "whole.jsonl")
    assert plain(tmp_path / "out.jsonl") == plain(tmp_path / "whole.jsonl")
    assert len(server.bodies) == asked + (18 - 6) + 18
    run(server, given, tmp_path / "out.jsonl")  # what failed is tried again, nothing else
    assert len(server.bodies) == asked + (18 - 6) + 18
    run(server, given, tmp_path / "out.jsonl", "max_tokens=3")
    assert len(server.bodies) == asked + (18 - 6) + 18 + 18


def test_the_last_part_joins_all(server: Server, given: Input, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = run(server, given, out, shard=Shard(number=1, of=2))
    assert not first.whole
    assert not out.exists()
    second = run(server, given, out, shard=Shard(number=2, of=2))
    assert second == Account(rows=20, failed=2, skipped=0, whole=True)
    assert len(server.bodies) == 18
    run(server, given, tmp_path / "whole.jsonl")
    assert plain(out) == plain(tmp_path / "whole.jsonl")


def test_parts_of_a_name_with_brackets_are_found(
    server: Server, given: Input, tmp_path: Path
) -> None:
    out = tmp_path / "scan[1].jsonl"
    run(server, given, out, shard=Shard(number=1, of=2))
    asked = len(server.bodies)
    assert 0 < asked < 18
    assert run(server, given, out).whole
    assert len(server.bodies) == 18


@pytest.mark.parametrize("change", ["volumes=refuse", " volumes = refuse", "volumes='refuse'"])
def test_whether_volumes_are_shown_is_asked_of_the_config(server: Server, change: str) -> None:
    assert spec(server).reads_volumes()
    assert not spec(server, change).reads_volumes()


def test_an_endpoint_without_its_model_is_told_the_option() -> None:
    spec = ModelSpec(model="http://127.0.0.1:8000/v1")
    for ask in (spec.identity, spec.reads_volumes, lambda: spec.open(Path())):
        with pytest.raises(ConfigError, match="Pass --endpoint-model"):
            ask()


def test_boxes_in_pixels_and_in_mm(server: Server, tmp_path: Path) -> None:
    server.reply = lambda _: ("a {<0><25><50><75>} b {<0><0><0><50><50><100>}", [])
    slice_ = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    slice_.PixelSpacing = [0.5, 2.0]  # between rows, between columns
    slice_.save_as(tmp_path / "ct.dcm")
    affine = np.diag([-1.5, -2.0, 4.0, 1.0])
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((10, 20, 6), dtype=np.int16), affine), tmp_path / "v.nii.gz"
    )
    rows = [
        {"id": "flat", "image": "ct.dcm", "question": "Where?"},
        {"id": "deep", "volume": "v.nii.gz", "question": "Where?"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(server, read_input(tmp_path / "q.jsonl"), tmp_path / "out.jsonl")
    flat, deep = read(tmp_path / "out.jsonl")
    (box,) = flat["boxes"]  # 128 x 128
    assert box["pixels"] == [0, 32, 64, 96]
    assert box["mm"] == [0, 16, 128, 48]
    assert box["size_mm"] == [128, 32]
    corner = [float(x) for x in slice_.ImagePositionPatient]  # LPS of the first pixel's centre
    x, y = corner[0] + 31.5 * 2.0, corner[1] + 63.5 * 0.5
    assert box["centre_ras_mm"] == pytest.approx([-x, -y, corner[2]])
    _, box = deep["boxes"]
    assert box["pixels"] == [0, 0, 0, 5, 10, 6]
    assert box["mm"] == [0, 0, 0, 7.5, 20, 24]
    assert len(box["centre_ras_mm"]) == 3


def test_two_workers_of_a_ray_cluster_give_the_same_lines(
    server: Server, given: Input, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason='needs ray: pip install "medloupe[ray]"')
    run(server, given, tmp_path / "one.jsonl")
    done = len(server.bodies)
    account = run(server, given, tmp_path / "two.jsonl", engine="ray", workers=2)
    assert account == Account(rows=20, failed=2, skipped=0, whole=True)
    assert plain(tmp_path / "two.jsonl") == plain(tmp_path / "one.jsonl")
    assert len(server.bodies) == 2 * done


def test_what_workers_were_answered_before_the_endpoint_stopped_is_kept(
    server: Server, given: Input, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason='needs ray: pip install "medloupe[ray]"')
    server.behave = lambda number, _: "ok" if number <= 6 else "401"
    out = tmp_path / "out.jsonl"
    with pytest.raises(EndpointError, match="401"):
        run(server, given, out, engine="ray", workers=1)
    kept = read(tmp_path / "out.answers.jsonl")
    assert sum("answer" in line for line in kept) == 6
    asked = len(server.bodies)
    server.behave = lambda *_: "ok"
    assert run(server, given, out).whole
    assert len(server.bodies) == asked + 18 - 6


def test_rows_do_not_go_to_a_cluster_elsewhere_without_a_word(tmp_path: Path) -> None:
    from medloupe.cli.data import Engine
    from medloupe.cli.predict import predict as verb

    (tmp_path / "q.jsonl").write_text('{"id": "a", "question": "x"}\n')
    with pytest.raises(ConfigError, match=r"Ray cluster at 8\.8\.8\.8:6379.*--permission"):
        verb(
            "hf:model",
            tmp_path / "q.jsonl",
            tmp_path / "out.jsonl",
            engine=Engine.ray,
            address="8.8.8.8:6379",
        )


def test_images_are_not_sent_elsewhere_without_a_word(tmp_path: Path) -> None:
    from medloupe.data.dataset import DatasetCard
    from medloupe.recipes.answering import foreign_config, refuse_leaving

    url = "http://127.0.0.1:8000/v1"
    here = foreign_config(url, endpoint_model="m")
    away = foreign_config(url, endpoint_model="m", changes=["local=false"])
    refuse_leaving(here, None, "")
    with pytest.raises(ConfigError, match="--permission"):
        refuse_leaving(away, None, "")
    refuse_leaving(away, None, "phantoms only")
    card = DatasetCard(name="mimic_cxr")
    with pytest.raises(SynthesisError, match="agreement keeps it here"):
        refuse_leaving(away, card, "we may")
    refuse_leaving(away, card, "MIMIC-CXR: the provider keeps nothing")
