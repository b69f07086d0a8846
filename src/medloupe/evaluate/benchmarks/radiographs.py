"""Chest radiographs: VinDr-CXR as LiteGPT reports it, MIMIC-CXR, IU X-ray and two open collections."""

from __future__ import annotations

from typing import Final

from medloupe.data.datasets.covid_chestxray import CovidChestXrayConfig
from medloupe.data.datasets.covid_image_repository import CovidImageRepositoryConfig
from medloupe.data.datasets.iu_xray import IuXrayConfig
from medloupe.data.datasets.mimic_cxr import MimicCxrConfig
from medloupe.data.datasets.vindr_cxr import VindrCxrConfig
from medloupe.data.datasets.vindr_cxr.labels import GLOBAL_LABELS, LOCAL_LABELS, NO_FINDING
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.benchmarks.base import (
    CREDENTIALED,
    PROSE,
    REPORT,
    STRICT_AND_LLAVA_MED,
    NamedBenchmark,
    by,
    grounded,
    labelled,
    scored,
)

PHYSIONET: Final = "PhysioNet Credentialed Health Data License 1.5.0"
_VINDR: Final = CREDENTIALED.format(url="https://physionet.org/content/vindr-cxr/1.0.0/")
_MIMIC: Final = CREDENTIALED.format(url="https://physionet.org/content/mimic-cxr-jpg/")


def _findings(name: str) -> Benchmark:
    scorers = grounded(LOCAL_LABELS)
    return scored(name, {"open": scorers}, tasks=("findings",), max_new_tokens=512)


RADIOGRAPHS: Final = (
    NamedBenchmark(
        title="VinDr-CXR, findings with their boxes, after [identify]",
        data=VindrCxrConfig(tasks=("findings",), wording="litegpt"),
        benchmark=_findings("vindr_cxr_findings"),
        source="LiteGPT, sections 4.2 to 4.4, Tables 3, 4 and 8 to 10",
        licence=PHYSIONET,
        get=_VINDR,
        note="Images with a finding only; the paper does not say what others are answered.",
    ),
    NamedBenchmark(
        title="VinDr-CXR, findings with their boxes, after [grounding]",
        data=VindrCxrConfig(tasks=("findings",), wording="litegpt", litegpt_tag="grounding"),
        benchmark=_findings("vindr_cxr_grounding"),
        source="LiteGPT, section 4.6, Table 6",
        licence=PHYSIONET,
        get=_VINDR,
    ),
    NamedBenchmark(
        title="VinDr-CXR, six diagnoses, after [vqa]",
        data=VindrCxrConfig(tasks=("diagnosis",), wording="litegpt"),
        benchmark=scored(
            "vindr_cxr_diagnosis",
            {"open": (*labelled(GLOBAL_LABELS, NO_FINDING), *PROSE)},
            tasks=("diagnosis",),
            max_new_tokens=128,
        ),
        source="LiteGPT, sections 4.3 to 4.5, Tables 1, 2, 5 and 11 to 13",
        licence=PHYSIONET,
        get=_VINDR,
        published=3000,
        note="Table 2's F1 (60, 59, 55) fits micro-F1 over the 22 + 6 labels of both stages together.",
    ),
    NamedBenchmark(
        title="MIMIC-CXR, findings and impression",
        data=MimicCxrConfig(),
        benchmark=scored(
            "mimic_cxr", {"open": REPORT}, tasks=("report",), max_new_tokens=256, strata=by("views")
        ),
        source="MedM-VL, section 3.1 and Table 2",
        licence=PHYSIONET,
        get=_MIMIC,
        note="The paper does not print which sections it asks for; its script scores corpus BLEU-1.",
    ),
    NamedBenchmark(
        title="IU X-ray, findings and impression",
        data=IuXrayConfig(),
        benchmark=scored("iu_xray", {"open": REPORT}, tasks=("report",), max_new_tokens=256),
        source="not in the papers: open reports in the place of MIMIC-CXR's",
        licence="CC-BY-NC-ND-4.0",
        get="https://openi.nlm.nih.gov/faq",
    ),
    NamedBenchmark(
        title="COVID-19 Image Data Collection",
        data=CovidChestXrayConfig(),
        benchmark=scored(
            "covid_chestxray", STRICT_AND_LLAVA_MED, max_new_tokens=128, strata=by("sex", "view")
        ),
        source="not in the papers: open radiographs with boxes and follow-ups",
        licence="CC BY-NC-SA 4.0 as a whole; each image as its record states",
        get="https://github.com/ieee8023/covid-chestxray-dataset",
    ),
    NamedBenchmark(
        title="COVID-19 Image Repository (Hannover)",
        data=CovidImageRepositoryConfig(),
        benchmark=scored("covid_image_repository", STRICT_AND_LLAVA_MED, strata=by("sex", "view")),
        source="not in the papers: open radiographs in series",
        licence="CC BY 3.0; boxes CC BY 4.0",
        get="https://github.com/ml-workgroup/covid-19-image-repository",
    ),
)
