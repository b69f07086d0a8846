"""MedPix, the teaching files of the US National Library of Medicine, in two published forms.

`medpix`: MedPix 2.0 (Siragusa et al., Data Science and Engineering 2025, arXiv:2407.02994), CT and MR
cases curated from MedPix. Layout and counts read from the publisher's repository (CHILab1/MedPix-2.0,
folder MedPix-2-0 and its README files):

    Case_topic.json     a list of cases: U_id, TAC (CT images), MRI, Case {Title, History, Exam,
                        Findings, "Differential Diagnosis", "Case Diagnosis", Discussion, ...}, Topic
    Descriptions.json   a list of images: Type (CT or MR), U_id, image, Description {Age, Sex,
                        Caption, Modality, Plane, ...}, Location, "Location Category"
    images/<image>.png
    splitted_dataset/uid_list.json   the cases of train, dev and test

Every image becomes a record (caption, modality, plane, location), and so does every case (findings
and diagnosis over all its images). Captions are often the same for the images of a case, and the
findings may speak of films that are not among them.

`mpx_single`: MPx-Single of RadFM (Wu et al., Nature Communications 2025, arXiv:2308.02463), which
MedM-VL uses for report generation (section 3.1) by its rows of type "caption". Layout from RadFM's
loader (chaoyi-wu/RadFM, src/Dataset/dataset/MedPix_dataset.py) and the file names in its
src/Dataset/multi_dataset*.py:

    MedPix_single_train.csv, MedPix_single_test.csv   columns name, type, context
    images/<name>

`type` is caption, modality or plane, `context` the caption or the class. Case numbers are not in the
table: a name that begins with one (MPX1009_synpic46283.png) is grouped by it, others by image. How
many rows were published is stated nowhere that we could read, so the table itself is the measure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from medloupe.data.builders import ask, caption, classify, diagnose, report
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.source import (
    MissingImages,
    image_here,
    one_of,
    read_json,
    read_json_list,
    read_table,
    require,
    unique,
)
from medloupe.data.splits import split_by_patient
from medloupe.errors import ConfigError, DataError, did_you_mean
from medloupe.types import Conversation, ImageRef, Question, Record, Split

CASES: Final = 671
IMAGES: Final = 2050
LICENCE: Final = "terms of MedPix (NLM); each case belongs to its contributor"
CITATION: Final = (
    "Siragusa I, Contino S, La Ciura M, Alicata R, Pirrone R. MedPix 2.0: a comprehensive multimodal "
    "biomedical data set for advanced AI applications. Data Science and Engineering 2025."
)
RADFM: Final = (
    "Wu C, Zhang X, Zhang Y, Hui H, Wang Y, Xie W. Towards generalist foundation model for radiology "
    "by leveraging web-scale 2D&3D medical data. Nat Commun 2025."
)
TYPES: Final[Mapping[str, str]] = {"CT": "CT", "MR": "MRI"}
LOCATIONS: Final = (
    "Head",
    "Thorax",
    "Abdomen",
    "Spine and Muscles",
    "Reproductive and Urinary System",
)
SPLITS: Final[Mapping[str, Split]] = {"train": "train", "dev": "validation", "test": "test"}
SEXES: Final[Mapping[str, str]] = {"male": "M", "female": "F"}
# Section of a record's report -> the publisher's field.
SECTIONS: Final[Mapping[str, str]] = {
    "history": "History",
    "exam": "Exam",
    "findings": "Findings",
    "impression": "Case Diagnosis",
    "differential": "Differential Diagnosis",
    "discussion": "Discussion",
}
_NOTHING: Final = ("", "n/a", "none", "not assigned", "nos - not specified")
_ASKED: Final = {
    "modality": "Which imaging technique was used?",
    "plane": "In which plane or view was the image taken?",
}
_CASE: Final = re.compile(r"(MPX\d+)_")

ImageTask = Literal["caption", "modality", "plane", "location"]
CaseTask = Literal["report", "diagnosis"]
Raw = Mapping[str, Any]


class MedPixConfig(PublishedConfig):
    """MedPix 2.0. `tasks` of single images are caption, modality, plane and location, those of whole
    cases report and diagnosis. The publisher's split is by case; without it, cases are split."""

    tasks: tuple[ImageTask | CaseTask, ...] = ("caption", "modality", "plane", "location", "report")
    missing_images: MissingImages = "refuse"

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `DataError` on a faulty row, an unknown label, or images that no case names."""
        if not self.tasks:
            raise ConfigError("no task is chosen", field="tasks")
        splits = _splits(source / "splitted_dataset" / "uid_list.json")
        images = self._images(source, splits)
        cases = list(_cases(source / "Case_topic.json", images, splits, self.missing_images))
        conversations = [c for r in images.values() for c in _about_image(r, self.tasks)]
        conversations += [c for record in cases for c in _about_case(record, self.tasks)]
        return Reading(
            card=_card(self.tasks, published=bool(splits)),
            images=source,
            conversations=conversations,
            records=[*images.values(), *cases],
            found={"cases": len(cases), "images": len(images)},
        )

    def _images(self, source: Path, splits: Mapping[str, Split]) -> dict[str, Record]:
        """A record for every image of the copy, by name."""
        path = source / "Descriptions.json"
        rows = read_json_list(path)
        names = [
            str(require(row, "image", file=path, name=f"number {i}")) for i, row in enumerate(rows)
        ]
        unique(names, file=path, field="image")
        return {
            name: _image(row, name, path, splits)
            for name, row in zip(names, rows, strict=True)
            if image_here(source / _file(name), self.missing_images, row=name)
        }


class MpxSingleConfig(PublishedConfig):
    """MPx-Single. `types` chooses rows by what they ask. `validation` is the share of the publisher's
    training rows, by case or image, that is held out for choosing a model.

    `missing_images="leave_out"` leaves out rows without their image and rows without text, of which
    the publisher's table has some; the copy is then called partial.
    """

    types: tuple[Literal["caption", "modality", "plane"], ...] = ("caption", "modality", "plane")
    validation: float = Field(default=0.05, ge=0, lt=1)
    missing_images: MissingImages = "refuse"

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `DataError` on a missing column, an unknown type or, unless allowed, a missing image
        or text."""
        if not self.types:
            raise ConfigError("no type of row is chosen", field="types")
        rows = [row for row in _single_rows(source) if row["type"] in self.types]
        images: dict[str, Record] = {}
        conversations = []
        for row in rows:
            if not self._complete(row, source):
                continue
            if row["name"] not in images:
                images[row["name"]] = self._record(row)
            conversations.append(_single(images[row["name"]], row))
        return Reading(
            card=_single_card(self.types, rows=len(rows), validation=self.validation),
            images=source,
            conversations=conversations,
            records=list(images.values()),
            found={"rows": len(conversations)},
        )

    def _complete(self, row: Mapping[str, str], source: Path) -> bool:
        if not row["context"]:
            if self.missing_images == "leave_out":
                return False
            raise DataError(
                "the row has no text",
                remedy="Set missing_images=leave_out: rows without text or image are then left out",
                file=row["file"],
                row=row["line"],
                field="context",
            )
        return image_here(source / "images" / row["name"], self.missing_images, row=row["line"])

    def _record(self, row: Mapping[str, str]) -> Record:
        case = _CASE.match(row["name"])
        patient = case.group(1) if case else row["name"]
        split: Split = "train"
        if row["split"] == "test":
            split = "test"
        elif self.validation:
            shares: dict[Split, float] = {
                "train": 1 - self.validation,
                "validation": self.validation,
            }
            split = split_by_patient([patient], shares, self.seed)[patient]
        return Record(
            id=f"mpx_single/{row['name']}",
            patient_id=patient,
            images=(ImageRef(uri=f"images/{row['name']}"),),
            split=split,
            dataset="mpx_single",
            licence=LICENCE,
        )


def _file(name: str) -> str:
    return f"images/{name}.png"


def _splits(path: Path) -> dict[str, Split]:
    """Case -> split, empty where the copy has no split."""
    if not path.is_file():
        return {}
    listed = read_json(path)
    if not isinstance(listed, dict) or not listed.keys() >= SPLITS.keys():
        raise DataError("lists no train, dev and test", file=str(path))
    split_of: dict[str, Split] = {}
    for name, split in SPLITS.items():
        for case in listed[name]:
            if split_of.setdefault(case, split) != split:
                raise DataError("the case is in two splits", file=str(path), row=str(case))
    return split_of


def _split_of(case: str, splits: Mapping[str, Split], path: Path) -> Split | None:
    if not splits:
        return None
    if case not in splits:
        rule = "the case is in no split"
        raise DataError(rule, remedy="Complete uid_list.json", file=str(path), row=case)
    return splits[case]


def _image(row: Raw, name: str, path: Path, splits: Mapping[str, Split]) -> Record:
    case = str(require(row, "U_id", file=path, name=name))
    kind = one_of(row, "Type", TYPES, file=path, name=name)
    location = one_of(row, "Location Category", LOCATIONS, file=path, name=name)
    said = require(row, "Description", file=path, name=name)
    if not isinstance(said, dict):
        raise DataError("is no object", file=str(path), row=name, field="Description")
    text = str(require(said, "Caption", file=path, name=name)).strip()
    attributes = {
        "sex": _sex(said, path, name),
        "age": _clean(said.get("Age")),
        "modality": _clean(said.get("Modality")),
        "view": _clean(said.get("Plane")),
        "location": _clean(row.get("Location")),
        "location_category": location,
        "acr_code": _clean(said.get("ACR Codes")),
    }
    return Record(
        id=f"medpix/{name}",
        patient_id=case,
        study_id=case,
        images=(ImageRef(uri=_file(name), modality=kind, study=case),),
        report={"caption": text},
        attributes={key: value for key, value in attributes.items() if value},
        split=_split_of(case, splits, path),
        dataset="medpix",
        licence=LICENCE,
    )


def _sex(said: Raw, path: Path, name: str) -> str:
    value = _clean(said.get("Sex"))
    if not value:
        return ""
    return SEXES[one_of({"Sex": value.casefold()}, "Sex", SEXES, file=path, name=name)]


def _clean(value: Any) -> str:
    """A field as text, "" where the publisher says that there is nothing."""
    text = "" if value is None else str(value).strip()
    return "" if text.casefold() in _NOTHING else text


def _cases(
    path: Path,
    images: Mapping[str, Record],
    splits: Mapping[str, Split],
    missing: MissingImages,
) -> Iterator[Record]:
    """A record for every case that has an image here.

    Raises:
        DataError: an image whose case is not among them, a case that is there twice or, unless
            images may be missing, one that names an image without a description.
    """
    rows = read_json_list(path)
    names = [str(require(row, "U_id", file=path, name=f"number {i}")) for i, row in enumerate(rows)]
    unique(names, file=path, field="U_id")
    for record in images.values():
        if record.patient_id not in names:
            raise DataError(
                f"no case {record.patient_id!r}; {did_you_mean(str(record.patient_id), names)}",
                file=str(path),
                row=record.id,
                field="U_id",
            )
    for name, row in zip(names, rows, strict=True):
        listed = [*row.get("TAC", ()), *row.get("MRI", ())]
        shown = [images[image] for image in listed if image in images]
        if missing == "refuse" and len(shown) < len(listed):
            absent = next(image for image in listed if image not in images)
            rule = f"the image {absent!r} of the case is not described in Descriptions.json"
            raise DataError(rule, remedy="Complete the copy", file=str(path), row=name)
        if shown:
            yield _case(row, name, path, shown, splits)


def _case(
    row: Raw, name: str, path: Path, shown: Sequence[Record], splits: Mapping[str, Split]
) -> Record:
    told = require(row, "Case", file=path, name=name)
    if not isinstance(told, dict):
        raise DataError("is no object", file=str(path), row=name, field="Case")
    sections = {section: _clean(told.get(field)) for section, field in SECTIONS.items()}
    shared = ("sex", "age")
    return Record(
        id=f"medpix/{name}",
        patient_id=name,
        study_id=name,
        images=tuple(record.images[0] for record in shown),
        report={section: text for section, text in sections.items() if text},
        attributes={key: shown[0].attributes[key] for key in shared if key in shown[0].attributes},
        split=_split_of(name, splits, path),
        dataset="medpix",
        licence=LICENCE,
    )


def _about_image(record: Record, tasks: Sequence[str]) -> Iterator[Conversation]:
    if "caption" in tasks:
        yield caption(record, record.report["caption"])
    if "modality" in tasks:
        modality = TYPES[record.images[0].modality or ""]
        yield classify(record, modality, tuple(TYPES.values()), task="modality")
    if "plane" in tasks and "view" in record.attributes:
        yield ask(record, _question("plane", record.attributes["view"], "plane"))
    if "location" in tasks:
        yield classify(
            record,
            record.attributes["location_category"],
            LOCATIONS,
            task="location",
            question="Which part of the body does the image show?",
        )


def _about_case(record: Record, tasks: Sequence[str]) -> Iterator[Conversation]:
    sections = [name for name in ("findings", "impression") if name in record.report]
    if "report" in tasks and sections:
        yield report(record, sections=sections)
    if "diagnosis" in tasks and "impression" in record.report:
        yield diagnose(record, record.report["impression"])


def _question(kind: str, answer: str, key: str) -> Question:
    return Question(id=key, text=_ASKED[kind], answer=answer, task=kind)


def _card(tasks: tuple[str, ...], *, published: bool) -> DatasetCard:
    return DatasetCard(
        name="medpix",
        version="2.0",
        description="CT and MR teaching cases with captions, findings and diagnoses",
        licence=LICENCE,
        citation=CITATION,
        access="open: https://github.com/CHILab1/MedPix-2.0",
        tasks=tasks,
        splits="by the publisher, by case" if published else "by MedLoupe, by case",
        published={"cases": CASES, "images": IMAGES},
    )


def _single_rows(source: Path) -> Iterator[dict[str, str]]:
    """Every row of both tables with its file, line and split."""
    for split in ("train", "test"):
        path = source / f"MedPix_single_{split}.csv"
        for number, row in enumerate(read_table(path, ("name", "type", "context")), start=1):
            line = f"row {number}"
            one_of(row, "type", ("caption", "modality", "plane"), file=path, name=line)
            name = str(require(row, "name", file=path, name=line))
            yield {
                **{key: row[key] for key in ("type", "context")},
                "name": name,
                "line": line,
                "key": f"{split}-{number}",
                "file": str(path),
                "split": split,
            }


def _single(record: Record, row: Mapping[str, str]) -> Conversation:
    if row["type"] == "caption":
        made = caption(record, row["context"])
        return made.model_copy(update={"id": f"{made.id}/{row['key']}"})
    return ask(record, _question(row["type"], row["context"], row["key"]))


def _single_card(types: tuple[str, ...], *, rows: int, validation: float) -> DatasetCard:
    return DatasetCard(
        name="mpx_single",
        description="MedPix images with caption, modality and plane, as RadFM tabulates them",
        licence=LICENCE,
        citation=RADFM,
        access="tables: https://huggingface.co/datasets/chaoyi-wu/RadFM_data_csv; images: MedPix",
        tasks=types,
        splits="test by the publisher"
        + (f"; {validation:.0%} of its training images are held out" if validation else ""),
        published={"rows": rows},
    )
