"""A conversion gives the same bytes on every engine, and an interrupted one loses and repeats nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from medloupe.data import convert as module
from medloupe.data.convert import convert
from medloupe.data.shards import ShardedDataset
from medloupe.errors import DataError, MissingExtraError

SIZE = 6_000


@pytest.fixture
def prepared(folder: Any, row: Any, png: Any) -> Path:
    """Twenty patients, each with an image of its own and two rows; one row without image or split."""
    rows = []
    for number in range(20):
        uri = png(f"images/{number}.png", seed=number)
        split = ("train", "train", "validation", "test")[number % 4]
        rows += [row(f"{number}-{k}", uri, split=split, patient_id=f"p{number}") for k in "ab"]
    root: Path = folder(*rows, row("text"), licence="CC0")
    return root


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def times(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("*.tar")}


def test_workers_do_not_change_a_byte(prepared: Path, tmp_path: Path) -> None:
    one = convert(prepared, tmp_path / "one", shard_bytes=SIZE, workers=1)
    two = convert(prepared, tmp_path / "two", shard_bytes=SIZE, workers=2)
    assert one == two
    assert (one.made, one.kept) == (len(one.shards.shards), 0)
    assert one.made > 4
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert sum(s.conversations for s in one.shards.shards) == 41
    assert {s.split for s in one.shards.shards} == {"train", "validation", "test", None}


def test_what_was_finished_is_not_made_again(prepared: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    total = convert(prepared, whole, shard_bytes=SIZE, workers=1).made

    class StopError(Exception):
        pass

    def stop(what: str, done: int, number: int) -> None:
        if done == 3:
            raise StopError

    with pytest.raises(StopError):
        convert(prepared, out, shard_bytes=SIZE, workers=1, progress=stop)
    assert not (out / "index.json").exists()
    with pytest.raises(DataError, match="interrupted goes on with the same command"):
        ShardedDataset(out)
    finished = times(out)
    assert len(finished) == 3
    (out / ".train-00004.tar.part").write_bytes(b"half a shard")  # as a killed process leaves it
    done = convert(prepared, out, shard_bytes=SIZE, workers=2)
    assert (done.made, done.kept) == (total - 3, 3)
    assert {name: times(out)[name] for name in finished} == finished
    again = convert(prepared, out, shard_bytes=SIZE, workers=2)
    assert (again.made, again.kept) == (0, total)
    assert hashes(out) == hashes(whole)


def test_a_lost_or_damaged_shard_is_made_again(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(prepared, out, shard_bytes=SIZE, workers=1)
    before = hashes(out)
    (out / "train-00001.tar").unlink()
    (out / "test-00000.tar").write_bytes(b"")
    assert convert(prepared, out, shard_bytes=SIZE, workers=1).made == 2
    assert hashes(out) == before


def test_a_folder_with_other_shards_is_refused(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(prepared, out, shard_bytes=SIZE, workers=1)
    with pytest.raises(DataError, match="other rows, or of another shard size"):
        convert(prepared, out, shard_bytes=4 * SIZE, workers=1)
    lines = (prepared / "conversations.jsonl").read_text().replace("lesion", "tumour")
    (prepared / "conversations.jsonl").write_text(lines)
    with pytest.raises(DataError, match="other rows"):
        convert(prepared, out, shard_bytes=SIZE, workers=1)


def test_a_missing_image_is_named_before_anything_is_written(
    prepared: Path, tmp_path: Path
) -> None:
    (prepared / "images/7.png").unlink()
    with pytest.raises(DataError, match=r"7\.png.*row '7-a'.*no such image"):
        convert(prepared, tmp_path / "out", shard_bytes=SIZE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_changed_image_is_named_and_the_rest_is_kept(
    workers: int, folder: Any, row: Any, png: Any, tmp_path: Path
) -> None:
    rows = []
    for number in range(16):
        uri = png(f"{number}.png", seed=number)
        made = row(f"{number}", uri, split="train", patient_id=f"p{number}")
        digest = hashlib.sha256((tmp_path / uri).read_bytes()).hexdigest()
        made["messages"][0]["content"][0]["sha256"] = digest
        rows.append(made)
    root = folder(*rows)
    content = (root / "9.png").read_bytes()
    (root / "9.png").write_bytes(content[:-20] + bytes(20))
    with pytest.raises(DataError, match=r"9\.png.*row '9'.*not the one the row means"):
        convert(root, tmp_path / "out", shard_bytes=SIZE, workers=workers)
    (root / "9.png").write_bytes(content)
    done = convert(root, tmp_path / "out", shard_bytes=SIZE, workers=workers)
    assert done.kept >= 1
    assert ShardedDataset(tmp_path / "out").verify() == []


def test_a_changed_image_is_refused(folder: Any, row: Any, png: Any, tmp_path: Path) -> None:
    rows = row("a", png("a.png"), split="train")
    rows["messages"][0]["content"][0]["sha256"] = "0" * 64
    with pytest.raises(DataError, match=r"not the one the row means.*Restore"):
        convert(folder(rows), tmp_path / "out", workers=1)


def test_patients_stay_together(prepared: Path, tmp_path: Path) -> None:
    convert(prepared, tmp_path / "out", shard_bytes=1, workers=1)
    data = ShardedDataset(tmp_path / "out")
    assert len(data.shards) == 21
    assert [s.conversations for s in data.shards] == [2] * 20 + [1]
    assert [s.images for s in data.shards] == [1] * 20 + [0]


def test_without_ray_the_extra_is_named(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"medloupe\[ray\]"):
        convert(prepared, tmp_path / "out", engine="ray")


def test_a_ray_cluster_gives_the_same_bytes_and_resumes(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason='needs the ray extra: pip install "medloupe[ray]"')
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    convert(prepared, tmp_path / "local", shard_bytes=SIZE, workers=1)
    out = tmp_path / "ray"
    total = len(times(tmp_path / "local"))
    # two shards are there already
    for name in ("train-00000", "test-00001"):
        for suffix in (".tar", ".json"):
            out.mkdir(exist_ok=True)
            (out / (name + suffix)).write_bytes((tmp_path / f"local/{name}{suffix}").read_bytes())
    kept = times(out)
    done = convert(prepared, out, shard_bytes=SIZE, workers=2, engine="ray")
    assert (done.made, done.kept) == (total - 2, 2)
    assert hashes(out) == hashes(tmp_path / "local")
    assert {name: times(out)[name] for name in kept} == kept


def test_the_plan_names_every_row_once(prepared: Path) -> None:
    data = module.load_dataset(prepared)
    jobs = module.plan(data, module.Store("memory://plan"), SIZE)
    lines = [line for job in jobs for line in job.conversations]
    assert len(lines) == len(set(lines)) == len(data.conversations)
    assert len({job.plan for job in jobs}) == len(jobs)
