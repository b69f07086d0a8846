"""BCCD (Shenggan et al., from originals by cosmicad and akshaylamba): blood cells with boxes.

Two layouts are read:

    VOC     `Annotations/*.xml`, `JPEGImages/*.jpg`, `ImageSets/Main/{train,val,test}.txt`, here or in a
            folder `BCCD`: the publisher's
    JSON    `annotations.json`, a list of {id, image, width, height, split, boxes}, and its images

Not every red cell has a box, so red cells are named but never searched for or counted. White cells
are not counted either: nearly every picture was taken round exactly one. Box corners stand as the
annotation tool wrote them. The split is the publisher's, by picture; who the blood is from is
unknown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from medloupe.data.balance import even_out
from medloupe.data.builders import describe_region, presence, refer, turn
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.fields import box_of, listed_boxes
from medloupe.data.source import read_json_list, require
from medloupe.errors import DataError
from medloupe.types import Box, Conversation, ImageRef, Record, Split

NAME = "bccd"
LICENCE = "MIT"
# The publisher's files hold 4,888 boxes; two have no area.
PUBLISHED = {"images": 364, "boxes": 4886}
NAMES = {"RBC": "red blood cell", "WBC": "white blood cell", "Platelets": "platelet"}
# How many regions of a picture are asked about: pictures with platelets are fewer.
_REGIONS = {"red blood cell": 1, "white blood cell": 1, "platelet": 2}
COMPLETE = ("white blood cell", "platelet")
"""The cells of which all are outlined."""
SPLITS: Mapping[str, Split] = {"train": "train", "val": "validation", "test": "test"}
CARD = DatasetCard(
    name=NAME,
    version="d272fb1",
    description="Blood smears under the microscope with boxes round red cells, white cells and "
    "platelets. Some red cells have no box: do not score their number. Not for clinical use",
    licence=LICENCE,
    citation="Shenggan et al. BCCD Dataset. https://github.com/Shenggan/BCCD_Dataset; originals by "
    "cosmicad and akshaylamba.",
    access="https://github.com/Shenggan/BCCD_Dataset",
    tasks=("rec", "reg", "detection", "presence", "count"),
    splits="the publisher's, by picture; patients are unknown",
    published=PUBLISHED,
)


class BccdConfig(PublishedConfig):
    """Blood cells: referring expressions, region names, detection, platelet presence and count."""

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        records = read_records(source)
        return Reading(
            card=CARD,
            images=source,
            conversations=[row for record in records for row in _questions(record)]
            + even_out(_has_platelet(record) for record in records),
            records=records,
            found={"images": len(records), "boxes": sum(len(r.boxes) for r in records)},
        )


def read_records(source: Path) -> list[Record]:
    """Every picture of a copy, whichever layout it has.

    Raises:
        DataError: neither layout, or a faulty row.
    """
    if (source / "annotations.json").is_file():
        return _read_json(source / "annotations.json")
    for folder in (source, source / "BCCD"):
        if (folder / "Annotations").is_dir():
            return _read_voc(folder, source)
    raise DataError(
        "no copy of BCCD is here",
        remedy="Expected annotations.json, or the folders Annotations, JPEGImages and ImageSets",
        file=str(source),
    )


def _read_json(path: Path) -> list[Record]:
    records = []
    for number, row in enumerate(read_json_list(path)):
        name = str(require(row, "id", file=path, name=f"number {number}"))
        found = listed_boxes(row, file=path, name=name)
        boxes = [_named(box, file=path, name=name) for _, box in found]
        image = str(require(row, "image", file=path, name=name))
        records.append(_record(name, image, boxes, str(row.get("split")), path))
    return records


def _read_voc(folder: Path, source: Path) -> list[Record]:
    split_of = dict(_voc_splits(folder / "ImageSets" / "Main"))
    records = []
    for path in sorted((folder / "Annotations").glob("*.xml")):
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise DataError(f"is not XML: {error}", file=str(path)) from None
        boxes = []
        for item in root.iter("object"):
            edges = [item.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
            if edges[0] != edges[2] and edges[1] != edges[3]:  # two boxes of the set have no area
                box = box_of(item.findtext("name") or "", edges, file=path, name=path.stem)
                boxes.append(_named(box, file=path, name=path.stem))
        image = (folder / "JPEGImages" / f"{path.stem}.jpg").relative_to(source).as_posix()
        records.append(_record(path.stem, image, boxes, split_of.get(path.stem, ""), path))
    return records


def _voc_splits(folder: Path) -> Iterator[tuple[str, str]]:
    for split in SPLITS:
        path = folder / f"{split}.txt"
        if not path.is_file():
            raise DataError("no such file", remedy="Complete the copy", file=str(path))
        for name in path.read_text(encoding="utf-8").split():
            yield name, split


def _record(name: str, image: str, boxes: Sequence[Box], split: str, file: Path) -> Record:
    if split not in SPLITS:
        raise DataError(
            f"the picture is in no split (found {split!r})",
            remedy="Known: " + ", ".join(SPLITS),
            file=str(file),
            row=name,
            field="split",
        )
    return Record(
        id=name,
        images=(ImageRef(uri=image, modality="GM"),),
        boxes=tuple(boxes),
        labels=tuple(sorted({box.label for box in boxes})),
        split=SPLITS[split],
        dataset=NAME,
        licence=LICENCE,
    )


def _named(box: Box, *, file: Path, name: str) -> Box:
    """The box under the cell's full name."""
    if box.label not in NAMES:
        rule = f"unknown cell {box.label!r}"
        raise DataError(rule, remedy="Known: " + ", ".join(NAMES), file=str(file), row=name)
    return box.model_copy(update={"label": NAMES[box.label]})


def _questions(record: Record) -> Iterator[Conversation]:
    by_name = {name: [b for b in record.boxes if b.label == name] for name in NAMES.values()}
    for name in COMPLETE:
        if by_name[name]:
            yield refer(record, name, by_name[name])
    for name, boxes in by_name.items():
        for box in sorted(boxes, key=lambda box: _draw(record, box))[: _REGIONS[name]]:
            yield describe_region(record, box)
    if any(by_name[name] for name in COMPLETE):
        yield _detection(record)
    yield _platelet_count(record, len(by_name["platelet"]))


def _detection(record: Record) -> Conversation:
    """All white cells and platelets, by name, then from top to bottom."""
    answer: list[str | Box] = []
    for name in COMPLETE:
        boxes = [box for box in record.boxes if box.label == name]
        for box in sorted(boxes, key=lambda box: (box.y1, box.x1)):
            answer += [f"{', ' if answer else ''}{name} ", box]
    return turn(
        record,
        task="detection",
        question="Mark every white blood cell and every platelet with a box.",
        answer=answer,
        template="detection/en",
        answer_type="box",
    )


def _platelet_count(record: Record, number: int) -> Conversation:
    return turn(
        record,
        task="count",
        question="How many platelets are there in this picture? Answer with a number.",
        answer=str(number),
        template="count/platelet/en",
    )


def _has_platelet(record: Record) -> Conversation:
    return presence(record, "platelets", "platelet" in record.labels)


def _draw(record: Record, box: Box) -> str:
    """An order of the boxes that says nothing about where they lie."""
    return hashlib.sha256(f"{record.id}:{box.x1}:{box.y1}".encode()).hexdigest()
