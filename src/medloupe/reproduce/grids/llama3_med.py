"""Llama3-Med: scales."""

from __future__ import annotations

from medloupe.reproduce.grid import Claim, Grid, Row
from medloupe.reproduce.grids.shared import (
    ENCODER,
    PARTS,
    PLANE_MEASURES,
    SIDE,
    SMALL,
    encoded,
    encoder_of,
    plane_run,
)


def scales() -> Grid:
    """Llama3-Med: one scale or three."""
    three = {
        "name": "scales",
        "encoder": encoder_of(SIDE),
        "scales": [SIDE, 2 * SIDE, 3 * SIDE],
    }
    return Grid(
        name="scales",
        title="One scale or three",
        answers="Llama3-Med, section 2 (no table of its own: Table 3 compares whole systems)",
        base=plane_run(),
        parts=PARTS,
        rows=(Row(label="one scale"), Row(label="three scales", overrides=encoded(three))),
        measures=PLANE_MEASURES,
        claims=(
            Claim(
                first="three scales",
                second="one scale",
                paper="no number: the text says that one scale limits the grasp of small signals",
            ),
        ),
        smaller=(
            *SMALL,
            f"{SIDE}, {2 * SIDE} and {3 * SIDE} pixels for 378, 756 and 1134",
            ENCODER,
        ),
    )
