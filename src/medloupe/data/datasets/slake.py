"""SLAKE (Liu et al., ISBI 2021, arXiv:2102.09542): questions in English and Chinese, with boxes.

The publisher splits each language by image (450/96/96, as in the paper), but not alike: 298 of the 642
images are in different parts in English and in Chinese. So the default here puts both languages where
the publisher has the English questions of an image: the English test is the published one and shares no
image with anything. The files hold 9,835, 2,099 and 2,094 questions, which is not how the paper divides
its 14,028. One of them (qid 1622) has no answer; it is left out and counted.

Layout, from the publisher's folder (med-vqa.com/slake; the same files as BoKelvin/SLAKE):

    train.json, validate.json (validation.json on the Hub), test.json
    imgs/xmlab<n>/source.jpg, detection.json, mask.png

`detection.json` is a list of `{name: [x, y, width, height]}` in pixels. `mask.png` is carried as it
is: what its values mean stands in `mask.txt`, whose form is not documented.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast

from medloupe.data.builders import ask, describe_region, refer
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.source import (
    MissingImages,
    image_here,
    one_of,
    read_json,
    read_json_list,
    require,
    unique,
)
from medloupe.errors import ConfigError, DataError
from medloupe.types import Box, Conversation, ImageRef, Language, Question, Record, Split

CITATION = (
    "Liu B, Zhan LM, Xu L, Ma L, Yang Y, Wu XM. SLAKE: a semantically-labeled knowledge-enhanced "
    "dataset for medical visual question answering. ISBI 2021:1650-1654."
)
IMAGES: Final = 642
# Questions of the released files, of which Table 2 of Llama3-Med gives the English column.
QUESTIONS: Final[Mapping[Language, Mapping[Split, int]]] = {
    "en": {"train": 4919, "validation": 1053, "test": 1061},
    "zh": {"train": 4916, "validation": 1046, "test": 1033},
}
# The publisher's name first, then that of its copy on the Hugging Face Hub.
FILES: Final[Mapping[Split, tuple[str, ...]]] = {
    "train": ("train.json",),
    "validation": ("validate.json", "validation.json"),
    "test": ("test.json",),
}
CONTENT_TYPES: Final = (
    "Abnormality",
    "Color",
    "KG",
    "Modality",
    "Organ",
    "Plane",
    "Position",
    "Quantity",
    "Shape",
    "Size",
)
MODALITIES: Final = {"CT": "CT", "MRI": "MR", "X-Ray": "DX"}
# Published without an answer: nothing can be learned from it or scored by it.
UNANSWERED: Final = frozenset({"1622"})

Task = Literal["vqa", "rec", "reg"]
Raw = Mapping[str, Any]


class SlakeConfig(PublishedConfig):
    """`split="english"` puts an image where its English questions are published, `official` every
    question where it is; that shares images between languages, and both together need `allow_leak`.

    `tasks`: the published questions ("vqa"), and from `detection.json` where a structure is ("rec")
    and what a box holds ("reg"). `missing_images="text_only"` asks questions whose image is missing
    without it, for copies that are JSON alone.
    """

    languages: tuple[Language, ...] = ("en", "zh")
    split: Literal["english", "official"] = "english"
    tasks: tuple[Task, ...] = ("vqa",)
    missing_images: MissingImages | Literal["text_only"] = "refuse"

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `DataError` on a faulty row, `ConfigError` where nothing is asked for."""
        if not self.languages or not self.tasks:
            raise ConfigError("no language or no task is chosen", field="languages, tasks")
        every = list(_rows(source))
        rows = [row for row in every if row["q_lang"] in self.languages]
        english = {row["img_name"]: row["split"] for row in every if row["q_lang"] == "en"}
        records = self._records(source, rows, english)
        conversations = [row for record in records for row in _conversations(record, self.tasks)]
        return Reading(
            card=self._card(),
            images=source,
            conversations=conversations,
            records=records,
            found=_found(rows, records),
        )

    def _records(
        self, source: Path, rows: Sequence[Raw], english: Mapping[str, Split]
    ) -> list[Record]:
        """One record per image; under the official split one per part that an image is in."""
        groups: dict[tuple[str, Split | None], list[Raw]] = {}
        for row in rows:
            name = row["img_name"]
            split = row["split"] if self.split == "official" else english.get(name)
            groups.setdefault((name, split), []).append(row)
        made = (self._record(source, split, group) for (_, split), group in groups.items())
        return [record for record in made if record is not None]

    def _record(self, source: Path, split: Split | None, rows: Sequence[Raw]) -> Record | None:
        first = rows[0]
        name = str(first["img_name"]).partition("/")[0]
        image = f"imgs/{first['img_name']}"
        here = self._image_here(source / image, first)
        if not here and self.missing_images == "leave_out":
            return None
        modality = MODALITIES[first["modality"]]
        mask = f"imgs/{name}/mask.png"
        return Record(
            id=f"slake/{name}" + (f"/{split}" if self.split == "official" else ""),
            patient_id=name,
            images=(ImageRef(uri=image, modality=modality),) if here else (),
            questions=tuple(_question(row) for row in rows if row["answer"]),
            boxes=_boxes(source / "imgs" / name / "detection.json") if here else (),
            masks=(ImageRef(uri=mask),) if here and (source / mask).is_file() else (),
            attributes={"modality": first["modality"], "location": first["location"]},
            split=split,
            dataset="slake",
            licence="CC-BY-4.0",
        )

    def _image_here(self, path: Path, row: Raw) -> bool:
        if self.missing_images == "text_only":
            return path.is_file()
        otherwise = "; missing_images=text_only asks the questions without it"
        row_name = f"qid {row['qid']}"
        return image_here(path, self.missing_images, row=row_name, otherwise=otherwise)

    def _card(self) -> DatasetCard:
        published = {"images": IMAGES}
        for split in FILES:
            published[f"{split} questions"] = sum(QUESTIONS[la][split] for la in self.languages)
        return DatasetCard(
            name="slake",
            version=f"1.0-{self.split}",
            description="Questions about CT, MR and radiographs of five body parts, with boxes of "
            "organs and lesions",
            licence="CC-BY-4.0",
            citation=CITATION,
            access="open: https://www.med-vqa.com/slake",
            tasks=self.tasks,
            splits="by the publisher, by image within a language"
            if self.split == "official"
            else "by the publisher's split of the English questions, by image",
            languages=self.languages,
            published=published,
        )


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    """Every question of the three files, checked, with the split that its file means."""
    ids: list[str] = []
    for split, names in FILES.items():
        path = next(
            (source / name for name in names if (source / name).is_file()), source / names[0]
        )
        for raw in read_json_list(path):
            row = _checked(raw, path)
            ids.append(row["qid"])
            yield {**row, "split": split}
    unique(ids, file=source, field="qid")


def _checked(raw: Raw, path: Path) -> dict[str, Any]:
    qid = str(require(raw, "qid", file=path, name=f"img_id {raw.get('img_id')}"))
    row = {**raw, "qid": qid}
    for field in ("img_name", "question", "location"):
        row[field] = str(require(raw, field, file=path, name=qid)).strip()
    if qid not in UNANSWERED:
        require(raw, "answer", file=path, name=qid)
    row["answer"] = str(raw.get("answer") or "").strip()
    for field, known in (
        ("q_lang", QUESTIONS),
        ("answer_type", ("OPEN", "CLOSED")),
        ("content_type", CONTENT_TYPES),
        ("base_type", ("vqa", "kvqa")),
        ("modality", MODALITIES),
    ):
        row[field] = one_of(raw, field, known, file=path, name=qid)
    return row


def _question(row: Raw) -> Question:
    triple = row.get("triple")
    known = row["base_type"] == "kvqa" and isinstance(triple, list)
    return Question(
        id=row["qid"],
        text=row["question"],
        answer=row["answer"],
        answer_type="closed" if row["answer_type"] == "CLOSED" else "open",
        language=row["q_lang"],
        task=row["content_type"].lower(),
        attributes={
            "qid": row["qid"],
            "base_type": row["base_type"],
            "content_type": row["content_type"],
            "published_split": row["split"],
        }
        | ({"triple": " | ".join(map(str, cast("list[Any]", triple)))} if known else {}),
    )


def _boxes(path: Path) -> tuple[Box, ...]:
    """The boxes of one image; none where the publisher gives no file.

    Raises:
        DataError: not a list of `{name: [x, y, width, height]}` with sides above zero.
    """
    if not path.is_file():
        return ()
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise DataError("holds no list of boxes", file=str(path))
    return tuple(_box(name, edges, path) for item in found for name, edges in item.items())


def _box(name: str, edges: Any, path: Path) -> Box:
    numbers = isinstance(edges, list) and all(isinstance(edge, int | float) for edge in edges)
    if not numbers or len(edges) != 4 or min(edges[2:]) <= 0:
        raise DataError(f"{edges!r} is not [x, y, width, height]", file=str(path), field=name)
    x, y, width, height = edges
    return Box(label=name, x1=x, y1=y, x2=x + width, y2=y + height)


def _conversations(record: Record, tasks: Sequence[Task]) -> Iterator[Conversation]:
    if "vqa" in tasks:
        yield from (ask(record, question) for question in record.questions)
    labels = dict.fromkeys(box.label for box in record.boxes)
    if "rec" in tasks:
        for label in labels:
            yield refer(record, label, [box for box in record.boxes if box.label == label])
    if "reg" in tasks:
        yield from (describe_region(record, box) for box in dict.fromkeys(record.boxes))


def _found(rows: Sequence[Raw], records: Sequence[Record]) -> dict[str, int]:
    """Counts of this copy. A row of an image that is left out counts as not here."""
    kept = {record.patient_id for record in records}
    found = {
        "images": len({ref.uri for record in records for ref in record.images}),
        "questions without an answer": sum(not row["answer"] for row in rows),
    }
    for split in FILES:
        found[f"{split} questions"] = sum(
            row["split"] == split and row["img_name"].partition("/")[0] in kept for row in rows
        )
    return found
