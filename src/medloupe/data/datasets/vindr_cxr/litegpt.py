"""LiteGPT's own questions and answers (sections 3.3 and 4.4, appendix B), for its reproduction.

The instructions are the paper's, word for word, since its models were trained on them. What an image
without a finding is answered in the first stage is not defined there; here it is "No finding".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from medloupe.data.builders import Piece, turn
from medloupe.data.datasets.vindr_cxr.labels import NO_FINDING
from medloupe.types import Box, Conversation, Record

FirstStageTag = Literal["identify", "grounding"]
"""The identifiers that Table 6 compares."""

FINDINGS: Final = (
    "Please describe the critical findings along with their localized bounding boxes in the "
    "radiological image of a chest as much detail as possible. If there are no findings, state that "
    "the chest radiograph shows no findings."
)
DIAGNOSIS: Final = (
    "Given the provided chest X-ray image, which of the following diagnoses are present (select all "
    "that apply): COPD, Lung Tumor, Pneumonia, Tuberculosis, Other Disease, or No Finding?"
)


def first_stage(record: Record, boxes: Sequence[Box], tag: FirstStageTag) -> Conversation:
    """Grounded findings in the form of appendix B.1, in the order of `boxes`."""
    answer: list[Piece] = []
    for box in boxes:
        comma = "," if answer else ""
        answer += [f"{comma}<p>{box.label}</p> ", box]
    told: list[Piece] = ["Local diseases of this chest radiograph are ", *answer, "."]
    return turn(
        record,
        task="findings",
        question=f"[{tag}] {FINDINGS}",
        answer=told if answer else NO_FINDING,
        template="findings/litegpt",
    )


def second_stage(record: Record, diagnoses: Sequence[str]) -> Conversation:
    """Global diagnoses in the form of appendix B.2."""
    return turn(
        record,
        task="diagnosis",
        question=f"[vqa] {DIAGNOSIS}",
        answer=f"Global diseases of this chest radiograph are {', '.join(diagnoses)}.",
        template="diagnosis/litegpt",
    )
