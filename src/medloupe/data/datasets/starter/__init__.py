"""Starter data: real anatomy with planted lesions whose truth is exact, made at `prepare`.

**Anatomy.** Every "patient" is the MNI152 brain (T1, grey and white matter at 1 mm, files that the
package nilearn brings) under a random smooth warp and change of intensities. Slices lie in three
planes with a few degrees and millimetres of head position. No image shows a real patient.

**Sides.** The affine of every image maps pixels to RAS+ mm, and left is x < 0. The display is
radiological: the patient's right is at the image's left in axial and coronal slices; sagittal
slices look to the image's left and have no sides. A lesion has a side if its whole box is more
than 2 mm off the midline, which the warp leaves at x = 0.

**Lesions** are formulas, drawn at the picture's own size, of ten kinds: bright, dark, ring, wedge,
streak, cluster, and rarely spiculated, cystic, target, crescent. Their width (the longer side of
the tight box) is log-uniform in `lesion_width`, a fraction of the image's width. Below 1 % a lesion
is drawn as fine dots of zero mean contrast, which a picture of 224 pixels cannot show and one of
1134 does (see `render`).

**Diagnosis**, the first that holds: *normal*, no lesion; *neoplastic*, a ring, spiculated or target
lesion; *vascular*, a wedge, streak or crescent lesion; *inflammatory*, any other lesion.

**Size**: small below 5 % of the image's width, large above; lesions within a tenth of the cut are
not asked about. **Change**: grown or shrunk if the width changes by more than a quarter (drawn
are factors of 1.5 to 2.2), new and gone if it is absent before or after, else unchanged. The task
`comparison` asks for the course of all lesions in one answer, under roles ("after surgery") and days
that say nothing about it; `volume_change` asks about pairs of volumes as `change` does about slices.

**Balance.** Closed questions are asked equally often with every answer, for exactly the same
words, in every split. **Splits** are by patient: of every ten, seven train, one validates, two
test, and a patient keeps number, brain and split when other fields change; so data sets of one
seed at several sizes or lesion widths (a curriculum) leak nothing into each other.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from medloupe.config import fingerprint_of
from medloupe.data.dataset import (
    CARD_FILE,
    Dataset,
    DatasetCard,
    Progress,
    silent,
    write_dataset,
)
from medloupe.data.datasets.base import DatasetConfig
from medloupe.data.datasets.starter.cases import DATASET, LICENCE
from medloupe.data.datasets.starter.make import make_all
from medloupe.data.datasets.starter.patients import MOST_LESIONS
from medloupe.data.datasets.starter.questions import ON_REQUEST, TASKS, Task, conversations
from medloupe.errors import DataError
from medloupe.types import Language

__all__ = ["ON_REQUEST", "TASKS", "StarterConfig", "Task", "bright_slices"]

CITATION = (
    "Fonov V, Evans AC, McKinstry RC, Almli CR, Collins DL. Unbiased nonlinear average "
    "age-appropriate brain templates from birth to adulthood. NeuroImage 47 (2009) S102"
)


class StarterConfig(DatasetConfig):
    """How the starter data set is made.

    `size` is the slices' side in pixels, `volume_size` the volumes' in voxels. `conspicuity` is
    the lesions' contrast to the tissue around them: 0.5 is moderate, 1 plain. `lesion_width` is the
    range of widths in 2D as fractions of the image's width, `most_lesions` how many a slice has at most
    (None: 4; with fewer, `count` has no even choice of answers). `tasks` are what is asked; `comparison` and
    `volume_change` only if named, the latter about as many pairs of volumes as `series_per_patient`.
    """

    seed: int = Field(default=0, ge=0)
    patients: int = Field(default=200, ge=1, le=99_999)
    slices_per_patient: int = Field(default=6, ge=0)
    series_per_patient: int = Field(default=1, ge=0)
    volumes_per_patient: int = Field(default=1, ge=0)
    size: int = Field(default=224, ge=64, le=1134)
    volume_size: int = Field(default=48, ge=24, le=96)
    conspicuity: float = Field(default=0.5, gt=0, le=2)
    lesion_width: tuple[float, float] = (0.007, 0.12)
    most_lesions: int | None = Field(default=None, ge=1, le=MOST_LESIONS)
    tasks: tuple[Task, ...] = TASKS
    languages: tuple[Language, ...] = ("en", "zh")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        low, high = self.lesion_width
        if not 0.005 <= low <= high <= 0.2:
            raise ValueError(
                f"lesion_width {low} to {high} is not a range of fractions of the image's width; "
                "write for example [0.007, 0.12]; possible are 0.005 to 0.2"
            )
        if not (self.slices_per_patient or self.series_per_patient or self.volumes_per_patient):
            raise ValueError("no images: set slices_, series_ or volumes_per_patient above 0")
        named = [task for task in ON_REQUEST if task in self.tasks]
        if named and not self.series_per_patient:
            raise ValueError(
                f"{named[0]} is asked about several examinations, and there are none: set "
                "series_per_patient above 0, or leave it out of tasks"
            )
        if self.most < MOST_LESIONS and "count" in self.tasks:
            raise ValueError(
                f"the task count asks for 0 to {MOST_LESIONS} lesions, and no slice has more than "
                f"{self.most}: leave it out of tasks, or leave most_lesions out"
            )
        for name in ("tasks", "languages"):
            if len(set(getattr(self, name))) != len(getattr(self, name)) or not getattr(self, name):
                raise ValueError(f"{name} is empty or names one twice")
        return self

    @property
    def most(self) -> int:
        """How many lesions a slice has at most."""
        return MOST_LESIONS if self.most_lesions is None else self.most_lesions

    def fingerprint(self) -> str:
        """As `Config.fingerprint`; a field that came later and is null does not count."""
        stated = self.to_dict()
        if self.most_lesions is None:
            del stated["most_lesions"]
        return fingerprint_of(stated)

    def prepare(
        self,
        out: Path,
        *,
        root: Path | None = None,
        progress: Progress = silent,
        workers: int | None = None,
    ) -> Dataset:
        """Make the data set in `out`; `root` is not used. The same config gives the same bytes.

        Raises:
            MissingExtraError: nilearn is not installed.
            DataError: `out` cannot be written.
        """
        del root
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / CARD_FILE).unlink(missing_ok=True)  # half-made, the folder is no data set
        except OSError as error:
            raise DataError(
                f"cannot be written: {error.strerror}",
                remedy="Choose another folder",
                file=str(out),
            ) from error
        records = make_all(self, out, workers or min(os.cpu_count() or 1, 8), progress)
        rows = conversations(records, self.tasks, self.languages, self.seed)
        return write_dataset(out, self._card(), rows, records)

    def _card(self) -> DatasetCard:
        return DatasetCard(
            name=DATASET,
            version=f"1-{self.fingerprint()}",
            description="Warped MNI152 brains with planted lesions; truth is exact, no patient real",
            licence=LICENCE,
            citation=CITATION,
            access="made on this machine by medloupe prepare",
            languages=self.languages,
        )


def bright_slices(patients: int, **fields: Any) -> StarterConfig:
    """Slices alone, asked in English, with lesions that are plain to see; `fields` are further ones."""
    return StarterConfig(
        patients=patients,
        series_per_patient=0,
        volumes_per_patient=0,
        conspicuity=1.0,
        lesion_width=(0.04, 0.12),
        languages=("en",),
        **fields,
    )
