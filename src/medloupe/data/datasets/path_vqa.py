"""PathVQA (He et al., arXiv:2003.10286): questions generated from captions of pathology figures.

Two copies are in circulation and hold different numbers of questions:

    hub   `data/{train,validation,test}-*.parquet` of flaviagiammarino/path-vqa on the Hugging Face
          Hub: columns image (struct of bytes and path), question, answer. Repeated rows were dropped
          there: 19,654, 6,259 and 6,719 questions (the copy's card).
    pvqa  the authors' folder of 2023: `images/{train,val,test}/*.jpg` and
          `qas/<part>/<part>_qa.pkl`, lists of `{image, question, answer}`: 19,755, 6,279 and 6,761
          questions (Llama3-Med, Table 2; 32,795 by the copy's card) about 4,289 images.

Pickle files run code when they are opened, so they are never opened here: of a `pvqa` folder the same
lists are read from JSON files beside them, and the error says how to make these. Images of the `hub`
copy are told apart by their bytes, whose number nobody publishes: it is not checked.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from medloupe.data.builders import ask
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.source import MissingImages, image_here, read_json_list, require
from medloupe.errors import DataError, did_you_mean
from medloupe.types import ImageRef, Question, Record, Split

CITATION = (
    "He X, Zhang Y, Mou L, Xing E, Xie P. PathVQA: 30000+ questions for medical visual question "
    "answering. arXiv:2003.10286, 2020."
)
LICENCE = "MIT for the questions; images belong to the publishers of the textbooks and to PEIR"
COLUMNS: Final = ("image", "question", "answer")
_SPLITS: Final[Mapping[Split, str]] = {"train": "train", "validation": "val", "test": "test"}
_MAGIC: Final = {b"\xff\xd8\xff": "jpg", b"\x89PN": "png", b"II*": "tif", b"MM\0": "tif"}
_BATCH: Final = 64


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A row of either copy: an image by its uri, and what is asked about it."""

    uri: str
    question: str
    answer: str
    split: Split
    name: str


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A copy in circulation, and how many of what it holds when complete."""

    name: str
    published: Mapping[str, int]


HUB = Variant(
    name="hub",
    published={"train questions": 19654, "validation questions": 6259, "test questions": 6719},
)
PVQA = Variant(
    name="pvqa",
    published={
        "images": 4289,
        "train questions": 19755,
        "validation questions": 6279,
        "test questions": 6761,
    },
)


class PathVqaConfig(PublishedConfig):
    """The published split is by image file; equal images under two names need `allow_leak`."""

    missing_images: MissingImages = "refuse"

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `DataError` on a folder that is no copy of PathVQA, or a faulty row."""
        variant = find_variant(source)
        if variant is HUB:
            asked = list(_hub_rows(source, out, progress))
        else:
            asked = [row for row in _pvqa_rows(source) if self._kept(source, row)]
        records = _records(asked)
        card = DatasetCard(
            name="path_vqa",
            version=variant.name,
            description="Questions generated from captions of figures in two pathology textbooks and "
            "a digital library",
            licence=LICENCE,
            citation=CITATION,
            access="open: https://github.com/UCSD-AI4H/PathVQA",
            tasks=("vqa",),
            splits="by the publisher, by image file",
            published=dict(variant.published),
        )
        return Reading(
            card=card,
            images=out if variant is HUB else source,
            conversations=[ask(record, one) for record in records for one in record.questions],
            records=records,
            found=_found(asked),
        )

    def _kept(self, source: Path, row: Asked) -> bool:
        return image_here(source / row.uri, self.missing_images, row=row.name)


def find_variant(source: Path) -> Variant:
    """Which copy lies in a folder.

    Raises:
        DataError: none of them.
    """
    if _parquet_files(source, "train"):
        return HUB
    if (source / "qas").is_dir():
        return PVQA
    raise DataError(
        "no copy of PathVQA is here",
        remedy="Expected data/train-*.parquet (Hugging Face Hub), or images/ and qas/ (pvqa)",
        file=str(source),
    )


def _parquet_files(source: Path, split: Split) -> list[Path]:
    return sorted((source / "data").glob(f"{split}-*.parquet"))


def _hub_rows(source: Path, out: Path, progress: Progress) -> Iterator[Asked]:
    """Rows of the parquet files; every image is written once, under the hash of its bytes.

    Raises:
        DataError: no file for a split, a broken file, a missing column, or a row without image,
            question or answer.
    """
    for split in _SPLITS:
        files = _parquet_files(source, split)
        if not files:
            raise DataError(
                f"no file of the {split} part is here",
                remedy="Complete the copy",
                file=str(source / "data" / f"{split}-*.parquet"),
            )
        for done, path in enumerate(files, start=1):
            for number, row in enumerate(_table(path)):
                yield _hub_row(row, path, f"number {number}", split, out)
            progress(f"{split} files", done, len(files))


def _table(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, a few at a time: they carry the pixels."""
    try:
        with pq.ParquetFile(path) as file:
            for column in COLUMNS:
                if column not in file.schema_arrow.names:
                    near = did_you_mean(column, file.schema_arrow.names)
                    rule = f"the table has no column {column!r}; {near}"
                    raise DataError(rule, file=str(path), field=column)
            for batch in file.iter_batches(batch_size=_BATCH, columns=list(COLUMNS)):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"is no readable parquet file: {error}", remedy="Fetch it again", file=str(path)
        ) from None


def _hub_row(row: Mapping[str, Any], path: Path, name: str, split: Split, out: Path) -> Asked:
    image = require(row, "image", file=path, name=name)
    data = image.get("bytes") if isinstance(image, dict) else None
    suffix = next((s for magic, s in _MAGIC.items() if data and data.startswith(magic)), None)
    if data is None or suffix is None:
        raise DataError("holds no JPEG, PNG or TIFF", file=str(path), row=name, field="image")
    uri = f"images/{split}/{hashlib.sha256(data).hexdigest()[:16]}.{suffix}"
    target = out / uri
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return _asked(row, path, name, uri=uri, split=split)


def _pvqa_rows(source: Path) -> Iterator[Asked]:
    """Rows of the authors' folder from `qas/<part>/<part>_qa.json`.

    Raises:
        DataError: only the pickle is there; a row without image, question or answer.
    """
    for split, part in _SPLITS.items():
        path = source / "qas" / part / f"{part}_qa.json"
        pickled = path.with_suffix(".pkl")
        if pickled.is_file() and not path.is_file():
            raise DataError(
                "is a pickle file: opening it would run whatever code it holds, so it is not opened",
                remedy="Use the parquet copy (flaviagiammarino/path-vqa); or, if you trust the file, "
                f"write its list of rows as JSON to {path.name} beside it",
                file=str(pickled),
            )
        for number, row in enumerate(read_json_list(path)):
            name = f"number {number}"
            image = str(require(row, "image", file=path, name=name))
            uri = f"images/{part}/{image}" + ("" if image.endswith(".jpg") else ".jpg")
            yield _asked(row, path, name, uri=uri, split=split)


def _asked(row: Mapping[str, Any], path: Path, name: str, *, uri: str, split: Split) -> Asked:
    question, answer = (
        " ".join(str(require(row, field, file=path, name=name)).split())
        for field in ("question", "answer")
    )
    if not question or not answer:
        field = "answer" if question else "question"
        raise DataError("the field is missing or empty", file=str(path), row=name, field=field)
    return Asked(uri=uri, question=question, answer=answer, split=split, name=f"{path.name} {name}")


def _records(asked: list[Asked]) -> list[Record]:
    """One record per image file, in the order in which the files are first asked about."""
    groups: dict[str, list[Asked]] = {}
    for row in asked:
        groups.setdefault(row.uri, []).append(row)
    return [_record(uri, rows) for uri, rows in groups.items()]


def _record(uri: str, rows: list[Asked]) -> Record:
    name = Path(uri).stem
    return Record(
        id=f"path_vqa/{rows[0].split}/{name}",
        images=(ImageRef(uri=uri),),
        questions=tuple(_question(name, number, row) for number, row in enumerate(rows)),
        split=rows[0].split,
        dataset="path_vqa",
        licence=LICENCE,
    )


def _question(image: str, number: int, row: Asked) -> Question:
    """Questions answered by yes or no are the closed ones; neither copy gives ids."""
    closed = row.answer.casefold().rstrip(".") in ("yes", "no")
    return Question(
        id=f"{image}-{number}",
        text=row.question,
        answer=row.answer,
        answer_type="closed" if closed else "open",
        attributes={"first_word": row.question.split()[0].casefold()},
    )


def _found(asked: list[Asked]) -> dict[str, int]:
    questions = Counter(row.split for row in asked)
    images = {row.uri for row in asked}
    return {"images": len(images)} | {f"{split} questions": questions[split] for split in _SPLITS}
