"""What the grids share: data, parts, stages and the two runs that most rows differ from in one field.

All run on one prepared starter set and one language model of four layers, trained on its text alone. The
encoder is EfficientNet-Lite0, trained on from ImageNet on the training split's boxes and planes, unless a row
says otherwise: with ImageNet's weights the base of all rows learned little more than which plane it sees
(docs/results.md, "How the grids' base was found"). Data, encoder, steps and rates were settled on that base,
before any row was compared with another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from medloupe.data.datasets.starter import StarterConfig
from medloupe.evaluate.benchmark import Benchmark
from medloupe.imaging.composed import SlicesTransform
from medloupe.imaging.slices import SliceSelection
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.connectors.pooling import MeanSlicesConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.models.encoders.efficientnet import EfficientNetLite0Config
from medloupe.models.language import LanguageConfig
from medloupe.models.resolution.units import SlicesConfig
from medloupe.processing import ProcessorConfig
from medloupe.recipes.config import EvaluateConfig, ModelConfig, RunConfig
from medloupe.reproduce.grid import Measure
from medloupe.reproduce.parts import MADE, Part, SmallLanguage, TrainedEncoder
from medloupe.train import StageConfig, TrainConfig
from medloupe.train.objectives.language import LanguageObjectiveConfig

CLOSED: Final = ("plane", "presence", "side")
BOXES: Final = ("rec",)
VOLUMES: Final = ("volume_presence", "volume_side")
SIDE, SLICES = 96, 12
ALIGN, INSTRUCT = 150, 600

ACCURACY: Final = Measure(
    label="closed questions, accuracy (%)", scorer="closed_accuracy.strict", tasks=CLOSED
)
OVERLAP: Final = Measure(label="boxes, mean IoU (%)", scorer="box_iou", tasks=BOXES)
VOLUME_ACCURACY: Final = Measure(
    label="volumes, accuracy (%)", scorer="closed_accuracy.strict", tasks=VOLUMES
)
PLANE_MEASURES: Final = (ACCURACY, OVERLAP)

PARTS: Final[Mapping[str, Part]] = {"language": SmallLanguage(), "encoder": TrainedEncoder()}
SMALL: Final = (
    "planted lesions in warped MNI152 brains, not clinical data",
    "a four-layer language model of width 192, trained on the same questions and answers without images",
    "a few hundred steps at a learning rate of 1e-3, where a row states no other",
)
ENCODER: Final = "EfficientNet-Lite0 at 96 pixels, trained before on these lesions, is the encoder"


def plane_run() -> RunConfig:
    """The base in 2D: a frozen encoder, an MLP, alignment, then all of the language model."""
    return small_run(
        tower(), MLPConnectorConfig(depth=2), ImageTransform(fit="stretch"), CLOSED + BOXES
    )


def volume_run() -> RunConfig:
    """The base in 3D: the same encoder on each of 12 slices, their mean before the MLP."""
    view = SlicesTransform(
        transform=ImageTransform(fit="stretch"), selection=SliceSelection(count=SLICES)
    )
    connector = MeanSlicesConnectorConfig(place="before", connector=MLPConnectorConfig(depth=2))
    return small_run(SlicesConfig(encoder=tower()), connector, view, VOLUMES)


def small_run(
    encoder: EncoderConfig,
    connector: ConnectorConfig,
    transform: ImageTransform | SlicesTransform,
    tasks: tuple[str, ...],
) -> RunConfig:
    return RunConfig(
        name="grid",
        description="A run of a grid of medloupe reproduce",
        data=StarterConfig(
            patients=240,
            slices_per_patient=4,
            series_per_patient=0,
            volumes_per_patient=2,
            size=3 * SIDE,
            conspicuity=1.0,
            lesion_width=(0.12, 0.2),
            tasks=(*CLOSED, *BOXES, *VOLUMES),
            languages=("en",),
        ),
        model=ModelConfig(
            encoder=encoder, connector=connector, language=LanguageConfig(source=MADE + "language")
        ),
        processor=ProcessorConfig(transform=transform, max_length=1024),
        train=TrainConfig(stages=(align(tasks), instruct(tasks)), save_every=200, keep=1),
        evaluate=EvaluateConfig(
            benchmark=Benchmark(
                name="grid", tasks=tasks, max_new_tokens=32, limit=90, resamples=500
            ),
            probes=(),
        ),
    )


def align(tasks: tuple[str, ...]) -> StageConfig:
    return StageConfig(
        name="align",
        objective=LanguageObjectiveConfig(tasks=tasks),
        trainable=("connector",),
        learning_rate=1e-3,
        steps=ALIGN,
        batch_size=8,
    )


def instruct(tasks: tuple[str, ...]) -> StageConfig:
    return StageConfig(
        name="instruct",
        objective=LanguageObjectiveConfig(tasks=tasks),
        trainable=("connector", "language_model"),
        learning_rate=1e-3,
        steps=INSTRUCT,
        batch_size=8,
    )


def tower(size: int = SIDE) -> EfficientNetLite0Config:
    return EfficientNetLite0Config(source=MADE + "encoder", image_size=size, stride=16)


def encoder_of(size: int) -> dict[str, Any]:
    return tower(size).to_dict()


def encoded(encoder: dict[str, Any]) -> tuple[str, str]:
    """Another 2D encoder, and a transform that leaves to it what it decides."""
    return assign("model.encoder", encoder), assign("processor.transform", {"fit": "stretch"})


def assign(field: str, value: object) -> str:
    """`field=value`; JSON is YAML."""
    return f"{field}={json.dumps(value)}"
