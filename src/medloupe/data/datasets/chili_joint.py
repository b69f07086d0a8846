"""Chili-Joint (Ding et al., "HiA", MICCAI 2024): Chinese questions about X-rays, interleaved.

The data are not public, and neither is their layout. What the paper says (sections 1 and 3, Fig. 3)
is all there is: about 14K interleaved image-text pairs from one hospital, in Chinese, divided at
random 7 : 1.5 : 1.5; four tasks, Description, Disease, Location and Comparative; the last one shows
two images of one patient ("<image> and <image> are before and after surgery, compare").

This is the form that we assume, so that the holders of the data, and others with data like it, can
train HiA; `chili_joint.json` is LLaVA's form, as HiA's code base is:

    [{"id": "17", "patient_id": "p3", "task": "Comparative", "image": ["a.png", "b.png"],
      "conversations": [{"from": "human", "value": "<image>和<image>分别是手术前后..."},
                        {"from": "gpt", "value": "..."}]}, ...]
    images/<image>

Assumed beyond the paper: `task` is one of its four names; every row says its patient (`patient_id`),
since a random split over rows would put one patient on both sides, so here the split is by patient;
the images stand in the order of the placeholders, earlier first; a row may have any further fields
(sex, age, dates), which become attributes. A comparative row has two or more images, the others at
least one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import Field

from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.llava import import_llava
from medloupe.errors import DataError, did_you_mean
from medloupe.types import Conversation, Language, Split

NAME: Final = "chili_joint"
FILE: Final = "chili_joint.json"
CITATION: Final = (
    "Ding X, Chu Y, Pi R, Wang H, Li X. HiA: towards Chinese multimodal LLMs for comparative "
    "high-resolution joint diagnosis. MICCAI 2024."
)
SHARES: Final[Mapping[Split, float]] = {"train": 0.7, "validation": 0.15, "test": 0.15}
# The paper's name of a task -> ours, and how many images it needs.
TASKS: Final = {
    "Description": ("description", 1),
    "Disease": ("disease", 1),
    "Location": ("location", 1),
    "Comparative": ("comparison", 2),
}


class ChiliJointConfig(PublishedConfig):
    """`licence` is yours to state: the data are not public."""

    language: Language = "zh"
    licence: str = ""
    fractions: dict[Split, float] = Field(default_factory=lambda: dict(SHARES))

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `DataError` on a faulty row, an unknown task, a row without a patient, too few
        images, or a missing one."""
        path = source / FILE
        rows = [self._row(row, path) for row in import_llava(path, source / "images")]
        return Reading(
            card=self._card(),
            images=source / "images",
            conversations=rows,
            found={"image-text pairs": len(rows)},
        )

    def _row(self, row: Conversation, path: Path) -> Conversation:
        if row.task not in TASKS:
            rule = f"unknown task {row.task!r}; {did_you_mean(row.task, TASKS)}"
            raise DataError(rule, file=str(path), row=row.id, field="task")
        task, images = TASKS[row.task]
        if len(row.images) < images:
            rule = f"the task {row.task} needs {images} images, the row has {len(row.images)}"
            raise DataError(rule, file=str(path), row=row.id, field="image")
        if row.patient_id is None:
            raise DataError(
                "the row does not say its patient",
                remedy="Name the patient of every row (any fixed code), so that nobody trains and "
                "tests",
                file=str(path),
                row=row.id,
                field="patient_id",
            )
        return row.model_copy(
            update={
                "id": f"{NAME}/{row.id}",
                "task": task,
                "template": f"{task}/{self.language}",
                "language": self.language,
                "dataset": NAME,
                "licence": row.licence or self.licence,
            }
        )

    def _card(self) -> DatasetCard:
        return DatasetCard(
            name=NAME,
            description="Chinese questions about one or several X-rays of a patient, interleaved. "
            "The paper says 14K pairs and gives no exact number, so completeness is not checked; "
            "the file form is MedLoupe's assumption",
            licence=self.licence,
            citation=CITATION,
            access="not public",
            tasks=tuple(task for task, _ in TASKS.values()),
            splits="by MedLoupe, by patient, 7 : 1.5 : 1.5 (the paper: at random)",
            languages=(self.language,),
        )
