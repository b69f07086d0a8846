"""COVID-19 Image Data Collection (Cohen et al., arXiv:2006.11988): chest radiographs with case notes.

What is read is the freely licensed part that carries lung boxes by General Blockchain: `records.json`,
`pairs.json`, `images/` and, for a few, larger copies in `images_hires/` with boxes of pathology, devices
and anatomy (one per connected component of a radiologist's mask; some cover most of a lung). A larger
copy is a record of its own ("cxr0001-hires"): its boxes are in its own pixels.

- The notes are case texts: they tell a history that no image shows. Where a note has headed parts, its
  "Imaging Notes" are the findings. A note that stands with several images is asked about none, and one
  of a follow-up is asked for only with the earlier image beside it.
- `keyword_change` was guessed from words of the note: an attribute of the conversation, never an answer.
  Three pairs (of two patients, none better) have an expert's score of both images, and only these ask
  whether the disease got worse: rows to look at, too few to measure with.
- Every pair is asked which image is the later one, in both orders. The days answer that, whether or
  not a reader could.
- The finding (COVID-19, Pneumocystis, ...) was not read from the image, but known from elsewhere. It is a
  label of the record; `diagnosis=true` asks for it all the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medloupe.data.balance import even_out
from medloupe.data.builders import (
    both_orders,
    caption,
    classify,
    compare,
    days_between,
    describe_region,
    diagnose,
    ground,
    presence,
    refer,
    report,
    turn,
)
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.fields import listed_boxes, mapping, number
from medloupe.data.source import read_json_list, require
from medloupe.errors import DataError
from medloupe.types import Box, Conversation, ImageRef, Language, Record

NAME = "covid_chestxray"
# The radiographs with lung boxes (README of the lung boxes, commit 103688c), from which these are.
PUBLISHED = {"radiographs": 616}
HIRES = "-hires"
SHARED = "images_with_this_note"
VIEWS = ("PA", "AP", "AP supine")
_CHANGE: Mapping[Language, tuple[str, tuple[str, ...]]] = {
    "en": (
        "Is the lung involvement better, unchanged or worse in the later examination?",
        ("better", "unchanged", "worse"),
    ),
    "zh": ("后一次检查中肺部受累是好转、不变还是加重？", ("好转", "不变", "加重")),
}
# A change of the extent (0 to 8, the mean of three readers) below one point is no change.
LEAST_CHANGE = 1.0
_HEADINGS = {"presentation": "history", "imaging notes": "findings", "discussion": "discussion"}
_HEADED = re.compile(rf"({'|'.join(_HEADINGS)}):\s*", re.IGNORECASE)
_STOPS = re.compile(r"\s*\.(\s*\.)+")
# A note without any of these tells a history only.
_OF_IMAGE = re.compile(
    r"opaci|consolidat|infiltrat|ground|effusion|shadow|reticul|nodul|clear|normal|pneumothora|lobe|zone"
    r"|airspace|tube|catheter|\blines\b|cardiomeg|atelecta|haz[ey]|lung field|bilateral",
    re.IGNORECASE,
)
_ATTRIBUTES = ("sex", "view", "survival", "intubated", "in_icu", "doi", "source_url", "finding")
CARD = DatasetCard(
    name=NAME,
    version="cc-subset",
    description="Chest radiographs of COVID-19 and other pneumonias with case notes, lung boxes, "
    "boxes of pathology and devices, and follow-ups. Notes are case texts, not reports; "
    "keyword_change is a guess from words. NON-COMMERCIAL. Not for clinical use",
    licence="CC BY-NC-SA 4.0 as a whole; each image as its record states",
    citation="Cohen JP et al. COVID-19 Image Data Collection: Prospective Predictions Are the "
    "Future. arXiv:2006.11988; severity: Cohen JP et al. arXiv:2005.11856; boxes: General Blockchain "
    "Inc. (2020), CC BY 4.0. Credit each image by its doi or source_url.",
    access="https://github.com/ieee8023/covid-chestxray-dataset",
    tasks=(
        "report",
        "caption",
        "view",
        "rec",
        "reg",
        "findings",
        "presence",
        "severity",
        "comparison",
        "comparison_order",
        "follow_up",
    ),
    splits="by patient",
    languages=("en", "zh"),
    published=PUBLISHED,
)


class CovidChestXrayConfig(PublishedConfig):
    """Chest radiographs with notes, boxes and follow-ups; `diagnosis` asks for the known finding too."""

    diagnosis: bool = False

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        records = read_records(source)
        found = {"radiographs": sum(not record.id.endswith(HIRES) for record in records)}
        conversations = [
            *(row for record in records for row in _questions(record)),
            *even_out(row for record in records for row in _presences(record)),
            *_comparisons(records, source / "pairs.json"),
        ]
        if self.diagnosis:
            conversations += _diagnoses(records)
        return Reading(
            card=CARD if not self.diagnosis else _with_diagnosis(),
            images=source,
            conversations=conversations,
            records=records,
            found=found,
        )


def read_records(source: Path) -> list[Record]:
    """Every radiograph and every larger copy.

    Raises:
        DataError: a file is missing or a row is faulty.
    """
    path = source / "records.json"
    rows = read_json_list(path)
    times = Counter(str(row.get("clinical_notes")) for row in rows)
    prior = {
        str(p.get("current")): str(p.get("prior")) for p in read_json_list(source / "pairs.json")
    }
    records = []
    for place, row in enumerate(rows):
        name = str(require(row, "id", file=path, name=f"number {place}"))
        record = Record(
            id=name,
            patient_id=str(require(row, "patient", file=path, name=name)),
            study_id=name,
            date_offset_days=number(row, "day", file=path, name=name),
            images=(_image(row, path, name),),
            report=sections(str(require(row, "clinical_notes", file=path, name=name))),
            labels=() if row.get("finding") is None else (str(row["finding"]),),
            boxes=_boxes(row, path, name),
            prior=prior.get(name),
            attributes=_attributes(row, path, name)
            | {SHARED: str(times[str(row["clinical_notes"])])},
            dataset=NAME,
            licence=str(require(row, "license", file=path, name=name)),
        )
        records.append(record)
        if larger := mapping(row, "hires", file=path, name=name):
            records.append(_larger(record, larger, path))
    return records


def sections(note: str) -> dict[str, str]:
    """A note by its headed parts, or as one "note"."""
    parts = _HEADED.split(note)
    if len(parts) == 1:
        return {"note": note}
    found = {
        _HEADINGS[heading.lower()]: _STOPS.sub(".", text).strip()
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {section: text for section, text in found.items() if text}


def said_of_image(record: Record) -> str:
    """The findings; else the note, if it speaks of the image and of no other image; else nothing."""
    if record.attributes[SHARED] != "1":
        return ""
    if "findings" in record.report:
        return record.report["findings"]
    note = record.report.get("note", "")
    return note if _OF_IMAGE.search(note) else ""


def _image(row: Mapping[str, Any], path: Path, name: str) -> ImageRef:
    return ImageRef(uri=str(require(row, "image", file=path, name=name)), modality="CR", study=name)


def _larger(record: Record, row: Mapping[str, Any], path: Path) -> Record:
    """The larger copy: another image with other boxes, nothing else is its own."""
    boxes = _boxes(row, path, record.id)
    return record.model_copy(
        update={
            "id": record.id + HIRES,
            "images": (_image(row, path, record.id),),
            "boxes": boxes,
            "labels": tuple(sorted({box.label for box in boxes if "anatomy" not in box.words})),
            "report": {},
            "prior": None,
        }
    )


def _attributes(row: Mapping[str, Any], path: Path, name: str) -> dict[str, str]:
    found = {name: str(row[name]) for name in _ATTRIBUTES if row.get(name) not in (None, "?")}
    severity = mapping(row, "severity", file=path, name=name)
    return found | {name: str(value) for name, value in severity.items()}


def _boxes(row: Mapping[str, Any], path: Path, name: str) -> tuple[Box, ...]:
    """The label as it is said; the kind (anatomy, pathology, device) as the box's word."""
    return tuple(
        box.model_copy(
            update={"label": spoken_label(box.label), "words": (str(item.get("kind", "")),)}
        )
        for item, box in listed_boxes(row, file=path, name=name)
    )


def spoken_label(label: str) -> str:
    """ "Ground Glass Opacities" as it is said in a sentence."""
    return {"Ground Glass Opacities": "ground-glass opacities"}.get(label, label.lower())


def _of(record: Record, kind: str) -> list[Box]:
    return [box for box in record.boxes if kind in box.words]


def _questions(record: Record) -> Iterator[Conversation]:
    if not record.id.endswith(HIRES):
        yield from _text(record)
        if record.attributes.get("view"):
            yield classify(
                record,
                _view(record),
                VIEWS,
                task="view",
                question="Which projection is this chest radiograph?",
            )
        if "geographic_extent_0_8" in record.attributes:
            yield _severity(record)
    labels = sorted({box.label for box in record.boxes})
    for label in labels:
        boxes = [box for box in record.boxes if box.label == label]
        yield refer(record, label, boxes)
        yield describe_region(record, max(boxes, key=lambda b: (b.x2 - b.x1) * (b.y2 - b.y1)))
    if _of(record, "pathology"):
        yield ground(record, _of(record, "pathology"))


def _view(record: Record) -> str:
    return {"AP Supine": "AP supine"}.get(record.attributes["view"], record.attributes["view"])


def _text(record: Record) -> Iterator[Conversation]:
    """Of a first image only: what was written about a later one speaks of both (`_comparisons`)."""
    if record.prior is not None:
        return
    said = said_of_image(record)
    if said and "findings" in record.report:
        yield report(record, sections=("findings",))
    elif said:
        yield caption(record, said)


def _severity(record: Record) -> Conversation:
    """The mean of three readers' scores (arXiv:2005.11856)."""
    extent, opacity = (record.attributes[k] for k in ("geographic_extent_0_8", "opacity_0_6"))
    return turn(
        record,
        task="severity",
        question="Score the lung involvement: its geographic extent from 0 to 8 and the degree of "
        "opacity from 0 to 6, both lungs together.",
        answer=f"Extent {extent} of 8, opacity {opacity} of 6",
        template="severity/en",
    )


def _presences(record: Record) -> Iterator[Conversation]:
    """Whether pathology and devices were outlined; only larger copies were searched for them."""
    if record.id.endswith(HIRES):
        for label in SEARCHED:
            yield presence(record, label, label in record.labels)


SEARCHED = (
    "ground-glass opacities",
    "consolidation",
    "pleural effusion",
    "pneumothorax",
    "nasogastric tube",
    "central venous line",
    "endotracheal tube",
)


def _comparisons(records: Sequence[Record], path: Path) -> Iterator[Conversation]:
    by_id = {record.id: record for record in records}
    for pair in read_json_list(path):
        ids = [str(require(pair, key, file=path, name=str(pair))) for key in ("prior", "current")]
        for name in ids:
            if name not in by_id:
                raise DataError(f"no record {name!r}", file=str(path), row=str(pair), field="prior")
        prior, record = by_id[ids[0]], by_id[ids[1]]
        guess = pair.get("keyword_change")
        if said := said_of_image(record):
            yield _marked(compare(record, prior, said, task="follow_up"), guess)
        delta = number(pair, "severity_delta", file=path, name=record.id)
        if delta is not None:
            for row in _changes(record, prior, change(delta)):
                yield _marked(row, guess)
        if days_between(prior, record):
            yield from both_orders(record, prior)


def _changes(record: Record, prior: Record, place: int) -> Iterator[Conversation]:
    for language, (question, options) in _CHANGE.items():
        yield compare(
            record, prior, options[place], options=options, question=question, language=language
        )


def change(delta: float) -> int:
    """The class of a change of the expert's extent score, as its place among the options: better,
    unchanged, worse."""
    if abs(delta) < LEAST_CHANGE:
        return 1
    return 2 if delta > 0 else 0


def _marked(row: Conversation, guess: str | None) -> Conversation:
    """The conversation with the publisher's guess in its attributes."""
    if guess is None:
        return row
    return row.model_copy(
        update={
            "attributes": row.attributes
            | {"keyword_change": guess, "keyword_change_is": "a guess from words of the note"}
        }
    )


def _diagnoses(records: Sequence[Record]) -> Iterator[Conversation]:
    for record in records:
        if record.attributes.get("finding") and not record.id.endswith(HIRES):
            yield diagnose(record, record.attributes["finding"].split(", "))


def _with_diagnosis() -> DatasetCard:
    return CARD.model_copy(update={"tasks": (*CARD.tasks, "diagnosis")})
