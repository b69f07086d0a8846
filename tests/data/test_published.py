"""What every published data set does after reading: images, splits, leaks, counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from medloupe.data.builders import turn
from medloupe.data.dataset import DatasetCard, Progress, load_dataset
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.errors import ConfigError, DataError, LeakError
from medloupe.types import ImageRef, Record, Split


class TinyConfig(PublishedConfig):
    """Every PNG below the folder is a record; the part of its name before "-" is the patient."""

    made: bool = False
    split: dict[str, Split] = Field(default_factory=dict)

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        paths = sorted(source.glob("*.png"))
        progress("rows", len(paths), len(paths))
        folder = source
        if self.made:
            folder = out
            (out / "images").mkdir(parents=True)
            for path in paths:
                (out / "images" / path.name).write_bytes(path.read_bytes())
        records = [
            Record(
                id=path.stem,
                patient_id=path.stem.partition("-")[0],
                images=(ImageRef(uri=f"images/{path.name}" if self.made else path.name),),
                split=self.split.get(path.stem),
            )
            for path in paths
        ]
        return Reading(
            card=DatasetCard(name="tiny", published={"images": 6}),
            images=folder,
            conversations=[turn(r, task="t", question="q?", answer="a") for r in records],
            records=records,
            found={"images": len(records), "left out": 3},
        )


@pytest.fixture
def source(png: Any, tmp_path: Path) -> Path:
    for i in range(6):
        png(f"source/p{i % 3}-{i}.png", seed=i)
    return tmp_path / "source"


def test_files_are_copied_hashed_split_by_patient_and_counted(
    source: Path, tmp_path: Path, progress: Any
) -> None:
    made = TinyConfig().prepare(tmp_path / "out", root=source, progress=progress)
    assert made.card.partial == ""
    assert made.card.counts == {
        "images": 6,
        "left out": 3,
        "conversations": 6,
        "records": 6,
        "patients": 3,
    }
    split_of: dict[str | None, set[str | None]] = {}
    for row in (*made.conversations, *made.records):
        ref = row.images[0]
        assert ref.uri.startswith("images/p")
        assert (made.root / ref.uri).read_bytes() == (source / Path(ref.uri).name).read_bytes()
        assert ref.sha256 is not None
        split_of.setdefault(row.patient_id, set()).add(row.split)
    assert all(len(splits) == 1 and None not in splits for splits in split_of.values())
    assert load_dataset(made.root) == made


def test_a_part_of_it_is_called_partial_and_too_much_is_refused(
    source: Path, tmp_path: Path, png: Any, progress: Any
) -> None:
    (source / "p0-0.png").unlink()
    made = TinyConfig().prepare(tmp_path / "out", root=source, progress=progress)
    assert made.card.partial == "5 of 6 images"
    for i in range(7):
        png(f"source/q-{i}.png", seed=50 + i)
    with pytest.raises(DataError, match="12 images are here, tiny was published with 6"):
        TinyConfig().prepare(tmp_path / "more", root=source, progress=progress)
    assert not (tmp_path / "more").exists()


def test_references_stay_where_they_lie(source: Path, tmp_path: Path, progress: Any) -> None:
    config = TinyConfig(images="reference")
    made = config.prepare(tmp_path / "out", root=source, progress=progress)
    assert {Path(row.images[0].uri) for row in made.records} == set(source.glob("*.png"))
    assert not (made.root / "images").exists()


def test_files_made_below_the_data_set_keep_their_name(
    source: Path, tmp_path: Path, progress: Any
) -> None:
    made = TinyConfig(made=True).prepare(tmp_path / "out", root=source, progress=progress)
    assert made.records[0].images[0].uri == "images/p0-0.png"
    assert len(list((made.root / "images").iterdir())) == 6


def test_a_shared_patient_or_image_is_a_leak_unless_allowed(
    source: Path, tmp_path: Path, progress: Any
) -> None:
    split: dict[str, Split] = {"p0-0": "train", "p0-3": "test"}
    with pytest.raises(LeakError, match="patient 'p0' is in train"):
        TinyConfig(split=split).prepare(tmp_path / "out", root=source, progress=progress)
    allowed = TinyConfig(split=split, allow_leak=True)
    made = allowed.prepare(tmp_path / "out", root=source, progress=progress)
    assert made.card.leak == "1 patients are in more than one split"
    (source / "p1-1.png").write_bytes((source / "p2-2.png").read_bytes())
    split = {"p1-1": "train", "p2-2": "test"}
    with pytest.raises(LeakError):
        TinyConfig(split=split).prepare(tmp_path / "twin", root=source, progress=progress)
    allowed = TinyConfig(split=split, allow_leak=True)
    made = allowed.prepare(tmp_path / "twin", root=source, progress=progress)
    assert made.card.leak == "1 patients and 1 images are in more than one split"


def test_the_folder_has_to_be_named(tmp_path: Path, progress: Any) -> None:
    config = TinyConfig.model_construct()
    for root in (None, tmp_path / "gone"):
        with pytest.raises(ConfigError, match="folder"):
            config.prepare(tmp_path / "out", root=root, progress=progress)
