"""The runs behind LiteGPT's tables at the size of a workstation: its three compositions on drawn lesions.

The recipe `litegpt_tiny` (224 and 112 pixels of one network for BiomedCLIP and PubMedCLIP, SmolLM2 for
Llama 2), scored as the named benchmark `starter_findings` is: the columns of all of its tables.
"""

from __future__ import annotations

from typing import Any, Final

from medloupe.evaluate.benchmarks import named_benchmark
from medloupe.recipes import recipe
from medloupe.recipes.config import EvaluateConfig, RunConfig
from medloupe.reproduce.grid import Claim, Grid, Measure, Row
from medloupe.reproduce.grids.shared import assign

GRID: Final = "litegpt_tables"
BOTH, LARGE, SMALL = "both", "larger view", "smaller view"


def litegpt_tables() -> Grid:
    """Tables 1 to 5 and 8 to 13."""
    return Grid(
        name=GRID,
        title="LiteGPT's three compositions, scored as in its tables",
        answers="LiteGPT, Tables 1 to 5 and 8 to 13",
        base=_base(),
        rows=(
            Row(label=BOTH),
            Row(label=LARGE, overrides=_like("litegpt_biomedclip_tiny")),
            Row(label=SMALL, overrides=_like("litegpt_pubmedclip_tiny")),
        ),
        measures=(
            Measure(label="boxes, mean IoU (%)", scorer="box_iou", tasks=("findings",)),
            Measure(label="findings, METEOR", scorer="meteor.exact_stem", tasks=("findings",)),
            Measure(
                label="diagnosis, accuracy (%)",
                scorer="closed_accuracy.strict",
                tasks=("diagnosis",),
            ),
        ),
        claims=(
            Claim(
                first=BOTH,
                second=LARGE,
                paper="F1 60 against 59; accuracy at IoU 0.5 8.12 against 6.75; ROUGE-L 48.75 against "
                "48.50, METEOR 61.92 against 68.73",
                because="The two views are one network's at two sizes; and the paper's own METEOR says "
                "the opposite.",
            ),
            Claim(
                first=BOTH,
                second=SMALL,
                paper="F1 60 against 55; accuracy at IoU 0.5 8.12 against 2.86; METEOR 61.92 against 34",
            ),
        ),
        smaller=(
            "planted lesions in warped MNI152 brains, not chest radiographs; ten kinds of lesion for 22 "
            "findings, four diagnoses, of which one is right, for six, of which several may be",
            "EfficientNet-Lite0 at 224 and 112 pixels for BiomedCLIP and PubMedCLIP, SmolLM2-135M for "
            "Llama 2 7B",
            "140 steps of two rows a stage at 1e-3; the paper has 10,980 at 1e-5",
        ),
    )


def _base() -> RunConfig:
    benchmark = named_benchmark("starter_findings").benchmark
    run = recipe("litegpt_tiny")
    return run.model_copy(update={"evaluate": EvaluateConfig(benchmark=benchmark, probes=())})


def _like(name: str) -> tuple[str, ...]:
    """The overrides that make the base another recipe's model."""
    run: dict[str, Any] = recipe(name).to_dict()
    fields = {
        "model.encoder": run["model"]["encoder"],
        "model.connector": run["model"]["connector"],
        "processor.transform": run["processor"]["transform"],
    }
    return tuple(assign(field, value) for field, value in fields.items())
