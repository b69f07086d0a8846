"""One patient with two examinations."""

from __future__ import annotations

import pytest

from medloupe.types import Box, ImageRef, Record


@pytest.fixture
def record() -> Record:
    return Record(
        id="case",
        patient_id="p1",
        study_id="s2",
        date_offset_days=12,
        images=(ImageRef(uri="later.png"),),
        report={"findings": "Clear lungs.", "impression": "Normal.", "technique": " "},
        boxes=(
            Box(label="Pleural_effusion", x1=5, y1=60, x2=20, y2=80, words=("right",)),
            Box(label="Cardiomegaly", x1=10, y1=20, x2=60, y2=70),
        ),
        attributes={"sex": "F"},
        split="test",
        dataset="mine",
        licence="CC0-1.0",
    )


@pytest.fixture
def prior() -> Record:
    return Record(
        id="before", patient_id="p1", date_offset_days=0, images=(ImageRef(uri="earlier.png"),)
    )
