"""COVID-19 Image Repository (Winther et al., Hannover Medical School): radiographs in series.

`data.csv` and a folder of pictures: `png/` as published, or `images/`. Offsets are days from the
picture to the event, so a negative `admission_offset` of -5 is the fifth day in hospital. Laboratory
values are published rounded, "-inf" below the limit of detection. Nobody wrote reports or judged
changes: what happened to a patient stands in attributes (laboratory values, days until intensive care
or death), and the earlier study of each patient in `prior`. All that is asked is what can be seen: the
projection, whether it changed, and where the lungs are; and which of two consecutive pictures is the
later one. The dates answer that, whether or not a reader could: it is asked in both orders, so that
chance is one half for every patient.

`lung_boxes_sq.json` with `images_sq/` are square crops with boxes of both lungs by General Blockchain;
each is a record of its own ("00870a9c-square"), since its pixels are its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from medloupe.data.balance import even_out
from medloupe.data.builders import both_orders, classify, compare, describe_region, refer
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.fields import listed_boxes, mapping
from medloupe.data.source import read_json, read_table, require
from medloupe.errors import DataError
from medloupe.types import Conversation, ImageRef, Record

NAME = "covid_image_repository"
LICENCE = "CC BY 3.0"
BOX_LICENCE = "CC BY 3.0; boxes CC BY 4.0"
SQUARE = "-square"
PUBLISHED = {"radiographs": 243, "patients": 71}
PROJECTIONS = {"ap": "AP", "pa": "PA"}
SEX = {"m": "M", "f": "F", "w": "F"}
COLUMNS = ("patient_id", "image_id", "sex", "admission_offset", "modality", "projection")
FOLDERS = ("images", "png")
CARD = DatasetCard(
    name=NAME,
    version="ad7ab09",
    description="Chest radiographs of patients with COVID-19, many in series, with laboratory "
    "values and days to intensive care or death; lung boxes on square crops. No reports, no "
    "judged changes. Not for clinical use",
    licence=BOX_LICENCE,
    citation="Winther HB et al. COVID-19 Image Repository. doi:10.6084/m9.figshare.12275009; "
    "General Blockchain Inc. lung bounding boxes (2020).",
    access="https://github.com/ml-workgroup/covid-19-image-repository",
    tasks=("projection", "projection_change", "comparison_order", "rec", "reg"),
    splits="by patient",
    languages=("en", "zh"),
    published=PUBLISHED,
)


class CovidImageRepositoryConfig(PublishedConfig):
    """Radiographs in series: projection, whether it changed, and lung boxes on square crops."""

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        records = read_records(source)
        whole = [record for record in records if not record.id.endswith(SQUARE)]
        by_id = {record.id: record for record in whole}
        pairs = [(record, by_id[record.prior]) for record in whole if record.prior is not None]
        return Reading(
            card=CARD,
            images=source,
            conversations=[
                *(_projection(record) for record in whole),
                *even_out(_change(*pair) for pair in pairs),
                *(row for pair in pairs for row in both_orders(*pair)),
                *(row for record in records for row in _lungs(record)),
            ],
            records=records,
            found={"radiographs": len(whole), "patients": len({r.patient_id for r in whole})},
        )


def read_records(source: Path) -> list[Record]:
    """Every radiograph, and every square crop that has boxes.

    Raises:
        DataError: a file or a folder is missing, or a row is faulty.
    """
    path = source / "data.csv"
    folder = next((name for name in FOLDERS if (source / name).is_dir()), None)
    if folder is None:
        rule = "the folder of pictures is missing"
        raise DataError(rule, remedy="Expected " + " or ".join(FOLDERS), file=str(source))
    rows = list(read_table(path, COLUMNS))
    names = {file.stem: f"{folder}/{file.name}" for file in sorted((source / folder).iterdir())}
    records = [_record(row, names, path) for row in rows]
    records = with_priors(records)
    return records + _squares(source / "lung_boxes_sq.json", records)


def with_priors(records: Sequence[Record]) -> list[Record]:
    """Each record with the patient's one before it; pictures of one day keep their file's order."""
    series: defaultdict[str | None, list[Record]] = defaultdict(list)
    for record in records:
        series[record.patient_id].append(record)
    prior = {}
    for studies in series.values():
        dated = sorted(
            (r for r in studies if r.date_offset_days is not None),
            key=lambda record: record.date_offset_days or 0.0,
        )
        for earlier, later in pairwise(dated):
            if earlier.date_offset_days != later.date_offset_days:
                prior[later.id] = earlier.id
    return [record.model_copy(update={"prior": prior.get(record.id)}) for record in records]


def _record(row: Mapping[str, str], names: Mapping[str, str], path: Path) -> Record:
    name = str(require(row, "image_id", file=path, name=str(row)))
    if name not in names:
        rule = "the picture is missing"
        raise DataError(rule, remedy="Complete the copy", file=str(path), row=name)
    offset = row["admission_offset"]
    return Record(
        id=name,
        patient_id=require(row, "patient_id", file=path, name=name),
        study_id=name,
        # 0 - x, for -0.0 is no better than 0
        date_offset_days=0 - _number(offset, path, name) if offset else None,
        images=(ImageRef(uri=names[name], modality=row["modality"] or None, study=name),),
        attributes=_attributes(row, path, name),
        dataset=NAME,
        licence=LICENCE,
    )


def _attributes(row: Mapping[str, str], path: Path, name: str) -> dict[str, str]:
    """Everything but ids and sizes; `in_icu` says whether the picture was taken in intensive care."""
    left_out = {"patient_id", "image_id", "width", "height", "sex", "projection", "modality"}
    found = {key: value for key, value in row.items() if value and key not in left_out}
    projection = str(require(row, "projection", file=path, name=name)).lower()
    if projection not in PROJECTIONS:
        rule = f"unknown projection {projection!r}"
        raise DataError(rule, file=str(path), row=name, field="projection")
    found |= {"view": PROJECTIONS[projection], "site": "Hannover Medical School"}
    if row["sex"]:
        found["sex"] = SEX.get(row["sex"].lower(), row["sex"])
    if "icu_admission_offset" in row:
        found["in_icu"] = _in_icu(row, path, name)
    return found


def _in_icu(row: Mapping[str, str], path: Path, name: str) -> str:
    start, end = row["icu_admission_offset"], row.get("icu_release_offset", "")
    if not start or _number(start, path, name) > 0:
        return "no"
    return "no" if end and _number(end, path, name) < 0 else "yes"


def _number(text: str, path: Path, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{text!r} is no number of days", file=str(path), row=name) from None


def _squares(path: Path, records: Sequence[Record]) -> list[Record]:
    """The square crops; none where the copy has no lung boxes (they are not the publisher's)."""
    if not path.is_file():
        return []
    by_id = {record.id: record for record in records}
    squares = []
    rows = mapping({"rows": read_json(path)}, "rows", file=path, name="all")
    for name in rows:
        if name not in by_id:
            raise DataError("the boxes are of no radiograph in data.csv", file=str(path), row=name)
        row = mapping(rows, name, file=path, name=name)
        boxes = (box for _, box in listed_boxes(row, file=path, name=name))
        uri = str(require(row, "image", file=path, name=name))
        squares.append(
            by_id[name].model_copy(
                update={
                    "id": name + SQUARE,
                    "images": (by_id[name].images[0].model_copy(update={"uri": uri}),),
                    "boxes": tuple(b.model_copy(update={"label": b.label.lower()}) for b in boxes),
                    "prior": None,
                    "licence": BOX_LICENCE,
                }
            )
        )
    return squares


def _projection(record: Record) -> Conversation:
    return classify(
        record,
        record.attributes["view"],
        tuple(PROJECTIONS.values()),
        task="projection",
        question="Was this chest radiograph taken in AP or in PA projection?",
    )


def _change(record: Record, prior: Record) -> Conversation:
    same = record.attributes["view"] == prior.attributes["view"]
    return compare(
        record,
        prior,
        "yes" if same else "no",
        options=("yes", "no"),
        question="Were both radiographs taken in the same projection (AP or PA)?",
        task="projection_change",
    )


def _lungs(record: Record) -> Iterator[Conversation]:
    for box in record.boxes:
        yield refer(record, box.label, [box])
        yield describe_region(record, box)
