"""studyforrest (Hanke et al., Scientific Data 1:140003, 2014): a defaced T1-weighted head, twice.

`dicom_series/*.dcm` are 24 neighbouring axial slices of 384; `t1_half.nii.gz` is the whole head at half
the resolution. One head: for geometry, not for statistics. Questions ask for the weighting and the
plane of the volumes, and which of two slices lies higher, which the positions in the files tell.

The header of `t1_half.nii.gz` is wrong: against the DICOM series (ImageOrientationPatient, and the face in
the picture) it turns the head by 180 degrees about its long axis, so that left and right and front
and back are exchanged. The file is kept as it is, with a remark in its attributes, and nothing that
depends on sides is asked. Sex and age in the DICOM files are fillings like the name Jane_Doe (42
years, in a study of people of 21 to 38) and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from medloupe.data.builders import classify, turn
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.errors import DataError
from medloupe.imaging.read import read_image
from medloupe.types import Conversation, ImageRef, MedicalImage, Record

NAME = "studyforrest"
LICENCE = "PDDL-1.0"
PATIENT = "sub-02"
SERIES, NIFTI = "dicom_series", "t1_half.nii.gz"
WEIGHTINGS = ("T1", "T2", "FLAIR")
PLANES = ("axial", "coronal", "sagittal")
# Slices compared lie this many apart: 8 mm.
APART = 12
CARD = DatasetCard(
    name=NAME,
    version="f077bcc",
    description="A defaced T1-weighted head as a DICOM series of 24 slices and as NIfTI at half the "
    "resolution. The NIfTI header is wrong by half a turn. One head: for geometry, not for "
    "statistics. Not for clinical use",
    licence=LICENCE,
    citation="Hanke M et al. A high-resolution 7-Tesla fMRI dataset from complex natural "
    "stimulation with an audio movie. Sci Data 2014;1:140003.",
    access="https://github.com/datalad/example-dicom-structural",
    tasks=("weighting", "plane", "higher_slice"),
    splits="one person, one split",
    published={"slices": 384},
)


class StudyforrestConfig(PublishedConfig):
    """One head as a DICOM series and as NIfTI: weighting, plane, and which slice lies higher."""

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        files = sorted((source / SERIES).glob("*.dcm"))
        if not files:
            rule = "no DICOM slice is here"
            raise DataError(rule, remedy="Complete the copy", file=str(source / SERIES))
        slices = [_slice(file, source) for file in files]
        series = _series([record for record, _ in slices], files[0].parent)
        volumes = [series, *([_nifti()] if (source / NIFTI).is_file() else [])]
        return Reading(
            card=CARD,
            images=source,
            conversations=[
                *(_weighting(record) for record in volumes),
                _plane(series),
                *_higher(slices),
            ],
            records=[*volumes, *(record for record, _ in slices)],
            found={"slices": len(files)},
        )


def _slice(file: Path, source: Path) -> tuple[Record, float]:
    """One slice and its place along the normal of its plane, in mm (PS3.3 C.7.6.2.1.1)."""
    image = read_image(file)
    if image.affine is None or image.source is None:
        rule = "the slice has no position (ImagePositionPatient, ImageOrientationPatient)"
        raise DataError(rule, file=str(file))
    ref = ImageRef(
        uri=file.relative_to(source).as_posix(),
        modality="MR",
        study=image.source.study,
        series=image.source.series,
    )
    return _record(f"slice-{file.stem}", ref), _height(image)


def _height(image: MedicalImage) -> float:
    assert image.affine is not None, "a slice without a position was refused"
    normal = image.affine[:3, 2] / np.linalg.norm(image.affine[:3, 2])
    upwards = normal if normal[2] > 0 else -normal
    return float(upwards @ image.affine[:3, 3])


def _series(slices: Sequence[Record], folder: Path) -> Record:
    """The folder as one volume."""
    uids = {record.images[0].series for record in slices}
    if len(uids) > 1:
        rule = f"the folder holds {len(uids)} series, and one is expected"
        raise DataError(rule, file=str(folder), field="SeriesInstanceUID")
    first = slices[0].images[0]
    return _record("series", first.model_copy(update={"uri": SERIES, "kind": "volume"}))


def _nifti() -> Record:
    record = _record("t1-half", ImageRef(uri=NIFTI, kind="volume", modality="MR"))
    remark = "wrong in the file: turned by 180 degrees about the long axis of the body"
    return record.model_copy(update={"attributes": record.attributes | {"orientation": remark}})


def _record(name: str, ref: ImageRef) -> Record:
    return Record(
        id=f"{PATIENT}-{name}",
        patient_id=PATIENT,
        images=(ref,),
        attributes={"protocol": "anat-T1w", "defaced": "yes"},
        dataset=NAME,
        licence=LICENCE,
    )


def _weighting(record: Record) -> Conversation:
    question = "Which weighting does this MR volume have?"
    return classify(record, "T1", WEIGHTINGS, task="weighting", question=question)


def _plane(record: Record) -> Conversation:
    question = "In which plane do the slices of this volume lie?"
    return classify(record, "axial", PLANES, task="plane", question=question)


def _higher(slices: Sequence[tuple[Record, float]]) -> Iterator[Conversation]:
    """Pairs of slices; the higher one is shown first in every other pair."""
    ranked = [record for record, _ in sorted(slices, key=lambda pair: pair[1])]
    for number, (low, high) in enumerate(zip(ranked, ranked[APART:], strict=False)):
        shown = (high, low) if number % 2 else (low, high)
        yield turn(
            low,
            task="higher_slice",
            question="Two axial slices of one head: which lies nearer to the top of the head, the "
            "first or the second?",
            answer="first" if number % 2 else "second",
            answer_type="closed",
            options=("first", "second"),
            template="higher_slice/en",
            images=[record.images[0] for record in shown],
        )
