"""CT-RATE (Hamamci et al., arXiv:2403.17834, Nature Biomedical Engineering 2026): non-contrast chest
CT with reports, 18 abnormalities and questions. MedM-VL's 3D training set (section 3.1).

Layout, from the data set's page (huggingface.co/datasets/ibrahimhamamci/CT-RATE), the official
repositories (ibrahimethemhamamci/CT-CLIP and CT-CHAT: README, llava/train/validation_metadata.csv,
llava/train/train.py, llava/serve) and MedM-VL's examples, below a folder `dataset`:

    train_fixed/train_1/train_1_a/train_1_a_1.nii.gz    valid_fixed/...   (v1: train/, valid/)
    radiology_text_reports/train_reports.csv, validation_reports.csv
        VolumeName, ClinicalInformation_EN, Technique_EN, Findings_EN, Impressions_EN
    multi_abnormality_labels/train_predicted_labels.csv, valid_predicted_labels.csv
        VolumeName and 18 columns of 0 and 1 (predicted from the report by a classifier)
    metadata/train_metadata.csv, validation_metadata.csv     one DICOM header a volume
    metadata/no_chest_train.txt, no_chest_valid.txt          volumes that show no chest
    vqa/train_vqa.json, valid_vqa.json                       LLaVA's form, with the kind as a tag

A name is split, patient, scan and reconstruction (README of CT-CLIP). All reconstructions of a scan
and all scans of a patient stay together; a scan knows the patient's scan before it (`prior`).

HU: the volumes of v1 hold stored values, whose slope and intercept stand in the metadata only (the
official loader applies them; `RescaleIntercept` is -8192 for 850 of the 3,039 validation volumes and
-1024 for the others). In the corrected v2 (`_fixed`) they are in the NIfTI header. Where only v1 is
here, each volume is rewritten below `out` with the two numbers in its header, which leaves every
stored value as it is and needs as much space again. A v1 header that says something else already is
refused: it would be rescaled twice.

A copy of part of the volumes is normal and called partial; rows about volumes that are not here are
left alone. The question files are read row by row. Volumes stay where they are unless `images=copy`.
"""

from __future__ import annotations

import gzip
import math
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

import nibabel
from nibabel.spatialimages import HeaderDataError
from pydantic import Field

from medloupe.data.adopt import Images
from medloupe.data.builders import Piece, dialogue, label_all, report
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.source import number, read_table, require, unique
from medloupe.data.splits import split_by_patient
from medloupe.data.store import aside
from medloupe.data.streaming import stream_rows
from medloupe.errors import ConfigError, DataError
from medloupe.types import Conversation, ImageRef, Record, Split

NAME: Final = "ct_rate"
VOLUMES: Final = 50_188
SCANS: Final = 25_692
PATIENTS: Final = 21_304
LICENCE: Final = "CC-BY-NC-SA-4.0"
CITATION: Final = (
    "Hamamci IE, Er S, Wang C, et al. Developing generalist foundation models from a multimodal "
    "dataset for 3D computed tomography. arXiv:2403.17834, 2024."
)
LABELS: Final = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)
# Section of a record's report -> the publisher's column.
SECTIONS: Final[Mapping[str, str]] = {
    "indication": "ClinicalInformation_EN",
    "technique": "Technique_EN",
    "findings": "Findings_EN",
    "impression": "Impressions_EN",
}
# The publisher's files by the first part of a volume's name.
_REPORTS: Final = {"train": "train_reports.csv", "valid": "validation_reports.csv"}
_LABELS: Final = {"train": "train_predicted_labels.csv", "valid": "valid_predicted_labels.csv"}
_METADATA: Final = {"train": "train_metadata.csv", "valid": "validation_metadata.csv"}
KINDS: Final = ("long_answer", "short_answer", "multiple_choice", "report_generation")
_TAG: Final = re.compile(r"\s*<(" + "|".join(KINDS) + r")>\s*")
_VOLUME: Final = re.compile(r"(?P<scan>(?P<patient>(train|valid)_\d+)_[a-z]+)_\d+\.nii\.gz")
_LETTER: Final = re.compile(r"(?:^|(?<=[\s,;:?]))\(?([A-Ea-e])[).]\s*(?=\S)")
_NOTHING: Final = ("", "not given.", "not given", "nan")
# A metadata column for each attribute.
_ATTRIBUTES: Final[Mapping[str, str]] = {
    "sex": "PatientSex",
    "manufacturer": "Manufacturer",
    "scanner": "ManufacturerModelName",
    "protocol": "SeriesDescription",
    "kernel": "ConvolutionKernel",
    "pixel_spacing_mm": "XYSpacing",
    "slice_spacing_mm": "ZSpacing",
}

Task = Literal["report", "labels", "vqa"]
Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Volume:
    """A file of the copy. `group` is "train" or "valid", `corrected` whether its header has HU."""

    path: Path
    patient: str
    scan: str
    group: str
    corrected: bool

    @property
    def name(self) -> str:
        return self.path.name


class CtRateConfig(PublishedConfig):
    """`tasks`: reports (findings and impression), the 18 abnormalities as one question, and the
    published questions, whose task is their kind (`kinds` chooses). `turns="single"` makes every
    question of a published dialogue a conversation of its own.

    The publisher has a training and a validation set, and results are reported on the latter:
    `published_validation` is the split it becomes here, `validation` the share of the training
    patients that is held out for choosing a model. `reconstructions="first"` takes one volume of each
    scan. `no_chest="keep"` keeps the volumes that the publisher lists as showing no chest.
    """

    images: Images = "reference"
    tasks: tuple[Task, ...] = ("report", "labels", "vqa")
    kinds: tuple[str, ...] = KINDS
    turns: Literal["published", "single"] = "published"
    reconstructions: Literal["all", "first"] = "all"
    no_chest: Literal["leave_out", "keep"] = "leave_out"
    published_validation: Literal["test", "validation"] = "test"
    validation: float = Field(default=0.05, ge=0, lt=1)

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `DataError` on a faulty name or row, a volume that a table lacks, or a value that is
        no 0 or 1; `ConfigError` where nothing is asked for."""
        self._check()
        base = source / "dataset" if (source / "dataset").is_dir() else source
        here = _volumes(base)
        chosen = self._chosen(here, base)
        records = self._records(base, chosen)
        corrected = all(volume.corrected for volume in chosen.values())
        if not corrected:
            records = _rescaled(records, chosen, base, out, progress)
        conversations = list(self._conversations(base, records))
        return Reading(
            card=self._card(corrected),
            images=base if corrected else out,
            conversations=conversations,
            records=list(records.values()),
            found={
                "volumes": len(here),
                "scans": len({volume.scan for volume in here.values()}),
                "patients": len({volume.patient for volume in here.values()}),
            },
        )

    def _check(self) -> None:
        if not self.tasks or ("vqa" in self.tasks and not self.kinds):
            raise ConfigError("no task or no kind of question is chosen", field="tasks, kinds")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            remedy = "Known: " + ", ".join(KINDS)
            raise ConfigError(f"unknown kind {unknown[0]!r}", remedy=remedy, field="kinds")

    def _chosen(self, here: Mapping[str, _Volume], base: Path) -> dict[str, _Volume]:
        """The volumes that are used, by name."""
        absent = _no_chest(base) if self.no_chest == "leave_out" else frozenset()
        chosen: dict[str, _Volume] = {}
        scans: set[str] = set()
        for name, volume in here.items():
            if name in absent or (self.reconstructions == "first" and volume.scan in scans):
                continue
            scans.add(volume.scan)
            chosen[name] = volume
        if not chosen:
            raise DataError("every volume here is listed as showing no chest", file=str(base))
        return chosen

    def _records(self, base: Path, chosen: Mapping[str, _Volume]) -> dict[str, Record]:
        reports = _table(base / "radiology_text_reports", _REPORTS, (*SECTIONS.values(),), chosen)
        metadata = _table(
            base / "metadata", _METADATA, ("RescaleSlope", "RescaleIntercept"), chosen
        )
        labels: Mapping[str, tuple[Path, Row]] = {}
        if "labels" in self.tasks:
            labels = _table(base / "multi_abnormality_labels", _LABELS, LABELS, chosen)
        splits = self._splits(chosen)
        days = _days(chosen, metadata)
        priors = _priors(chosen, days)
        return {
            name: Record(
                id=name.removesuffix(".nii.gz"),
                patient_id=volume.patient,
                study_id=volume.scan,
                date_offset_days=days.get(volume.scan),
                images=(_ref(volume, base),),
                report=_report(reports[name][1]),
                labels=_labels(*labels[name]) if labels else (),
                prior=priors.get(name),
                attributes=_attributes(metadata[name][1]),
                split=splits[volume.patient],
                dataset=NAME,
                licence=LICENCE,
            )
            for name, volume in chosen.items()
        }

    def _splits(self, chosen: Mapping[str, _Volume]) -> dict[str, Split]:
        shares: dict[Split, float] = {"train": 1 - self.validation, "validation": self.validation}
        ours = split_by_patient({volume.patient for volume in chosen.values()}, shares, self.seed)
        return {
            patient: self.published_validation if patient.startswith("valid_") else split
            for patient, split in ours.items()
        }

    def _conversations(self, base: Path, records: Mapping[str, Record]) -> Iterator[Conversation]:
        for record in records.values():
            sections = [name for name in ("findings", "impression") if name in record.report]
            if "report" in self.tasks and sections:
                yield report(record, sections=sections)
            if "labels" in self.tasks:
                yield label_all(record, record.labels, LABELS)
        if "vqa" in self.tasks:
            for group in sorted({name.partition("_")[0] for name in records}):
                yield from self._asked(base / "vqa" / f"{group}_vqa.json", records)

    def _asked(self, path: Path, records: Mapping[str, Record]) -> Iterator[Conversation]:
        """The published questions about volumes that are used."""
        for position, raw in enumerate(stream_rows(path)):
            row = str(require(raw, "id", file=path, name=f"number {position}"))
            image = Path(str(require(raw, "image", file=path, name=row))).name
            record = records.get(image)
            if record is None:
                continue
            kind, turns = _dialogue(raw, path, row)
            if kind not in self.kinds:
                continue
            if self.turns == "published":
                yield _question(record, kind, turns, key=row)
            else:
                for count, turn in enumerate(turns):
                    yield _question(record, kind, [turn], key=f"{row}-{count}")

    def _card(self, corrected: bool) -> DatasetCard:
        kinds = self.kinds if "vqa" in self.tasks else ()
        version = "v2 (HU in the headers)" if corrected else "v1 (HU added to the headers)"
        return DatasetCard(
            name=NAME,
            version=version,
            description="Non-contrast chest CT with reports; the 18 labels were predicted from the "
            "reports, the questions written by a language model",
            licence=LICENCE,
            citation=CITATION,
            access="on request: https://huggingface.co/datasets/ibrahimhamamci/CT-RATE",
            tasks=(*(task for task in self.tasks if task != "vqa"), *kinds),
            splits=f"by the publisher, by patient (its validation set is {self.published_validation}"
            f" here); {self.validation:.0%} of the training patients are held out for validation",
            published={"volumes": VOLUMES, "scans": SCANS, "patients": PATIENTS},
        )


def _volumes(base: Path) -> dict[str, _Volume]:
    """Every volume of the copy by name: v2 where there is any, else v1.

    Raises:
        DataError: none, a name that is not the publisher's, or one that is there twice.
    """
    for suffix in ("_fixed", ""):
        found: dict[str, _Volume] = {}
        for group in ("train", "valid"):
            for path in sorted((base / f"{group}{suffix}").glob("*/*/*.nii.gz")):
                parts = _VOLUME.fullmatch(path.name)
                if parts is None or not path.name.startswith(f"{group}_"):
                    raise DataError(
                        "the name is not one of CT-RATE's",
                        remedy=f"Expected {group}_<patient>_<scan>_<reconstruction>.nii.gz",
                        file=str(path),
                    )
                if path.name in found:
                    raise DataError("the volume is there twice", file=str(path))
                found[path.name] = _Volume(
                    path=path,
                    patient=parts["patient"],
                    scan=parts["scan"],
                    group=group,
                    corrected=bool(suffix),
                )
        if found:
            return found
    raise DataError(
        "no volume of CT-RATE is here",
        remedy="Expected dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz and the like",
        file=str(base),
    )


def _no_chest(base: Path) -> frozenset[str]:
    """The names in the publisher's lists; a copy of v1 alone has none."""
    names: set[str] = set()
    for group in ("train", "valid"):
        path = base / "metadata" / f"no_chest_{group}.txt"
        if path.is_file():
            names |= {Path(line.strip()).name for line in path.read_text("utf-8").splitlines()}
    return frozenset(names - {""})


def _table(
    folder: Path, files: Mapping[str, str], columns: Sequence[str], chosen: Mapping[str, _Volume]
) -> dict[str, tuple[Path, Row]]:
    """(file, row) of every chosen volume.

    Raises:
        DataError: a missing file or column, a volume without a row or with two.
    """
    found: dict[str, tuple[Path, Row]] = {}
    for group in sorted({volume.group for volume in chosen.values()}):
        path = folder / files[group]
        rows = [
            row for row in read_table(path, ("VolumeName", *columns)) if row["VolumeName"] in chosen
        ]
        unique([row["VolumeName"] for row in rows], file=path, field="VolumeName")
        found |= {row["VolumeName"]: (path, row) for row in rows}
    for name, volume in chosen.items():
        if name not in found:
            raise DataError(
                "the table has no row for this volume",
                remedy="Fetch the table again, or remove the volume",
                file=str(folder / files[volume.group]),
                row=name,
            )
    return found


def _ref(volume: _Volume, base: Path) -> ImageRef:
    return ImageRef(
        uri=volume.path.relative_to(base).as_posix(),
        kind="volume",
        modality="CT",
        study=volume.scan,
        series=volume.name.removesuffix(".nii.gz"),
    )


def _report(row: Row) -> dict[str, str]:
    texts = {section: row[column] for section, column in SECTIONS.items()}
    return {name: text for name, text in texts.items() if text.casefold() not in _NOTHING}


def _labels(path: Path, row: Row) -> tuple[str, ...]:
    for label in LABELS:
        if number(row, label, file=path, name=row["VolumeName"]) not in (0, 1):
            rule = f"{row[label]!r} is neither 0 nor 1"
            raise DataError(rule, file=str(path), row=row["VolumeName"], field=label)
    return tuple(label for label in LABELS if float(row[label]) == 1)


def _attributes(row: Row) -> dict[str, str]:
    found = {name: row.get(column, "") for name, column in _ATTRIBUTES.items()}
    age = row.get("PatientAge", "")
    if re.fullmatch(r"\d{3}Y", age):
        found["age"] = str(int(age[:-1]))
    return {name: text for name, text in found.items() if text}


def _days(
    chosen: Mapping[str, _Volume], metadata: Mapping[str, tuple[Path, Row]]
) -> dict[str, float]:
    """Scan -> days since the patient's first scan here, where the dates are known."""
    dates: dict[str, dict[str, date]] = {}
    for name, volume in chosen.items():
        text = metadata[name][1].get("StudyDate", "")
        try:
            when = date.fromisoformat(text) if len(text) == 8 else None
        except ValueError:
            when = None
        if when is not None:
            dates.setdefault(volume.patient, {})[volume.scan] = when
    return {
        scan: float((when - min(scans.values())).days)
        for scans in dates.values()
        for scan, when in scans.items()
    }


def _priors(chosen: Mapping[str, _Volume], days: Mapping[str, float]) -> dict[str, str]:
    """Volume -> id of the record of the patient's scan before it (its first reconstruction)."""
    scans: dict[str, dict[str, str]] = {}
    for name, volume in chosen.items():
        scans.setdefault(volume.patient, {}).setdefault(volume.scan, name)
    before: dict[str, str] = {}
    for firsts in scans.values():
        dated = sorted((days[scan], scan) for scan in firsts if scan in days)
        for (earlier, first), (later, second) in pairwise(dated):
            if earlier < later:
                before[second] = firsts[first].removesuffix(".nii.gz")
    return {name: before[v.scan] for name, v in chosen.items() if v.scan in before}


def _rescaled(
    records: Mapping[str, Record],
    chosen: Mapping[str, _Volume],
    base: Path,
    out: Path,
    progress: Progress,
) -> dict[str, Record]:
    """The records with volumes below `out` whose headers hold slope and intercept."""
    tables = _table(base / "metadata", _METADATA, ("RescaleSlope", "RescaleIntercept"), chosen)
    renewed = {}
    for done, (name, record) in enumerate(records.items(), start=1):
        path, row = tables[name]
        slope = number(row, "RescaleSlope", file=path, name=name)
        intercept = number(row, "RescaleIntercept", file=path, name=name)
        if slope == 0:
            raise DataError("a slope of 0", file=str(path), row=name, field="RescaleSlope")
        uri = f"volumes/{name}"
        write_rescaled(chosen[name].path, out / uri, slope, intercept)
        ref = record.images[0].model_copy(update={"uri": uri})
        renewed[name] = record.model_copy(update={"images": (ref,)})
        progress("volumes", done, len(records))
    return renewed


def write_rescaled(source: Path, target: Path, slope: float, intercept: float) -> None:
    """Copy a `.nii.gz` with `scl_slope` and `scl_inter` set; nothing else is changed.

    A header that holds the same two numbers already is copied as it is.

    Raises:
        DataError: not a NIfTI-1 file in gzip, or a header with another scaling.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = aside(target)
    try:
        with gzip.open(source) as read, temporary.open("wb") as raw:
            header = nibabel.Nifti1Header(read.read(nibabel.Nifti1Header.sizeof_hdr))
            _set_scaling(header, slope, intercept, source)
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as written:
                written.write(header.binaryblock)
                shutil.copyfileobj(read, written, 1 << 20)
        temporary.replace(target)
    except (
        OSError,
        EOFError,
        zlib.error,
        HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
    ) as e:
        raise DataError(
            f"the volume cannot be rewritten: {e}", remedy="Fetch it again", file=str(source)
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _set_scaling(header: Any, slope: float, intercept: float, source: Path) -> None:
    stated = (float(header["scl_slope"]), float(header["scl_inter"]))
    if all(
        math.isclose(a, b, rel_tol=1e-6) for a, b in zip(stated, (slope, intercept), strict=True)
    ):
        return
    # 0 and NaN stand for "no scaling" (nifti1.h)
    plain = stated == (1.0, 0.0) or stated[0] == 0 or math.isnan(stated[0])
    if not plain:
        raise DataError(
            f"the header says {stated[0]:g} x + {stated[1]:g}, the metadata {slope:g} x + "
            f"{intercept:g}",
            remedy="Use the corrected volumes (train_fixed, valid_fixed)",
            file=str(source),
            field="scl_slope",
        )
    header["scl_slope"], header["scl_inter"] = slope, intercept


def _dialogue(raw: Mapping[str, Any], path: Path, row: str) -> tuple[str, list[tuple[str, str]]]:
    """The kind of a published row, and its (question, answer) turns in plain words."""
    said = require(raw, "conversations", file=path, name=row)
    texts = [str(turn.get("value") or "").strip() for turn in said if isinstance(turn, dict)]
    speakers = [turn.get("from") for turn in said if isinstance(turn, dict)]
    if speakers != ["human", "gpt"] * (len(said) // 2) or not all(texts):
        raise DataError(
            "human and gpt do not take turns, or one says nothing",
            file=str(path),
            row=row,
            field="conversations",
        )
    tags = {tag for text in texts[::2] for tag in _TAG.findall(text)}
    tags |= {kind for kind in KINDS if not tags and row.startswith(kind)}
    if len(tags) != 1:
        raise DataError(
            f"the row is of {len(tags)} kinds",
            remedy="Known: " + ", ".join(f"<{kind}>" for kind in KINDS),
            file=str(path),
            row=row,
            field="conversations",
        )
    questions = [_plain(text) for text in texts[::2]]
    return tags.pop(), list(zip(questions, texts[1::2], strict=True))


def _plain(text: str) -> str:
    return _TAG.sub(" ", text.replace("<image>", " ")).strip()


def _question(
    record: Record, kind: str, turns: Sequence[tuple[str, str]], *, key: str
) -> Conversation:
    options = _options(*turns[-1]) if kind == "multiple_choice" and len(turns) == 1 else ()
    said: list[tuple[Piece, Piece]] = [*turns]
    return dialogue(
        record,
        task=kind,
        turns=said,
        key=key,
        template=f"{kind}/en",
        answer_type="closed" if options else "open",
        options=options,
    )


def _options(question: str, answer: str) -> tuple[str, ...]:
    """The choices that a question lists as a, b, ..., as it spells them; () where it lists none or
    the answer names none of them."""
    marks = list(_LETTER.finditer(question))
    letters = "".join(mark[1].casefold() for mark in marks)
    if len(marks) < 2 or letters != "abcde"[: len(marks)]:
        return ()
    ends = [*(mark.start() for mark in marks[1:]), len(question)]
    listed = [
        " ".join(question[mark.start() : end].split()).rstrip(" ,;")
        for mark, end in zip(marks, ends, strict=True)
    ]
    said = " ".join(answer.split()).casefold()
    return tuple(listed) if any(option.casefold() in said for option in listed) else ()
