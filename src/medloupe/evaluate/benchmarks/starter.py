"""The starter set: planted lesions that everybody can make, in the papers' kinds of task."""

from __future__ import annotations

from typing import Final

from medloupe.data.datasets.starter import StarterConfig, bright_slices
from medloupe.data.datasets.starter.lesions import KINDS
from medloupe.evaluate.benchmark import Stratum
from medloupe.evaluate.benchmarks.base import (
    CHINESE_TEXT,
    PROSE,
    REPORT,
    STRICT_AND_LLAVA_MED,
    NamedBenchmark,
    grounded,
    scored,
    strictly_labelled,
)

_WIDTH: Final = (Stratum(attribute="lesion_width", edges=(4, 6, 8)),)
_LICENCE: Final = "that of the MNI152 template; the lesions are drawn by MedLoupe"
_GET: Final = "made on this machine: medloupe prepare starter"
_NOTE: Final = "Drawn lesions: these scores say that the machinery works, nothing about medicine."

STARTER: Final = (
    NamedBenchmark(
        title="Starter, seven kinds of closed questions",
        # the quickstart's data, so that its model and this benchmark need one folder
        data=bright_slices(320),
        benchmark=scored(
            "starter",
            {"closed": STRICT_AND_LLAVA_MED["closed"]},
            tasks=("plane", "presence", "side", "kind", "diagnosis", "count", "size"),
            max_new_tokens=16,
            limit=100,
            strata=_WIDTH,
        ),
        source="not in the papers",
        licence=_LICENCE,
        get=_GET,
        note=_NOTE,
    ),
    NamedBenchmark(
        title="Starter, the open kinds of task in English and Chinese",
        data=StarterConfig(patients=60, size=128, volumes_per_patient=0, lesion_width=(0.04, 0.12)),
        benchmark=scored(
            "starter_open",
            {**STRICT_AND_LLAVA_MED, "open": (*CHINESE_TEXT, *REPORT[2:])},
            tasks=("report", "findings", "rec", "reg", "change"),
            max_new_tokens=128,
            strata=_WIDTH,
        ),
        source="HiA's and MedM-VL's kinds of task, on drawn lesions",
        licence=_LICENCE,
        get=_GET,
        note=_NOTE,
    ),
    NamedBenchmark(
        title="Starter, findings with their boxes",
        data=bright_slices(120),
        benchmark=scored(
            "starter_findings",
            {
                "open": grounded(tuple(KINDS)),
                "closed": (*STRICT_AND_LLAVA_MED["closed"], *strictly_labelled("normal"), *PROSE),
            },
            tasks=("findings", "diagnosis"),
            max_new_tokens=48,
            limit=40,
        ),
        source="LiteGPT's two stages (Tables 1 to 5 and 8 to 13), on drawn lesions",
        licence=_LICENCE,
        get=_GET,
        note=_NOTE,
    ),
    NamedBenchmark(
        title="Starter, made in seconds",
        data=bright_slices(20, slices_per_patient=3, size=64),
        benchmark=scored("starter_tiny", STRICT_AND_LLAVA_MED, max_new_tokens=8),
        source="not in the papers",
        licence=_LICENCE,
        get=_GET,
        note="The data of the recipe starter_tiny: they show that it runs, not how well.",
    ),
    NamedBenchmark(
        title="Starter, volumes",
        data=StarterConfig(
            patients=60, slices_per_patient=0, series_per_patient=0, languages=("en",)
        ),
        benchmark=scored(
            "starter_volumes",
            STRICT_AND_LLAVA_MED,
            tasks=("volume_presence", "volume_side", "volume_rec"),
            max_new_tokens=48,
        ),
        source="MedM-VL's 3D kinds of task, on drawn lesions",
        licence=_LICENCE,
        get=_GET,
        note=_NOTE,
    ),
)
