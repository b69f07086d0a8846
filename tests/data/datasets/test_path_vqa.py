"""PathVQA: the Hub's parquet files, the authors' folder, and no pickle opened ever."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medloupe.data.dataset import load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import DataError, LeakError

PATH_VQA = DatasetConfig.parse("path_vqa")


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def asked(seed: int, answer: str = "yes") -> dict[str, Any]:
    """A row of the Hub's copy."""
    image = {"bytes": jpeg(seed), "path": None}
    return {"image": image, "question": f"is  {seed} seen?", "answer": answer}


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    """Writes the Hub's folder: three files of a few rows each."""

    def write(**parts: list[dict[str, Any]]) -> Path:
        rows = {
            "train": [asked(1), asked(1, "the histone subunits"), asked(2, "No")],
            "validation": [asked(3)],
            "test": [asked(4)],
            **parts,
        }
        (tmp_path / "hub/data").mkdir(parents=True, exist_ok=True)
        for split, part in rows.items():
            table = pa.Table.from_pylist(part)
            pq.write_table(table, tmp_path / f"hub/data/{split}-00000-of-00001-abc.parquet")
        return tmp_path / "hub"

    return write


@pytest.fixture
def pvqa(tmp_path: Path) -> Any:
    """Writes the authors' folder with JSON in place of the pickles."""

    def write(ending: str = "json") -> Path:
        root = tmp_path / "pvqa"
        for part in ("train", "val", "test"):
            (root / "images" / part).mkdir(parents=True)
            (root / "qas" / part).mkdir(parents=True)
            (root / f"images/{part}/{part}_0422.jpg").write_bytes(jpeg(len(part)))
            row = {"image": f"{part}_0422", "question": "where are they?", "answer": "in the canal"}
            path = root / f"qas/{part}/{part}_qa.{ending}"
            if ending == "json":
                path.write_text(json.dumps([row]))
            else:
                path.write_bytes(pickle.dumps([row]))
        return root

    return write


def test_the_hubs_copy_is_read_and_its_images_written_once(
    hub: Any, tmp_path: Path, progress: Any
) -> None:
    made = PATH_VQA.prepare(tmp_path / "out", root=hub(), progress=progress)
    assert made.card.version == "hub"
    assert made.card.partial == (
        "3 of 19,654 train questions, 1 of 6,259 validation questions, 1 of 6,719 test questions"
    )
    assert [record.split for record in made.records] == ["train", "train", "validation", "test"]
    first, second, third = made.conversations[:3]
    assert first.question == "is 1 seen?"
    assert (first.answer_type, first.options) == ("closed", ("yes", "no"))
    assert (second.answer_type, second.options) == ("open", ())
    assert (third.answer_type, third.options) == ("closed", ("yes", "no"))
    assert first.images == second.images
    assert (made.root / first.images[0].uri).read_bytes() == jpeg(1)
    assert len(list((made.root / "images").rglob("*.jpg"))) == 4
    assert load_dataset(made.root) == made


def test_an_image_in_two_parts_is_a_leak(hub: Any, tmp_path: Path, progress: Any) -> None:
    with pytest.raises(LeakError, match="is in train"):
        PATH_VQA.prepare(tmp_path / "out", root=hub(test=[asked(1)]), progress=progress)


def test_the_authors_folder_is_read_from_json(pvqa: Any, tmp_path: Path, progress: Any) -> None:
    root = pvqa()
    made = PATH_VQA.prepare(tmp_path / "out", root=root, progress=progress)
    assert made.card.version == "pvqa"
    assert made.card.partial.startswith("3 of 4,289 images, 1 of 19,755 train questions")
    assert made.records[1].id == "path_vqa/validation/val_0422"
    assert made.conversations[0].attributes == {"first_word": "where"}
    (root / "images/val/val_0422.jpg").unlink()
    with pytest.raises(DataError, match="not in this copy"):
        PATH_VQA.prepare(tmp_path / "gone", root=root, progress=progress)
    some = DatasetConfig.parse({"name": "path_vqa", "missing_images": "leave_out"})
    assert len(some.prepare(tmp_path / "some", root=root, progress=progress).records) == 2


def test_a_pickle_is_never_opened(pvqa: Any, tmp_path: Path, progress: Any) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    root = pvqa("pkl")
    (root / "qas/train/train_qa.pkl").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(DataError, match=r"is a pickle file.*train_qa\.json beside it") as error:
        PATH_VQA.prepare(tmp_path / "out", root=root, progress=progress)
    assert error.value.fault.file == str(root / "qas/train/train_qa.pkl")
    assert not (tmp_path / "ran").exists()


def test_faults_are_named(hub: Any, tmp_path: Path, progress: Any) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="no copy of PathVQA"):
        PATH_VQA.prepare(out, root=tmp_path, progress=progress)
    for rows, field, said in (
        ([{**asked(1), "answer": " "}], "answer", "missing or empty"),
        ([{**asked(1), "question": ""}], "question", "missing or empty"),
        ([{**asked(1), "image": {"bytes": b"GIF89a", "path": None}}], "image", "no JPEG"),
        ([{"image": asked(1)["image"], "question": "a?"}], "answer", "no column 'answer'"),
    ):
        with pytest.raises(DataError, match=said) as error:
            PATH_VQA.prepare(out, root=hub(train=rows), progress=progress)
        assert error.value.fault.field == field
    root = hub()
    file = root / "data/test-00000-of-00001-abc.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="no readable parquet") as error:
        PATH_VQA.prepare(out, root=root, progress=progress)
    assert error.value.fault.file == str(file)
    file.unlink()
    with pytest.raises(DataError, match="no file of the test part"):
        PATH_VQA.prepare(out, root=root, progress=progress)
