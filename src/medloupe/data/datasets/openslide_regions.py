"""Regions of OpenSlide's freely distributable test slides: high resolution, no labels but the stain.

Three pictures of 1,101 to 2,202 pixels, `OS-*.jpg`, that P. Bankhead cut from OS-1.ndpi (H&E), OS-2.ndpi
and OS-2.vsi (Ki-67) for QuPath. Both OS-2 files are scans of one slide, so they share a patient. The
stain is all that is published about them, and all that is asked: they are here for tiling and large
images.
"""

from __future__ import annotations

from pathlib import Path

from medloupe.data.builders import classify
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.errors import DataError
from medloupe.types import Conversation, ImageRef, Record

NAME = "openslide_regions"
LICENCE = "free to use and distribute, with or without modification (OpenSlide test data)"
STAINS = ("H&E", "Ki-67")
# File -> slide, stain, format of the scanner: images/README.md of the repository that holds them.
REGIONS = {
    "OS-1-detail.jpg": ("OS-1", "H&E", "Hamamatsu NDPI"),
    "OS-2-ndpi.jpg": ("OS-2", "Ki-67", "Hamamatsu NDPI"),
    "OS-2-vsi.jpg": ("OS-2", "Ki-67", "Olympus VSI"),
}
CARD = DatasetCard(
    name=NAME,
    version="4632a17",
    description="Three histology regions of 1,101 to 2,202 pixels for tiling and high resolution; "
    "no labels but the stain: for tests, not for statistics. Not for clinical use",
    licence=LICENCE,
    citation="OpenSlide freely distributable test data. https://openslide.org",
    access="https://github.com/petebankhead/2022-qupath-cell-detection",
    tasks=("stain",),
    splits="by slide; with two of them a split is empty",
    published={"regions": len(REGIONS)},
)


class OpenslideRegionsConfig(PublishedConfig):
    """Three large histology regions; the one question is which stain they have."""

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        names = [name for name in REGIONS if (source / name).is_file()]
        if not names:
            expected = ", ".join(REGIONS)
            rule = "no region is here"
            raise DataError(rule, remedy=f"Expected {expected}", file=str(source))
        records = [_record(name) for name in names]
        return Reading(
            card=CARD,
            images=source,
            conversations=[_stain(record) for record in records],
            records=records,
            found={"regions": len(records)},
        )


def _record(name: str) -> Record:
    slide, stain, scanner = REGIONS[name]
    return Record(
        id=Path(name).stem,
        patient_id=slide,
        images=(ImageRef(uri=name, modality="SM"),),
        attributes={"stain": stain, "scanner": scanner},
        dataset=NAME,
        licence=LICENCE,
    )


def _stain(record: Record) -> Conversation:
    question = "Which stain does this histology section have?"
    return classify(record, record.attributes["stain"], STAINS, task="stain", question=question)
