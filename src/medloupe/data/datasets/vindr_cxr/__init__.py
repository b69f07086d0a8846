"""VinDr-CXR (Nguyen et al., Sci Data 9:429, 2022): 18,000 PA radiographs read by radiologists.

Layout of version 1.0.0 on PhysioNet (doi:10.13026/3akn-b287):

    train/<image_id>.dicom, test/<image_id>.dicom
    annotations/annotations_train.csv   image_id, rad_id, class_name, x_min, y_min, x_max, y_max
    annotations/annotations_test.csv    the same without rad_id
    annotations/image_labels_train.csv  image_id, rad_id, one column for each of 28 labels
    annotations/image_labels_test.csv   the same without rad_id; "Other diseases" is "Other disease"

Three radiologists read each training image on their own, five agreed on each test image. Boxes are in
pixels of the DICOM file. How their labels become one is LiteGPT's preparation (`labels`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from medloupe.data.adopt import Images
from medloupe.data.builders import describe_region, diagnose, ground, identify, refer
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.datasets.vindr_cxr import litegpt
from medloupe.data.datasets.vindr_cxr.header import Header, read_header
from medloupe.data.datasets.vindr_cxr.labels import (
    GLOBAL_LABELS,
    LABELS,
    LOCAL_LABELS,
    NO_FINDING,
    Fused,
    Merge,
    Reader,
    conflicting,
    fuse,
)
from medloupe.data.datasets.vindr_cxr.litegpt import FirstStageTag
from medloupe.data.source import MissingImages, image_here, number, one_of, read_table, require
from medloupe.data.splits import split_by_patient
from medloupe.errors import DataError
from medloupe.types import Box, Conversation, ImageRef, Language, Record, Split

CITATION = (
    "Nguyen HQ, Lam K, Le LT, et al. VinDr-CXR: an open dataset of chest X-rays with radiologist's "
    "annotations. Sci Data 2022;9:429. Goldberger A, et al. PhysioBank, PhysioToolkit, and PhysioNet. "
    "Circulation 2000;101:e215-e220."
)
LICENCE: Final = "PhysioNet Credentialed Health Data License 1.5.0"
PUBLISHED: Final = {"train images": 15000, "train readings": 45000, "test images": 3000}
CONSENSUS: Final = "consensus"
_SPELLED: Final = {"Other disease": "Other diseases"}
_YES: Final = ("1", "1.0")
_NO: Final = ("0", "0.0", "")

Part = Literal["train", "test"]
Task = Literal["findings", "identify", "diagnosis", "rec", "reg"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image as the tables describe it."""

    image_id: str
    part: Part
    readers: tuple[Reader, ...]
    boxes: tuple[Box, ...]


class VindrCxrConfig(PublishedConfig):
    """LiteGPT's preparation by default: images on which readers conflict are left out, one reader is
    enough for a label, and of repeated boxes (IoU above 0.5) the first is kept.

    `tasks`: findings with their boxes ("findings", LiteGPT's first stage), findings by name
    ("identify"), global diagnoses ("diagnosis", its second stage), where a finding is ("rec") and what
    a box holds ("reg"). Images without a finding are asked about findings only if
    `ask_without_finding`. `wording="litegpt"` takes LiteGPT's own questions and answers for the two
    stages, with `litegpt_tag` before the first. `validation` is the share of training images that
    become a validation part, which is not published.
    """

    images: Images = "reference"
    tasks: tuple[Task, ...] = ("findings", "diagnosis")
    conflicts: Literal["leave_out", "keep"] = "leave_out"
    merge: Merge = "litegpt"
    iou: float = Field(default=0.5, gt=0, lt=1)
    min_readers: int = Field(default=1, ge=1, le=3)
    ask_without_finding: bool = False
    wording: Literal["medloupe", "litegpt"] = "medloupe"
    litegpt_tag: FirstStageTag = "identify"
    validation: float = Field(default=0.0, ge=0, lt=1)
    language: Language = "en"
    missing_images: MissingImages = "refuse"

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `DataError` on a faulty row, `ImageError` on a broken DICOM header."""
        cases = [*read_cases(source, "train"), *read_cases(source, "test")]
        found = {f"{part} images": 0 for part in ("train", "test")}
        found["train readings"] = sum(len(case.readers) for case in cases if case.part == "train")
        found["images on which readers conflict"] = 0
        records: list[Record] = []
        for done, case in enumerate(cases, start=1):
            path = source / case.part / f"{case.image_id}.dicom"
            progress("headers", done, len(cases))
            if not image_here(path, self.missing_images, row=case.image_id):
                continue
            found[f"{case.part} images"] += 1
            if self.conflicts == "leave_out" and conflicting(case.readers):
                found["images on which readers conflict"] += 1
                continue
            records.append(self._record(case, read_header(path)))
        return Reading(
            card=self._card(),
            images=source,
            conversations=[row for record in records for row in self._conversations(record)],
            records=records,
            found=found,
        )

    def _record(self, case: Case, header: Header) -> Record:
        fused = fuse(
            case.readers, case.boxes, merge=self.merge, iou=self.iou, min_readers=self.min_readers
        )
        uri = f"{case.part}/{case.image_id}.dicom"
        return Record(
            id=f"vindr_cxr/{case.image_id}",
            images=(ImageRef(uri=uri, modality=header.modality),),
            labels=(*fused.findings, *fused.diagnoses),
            boxes=_placed(fused, header, case.image_id),
            attributes={
                "view": "PA",
                "readers": ", ".join(reader.name for reader in case.readers),
                **header.attributes,
            },
            split=self._split(case),
            dataset="vindr_cxr",
            licence=LICENCE,
        )

    def _split(self, case: Case) -> Split:
        if case.part == "test":
            return "test"
        shares: dict[Split, float] = {"train": 1 - self.validation, "validation": self.validation}
        return split_by_patient([case.image_id], shares, self.seed)[case.image_id]

    def _conversations(self, record: Record) -> Iterator[Conversation]:
        findings = [name for name in record.labels if name in LOCAL_LABELS]
        asked = bool(findings) or self.ask_without_finding
        if "findings" in self.tasks and (record.boxes or (asked and not findings)):
            yield self._grounded(record)
        if "identify" in self.tasks and asked:
            yield identify(record, findings, language=self.language)
        diagnoses = [name for name in record.labels if name in GLOBAL_LABELS]
        if "diagnosis" in self.tasks and diagnoses:
            yield self._diagnosed(record, diagnoses)
        if "rec" in self.tasks:
            for name in dict.fromkeys(box.label for box in record.boxes):
                boxes = [box for box in record.boxes if box.label == name]
                yield refer(record, name, boxes, language=self.language)
        if "reg" in self.tasks:
            yield from _regions(record, self.language)

    def _grounded(self, record: Record) -> Conversation:
        if self.wording == "litegpt":
            return litegpt.first_stage(record, record.boxes, self.litegpt_tag)
        return ground(record, record.boxes, language=self.language)

    def _diagnosed(self, record: Record, diagnoses: Sequence[str]) -> Conversation:
        if self.wording == "litegpt":
            return litegpt.second_stage(record, diagnoses)
        return diagnose(record, diagnoses, classes=GLOBAL_LABELS, language=self.language)

    def _card(self) -> DatasetCard:
        made = f"; {self.validation:.0%} of its training images for validation, by MedLoupe"
        return DatasetCard(
            name="vindr_cxr",
            version=f"1.0.0-{self.merge}",
            description="PA chest radiographs from two hospitals in Hanoi with 22 findings in boxes and "
            "6 diagnoses",
            licence=LICENCE,
            citation=CITATION,
            access="credentialed: a PhysioNet account with CITI training and a signed data use "
            "agreement; https://physionet.org/content/vindr-cxr/1.0.0/",
            tasks=self.tasks,
            splits="by the publisher (patients are not published)"
            + (made if self.validation else ""),
            languages=(self.language,),
            published=PUBLISHED,
        )


def read_cases(source: Path, part: Part) -> list[Case]:
    """Every image of one part with its readers and boxes, in the order of the label table.

    Raises:
        DataError: a missing file or column, an unknown label or value, a reader who reads an image
            twice, a box of an image that the label table lacks.
    """
    boxes: dict[str, list[tuple[str, Box]]] = {}
    path = source / "annotations" / f"annotations_{part}.csv"
    for image_id, name, box in _annotations(path, part):
        boxes.setdefault(image_id, []).append((name, box))
    readers = _readers(source / "annotations" / f"image_labels_{part}.csv", part)
    for image_id in boxes:
        if image_id not in readers:
            rule = f"the image has boxes, but no row in image_labels_{part}.csv"
            raise DataError(rule, file=str(path), row=image_id, field="image_id")
    return [
        Case(
            image_id=image_id,
            part=part,
            readers=tuple(_with_boxes(labels, boxes.get(image_id, ()))),
            boxes=tuple(box for _, box in boxes.get(image_id, ())),
        )
        for image_id, labels in readers.items()
    ]


def _annotations(path: Path, part: Part) -> Iterator[tuple[str, str, Box]]:
    """Image, reader and box of every row; rows of "No finding" have no box."""
    named = ("rad_id",) if part == "train" else ()
    columns = ("image_id", *named, "class_name", "x_min", "y_min", "x_max", "y_max")
    for line, row in enumerate(read_table(path, columns), start=2):
        name = f"{require(row, 'image_id', file=path, name=f'line {line}')} (line {line})"
        label = one_of(row, "class_name", (*LOCAL_LABELS, NO_FINDING), file=path, name=name)
        if label == NO_FINDING:
            continue
        reader = require(row, "rad_id", file=path, name=name) if named else CONSENSUS
        x1, y1, x2, y2 = (number(row, f, file=path, name=name) for f in columns[-4:])
        if x2 <= x1 or y2 <= y1:
            rule = f"the box has no area: {x1:g}, {y1:g}, {x2:g}, {y2:g}"
            raise DataError(rule, file=str(path), row=name, field="x_max, y_max")
        yield row["image_id"], reader, Box(label=label, x1=x1, y1=y1, x2=x2, y2=y2)


def _readers(path: Path, part: Part) -> dict[str, dict[str, set[str]]]:
    """Image -> reader -> labels that the reader marks with 1."""
    last = {"train": "Other diseases", "test": "Other disease"}[part]
    labels = [last if name == "Other diseases" else name for name in LABELS]
    named = ("rad_id",) if part == "train" else ()
    images: dict[str, dict[str, set[str]]] = {}
    for line, row in enumerate(read_table(path, ("image_id", *named, *labels)), start=2):
        image_id = require(row, "image_id", file=path, name=f"line {line}")
        reader = require(row, "rad_id", file=path, name=image_id) if named else CONSENSUS
        if reader in images.setdefault(image_id, {}):
            rule = f"reader {reader!r} is there twice"
            raise DataError(rule, file=str(path), row=image_id, field="rad_id")
        images[image_id][reader] = {
            _SPELLED.get(name, name) for name in labels if _is_marked(row, name, path, image_id)
        }
    return images


def _is_marked(row: Mapping[str, str], label: str, path: Path, name: str) -> bool:
    value = row[label]
    if value not in (*_YES, *_NO):
        raise DataError(f"{value!r} is neither 0 nor 1", file=str(path), row=name, field=label)
    return value in _YES


def _with_boxes(
    labels: Mapping[str, set[str]], boxes: Sequence[tuple[str, Box]]
) -> Iterator[Reader]:
    """The readers of an image; what a reader draws a box round, the reader has found."""
    for name, marked in labels.items():
        drawn = {box.label for reader, box in boxes if reader == name}
        yield Reader(name=name, labels=frozenset(marked | drawn))


def _placed(fused: Fused, header: Header, image_id: str) -> tuple[Box, ...]:
    """The boxes cut to the image, with their extent in mm where the header gives the spacing."""
    placed = []
    for box in fused.boxes:
        x1, x2 = max(box.x1, 0.0), min(box.x2, float(header.width))
        y1, y2 = max(box.y1, 0.0), min(box.y2, float(header.height))
        if x1 >= x2 or y1 >= y2:
            raise DataError(
                f"box {box.label!r} lies outside the image of {header.width} x {header.height}",
                row=image_id,
                field="x_min, y_min, x_max, y_max",
            )
        size: tuple[float, ...] = ()
        if header.spacing is not None:
            size = ((x2 - x1) * header.spacing[1], (y2 - y1) * header.spacing[0])
        cut = {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "size_mm": size}
        placed.append(box.model_copy(update=cut))
    return tuple(placed)


def _regions(record: Record, language: Language) -> Iterator[Conversation]:
    """One question per box; of boxes with equal edges, which cannot be told apart, the first."""
    places = {(box.x1, box.y1, box.x2, box.y2): box for box in reversed(record.boxes)}
    for box in record.boxes:
        if places[(box.x1, box.y1, box.x2, box.y2)] is box:
            yield describe_region(record, box, language=language)
