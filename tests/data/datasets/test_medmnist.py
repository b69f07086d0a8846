"""MedMNIST: a real part of PneumoniaMNIST, and small files in the published form of the others."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medloupe.data.datasets import medmnist
from medloupe.data.datasets.base import DatasetConfig
from medloupe.data.datasets.medmnist import MEMBERS, counts_for
from medloupe.errors import ConfigError, DataError, LeakError
from medloupe.imaging.read import read_image

PARTS = ("train", "val", "test")


def config(**fields: Any) -> DatasetConfig:
    return DatasetConfig.parse({"name": "medmnist", **fields})


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Writes `<flag>.npz` with a few random images in each part."""

    def write(flag: str, *, size: int = 28, count: int = 2, **arrays: Any) -> Path:
        member = MEMBERS[flag]
        rng = np.random.default_rng(0)
        edges = (size,) * (3 if member.volume else 2) + ((3,) if member.channels == 3 else ())
        columns = len(member.labels) if member.multi_label else 1
        top = 2 if member.multi_label else len(member.labels)
        content: dict[str, Any] = {}
        for part in PARTS:
            content[f"{part}_images"] = rng.integers(0, 256, (count, *edges), dtype=np.uint8)
            content[f"{part}_labels"] = rng.integers(0, top, (count, columns), dtype=np.uint8)
        content |= arrays
        kept = {name: array for name, array in content.items() if array is not None}
        name = f"{flag}.npz" if size == 28 else f"{flag}_{size}.npz"
        np.savez_compressed(tmp_path / name, **kept)
        return tmp_path

    return write


def test_the_table_has_the_published_sets() -> None:
    assert sum(not member.volume for member in MEMBERS.values()) == 12
    assert sum(member.volume for member in MEMBERS.values()) == 6
    # Totals of the paper's abstract, before blank images were taken out of five sets.
    images = sum(sum(m.older or m.counts) for m in MEMBERS.values() if not m.volume)
    volumes = sum(sum(m.older or m.counts) for m in MEMBERS.values() if m.volume)
    assert (images, volumes) == (708069, 9998)
    organs = MEMBERS["organmnist3d"]
    assert counts_for(organs, (972, 161, 610)) == (972, 161, 610)
    assert counts_for(organs, (971, 161, 610)) == counts_for(organs, (5, 5, 5)) == (971, 161, 610)
    assert all(len(set(member.labels)) == len(member.labels) for member in MEMBERS.values())


def test_the_real_part_of_pneumoniamnist_is_read(
    shared_data: Path, tmp_path: Path, progress: Any
) -> None:
    root = shared_data / "pneumoniamnist"
    made = config(allow_leak=True).prepare(tmp_path, root=root, progress=progress)
    assert made.card.partial == (
        "3,882 of 4,708 pneumoniamnist train images, 524 of 524 pneumoniamnist validation images, "
        "624 of 624 pneumoniamnist test images"
    )
    assert made.card.leak == "8 images are in more than one split"
    told = Counter((row.split, row.labels[0]) for row in made.records)
    assert (told["train", "normal"], told["train", "pneumonia"]) == (388, 3494)
    assert (told["test", "normal"], told["test", "pneumonia"]) == (234, 390)
    with np.load(root / "pneumoniamnist.npz") as arrays:
        for index in (0, 100, 623):
            path = made.root / f"images/pneumoniamnist/test/{index:06d}.png"
            assert np.array_equal(np.asarray(Image.open(path)), arrays["test_images"][index])
    row = made.conversations[0]
    assert row.options == ("normal", "pneumonia")
    assert row.answer is not None
    assert row.answer.text in row.options
    assert row.question.endswith("Options: normal, pneumonia.")


def test_equal_images_in_two_parts_have_to_be_allowed(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    same = np.ones((2, 28, 28), np.uint8)
    root = source("breastmnist", train_images=same, test_images=same)
    with pytest.raises(LeakError, match="allow_leak"):
        config().prepare(tmp_path / "out", root=root, progress=progress)


@pytest.mark.parametrize("flag", sorted(MEMBERS))
def test_every_set_is_read(source: Any, tmp_path: Path, progress: Any, flag: str) -> None:
    root = source(flag)
    made = config(subsets=[flag]).prepare(tmp_path / "out", root=root, progress=progress)
    member = MEMBERS[flag]
    assert len(made.conversations) == len(made.records) == 6
    assert {row.split for row in made.records} == {"train", "validation", "test"}
    assert made.card.licence == member.licence
    assert made.card.partial.startswith(f"2 of {member.counts[0]:,} {flag} train images")
    with np.load(root / f"{flag}.npz") as arrays:
        for record, conversation in zip(made.records, made.conversations, strict=True):
            part = {"train": "train", "validation": "val", "test": "test"}[str(record.split)]
            index = int(record.id[-6:])
            image = read_image(made.root / record.images[0].uri, kind=record.images[0].kind)
            stored = arrays[f"{part}_images"][index]
            shown = image.array if member.volume or member.channels == 3 else image.array[0]
            assert np.array_equal(shown, stored)
            numbers = arrays[f"{part}_labels"][index]
            named = [member.labels[i] for i in numbers] if not member.multi_label else None
            marked = [name for name, on in zip(member.labels, numbers, strict=False) if on]
            assert list(record.labels) == (named if named is not None else marked)
            assert conversation.answer is not None
            for label in record.labels:
                assert label in conversation.answer.text


def test_a_larger_size_is_another_file_and_volumes_know_their_spacing(
    source: Any, tmp_path: Path, progress: Any
) -> None:
    root = source("nodulemnist3d", size=64, count=1)
    made = config(size=64).prepare(tmp_path / "out", root=root, progress=progress)
    assert made.card.version == "2-64"
    path = made.root / made.records[0].images[0].uri
    assert read_image(path, kind="volume").spacing == (28 / 64,) * 3
    assert json.loads(path.with_suffix(".json").read_text()) == {"spacing": [0.4375] * 3}
    with pytest.raises(DataError, match="no set of MedMNIST with 28 pixels"):
        config().prepare(tmp_path / "small", root=root, progress=progress)
    with pytest.raises(ConfigError, match="not published with 128 pixels"):
        config(size=128, subsets=["nodulemnist3d"]).prepare(
            tmp_path / "large", root=root, progress=progress
        )


def test_images_are_read_one_at_a_time(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root = source("breastmnist", count=3)
    asked: list[int] = []
    with medmnist._member_file(root / "breastmnist.npz", "train_images") as stream:
        read = stream.read

        def counting(length: int = -1) -> bytes:
            asked.append(length)
            return read(length)

        monkeypatch.setattr(stream, "read", counting)
        images = medmnist._images(stream, root, "train_images", (3, 28, 28))
        next(images)
        assert max(asked) <= 28 * 28


@pytest.mark.parametrize(
    ("arrays", "field", "said"),
    [
        ({"train_labels": np.array([[2], [0]], np.uint8)}, "train_labels", "not one of 0 to 1"),
        ({"train_labels": np.array([0, 0], np.uint8)}, "train_labels", "has the shape"),
        ({"val_labels": None}, None, "no array 'val_labels'"),
        ({"val_images": np.zeros((2, 28, 27), np.uint8)}, "val_images", "has the shape"),
        ({"val_images": np.zeros((3, 28, 28), np.uint8)}, "val_images", "has the shape"),
        ({"test_images": np.zeros((2, 28, 28))}, "test_images", "is float64, not uint8"),
        ({"test_labels": np.array([[{}], [{}]])}, "test_labels", "cannot be read: Object arrays"),
    ],
)
def test_a_faulty_array_is_named(
    source: Any, tmp_path: Path, progress: Any, arrays: Any, field: str | None, said: str
) -> None:
    root = source("breastmnist", **arrays)
    with pytest.raises(DataError, match=said) as error:
        config().prepare(tmp_path / "out", root=root, progress=progress)
    fault = error.value.fault
    assert (fault.file, fault.field) == (str(root / "breastmnist.npz"), field)


def test_a_broken_or_missing_file_is_named(source: Any, tmp_path: Path, progress: Any) -> None:
    path = source("breastmnist") / "breastmnist.npz"
    whole = path.read_bytes()
    with np.load(path) as arrays:
        np.savez(path, **arrays)  # unpacked: a changed pixel shows in the checksum alone
    plain = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("train_images.npy").header_offset
    plain[start + 400] ^= 1
    packed = bytearray(whole)
    packed[start + 300 : start + 400] = bytes(100)
    for data in (b"", whole[:200], bytes(packed), bytes(plain)):
        path.write_bytes(data)
        with pytest.raises(DataError, match="cannot be read") as error:
            config().prepare(tmp_path / "out", root=tmp_path, progress=progress)
        assert error.value.fault.file == str(path)
    with pytest.raises(DataError, match="no such file"):
        config(subsets=["octmnist"]).prepare(tmp_path / "out", root=tmp_path, progress=progress)
    with pytest.raises(ConfigError, match="did you mean 'octmnist'"):
        config(subsets=["octmnst"]).prepare(tmp_path / "out", root=tmp_path, progress=progress)


@pytest.mark.parametrize("rows", [1, 3])
def test_an_array_that_is_not_as_long_as_its_header_says_is_named(
    source: Any, tmp_path: Path, progress: Any, rows: int
) -> None:
    path = source("breastmnist") / "breastmnist.npz"
    with np.load(path) as arrays:
        content = dict(arrays)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in content.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            header = buffer.getvalue()[: -array.nbytes]
            wrong = name == "val_images"
            body = bytes(28 * 28 * rows) if wrong else array.tobytes()
            archive.writestr(f"{name}.npy", header + body)
    with pytest.raises(DataError, match="cannot be read") as error:
        config().prepare(tmp_path / "out", root=tmp_path, progress=progress)
    assert error.value.fault.field == "val_images"


def test_more_than_published_is_refused(source: Any, tmp_path: Path, progress: Any) -> None:
    images = np.random.default_rng(1).integers(0, 256, (79, 28, 28), dtype=np.uint8)
    labels = np.zeros((79, 1), np.uint8)
    root = source("breastmnist", val_images=images, val_labels=labels)
    with pytest.raises(DataError, match="79 breastmnist validation images are here"):
        config().prepare(tmp_path / "out", root=root, progress=progress)
