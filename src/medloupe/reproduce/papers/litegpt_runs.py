"""The runs behind LiteGPT's tables at the size of a workstation: its three compositions on drawn lesions.

Two views of one network, joined or alone, and a small language model; each slice has one lesion or none. The
scorers are those of the named benchmark `starter_findings`: the columns of all of its tables.
"""

from __future__ import annotations

from typing import Final

from medloupe.evaluate.benchmarks import named_benchmark
from medloupe.recipes.config import EvaluateConfig, RunConfig
from medloupe.reproduce.grid import Claim, Grid, Measure
from medloupe.reproduce.grids.litegpt import BOTH, LARGER, SMALLER, compositions
from medloupe.reproduce.grids.shared import PARTS, assign, plane_run

GRID: Final = "litegpt_tables"
TASKS: Final = ("findings", "diagnosis")
STEPS, BATCH, ASKED = 600, 16, 150


def litegpt_tables() -> Grid:
    """Tables 1 to 5 and 8 to 13."""
    return Grid(
        name=GRID,
        version=2,
        title="LiteGPT's three compositions, scored as in its tables",
        answers="LiteGPT, Tables 1 to 5 and 8 to 13",
        base=_base(),
        parts=PARTS,
        rows=compositions(),
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
                second=LARGER,
                paper="F1 60 against 59; accuracy at IoU 0.5 8.12 against 6.75; ROUGE-L 48.75 against "
                "48.50, METEOR 61.92 against 68.73",
                because="The two views are one network's at two sizes; and the paper's own METEOR says "
                "the opposite.",
            ),
            Claim(
                first=BOTH,
                second=SMALLER,
                paper="F1 60 against 55; accuracy at IoU 0.5 8.12 against 2.86; METEOR 61.92 against 34",
            ),
        ),
        smaller=(
            "planted lesions in warped MNI152 brains, not chest radiographs, one or none in a slice",
            "ten kinds of lesion for 22 findings; four diagnoses, of which one is right, for six, of which "
            "several may be",
            "EfficientNet-Lite0, trained before on these lesions, at 128 and 64 pixels for BiomedCLIP and "
            "PubMedCLIP; a four-layer language model of width 192 for Llama 2 7B, all of it trained",
            f"findings and diagnoses in one stage of {STEPS} steps of {BATCH} rows at 1e-3; the paper has a "
            "stage of 10,980 steps at 1e-5 for each",
        ),
    )


def _base() -> RunConfig:
    data = {
        "tasks": TASKS,
        "most_lesions": 1,
        "patients": 320,
        "slices_per_patient": 5,
        "volumes_per_patient": 0,
    }
    run = plane_run().with_overrides(
        [
            *(assign(f"data.{field}", value) for field, value in data.items()),
            *(
                assign(f"train.stages.{name}.objective.tasks", TASKS)
                for name in ("align", "instruct")
            ),
            f"train.stages.instruct.steps={STEPS}",
            f"train.stages.instruct.batch_size={BATCH}",
        ]
    )
    named = named_benchmark("starter_findings").benchmark
    benchmark = named.model_copy(update={"limit": ASKED})
    return run.model_copy(update={"evaluate": EvaluateConfig(benchmark=benchmark, probes=())})
