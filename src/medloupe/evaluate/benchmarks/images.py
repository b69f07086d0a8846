"""Small images, captions, regions and cells: MedMNIST v2, MedPix, SA-Med2D-20M, BCCD, histology."""

from __future__ import annotations

from typing import Final

from medloupe.data.datasets.bccd import BccdConfig
from medloupe.data.datasets.medmnist import MEMBERS, MedMnistConfig
from medloupe.data.datasets.medpix import MedPixConfig, MpxSingleConfig
from medloupe.data.datasets.openslide_regions import OpenslideRegionsConfig
from medloupe.data.datasets.sa_med2d import SaMed2dConfig
from medloupe.evaluate.benchmarks.base import (
    CLASSES,
    REC,
    REG,
    REPORT,
    STRICT_AND_LLAVA_MED,
    NamedBenchmark,
    by,
    scored,
)

_ZENODO: Final = "https://doi.org/10.5281/zenodo.10519652"
_MEDMNIST: Final = "MedM-VL, section 3.1 and Table 2"
_SA_MED2D: Final = "https://huggingface.co/datasets/OpenGVLab/SA-Med2D-20M"
PLANE: Final = tuple(flag for flag, member in MEMBERS.items() if not member.volume)
VOLUME: Final = tuple(flag for flag, member in MEMBERS.items() if member.volume)

IMAGES: Final = (
    NamedBenchmark(
        title="MedMNIST v2, the twelve sets of images",
        data=MedMnistConfig(subsets=PLANE, size=224, allow_leak=True),
        benchmark=scored("medmnist_2d", CLASSES, max_new_tokens=32, strata=by("subset")),
        source=_MEDMNIST,
        licence="CC-BY-4.0; DermaMNIST CC-BY-NC-4.0",
        get=_ZENODO,
        note="MedM-VL prints one number and not which sets it took; the strata are the sets.",
    ),
    NamedBenchmark(
        title="MedMNIST v2, the six sets of volumes",
        data=MedMnistConfig(subsets=VOLUME, size=64, allow_leak=True),
        benchmark=scored("medmnist_3d", CLASSES, max_new_tokens=32, strata=by("subset")),
        source="MedMNIST v2; MedM-VL's Table 2 is of images",
        licence="CC-BY-4.0",
        get=_ZENODO,
    ),
    NamedBenchmark(
        title="PneumoniaMNIST at 28 pixels",
        data=MedMnistConfig(subsets=("pneumoniamnist",), allow_leak=True),
        benchmark=scored("pneumoniamnist", CLASSES, max_new_tokens=32),
        source=f"one set of {_MEDMNIST}",
        licence="CC-BY-4.0",
        get=_ZENODO,
        published=624,
    ),
    NamedBenchmark(
        title="MPx-Single, captions of MedPix",
        data=MpxSingleConfig(types=("caption",)),
        benchmark=scored("mpx_single", {"open": REPORT}, tasks=("caption",), max_new_tokens=256),
        source="MedM-VL, section 3.1 and Table 2 (MedPix)",
        licence="terms of MedPix (NLM); each case belongs to its contributor",
        get="tables: https://huggingface.co/datasets/chaoyi-wu/RadFM_data_csv; images: "
        "https://medpix.nlm.nih.gov",
    ),
    NamedBenchmark(
        title="MedPix 2.0",
        data=MedPixConfig(),
        benchmark=scored(
            "medpix",
            {"open": REPORT, "closed": STRICT_AND_LLAVA_MED["closed"]},
            max_new_tokens=256,
        ),
        source="not in the papers: MedPix with a split by case",
        licence="terms of MedPix (NLM); each case belongs to its contributor",
        get="https://github.com/CHILab1/MedPix-2.0",
    ),
    NamedBenchmark(
        title="SA-Med2D-20M, referring expression comprehension",
        data=SaMed2dConfig(tasks=("rec",)),
        benchmark=scored(
            "sa_med2d_rec", {"box": REC, "open": REC}, tasks=("rec",), max_new_tokens=64
        ),
        source="MedM-VL, section 3.1 and Table 2 (SAMed)",
        licence="the licence of each source data set",
        get=_SA_MED2D,
        note="MedM-VL prints neither its rows nor how REC (mean IoU) and REG (BLEU-1) become one number.",
    ),
    NamedBenchmark(
        title="SA-Med2D-20M, referring expression generation",
        data=SaMed2dConfig(tasks=("reg",)),
        benchmark=scored("sa_med2d_reg", {"open": REG}, tasks=("reg",), max_new_tokens=32),
        source="MedM-VL, section 3.1 and Table 2 (SAMed)",
        licence="the licence of each source data set",
        get=_SA_MED2D,
    ),
    NamedBenchmark(
        title="BCCD, blood cells with boxes",
        data=BccdConfig(),
        benchmark=scored("bccd", STRICT_AND_LLAVA_MED, max_new_tokens=128),
        source="not in the papers: open boxes in the place of SA-Med2D's",
        licence="MIT",
        get="https://github.com/Shenggan/BCCD_Dataset",
        note="Some red cells have no box; they are never searched for or counted.",
    ),
    NamedBenchmark(
        title="Three histology regions",
        data=OpenslideRegionsConfig(),
        benchmark=scored("openslide_regions", STRICT_AND_LLAVA_MED, split="train"),
        source="not in the papers: large images, for tiling",
        licence="free to use and distribute (OpenSlide test data)",
        get="https://github.com/petebankhead/2022-qupath-cell-detection",
        note="Three rows of the training split: they show that it runs, not how well.",
    ),
)
