"""MIMIC-CXR (Johnson et al., Sci Data 6:317, 2019): chest radiographs with their reports.

Layout of PhysioNet's mimic-cxr-jpg (images and tables) and mimic-cxr (reports, DICOM), 2.0.0 and later:

    mimic-cxr-2.0.0-split.csv.gz     dicom_id, study_id, subject_id, split
    mimic-cxr-2.0.0-metadata.csv.gz  dicom_id, subject_id, study_id, ViewPosition, StudyDate, StudyTime, ...
    mimic-cxr-2.0.0-chexpert.csv.gz  subject_id, study_id, 14 labels: 1.0, 0.0, -1.0 (uncertain) or empty
    mimic-cxr-2.0.0-negbio.csv.gz    the same
    files/p10/p10000032/s50414267/<dicom_id>.jpg (or .dcm)
    files/p10/p10000032/s50414267.txt (the unpacked mimic-cxr-reports.zip)

Study identifiers are random: the order of a patient's studies is that of StudyDate and StudyTime, which
are shifted by one offset per patient. Sex and age stand in MIMIC-IV and are not read. Reports are cut
into sections by the rules of the publisher's `txt/section_parser.py`, with two differences: a header on
the line after another header counts, and misspelt headers are recognised by likeness instead of from a
list. Its 53 hand-made corrections of single reports are not applied.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from medloupe.data.adopt import Images
from medloupe.data.builders import label_all, report
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.source import (
    MissingImages,
    image_here,
    one_of,
    read_table,
    require,
    unique,
)
from medloupe.errors import DataError
from medloupe.types import Conversation, ImageRef, Record, Split

CITATION = (
    "Johnson AEW, Pollard TJ, Berkowitz SJ, et al. MIMIC-CXR, a de-identified publicly available "
    "database of chest radiographs with free-text reports. Sci Data 2019;6:317. Goldberger A, et al. "
    "PhysioBank, PhysioToolkit, and PhysioNet. Circulation 2000;101:e215-e220."
)
LICENCE: Final = "PhysioNet Credentialed Health Data License 1.5.0"
PUBLISHED: Final = {"images": 377110, "studies": 227835, "patients": 65379}
LABELS: Final = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
SPLITS: Final[Mapping[str, Split]] = {
    "train": "train",
    "validate": "validation",
    "test": "test",
}
_VIEW_ORDER: Final = ("PA", "AP", "LATERAL", "LL")
_STATES: Final = {"1": "present", "0": "absent", "-1": "uncertain", "": "not mentioned"}

# A header stands at the start of a line after one space or more, in capitals, before a colon.
_HEADER: Final = re.compile(r"^ +([A-Z(][A-Z ()/,-]*):(?=\s|\Z)", re.MULTILINE)
_BLANK_LINE: Final = re.compile(r"\n\s*\n")
_SYNONYMS: Final[Mapping[str, str]] = {
    "reason for examination": "indication",
    "reason for exam": "indication",
    "clinical indication": "indication",
    "clinical information": "history",
    "pfi": "history",
    "exam": "examination",
    "type of examination": "examination",
    "reference exam": "comparison",
    "conclusion": "impression",
    "recommendation(s)": "recommendations",
    "recommendation": "recommendations",
    "wetread": "wet read",
}
_MAIN: Final = ("impression", "findings", "history", "comparison", "addendum")
# A header that names the views ("CHEST, TWO VIEWS") stands over the findings.
_VIEWS: Final = re.compile(
    r"chest|portable|(one|two) views?|(pa|ap|frontal|lateral) view|(pa|ap|lateral) and |and lateral"
    r"|frontal (and|upright|semi-upright)|bone window|ribs"
)
_SPELLINGS: Final = (*_MAIN, "indication", "technique", "examination")

Task = Literal["report", "labels"]
Labeler = Literal["chexpert", "negbio"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """One row of the metadata table, with its split."""

    dicom_id: str
    study_id: str
    patient_id: str
    view: str
    taken: dt.datetime
    split: Split
    uri: str = ""


class MimicCxrConfig(PublishedConfig):
    """`views` keeps only images of these ViewPositions ("PA", "AP", ...); studies without any are left
    out. `reports` is the folder that holds `files/` with the reports, where it is another one.

    A report is asked for by those of `sections` that it has; studies with none of them are asked
    nothing and counted. `uncertain` is what a label -1 means: such studies are not asked about their
    labels, or it counts as absent or present.
    """

    images: Images = "reference"
    tasks: tuple[Task, ...] = ("report",)
    views: tuple[str, ...] = ()
    sections: tuple[str, ...] = ("findings", "impression")
    reports: str = ""
    labeler: Labeler = "chexpert"
    uncertain: Literal["leave_out", "absent", "present"] = "leave_out"
    missing_images: MissingImages = "refuse"

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `DataError` on a faulty row, or a missing table, image or report."""
        images = [
            image
            for image in (self._located(source, row) for row in read_images(source))
            if image is not None
        ]
        labels = self._labels(source)
        studies: dict[str, list[Image]] = {}
        for image in images:
            if not self.views or image.view in self.views:
                studies.setdefault(image.study_id, []).append(image)
        records = []
        for done, study in enumerate(studies.values(), start=1):
            records.append(self._record(source, study, labels))
            progress("studies", done, len(studies))
        records = with_priors(records, studies)
        conversations = [row for record in records for row in self._conversations(record)]
        asked = {row.study_id for row in conversations if row.task == "report"}
        found = {
            "images": len(images),
            "studies": len({image.study_id for image in images}),
            "patients": len({image.patient_id for image in images}),
        }
        if "report" in self.tasks:
            found["studies without these sections"] = len(records) - len(asked)
        return Reading(
            card=self._card(),
            images=source,
            conversations=conversations,
            records=records,
            found=found,
        )

    def _located(self, source: Path, image: Image) -> Image | None:
        """The image with its uri, None where it may be missing."""
        stem = f"{folder_of(image.patient_id)}/s{image.study_id}/{image.dicom_id}"
        uri = next(
            (stem + end for end in (".jpg", ".dcm") if (source / (stem + end)).is_file()), ""
        )
        if not uri and not image_here(source / f"{stem}.jpg", self.missing_images, row=stem):
            return None
        return dataclasses.replace(image, uri=uri)

    def _labels(self, source: Path) -> Mapping[str, Mapping[str, str]]:
        path = table_of(source, self.labeler)
        if not path.is_file() and "labels" not in self.tasks:
            return {}
        return read_labels(path)

    def _record(
        self, source: Path, study: Sequence[Image], labels: Mapping[str, Mapping[str, str]]
    ) -> Record:
        first = study[0]
        split = {image.split for image in study}
        if len(split) > 1:
            raise DataError("the study is in two splits", row=first.study_id, field="split")
        ordered = sorted(study, key=lambda image: (_rank(image.view), image.dicom_id))
        states = labels.get(first.study_id, {})
        attributes = {"views": ", ".join(image.view for image in ordered), "site": "BIDMC"}
        for state in ("uncertain", "absent"):
            names = [name for name in LABELS if states.get(name) == state]
            attributes |= {state: "; ".join(names)} if names else {}
        return Record(
            id=f"mimic_cxr/s{first.study_id}",
            patient_id=first.patient_id,
            study_id=first.study_id,
            images=tuple(ImageRef(uri=i.uri, study=i.study_id) for i in ordered),
            report=self._report(source, first) if "report" in self.tasks else {},
            labels=tuple(name for name in LABELS if states.get(name) == "present"),
            attributes=attributes | ({"labeler": self.labeler} if states else {}),
            split=first.split,
            dataset="mimic_cxr",
            licence=LICENCE,
        )

    def _report(self, source: Path, image: Image) -> dict[str, str]:
        root = source / self.reports if self.reports else source
        path = root / folder_of(image.patient_id) / f"s{image.study_id}.txt"
        try:
            return parse_report(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"the report cannot be read: {error}",
                remedy="Unpack mimic-cxr-reports.zip of mimic-cxr here, or name its folder in "
                "'reports'; without reports, ask for tasks=labels",
                file=str(path),
                row=image.study_id,
            ) from None

    def _conversations(self, record: Record) -> Iterator[Conversation]:
        sections = [name for name in self.sections if record.report.get(name)]
        if "report" in self.tasks and sections:
            yield report(record, sections=sections)
        if "labels" in self.tasks and "labeler" in record.attributes:
            unsure = record.attributes.get("uncertain", "")
            if unsure and self.uncertain == "leave_out":
                return
            more = unsure.split("; ") if unsure and self.uncertain == "present" else []
            yield label_all(record, [*record.labels, *more], LABELS)

    def _card(self) -> DatasetCard:
        return DatasetCard(
            name="mimic_cxr",
            version="2",
            description="Chest radiographs of an emergency department with reports; labels were drawn "
            f"from the reports by {self.labeler}, not by a reader",
            licence=LICENCE,
            citation=CITATION,
            access="credentialed: a PhysioNet account with CITI training and a signed data use "
            "agreement, which forbids sharing the data, also with services that keep what they are "
            "sent; https://physionet.org/content/mimic-cxr-jpg/",
            tasks=self.tasks,
            splits="by the publisher, by patient",
            published=PUBLISHED,
        )


def read_images(source: Path) -> Iterator[Image]:
    """Every image of the metadata table with its split.

    Raises:
        DataError: a missing table or column, an image without a split or with two, a date or time
            that is none.
    """
    split_file, metadata = table_of(source, "split"), table_of(source, "metadata")
    splits: dict[str, Split] = {}
    for row in read_table(split_file, ("dicom_id", "study_id", "subject_id", "split")):
        name = require(row, "dicom_id", file=split_file, name="")
        if name in splits:
            raise DataError("occurs 2 times", file=str(split_file), row=name, field="dicom_id")
        splits[name] = SPLITS[one_of(row, "split", SPLITS, file=split_file, name=name)]
    ids = []
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
    for row in read_table(metadata, columns):
        name = require(row, "dicom_id", file=metadata, name="")
        if name not in splits:
            rule = f"the image has no row in {split_file.name}"
            raise DataError(rule, file=str(metadata), row=name, field="dicom_id")
        ids.append(name)
        yield Image(
            dicom_id=name,
            study_id=require(row, "study_id", file=metadata, name=name),
            patient_id=require(row, "subject_id", file=metadata, name=name),
            view=row["ViewPosition"] or "unknown",
            taken=_taken(row, metadata, name),
            split=splits[name],
        )
    unique(ids, file=metadata, field="dicom_id")


def read_labels(path: Path) -> dict[str, dict[str, str]]:
    """Study -> label -> "present", "absent", "uncertain" or "not mentioned".

    Raises:
        DataError: a missing table or column, a study twice, or a value that is none of the four.
    """
    studies: dict[str, dict[str, str]] = {}
    for row in read_table(path, ("subject_id", "study_id", *LABELS)):
        study = require(row, "study_id", file=path, name="")
        if study in studies:
            raise DataError("occurs 2 times", file=str(path), row=study, field="study_id")
        studies[study] = {}
        for label in LABELS:
            state = _STATES.get(row[label].removesuffix(".0"))
            if state is None:
                rule = f"{row[label]!r} is none of 1.0, 0.0, -1.0 and nothing"
                raise DataError(rule, file=str(path), row=study, field=label)
            studies[study][label] = state
    return studies


def table_of(source: Path, name: str) -> Path:
    """The path of a table: packed as it is published, or unpacked."""
    packed = source / f"mimic-cxr-2.0.0-{name}.csv.gz"
    unpacked = packed.with_suffix("")
    return unpacked if unpacked.is_file() and not packed.is_file() else packed


def folder_of(patient_id: str) -> str:
    """ "files/p10/p10000032"."""
    return f"files/p{patient_id[:2]}/p{patient_id}"


def with_priors(records: Sequence[Record], studies: Mapping[str, Sequence[Image]]) -> list[Record]:
    """The records, each with the latest strictly earlier study of its patient among them, and with the
    days since the first one. `studies` are the images of each by study id."""
    taken = {record.id: _earliest(studies, record) for record in records}
    patients: dict[str | None, list[Record]] = {}
    for record in records:
        patients.setdefault(record.patient_id, []).append(record)
    prior: dict[str, str | None] = {}
    first: dict[str, dt.datetime] = {}
    for ordered in patients.values():
        ordered.sort(key=lambda record: (taken[record.id], record.id))
        for record in ordered:
            earlier = [one.id for one in ordered if taken[one.id] < taken[record.id]]
            prior[record.id] = earlier[-1] if earlier else None
            first[record.id] = taken[ordered[0].id]
    return [
        record.model_copy(
            update={
                "prior": prior[record.id],
                "date_offset_days": (taken[record.id] - first[record.id]) / dt.timedelta(days=1),
            }
        )
        for record in records
    ]


def _earliest(studies: Mapping[str, Sequence[Image]], record: Record) -> dt.datetime:
    assert record.study_id is not None
    return min(image.taken for image in studies[record.study_id])


def parse_report(text: str) -> dict[str, str]:
    """The sections of a report, each as one line; of several with one name the last that says
    something.

    A report with neither findings nor impression has a "last_paragraph": what follows the first blank
    line of its last section, as the publisher's parser takes it.
    """
    heads = list(_HEADER.finditer(text))
    starts = [head.start() for head in heads[1:]] + [len(text)]
    raw = [
        (section_name(head[1]), text[head.end() : end])
        for head, end in zip(heads, starts, strict=False)
    ] or [("full report", text)]
    sections = {name: said for name, body in raw if (said := " ".join(body.split()))}
    if not sections.keys() & {"findings", "impression"}:
        name, body = raw[-1]
        first, *rest = _BLANK_LINE.split(body.strip(), maxsplit=1)
        if rest:
            sections[name] = " ".join(first.split())
            sections["last_paragraph"] = " ".join(rest[0].split())
    return sections


def section_name(header: str) -> str:
    """ "CHEST, TWO VIEWS" and "FINDINDGS" are "findings", "CONCLUSION" is "impression"."""
    name = header.lower().strip()
    if name in _SYNONYMS:
        return _SYNONYMS[name]
    main = next((word for word in _MAIN if word in name), None)
    if main is not None:
        return main
    if _VIEWS.search(name):
        return "findings"
    near = difflib.get_close_matches(name, _SPELLINGS, n=1, cutoff=0.8)
    return near[0] if near else name


def _taken(row: Mapping[str, str], path: Path, name: str) -> dt.datetime:
    """StudyDate (YYYYMMDD) and StudyTime (HHMMSS.fraction, leading zeros lost)."""
    for field, digits in (("StudyDate", 8), ("StudyTime", 6)):
        value = require(row, field, file=path, name=name)
        if not re.fullmatch(rf"\d{{1,{digits}}}(\.\d*)?", value):
            raise DataError(f"{value!r} is no date or time", file=str(path), row=name, field=field)
    text = row["StudyDate"].partition(".")[0] + row["StudyTime"].partition(".")[0].zfill(6)
    try:
        return dt.datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=dt.UTC)
    except ValueError:
        raise DataError(
            f"{text!r} is no date and time", file=str(path), row=name, field="StudyDate, StudyTime"
        ) from None


def _rank(view: str) -> int:
    return _VIEW_ORDER.index(view) if view in _VIEW_ORDER else len(_VIEW_ORDER)
