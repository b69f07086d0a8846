"""What LiteGPT makes of the readers' labels (section 4.2, and `preprocess_label.py` of its code).

Boxes are compared in the pixels of the DICOM file, before any rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from medloupe.types import Box

NO_FINDING: Final = "No finding"
# In the order of the columns of image_labels_train.csv, which is the order of answers.
LOCAL_LABELS: Final = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
    "Other lesion",
)
# "Other diseases" is called "Other disease" in the test files.
GLOBAL_LABELS: Final = (
    "COPD",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    NO_FINDING,
)
LABELS: Final = (*LOCAL_LABELS, *GLOBAL_LABELS)

Merge = Literal["litegpt", "greedy", "none"]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What one radiologist (or, in the test set, the consensus of five) says about one image."""

    name: str
    labels: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Fused:
    """What all readers of one image say together, in the order of `LABELS`."""

    findings: tuple[str, ...]
    diagnoses: tuple[str, ...]
    boxes: tuple[Box, ...]


def conflicting(readers: Sequence[Reader]) -> bool:
    """Whether one reader finds nothing and another something: LiteGPT removes such images."""
    nothing = {NO_FINDING in reader.labels for reader in readers}
    something = any(reader.labels - {NO_FINDING} for reader in readers)
    return something and nothing != {False}


def fuse(
    readers: Sequence[Reader],
    boxes: Sequence[Box],
    *,
    merge: Merge = "litegpt",
    iou: float = 0.5,
    min_readers: int = 1,
) -> Fused:
    """One set of labels and boxes from those of all readers; `boxes` in the order of the file.

    A label stands where at least `min_readers` gave it, or all of them where they are fewer (LiteGPT:
    one is enough); its boxes are those of all readers, with repeated ones merged. "No finding" stands
    only where nothing else does.
    """
    needed = min(min_readers, len(readers))
    votes = {name: sum(name in reader.labels for reader in readers) for name in LABELS}
    kept = [name for name in LABELS if votes[name] >= needed and name != NO_FINDING]
    return Fused(
        findings=tuple(name for name in kept if name in LOCAL_LABELS),
        diagnoses=tuple(name for name in kept if name in GLOBAL_LABELS)
        or (() if kept else (NO_FINDING,)),
        boxes=tuple(
            box
            for name in kept
            for box in merged([box for box in boxes if box.label == name], merge, iou)
        ),
    )


def merged(boxes: Sequence[Box], merge: Merge, iou: float) -> list[Box]:
    """Boxes of one label without those that repeat an earlier one (IoU above `iou`).

    `greedy` keeps a box unless it repeats a kept one. `litegpt` is what LiteGPT's code does: boxes are
    grouped while all pairs are visited in order, with IoU in whole-pixel convention (edges plus one),
    and the first of each group is kept; a chain of repeats can so become one box.
    """
    if merge == "none":
        return list(boxes)
    if merge == "litegpt":
        groups = _groups(boxes, iou)
        return [box for i, box in enumerate(boxes) if groups.index(groups[i]) == i]
    kept: list[Box] = []
    for box in boxes:
        if all(overlap(box, other) <= iou for other in kept):
            kept.append(box)
    return kept


def _groups(boxes: Sequence[Box], iou: float) -> list[int]:
    """A group for each box. A box that is paired again moves to the group of the earlier one."""
    group = [-1 - i for i in range(len(boxes))]  # below zero: alone so far
    for i, j in itertools.combinations(range(len(boxes)), 2):
        if overlap(boxes[i], boxes[j], margin=1.0) <= iou:
            continue
        if group[i] < 0 <= group[j]:
            group[i] = group[j]
            continue
        if group[i] < 0:
            group[i] = i
        group[j] = group[i]
    return group


def overlap(one: Box, other: Box, *, margin: float = 0.0) -> float:
    """Intersection over union; `margin` is added to every side, 1 for whole-pixel convention."""
    width = min(one.x2, other.x2) - max(one.x1, other.x1) + margin
    height = min(one.y2, other.y2) - max(one.y1, other.y1) + margin
    shared = max(0.0, width) * max(0.0, height)
    return shared / (_area(one, margin) + _area(other, margin) - shared)


def _area(box: Box, margin: float) -> float:
    return (box.x2 - box.x1 + margin) * (box.y2 - box.y1 + margin)
