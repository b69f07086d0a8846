"""Your own rows: taken in, hashed, split by patient, refused where they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medloupe.config import Config
from medloupe.data.check import check_dataset
from medloupe.data.dataset import load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import ConfigError, DataError, LeakError


class Run(Config):
    """A config that names a data set, as recipes do."""

    data: DatasetConfig


NATIVE = DatasetConfig.parse("native")


def test_rows_are_taken_in_hashed_and_split(
    folder: Any, row: Any, png: Any, tmp_path: Path, progress: Any
) -> None:
    rows = [
        row(f"r{i}", png(f"scans/{i}.png", seed=i, width=5), patient_id=f"p{i // 2}")
        for i in range(60)
    ]
    record = {"id": "case", "patient_id": "p0", "images": [{"uri": "scans/0.png"}]}
    source = folder(*rows, records=[record], licence="CC0-1.0")
    made = NATIVE.prepare(tmp_path / "out", root=source, progress=progress)
    assert load_dataset(tmp_path / "out") == made
    assert made.card.licence == "CC0-1.0"
    assert {row.split for row in made.conversations} == {"train", "validation", "test"}
    assert made.records[0].split == made.conversations[0].split
    assert made.records[0].images[0] == made.conversations[0].images[0]
    assert all(row.images[0].sha256 for row in made.conversations)
    report = check_dataset(tmp_path / "out")
    assert (report.faults, report.notes, report.images) == ((), (), 60)


def test_preparing_in_place_touches_no_image(
    folder: Any, row: Any, png: Any, progress: Any
) -> None:
    root = folder(row("a", png("scans/a.png"), patient_id="p"))
    (root / "dataset.json").unlink()
    before = (root / "scans" / "a.png").stat().st_mtime_ns
    made = NATIVE.prepare(root, root=root, progress=progress)
    assert made.card.name == root.name
    assert (root / "scans" / "a.png").stat().st_mtime_ns == before
    assert made.conversations[0].images[0].uri == "scans/a.png"
    assert check_dataset(root).faults == ()


def test_given_splits_that_leak_are_refused_by_name(
    folder: Any, row: Any, png: Any, tmp_path: Path, progress: Any
) -> None:
    source = folder(
        row("a", png("a.png", seed=1), patient_id="p", split="train"),
        row("b", png("b.png", seed=2), patient_id="p", split="test"),
    )
    with pytest.raises(LeakError, match="patient 'p'"):
        NATIVE.prepare(tmp_path / "out", root=source, progress=progress)
    allowed = DatasetConfig.parse({"name": "native", "allow_leak": True})
    made = allowed.prepare(tmp_path / "out", root=source, progress=progress)
    assert made.card.leak == "1 patients are in more than one split"


def test_two_names_for_one_picture_in_two_splits_are_a_leak(
    folder: Any, row: Any, png: Any, tmp_path: Path, progress: Any
) -> None:
    source = folder(
        row("a", png("a.png", seed=1), patient_id="p", split="train"),
        row("b", png("b.png", seed=1), patient_id="q", split="test"),
    )
    with pytest.raises(LeakError, match=r"image 'a\.png'"):
        NATIVE.prepare(tmp_path / "out", root=source, progress=progress)


def test_faulty_rows_and_missing_images_stop_it(
    folder: Any, row: Any, tmp_path: Path, progress: Any
) -> None:
    source = folder(row("a", "a.png", answer=None))
    with pytest.raises(DataError, match=r"row 'a'.*no answer"):
        NATIVE.prepare(tmp_path / "out", root=source, progress=progress)
    source = folder(row("a", "a.png"))
    with pytest.raises(DataError, match=r"row 'a'.*cannot be read"):
        NATIVE.prepare(tmp_path / "out", root=source, progress=progress)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_the_one_the_row_means_stops_it(
    folder: Any, row: Any, png: Any, tmp_path: Path, progress: Any
) -> None:
    bad = row("a", png("a.png"))
    bad["messages"][0]["content"][0]["sha256"] = "0" * 64
    with pytest.raises(DataError, match="not the one the row means"):
        NATIVE.prepare(tmp_path / "out", root=folder(bad), progress=progress)


def test_an_unknown_data_set_or_field_names_the_near_ones() -> None:
    with pytest.raises(ConfigError, match="unknown data set 'natve'; did you mean 'native'"):
        DatasetConfig.parse("natve")
    with pytest.raises(ConfigError, match="fraction: unknown field; did you mean 'fractions'"):
        Run.parse({"data": {"name": "native", "fraction": {}}})
