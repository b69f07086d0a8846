"""HiA: does the adapter help a base, which of its parts do, how many queries and layers, at which size.

Every row but the bases begins with a base that has learned the same four tasks, and goes on for the same
steps on the same rows. Chinese questions, one image or the examinations of a series each; one lesion or none
in an image, of 3 to 20 % of the width: three to nineteen pixels of the base's view, half of them under 8 %.
With up to four lesions an image this language model learned to read hardly any of them, and what an adapter
adds is read no better than what the base sees (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.recipes.config import RunConfig
from medloupe.reproduce.grid import Claim, Grid, Measure, Row
from medloupe.reproduce.grids.shared import (
    SIDE,
    assign,
    encoded,
    encoder_of,
    small_run,
    tower,
)
from medloupe.reproduce.parts import Part, SmallLanguage, TrainedEncoder
from medloupe.train import LoraConfig, StageConfig
from medloupe.train.objectives.grounding import GroundingObjectiveConfig
from medloupe.train.objectives.language import LanguageObjectiveConfig

TASKS: Final = ("report", "diagnosis", "rec", "change")
DETAIL: Final = 2 * SIDE
TUNE, BATCH = 200, 12
BASE, TUNED, LORA, HIA = "base", "base, fine-tuned", "base + LoRA", "base + HiA"
WITHOUT_IA, WITHOUT_HR = "base + HiA w/o IA", "base + HiA w/o HR"

MEASURES: Final = (
    Measure(label="description, BLEU-4", scorer="bleu_4.nltk", tasks=("report",)),
    Measure(label="description, METEOR", scorer="meteor.exact_stem", tasks=("report",)),
    Measure(label="disease, accuracy (%)", scorer="closed_accuracy.strict", tasks=("diagnosis",)),
    Measure(label="location, mean IoU (%)", scorer="box_iou", tasks=("rec",)),
    Measure(label="comparison, accuracy (%)", scorer="closed_accuracy.strict", tasks=("change",)),
)
_PARTS: Final[Mapping[str, Part]] = {
    # three injections want five layers; after 500 steps without images it learns to read them twice as late
    "language": SmallLanguage(layers=5, steps=300),
    "encoder": TrainedEncoder(image_size=144),
}
_SMALL: Final = (
    "planted lesions in warped MNI152 brains and their follow-ups, not X-rays of patients",
    "a five-layer language model of width 192, trained on the same questions and answers without images",
    f"views of {SIDE} and {DETAIL} pixels for 336 and 672; 32 queries for 256",
    f"{TUNE} steps of {BATCH} rows; each way of training at a rate of its own, the adapter's encoder at a "
    "two-hundredth of the adapter's, where the paper has 2e-5 for all",
    "one EfficientNet-Lite0, trained before on these lesions, begins as the base's encoder and as the "
    "adapter's, where the paper has CLIP and a ResNet-50",
    "the last step counts in every row; the paper chooses by validation",
)


def hia() -> Grid:
    """Table 1: two bases, each alone, fine-tuned, with LoRA of as many parameters, with HiA."""
    two = {"name": "scales", "encoder": encoder_of(SIDE), "scales": [SIDE, 2 * SIDE]}
    names = {name: f"two-scale {name}" for name in (BASE, TUNED, LORA, HIA)}
    return _grid(
        "hia",
        "A base, and the base with HiA",
        "HiA, Table 1",
        rows=(
            Row(label=BASE),
            Row(label=TUNED, overrides=_tuned(BASE)),
            Row(label=LORA, overrides=_lora(BASE)),
            Row(label=HIA, overrides=_adapted(BASE)),
            Row(label=names[BASE], overrides=encoded(two)),
            Row(label=names[TUNED], overrides=(*encoded(two), *_tuned(names[BASE]))),
            Row(label=names[LORA], overrides=(*encoded(two), *_lora(names[BASE]))),
            Row(label=names[HIA], overrides=(*encoded(two), *_adapted(names[BASE]))),
        ),
        claims=(
            Claim(
                first=HIA,
                second=TUNED,
                paper="average of eight scores 41.4 against 37.7 (Qilin-Med-VL), 39.5 against 35.1 "
                "(LLaVA-Med), 35.7 against 29.4 (LLaVA-1.5), 34.2 against 28.6 (MiniGPT-4)",
            ),
            Claim(first=names[HIA], second=names[TUNED], paper="as above: every base gains"),
            Claim(first=HIA, second=LORA, paper="not in the paper: as many parameters in LoRA"),
            Claim(first=names[HIA], second=names[LORA], paper="not in the paper: the same"),
        ),
    )


def hia_parts() -> Grid:
    """Table 2: without the question, without the larger view."""
    without = "the adapter's other parts can make up for it within a few hundred steps"
    return _grid(
        "hia_parts",
        "HiA without its parts",
        "HiA, Table 2",
        rows=(
            Row(label=BASE),
            Row(label=HIA, overrides=_adapted(BASE)),
            Row(label=WITHOUT_IA, overrides=_adapted(BASE, instruction_aware=False)),
            Row(label=WITHOUT_HR, overrides=_adapted(BASE, high_resolution=False)),
        ),
        claims=(
            Claim(
                first=HIA,
                second=WITHOUT_IA,
                paper="description 54.8 against 53.1, disease 49.5 against 45.6, location 43.9 against "
                "38.9, comparison 42.5 against 38.8",
                because=without,
            ),
            Claim(
                first=HIA,
                second=WITHOUT_HR,
                paper="description 54.8 against 51.6, disease 49.5 against 44.8, location 43.9 against "
                "42.3, comparison 42.5 against 41.6",
                because=without,
            ),
        ),
    )


def hia_queries() -> Grid:
    """Table 4a: how many queries."""
    return _grid(
        "hia_queries",
        "How many queries",
        "HiA, Table 4a",
        rows=(
            Row(label=BASE),
            Row(label="M = 16", overrides=_adapted(BASE, queries=16)),
            Row(label=HIA, overrides=_adapted(BASE)),
            Row(label="M = 64", overrides=_adapted(BASE, queries=64)),
        ),
        claims=(
            Claim(
                first=HIA,
                second="M = 16",
                paper="256 against 128: 54.8, 49.5, 43.9, 42.5 against 52.6, 46.9, 41.3, 40.4",
            ),
            Claim(
                first="M = 64",
                second=HIA,
                says="no more",
                paper="512 against 256: 54.6, 49.5, 44.0, 42.0 against 54.8, 49.5, 43.9, 42.5",
            ),
        ),
    )


def hia_layers() -> Grid:
    """Table 4b: after how many layers."""
    return _grid(
        "hia_layers",
        "After how many layers",
        "HiA, Table 4b",
        rows=(
            Row(label=BASE),
            Row(label="n = 1", overrides=_adapted(BASE, layers=1)),
            Row(label=HIA, overrides=_adapted(BASE)),
            Row(label="n = 3", overrides=_adapted(BASE, layers=3)),
        ),
        claims=(
            Claim(
                first=HIA,
                second="n = 1",
                paper="2 against 1: 54.8, 49.5, 43.9, 42.5 against 52.1, 45.8, 41.2, 39.9",
            ),
            Claim(
                first="n = 3",
                second=HIA,
                says="no more",
                paper="3 against 2: 54.2, 49.0, 43.4, 41.8 against 54.8, 49.5, 43.9, 42.5",
            ),
        ),
    )


def hia_resolution() -> Grid:
    """Table 3: a larger view for the base, or for the adapter alone."""
    rows = [Row(label=BASE), Row(label=TUNED, overrides=_tuned(BASE))]
    rows += [
        Row(
            label=f"base at {side}, fine-tuned",
            overrides=(*encoded(encoder_of(side)), *_tuned(BASE)),
        )
        for side in (144, DETAIL)
    ]
    rows += [
        Row(label=WITHOUT_HR, overrides=_adapted(BASE, high_resolution=False)),
        Row(label="HiA at 144", overrides=_adapted(BASE, side=144)),
        Row(label=HIA, overrides=_adapted(BASE)),
    ]
    return _grid(
        "hia_resolution",
        "A larger view for the base, or for the adapter",
        "HiA, Table 3",
        rows=tuple(rows),
        claims=(
            Claim(
                first="HiA at 144", second="base at 144, fine-tuned", paper="448: 39.6 against 37.7"
            ),
            Claim(
                first=HIA, second=f"base at {DETAIL}, fine-tuned", paper="560: 40.8 against 38.0"
            ),
            Claim(
                first=HIA,
                second="HiA at 144",
                paper="672 against 448: 41.4 against 39.6",
            ),
        ),
    )


def pair_run() -> RunConfig:
    """The base: a frozen encoder, an MLP with coordinates, grounding, then all of the language model."""
    connector = MLPConnectorConfig(depth=2, position=32)
    run = small_run(tower(), connector, ImageTransform(fit="stretch"), TASKS)
    data = {
        "patients": 600,
        "slices_per_patient": 3,
        "series_per_patient": 3,
        "most_lesions": 1,
        "volumes_per_patient": 0,
        "lesion_width": (0.03, 0.2),
        "tasks": TASKS,
        "languages": ("zh",),
    }
    ground = StageConfig(
        name="align",
        objective=GroundingObjectiveConfig(),
        trainable=("connector",),
        learning_rate=3e-3,
        steps=250,
        batch_size=16,
        clip=5.0,
    )
    instruct = run.train.stages[-1].model_copy(update={"steps": 800, "batch_size": 16})
    strata = [{"attribute": "lesion_width", "edges": [5.0, 8.0]}]
    return run.with_overrides(
        [
            *(assign(f"data.{field}", value) for field, value in data.items()),
            assign("train.stages", [ground.to_dict(), instruct.to_dict()]),
            assign("evaluate.benchmark.strata", strata),
            # every patient is drawn anew, so look-alikes are not searched for
            assign("audit.near", "off"),
            assign("evaluate.benchmark.scorers.open", ["bleu_4.nltk", "meteor.exact_stem"]),
            assign("evaluate.benchmark.max_new_tokens", 64),
        ]
    )


def _grid(
    name: str, title: str, answers: str, *, rows: tuple[Row, ...], claims: tuple[Claim, ...]
) -> Grid:
    return Grid(
        name=name,
        version=2,
        title=title,
        answers=answers,
        base=pair_run(),
        parts=_PARTS,
        rows=rows,
        measures=MEASURES,
        claims=claims,
        smaller=_SMALL,
    )


def _tune(
    *trainable: str,
    rate: float,
    rates: Mapping[str, float] | None = None,
    lora: LoraConfig | None = None,
) -> StageConfig:
    """The stage that rows share: a row is a question, since HiA may not share an image's prefix."""
    return StageConfig.parse(
        {
            "name": "tune",
            "objective": LanguageObjectiveConfig(tasks=TASKS, pack=False).to_dict(),
            "trainable": trainable,
            "lora": None if lora is None else lora.to_dict(),
            "learning_rate": rate,
            "learning_rates": rates or {},
            "steps": TUNE,
            "batch_size": BATCH,
        }
    )


def _from(base: str, stage: StageConfig) -> tuple[str, str]:
    start = {"folder": f"row:{base}", "parts": ["connector", "language_model"]}
    return assign("train.stages", [stage.to_dict()]), assign("model.start", start)


def _tuned(base: str) -> tuple[str, ...]:
    return _from(base, _tune("connector", "language_model", rate=5e-4))


def _lora(base: str) -> tuple[str, ...]:
    """Rank 52 is 948,480 parameters here, HiA 951,904 with its encoder."""
    return _from(base, _tune("language_model", rate=2e-3, lora=LoraConfig(rank=52, alpha=104)))


def _adapted(base: str, *, side: int = DETAIL, **fields: Any) -> tuple[str, ...]:
    adapter = {
        "name": "hia",
        "encoder": encoder_of(side),
        "queries": 32,
        "width": 96,
        **fields,
    }
    stage = _tune("adapter", rate=2e-3, rates={"adapter.encoder": 1e-5})
    return (*_from(base, stage), assign("model.adapter", adapter))
