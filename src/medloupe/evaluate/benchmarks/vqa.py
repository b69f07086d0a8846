"""Questions about images: VQA-RAD, SLAKE, PathVQA, Chili-Joint, and the templated pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from medloupe.data.datasets.chili_joint import ChiliJointConfig
from medloupe.data.datasets.path_vqa import PathVqaConfig
from medloupe.data.datasets.slake import SlakeConfig
from medloupe.data.datasets.templated_vqa import TemplatedVqaConfig
from medloupe.data.datasets.vqa_rad import VqaRadConfig
from medloupe.evaluate.benchmarks.base import (
    CHINESE_TEXT,
    STRICT_AND_LLAVA_MED,
    VQA_MEDM_VL,
    NamedBenchmark,
    by,
    scored,
)
from medloupe.types import Language

LLAMA3_MED: Final = "Llama3-Med, section 3 and Table 3"
MEDM_VL: Final = "MedM-VL, section 3.1 and Table 2"
# Long enough for an answer in sentences, which LLaVA-Med's recall rewards; the papers print no limit.
TOKENS: Final = 128
BLIND: Final = "not in the papers: what the questions give away by themselves"
LANGUAGES: Final[Mapping[Language, str]] = {"en": "English", "zh": "Chinese"}
SLAKE_TEST: Final[Mapping[Language, int]] = {"en": 1061, "zh": 1033}
"""Questions of the published test split."""


def _slake(
    language: Language, source: str, *, is_text_only: bool = False, note: str = ""
) -> NamedBenchmark:
    """One language of SLAKE; `is_text_only` asks its questions without their images."""
    url = "https://www.med-vqa.com/slake"
    title = f"SLAKE, {LANGUAGES[language]}"
    return NamedBenchmark(
        title=f"{title}, the questions without their images" if is_text_only else title,
        data=SlakeConfig(
            languages=(language,),
            split="official",
            missing_images="text_only" if is_text_only else "refuse",
        ),
        benchmark=scored(
            f"slake_text_{language}" if is_text_only else f"slake_{language}",
            VQA_MEDM_VL,
            max_new_tokens=TOKENS,
            strata=() if is_text_only else by("modality", "location"),
        ),
        source=source,
        licence="CC-BY-4.0",
        get=f"the JSON files of {url}" if is_text_only else url,
        published=SLAKE_TEST[language],
        note=note,
    )


VQA: Final = (
    NamedBenchmark(
        title="VQA-RAD, split by image",
        data=VqaRadConfig(),
        benchmark=scored(
            "vqa_rad",
            STRICT_AND_LLAVA_MED,
            max_new_tokens=TOKENS,
            strata=by("organ", "phrase_type"),
        ),
        source=LLAMA3_MED,
        licence="CC0-1.0",
        get="https://osf.io/89kps/",
        note="Not the papers' rows: their split shares nearly all test images with training.",
    ),
    NamedBenchmark(
        title="VQA-RAD, the split of the papers",
        data=VqaRadConfig(split="official", allow_leak=True),
        benchmark=scored(
            "vqa_rad_official",
            STRICT_AND_LLAVA_MED,
            max_new_tokens=TOKENS,
            strata=by("organ", "phrase_type"),
        ),
        source=LLAMA3_MED,
        licence="CC0-1.0",
        get="https://osf.io/89kps/",
        published=451,
        note="Nearly every test image is a training image too; every score says so.",
    ),
    _slake("en", f"{LLAMA3_MED}; {MEDM_VL}"),
    _slake(
        "zh",
        "SLAKE; no paper of the four prints its Chinese half",
        note="298 images stand in other parts in Chinese than in English: do not train on the one "
        "language and score the other.",
    ),
    _slake("en", BLIND, is_text_only=True),
    _slake("zh", BLIND, is_text_only=True),
    NamedBenchmark(
        title="PathVQA",
        data=PathVqaConfig(),
        benchmark=scored("path_vqa", VQA_MEDM_VL, max_new_tokens=TOKENS, strata=by("first_word")),
        source=f"{LLAMA3_MED}; {MEDM_VL}",
        licence="MIT for the questions; images belong to the publishers of the textbooks and to PEIR",
        get="https://github.com/UCSD-AI4H/PathVQA",
        published=6761,
        note="The copy on the Hugging Face hub has 6,719 test questions; the loader says which it read.",
    ),
    NamedBenchmark(
        title="Chili-Joint, or your data in its form",
        data=ChiliJointConfig(),
        benchmark=scored(
            "chili_joint",
            {"open": CHINESE_TEXT},
            tasks=("description", "disease", "location", "comparison"),
            max_new_tokens=512,
        ),
        source="HiA, section 3 and Tables 1 to 4",
        licence="not public",
        get="the data are not public; ask the authors of HiA. The form that is read stands in "
        "medloupe.data.datasets.chili_joint",
        note="The paper says neither how Chinese is cut into words nor which METEOR it took.",
    ),
    NamedBenchmark(
        title="Question pairs in English and Chinese over three real sets",
        data=TemplatedVqaConfig(),
        benchmark=scored(
            "templated_vqa",
            STRICT_AND_LLAVA_MED,
            strata=by("origin"),
        ),
        source="not in the papers",
        licence="that of each question's image (MIT, BSD-3-Clause, CC BY-NC-SA 4.0 and others)",
        get="made from bccd, covid_chestxray and pyradiomics",
        note="Templates; no reader has reviewed the Chinese.",
    ),
)
