"""Medical Segmentation Decathlon, Task04 Hippocampus (Antonelli et al., Nat Commun 13:4128, 2022).

MR volumes cropped round one hippocampus, its anterior part (head) = 1 and posterior part (body and
tail) = 2 in a mask. Both layouts are read: `imagesTr`/`labelsTr` as published and `images`/`labels`.

Boxes are in voxels of the array that MedLoupe reads (slices from below, rows from the front, columns
from the patient's right), whatever order the file stores. Volumes are counted from the masks. The 394
volumes of the decathlon come from 195 subjects, but which belong to one subject was not published: no
split can keep subjects apart, and no record names a patient or a side.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medloupe.data.balance import even_out
from medloupe.data.builders import classify, describe_region, refer
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.segmentation import read_segmentation
from medloupe.errors import DataError
from medloupe.types import Box, Conversation, ImageRef, Record

NAME = "msd_hippocampus"
LICENCE = "CC BY-SA 4.0"
LAYOUTS = (("imagesTr", "labelsTr"), ("images", "labels"))
PARTS = {1: "anterior hippocampus", 2: "posterior hippocampus"}
PUBLISHED = {"volumes": 260}
# Parts that differ by less than this share of the larger are not compared: the border is a convention.
CLEAR = 0.05
# Thirds of the published volumes, rounded (mm3).
SMALL_BELOW, LARGE_FROM = 3100.0, 3500.0
SIZES = ("below 3.1 mL", "3.1 to 3.5 mL", "3.5 mL or more")
_SPECK = 10  # voxels: smaller pieces of a part get no box
CARD = DatasetCard(
    name=NAME,
    version="Task04",
    description="Small MR volumes (1 mm) round one hippocampus with its anterior and posterior part. "
    "Crops: the rest of the brain is not here. Not for clinical use",
    licence=LICENCE,
    citation="Antonelli M et al. The Medical Segmentation Decathlon. Nat Commun 2022;13:4128.",
    access="http://medicaldecathlon.com",
    tasks=("larger_part", "size", "rec", "reg"),
    splits="by volume: which two volumes are of one subject was not published, so subjects may be in "
    "two splits",
    published=PUBLISHED,
)


class MsdHippocampusConfig(PublishedConfig):
    """Hippocampus volumes: which part is larger, how large it is, and where both parts are in 3D."""

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        images, labels = _layout(source)
        files = sorted((source / images).glob("hippocampus_*.nii.gz"))
        if not files:
            rule = "no volume hippocampus_*.nii.gz is here"
            raise DataError(rule, remedy="Complete the copy", file=str(source / images))
        records = []
        for done, file in enumerate(files, start=1):
            records.append(_record(file, source, labels))
            progress("volumes", done, len(files))
        return Reading(
            card=CARD,
            images=source,
            conversations=[
                *even_out(row for record in records for row in _larger(record)),
                *even_out(_size(record) for record in records),
                *(row for record in records for row in _places(record)),
            ],
            records=records,
            found={"volumes": len(records)},
        )


def _layout(source: Path) -> tuple[str, str]:
    for images, labels in LAYOUTS:
        if (source / images).is_dir() and (source / labels).is_dir():
            return images, labels
    raise DataError(
        "no copy of MSD Task04 is here",
        remedy="Expected the folders " + ", or ".join(" and ".join(names) for names in LAYOUTS),
        file=str(source),
    )


def _record(file: Path, source: Path, labels: str) -> Record:
    path = source / labels / file.name
    found = read_segmentation(file, path, PARTS, min_voxels=_SPECK)
    if not all(found.mm3.values()):
        raise DataError("a part of the hippocampus is missing in the mask", file=str(path))
    uri = file.relative_to(source).as_posix()
    return Record(
        id=file.name.removesuffix(".nii.gz"),
        images=(ImageRef(uri=uri, kind="volume", modality="MR"),),
        masks=(ImageRef(uri=f"{labels}/{file.name}", kind="volume", modality="SEG"),),
        boxes=found.boxes,
        attributes={f"{part.split()[0]}_mm3": f"{size:g}" for part, size in found.mm3.items()},
        dataset=NAME,
        licence=LICENCE,
    )


def volumes_of(record: Record) -> tuple[float, float]:
    """(anterior, posterior) in mm3."""
    return float(record.attributes["anterior_mm3"]), float(record.attributes["posterior_mm3"])


def _larger(record: Record) -> Iterator[Conversation]:
    anterior, posterior = volumes_of(record)
    if abs(anterior - posterior) < CLEAR * max(anterior, posterior):
        return
    yield classify(
        record,
        "anterior" if anterior > posterior else "posterior",
        ("anterior", "posterior"),
        task="larger_part",
        question="Which part of this hippocampus is larger, the anterior or the posterior?",
    )


def _size(record: Record) -> Conversation:
    total = sum(volumes_of(record))
    name = SIZES[0 if total < SMALL_BELOW else 1 if total < LARGE_FROM else 2]
    return classify(
        record, name, SIZES, task="size", question="How large is this hippocampus as a whole?"
    )


def _places(record: Record) -> Iterator[Conversation]:
    for part in PARTS.values():
        boxes = [box for box in record.boxes if box.label == part]
        yield refer(record, part, boxes)
        yield describe_region(record, max(boxes, key=_extent))


def _extent(box: Box) -> float:
    return (box.x2 - box.x1) * (box.y2 - box.y1)
