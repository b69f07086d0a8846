"""VQA-RAD (Lau et al., Scientific Data 5:180251, 2018): clinicians' questions about radiology images.

The split published with it shares most of its images between train and test, so the default here
is a split by image; the official one has to be allowed by name. Several copies are in circulation:

    osf       `VQA_RAD Dataset Public.json`: the publisher's file, 2,248 free and paraphrased questions
    combined  `trainset.json`, `testset.json`: 3,515 questions, those made from frames among them
    masked    `train.json`, `test.json` whose rows bear `image_split`: part of `combined`

All have a folder of images beside the JSON.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medloupe.data import source as sources
from medloupe.data.dataset import Dataset, DatasetCard, Progress, write_dataset
from medloupe.data.datasets.base import DatasetConfig, source_folder
from medloupe.data.splits import assign_splits, carve, refuse_leaks
from medloupe.data.store import take_file
from medloupe.errors import DataError, LeakError
from medloupe.types import Conversation, ImageRef, Message, Split, Text

CITATION = (
    "Lau JJ, Gayen S, Ben Abacha A, Demner-Fushman D. A dataset of clinically generated visual "
    "questions and answers about radiology images. Sci Data 2018;5:180251."
)
IMAGES = 315
IMAGE_FOLDERS = ("images", "VQA_RAD Image Folder", "imgs")
# Slips of the pen in the published question types.
_TYPE_SLIPS = {"ATRIB": "ATTRIB", "PRSE": "PRES"}
_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A copy in circulation: its files, and how many questions it holds when complete."""

    name: str
    files: tuple[str, ...]
    questions: int


VARIANTS = (
    Variant(name="osf", files=("VQA_RAD Dataset Public.json",), questions=2248),
    Variant(name="combined", files=("trainset.json", "testset.json"), questions=3515),
    Variant(name="masked", files=("train.json", "test.json"), questions=3515),
)


class VqaRadConfig(DatasetConfig):
    """`split="official"` shares images between train and test and needs `allow_leak`.

    A copy that says where each image belongs (`image_split`) is followed; other images go to train
    or test by a hash of their name. `validation` and `test` are shares of the images.
    """

    split: Literal["by_image", "official"] = "by_image"
    allow_leak: bool = False
    validation: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.25, gt=0, lt=1)
    seed: int = 0

    def prepare(self, out: Path, *, root: Path | None, progress: Progress) -> Dataset:
        """Raises `DataError` on a copy that is not VQA-RAD, `LeakError` on the official split."""
        if self.split == "official" and not self.allow_leak:
            raise LeakError(
                "the official split of VQA-RAD shares images between train and test",
                remedy="Use split=by_image, or set allow_leak=true; every score will then say so",
                field="split",
            )
        source = source_folder(self, root)
        variant = find_variant(source)
        rows = read_rows(source, variant)
        images = find_images(source, variant)
        partial = partial_copy(variant, images=len(images), questions=len(rows))
        hashes = _take_images(rows, images, out, progress)
        asked = [_conversation(row, hashes, self.split) for row in rows]
        conversations, _ = assign_splits(
            asked, (), {"train": 1 - self.test, "test": self.test}, self.seed
        )
        conversations = carve(conversations, self.validation, seed=self.seed)
        card = DatasetCard(
            name="vqa_rad",
            version=f"{variant.name}-{self.split}",
            description="Questions by clinicians about radiology images of head, chest and abdomen",
            licence="CC0-1.0",
            citation=CITATION,
            access="https://osf.io/89kps/",
            published={"images": IMAGES, "questions": variant.questions},
            counts={"questions": len(rows)},
            partial=partial,
            leak=refuse_leaks(conversations, allow_leak=self.allow_leak),
        )
        return write_dataset(out, card, conversations)


def find_variant(source: Path) -> Variant:
    """Which copy lies in a folder.

    Raises:
        DataError: none of them.
    """
    for variant in VARIANTS:
        if all((source / file).is_file() for file in variant.files):
            return variant
    known = "; ".join(" and ".join(variant.files) for variant in VARIANTS)
    raise DataError(
        "no copy of VQA-RAD is here", remedy=f"Expected one of: {known}", file=str(source)
    )


def read_rows(source: Path, variant: Variant) -> list[dict[str, str]]:
    """The questions under the field names of one copy; whitespace is the only thing changed.

    Raises:
        DataError: not a JSON list, or a row without question, answer, image or its own qid.
    """
    rows = []
    for file in variant.files:
        for number, raw in enumerate(sources.read_json_list(source / file)):
            rows.append(_plain_row(raw, source / file, number))
    qid, times = Counter(row["qid"] for row in rows).most_common(1)[0]
    if times > 1:
        raise DataError(f"the qid occurs {times} times", row=qid, field="qid", file=str(source))
    return rows


def find_images(source: Path, variant: Variant) -> dict[str, Path]:
    """File name -> path of every image of the copy."""
    for name in IMAGE_FOLDERS:
        if (source / name).is_dir():
            files = sorted((source / name).iterdir())
            return {path.name: path for path in files if path.suffix.lower() in _SUFFIXES}
    raise DataError(
        f"the image folder of this copy ({variant.name}) is missing",
        remedy=f"Put the images beside the JSON in a folder named {IMAGE_FOLDERS[0]!r}",
        file=str(source),
    )


def partial_copy(variant: Variant, *, images: int, questions: int) -> str:
    """ "255 of 315 images, 2,879 of 3,515 questions", or "" for a complete copy.

    Raises:
        DataError: more than was published: whatever this is, it is not that data set.
    """
    return sources.partial_copy(
        f"VQA-RAD ({variant.name})",
        {"images": images, "questions": questions},
        {"images": IMAGES, "questions": variant.questions},
    )


def _plain_row(raw: Mapping[str, Any], path: Path, number: int) -> dict[str, str]:
    """One question as text fields. The copies differ in names, and numbers stand for text."""
    row = {
        str(key): " ".join(str(value).split())
        for key, value in raw.items()
        if isinstance(value, str | int | float)
    }
    row.setdefault("image", row.pop("image_name", ""))
    row.setdefault("organ", row.pop("image_organ", ""))
    for field in ("qid", "image", "question", "answer", "answer_type", "question_type"):
        if not row.get(field):
            name = row.get("qid") or f"number {number}"
            raise DataError("the field is missing or empty", file=str(path), row=name, field=field)
    row["official_split"] = _official_split(path, row)
    return row


def _official_split(path: Path, row: Mapping[str, str]) -> Split:
    """The publisher marks test questions in `phrase_type`; the other copies by file."""
    in_test = path.name.startswith("test") or row.get("phrase_type", "").startswith("test")
    return "test" if in_test else "train"


def _take_images(
    rows: Sequence[Mapping[str, str]], images: Mapping[str, Path], out: Path, progress: Progress
) -> dict[str, str]:
    """Copy every image that is asked about; returns name -> SHA-256."""
    users = {row["image"]: row["qid"] for row in reversed(rows)}
    hashes: dict[str, str] = {}
    for name in sorted(users):
        if name not in images:
            raise DataError(
                f"the image {name!r} is missing",
                remedy="Complete the image folder, or remove the questions about it",
                row=users[name],
                field="image",
            )
        hashes[name] = take_file(images[name], out / "images" / name, row=users[name])
        progress("images", len(hashes), len(users))
    return hashes


def _conversation(
    row: Mapping[str, str], hashes: Mapping[str, str], split: Literal["by_image", "official"]
) -> Conversation:
    image = ImageRef(uri=f"images/{row['image']}", sha256=hashes[row["image"]])
    closed = row["answer_type"].upper() == "CLOSED"
    yes_no = closed and _is_yes_no(row["answer"])
    task = question_type(row["question_type"])
    form = "open" if not closed else "yes_no" if yes_no else "choice"
    kept = ("qid", "organ", "question_type", "answer_type", "phrase_type")
    return Conversation(
        id=f"vqa_rad-{row['qid']}",
        messages=(
            Message(role="user", content=(image, Text(text=row["question"]))),
            Message(role="assistant", content=(Text(text=row["answer"]),)),
        ),
        patient_id=row["image"],
        split=_split_of(row, split),
        dataset="vqa_rad",
        licence="CC0-1.0",
        task=task,
        template=f"{task}.{form}",
        answer_type="closed" if closed else "open",
        options=("yes", "no") if yes_no else (),
        attributes={name: row[name] for name in kept if row.get(name)},
    )


def question_type(published: str) -> str:
    """The first of the published types in lower case, slips mended: "PRSE" and "PRES, ATTRIB" are
    "pres"."""
    first = re.split(r"[,;/ ]", published.upper())[0]
    return _TYPE_SLIPS.get(first, first).lower()


def _is_yes_no(answer: str) -> bool:
    return answer.casefold().rstrip(".") in ("yes", "no")


def _split_of(row: Mapping[str, str], split: Literal["by_image", "official"]) -> Split | None:
    """None leaves the choice to the hash of the image."""
    if split == "official":
        return "test" if row["official_split"] == "test" else "train"
    given = row.get("image_split")
    if given is None:
        return None
    if given not in ("train", "test"):
        raise DataError(f"unknown image_split {given!r}", row=row["qid"], field="image_split")
    return "test" if given == "test" else "train"
