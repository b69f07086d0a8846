"""LiteGPT: encoders, and the word for the task."""

from __future__ import annotations

from medloupe.reproduce.grid import Claim, Grid, Row
from medloupe.reproduce.grids.shared import (
    ENCODER,
    OVERLAP,
    PARTS,
    PLANE_MEASURES,
    SMALL,
    assign,
    encoded,
    encoder_of,
    plane_run,
)

BOTH, LARGER, SMALLER = "both", "larger view", "smaller view"


def compositions() -> tuple[Row, ...]:
    """Two views of one network along tokens, and each alone."""
    large, small = encoder_of(128), encoder_of(64)
    grouped = assign("model.connector", {"name": "grouped", "group": 1})
    both = {"name": "joined", "encoders": [large, small], "axis": "tokens"}
    return (
        Row(label=BOTH, overrides=(*encoded(both), grouped)),
        Row(label=LARGER, overrides=(*encoded(large), grouped)),
        Row(label=SMALLER, overrides=(*encoded(small), grouped)),
    )


def encoders() -> Grid:
    """LiteGPT: two encoders or one."""
    return Grid(
        name="encoders",
        title="One encoder or two",
        answers="LiteGPT, Tables 2 and 3",
        base=plane_run(),
        parts=PARTS,
        rows=compositions(),
        measures=PLANE_MEASURES,
        claims=(
            Claim(
                first=BOTH,
                second=LARGER,
                paper="F1 60 against 59; accuracy at IoU 0.5 8.12 against 6.75 (BiomedCLIP)",
                because="The two views are one network's at two sizes, not two "
                "networks of different training: less that is new stands in the second.",
            ),
            Claim(
                first=BOTH,
                second=SMALLER,
                paper="F1 60 against 55; accuracy at IoU 0.5 8.12 against 2.86 (PubMedCLIP)",
            ),
        ),
        smaller=(
            *SMALL,
            "two sizes of one network (64 and 16 tokens) stand for BiomedCLIP and PubMedCLIP",
            "no groups of five tokens, so that no row loses tokens to it",
        ),
    )


def identifiers() -> Grid:
    """LiteGPT: the task's word in the prompt."""
    tokens = ("identify", "grounding")
    return Grid(
        name="identifiers",
        title="[identify] or [grounding]",
        answers="LiteGPT, Table 6",
        base=plane_run(),
        parts=PARTS,
        rows=tuple(
            Row(label=f"[{token}]", overrides=(assign("processor.system", f"[{token}]"),))
            for token in tokens
        ),
        measures=(OVERLAP,),
        claims=(
            Claim(
                first="[identify]",
                second="[grounding]",
                paper="accuracy at IoU 0.3, 0.4, 0.5: 12.54, 10.50, 8.12 against 11.98, 10.31, 8.04",
                because="The paper explains it by what MiniGPT-v2 was taught under the two words; this "
                "language model has seen neither, so no difference is expected.",
            ),
        ),
        smaller=(*SMALL, ENCODER, "the word stands in the system message, before the image"),
    )
