"""Shards are read as they were written, from any place, from any sample on, and damage is named."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from medloupe.data.check import check_dataset
from medloupe.data.convert import convert, unpack
from medloupe.data.dataset import DatasetCard, load_dataset, write_dataset
from medloupe.data.shards import ShardedDataset, ShardOrder
from medloupe.errors import ConfigError, DataError, ImageError
from medloupe.imaging.read import read_ref
from medloupe.types import Box, Conversation, ImageRef, Message, Record, Text

PATIENTS = 12


def conversation(name: str, ref: ImageRef, **fields: Any) -> Conversation:
    return Conversation(
        id=name,
        messages=(
            Message(role="user", content=(ref, Text(text=f"What is {name}? 病变"))),
            Message(role="assistant", content=(Text(text="a square"),)),
        ),
        **fields,
    )


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Twelve patients with two questions an image, one CT slice, an NPY volume, records with a prior."""
    root = tmp_path / "prepared"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, records = [], []
    for number in range(PATIENTS):
        uri = f"images/{number}.png"
        Image.fromarray(rng.integers(0, 255, (60, 50), dtype=np.uint8)).save(root / uri)
        split = ("train", "train", "test")[number % 3]
        common: dict[str, Any] = {"patient_id": f"p{number}", "split": split}
        ref = ImageRef(uri=uri)
        rows += [conversation(f"{number}-{k}", ref, **common) for k in ("a", "b")]
        box = Box(label="square", x1=1, y1=2, x2=9, y2=9)
        records.append(Record(id=f"r{number}", images=(ref,), boxes=(box,), **common))
        records.append(Record(id=f"s{number}", prior=f"r{number}", **common))
    shutil.copy(str(get_testdata_file("CT_small.dcm")), root / "ct.dcm")
    np.save(root / "volume.npy", rng.normal(size=(3, 8, 9)).astype(np.float32))
    (root / "volume.json").write_text(json.dumps({"spacing": [5.0, 0.5, 0.5]}))
    ct = ImageRef(uri="ct.dcm", modality="CT")
    volume = ImageRef(uri="volume.npy", kind="volume")
    rows.append(conversation("ct", ct, patient_id="ct", split="train"))
    rows.append(conversation("volume", volume, patient_id="v", split="validation"))
    write_dataset(root, DatasetCard(name="tiny", licence="CC0"), rows, records)
    return root


@pytest.fixture
def shards(prepared: Path, tmp_path: Path) -> Path:
    convert(prepared, tmp_path / "shards", shard_bytes=12_000, workers=1)
    return tmp_path / "shards"


def test_every_row_and_every_image_comes_back(prepared: Path, shards: Path) -> None:
    source, found = load_dataset(prepared), ShardedDataset(shards)
    assert len(found.shards) > 4
    assert len(found) == len(source.conversations)
    wanted = {row.id: row for row in source.conversations}
    for row in found:
        assert row.messages[0].text == wanted[row.id].messages[0].text
        (ref,), (original,) = row.images, wanted[row.id].images
        image, reference = found.image(ref), read_ref(original, prepared)
        assert np.array_equal(image.array, reference.array)
        assert (image.units, image.spacing) == (reference.units, reference.spacing)
    assert {r.id for r in found.records()} == {r.id for r in source.records}
    assert found.card.licence == "CC0"
    assert found.fingerprint == source.fingerprint()
    assert found[-1] == found[len(found) - 1]
    assert found[2:4] == [found[2], found[3]]
    with pytest.raises(IndexError):
        found[len(found)]


def test_a_split_is_read_alone(shards: Path) -> None:
    test = ShardedDataset(shards, split="test")
    assert len(test) == 8
    assert {row.split for row in test} == {"test"}
    assert all(s.name.startswith("test") for s in test.shards)


def test_unpacked_by_tar_a_shard_is_a_data_set(shards: Path, tmp_path: Path) -> None:
    """With the system's own tar: nobody is locked in."""
    for name in ("train-00001", "test-00000"):
        out = tmp_path / name
        out.mkdir()
        subprocess.run(["tar", "xf", str(shards / f"{name}.tar"), "-C", str(out)], check=True)
        assert check_dataset(out, workers=1).faults == ()


def test_unpack_gives_the_data_set_back(prepared: Path, shards: Path, tmp_path: Path) -> None:
    back = unpack(shards, tmp_path / "back")
    source = load_dataset(prepared)
    key = {row.id: row.messages for row in source.conversations}
    assert {row.id for row in back.conversations} == set(key)
    assert check_dataset(tmp_path / "back", workers=1).faults == ()
    assert (tmp_path / "back/volume.json").read_bytes() == (prepared / "volume.json").read_bytes()


def test_the_same_over_memory_and_file_urls(prepared: Path, shards: Path) -> None:
    convert(prepared, "memory://tests/shards", shard_bytes=12_000, workers=2)
    remote, local = ShardedDataset("memory://tests/shards"), ShardedDataset(f"file://{shards}")
    assert list(remote) == list(local)
    (ref,) = remote[3].images
    assert np.array_equal(remote.image(ref).array, local.image(ref).array)
    assert remote.verify() == local.verify() == []
    for info in local.shards:
        name = f"{info.name}.tar"
        there = fsspec.filesystem("memory").cat(f"/tests/shards/{name}")
        assert there == (shards / name).read_bytes()
    with pytest.raises(ConfigError, match="nosuch"):
        ShardedDataset("nosuch://x")


def test_the_bytes_of_a_shard_do_not_depend_on_the_day(prepared: Path, shards: Path) -> None:
    with tarfile.open(shards / "train-00000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.uname, member.mode) == (0, 0, "", 0o644)


def test_a_stream_goes_on_from_any_sample(shards: Path) -> None:
    data = ShardedDataset(shards, split="train")
    straight = [row.id for _, row in itertools.islice(data.stream(seed=4), 50)]
    for start in (0, 1, 16, 17, 18, 33, 40):
        resumed = list(itertools.islice(ShardedDataset(shards, split="train").stream(4, start), 10))
        assert [number for number, _ in resumed] == list(range(start, start + 10))
        assert [row.id for _, row in resumed] == straight[start : start + 10]
    size = len(data)
    assert sorted(straight[:size]) == sorted(straight[size : 2 * size])
    assert len(set(straight[:size])) == size
    assert straight[:size] != straight[size : 2 * size]


@pytest.mark.parametrize(
    ("sizes", "group"), [((1,), 4), ((5, 0, 3, 9, 1, 7), 2), ((3,) * 10, 4), ((4, 4), 1)]
)
def test_every_row_once_an_epoch_and_few_shards_at_a_time(
    sizes: tuple[int, ...], group: int
) -> None:
    order, total = ShardOrder(sizes, 3, group=group), sum(sizes)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    for epoch in range(3):
        rows = [order[epoch * total + k] for k in range(total)]
        assert sorted(rows) == list(range(total))
        shards = [int(shard_of[row]) for row in rows]
        open_at_once = max(
            len({s for s in shards if shards.index(s) <= k <= total - 1 - shards[::-1].index(s)})
            for k in range(total)
        )
        assert open_at_once <= group


def test_epochs_of_one_shard_differ() -> None:
    order = ShardOrder((50,), 1)
    epochs = [[order[epoch * 50 + k] for k in range(50)] for epoch in range(3)]
    assert len({tuple(rows) for rows in epochs}) == 3


class TestDamage:
    def test_a_shard_that_is_cut_off(self, shards: Path) -> None:
        path = shards / "train-00001.tar"
        path.write_bytes(path.read_bytes()[:-600])
        data = ShardedDataset(shards)
        first = data.shards[0].conversations
        assert data[first - 1].id
        with pytest.raises(DataError, match=r"train-00001\.tar.*the index says.*medloupe convert"):
            data[first]
        (fault,) = data.verify()
        assert "train-00001.tar" in str(fault)

    def test_a_shard_that_is_missing(self, shards: Path) -> None:
        (shards / "test-00000.tar").unlink()
        with pytest.raises(DataError, match=r"test-00000\.tar.*is missing.*Copy it again"):
            list(ShardedDataset(shards, split="test"))

    def test_a_byte_of_an_image(self, shards: Path) -> None:
        data = ShardedDataset(shards)
        (ref,) = data[0].images
        index = json.loads((shards / "train-00000.json").read_text())
        first, length = index["files"][ref.uri.partition("/")[2]]
        path = shards / "train-00000.tar"
        content = bytearray(path.read_bytes())
        content[first + length // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train-00000\.tar.*damaged.*SHA-256"):
            data.image(ref)
        (fault,) = data.verify()
        assert "was changed" in fault.rule

    def test_a_byte_of_a_row(self, shards: Path) -> None:
        index = json.loads((shards / "train-00000.json").read_text())
        path = shards / "train-00000.tar"
        content = bytearray(path.read_bytes())
        content[index["conversations"][1][0]] = ord("x")
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train-00000\.tar.*cannot be read"):
            ShardedDataset(shards)[1]

    def test_no_index_and_a_broken_one(self, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="index is missing"):
            ShardedDataset(tmp_path / "nothing")
        (shards / "train-00000.json").write_text("{")
        with pytest.raises(DataError, match=r"train-00000\.json.*is not JSON"):
            ShardedDataset(shards)[0]
        (shards / "index.json").write_text('{"format": 1}')
        with pytest.raises(ConfigError, match=r"index\.json.*card"):
            ShardedDataset(shards)

    def test_an_image_of_another_set(self, shards: Path) -> None:
        data = ShardedDataset(shards)
        with pytest.raises(DataError, match="in no shard of this set"):
            data.image(ImageRef(uri="images/0.png"))
        with pytest.raises(DataError, match=r"holds no image 'images/x\.png'"):
            data.image(ImageRef(uri="train-00000/images/x.png"))

    def test_a_file_that_is_no_image_is_named_with_its_shard(self, tmp_path: Path) -> None:
        root = tmp_path / "prepared"
        root.mkdir()
        (root / "a.png").write_bytes(b"<html>")
        rows = [conversation("a", ImageRef(uri="a.png"), split="train")]
        write_dataset(root, DatasetCard(name="x"), rows)
        convert(root, tmp_path / "out", workers=1)
        data = ShardedDataset(tmp_path / "out")
        with pytest.raises(ImageError, match=r"train-00000\.tar/a\.png"):
            data.image(data[0].images[0])
