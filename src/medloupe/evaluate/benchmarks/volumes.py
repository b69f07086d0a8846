"""Volumes: CT-RATE as MedM-VL reports it, and three open sets."""

from __future__ import annotations

from typing import Final

from medloupe.data.datasets.ct_rate import CtRateConfig
from medloupe.data.datasets.msd_hippocampus import MsdHippocampusConfig
from medloupe.data.datasets.pyradiomics import PyradiomicsConfig
from medloupe.data.datasets.studyforrest import StudyforrestConfig
from medloupe.evaluate.benchmarks.base import (
    CHOICE,
    REPORT,
    STRICT_AND_LLAVA_MED,
    VQA_MEDM_VL,
    NamedBenchmark,
    by,
    scored,
)

_TABLE: Final = "MedM-VL, section 3.1 and Table 3"
_LICENCE: Final = "CC-BY-NC-SA-4.0"
_GET: Final = (
    "https://huggingface.co/datasets/ibrahimhamamci/CT-RATE (agree to its terms there); the "
    "validation volumes and the tables are enough to evaluate"
)


def _ct_rate(
    suffix: str, kind: str, title: str, scorers: tuple[str, ...], tokens: int, *, release: int = 1
) -> NamedBenchmark:
    """One of the publisher's four kinds of question, each turn of a dialogue on its own."""
    closed = kind == "multiple_choice"
    return NamedBenchmark(
        release=release,
        title=f"CT-RATE, {title}",
        data=CtRateConfig(tasks=("vqa",), kinds=(kind,), turns="single", reconstructions="first"),
        benchmark=scored(
            f"ct_rate_{suffix}",
            {"closed": scorers, "open": VQA_MEDM_VL["open"]} if closed else {"open": scorers},
            tasks=(kind,),
            max_new_tokens=tokens,
            strata=by("sex", "manufacturer"),
        ),
        source=_TABLE,
        licence=_LICENCE,
        get=_GET,
        note="One reconstruction of each scan; the paper does not say which it took.",
    )


VOLUMES: Final = (
    _ct_rate("long", "long_answer", "long answers", REPORT, 512),
    _ct_rate("short", "short_answer", "short answers", VQA_MEDM_VL["open"], 128),
    _ct_rate(
        "choice",
        "multiple_choice",
        "multiple choice",
        (*CHOICE, "closed_accuracy.medm_vl"),
        32,
        release=2,
    ),
    _ct_rate("report", "report_generation", "reports", REPORT, 512),
    NamedBenchmark(
        title="MSD Hippocampus",
        data=MsdHippocampusConfig(),
        benchmark=scored("msd_hippocampus", STRICT_AND_LLAVA_MED),
        source="not in the papers: open volumes that a CPU can read",
        licence="CC BY-SA 4.0",
        get="http://medicaldecathlon.com",
        note="Split by volume: the publisher names no patients.",
    ),
    NamedBenchmark(
        title="PyRadiomics' five tumours",
        data=PyradiomicsConfig(),
        benchmark=scored("pyradiomics", STRICT_AND_LLAVA_MED, strata=by("modality", "region")),
        source="not in the papers: tumours with masks",
        licence="BSD-3-Clause",
        get="https://github.com/AIM-Harvard/pyradiomics",
        note="Five patients: they show that it runs, not how well.",
    ),
    NamedBenchmark(
        title="studyforrest, one head as DICOM and NIfTI",
        data=StudyforrestConfig(),
        benchmark=scored("studyforrest", STRICT_AND_LLAVA_MED, split="train"),
        source="not in the papers: the same head in two formats",
        licence="PDDL-1.0",
        get="https://github.com/datalad/example-dicom-structural",
        note="One patient, in the training split: they show that it runs, not how well.",
    ),
)
