"""The grids: what MedM-VL, Llama3-Med and LiteGPT compare, at a size that two CPU cores finish in hours.

All run on one prepared starter set and one language model of four layers, trained on its text alone. The
encoder is EfficientNet-Lite0, trained on from ImageNet on the training split's boxes and planes, unless a row
says otherwise: with ImageNet's weights alone, or with lesions of 4 to 12 % of the width, the base of all
rows learns no more than which plane it sees in the two or three minutes of a run (docs/results.md). Data,
encoder, steps and rates were settled on that base, before any row was compared with another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from medloupe.data.datasets.starter import StarterConfig
from medloupe.errors import ConfigError, did_you_mean
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
from medloupe.reproduce.grid import Claim, Grid, Measure, Row
from medloupe.reproduce.parts import MADE, Part, SmallLanguage, SmallTower, TrainedEncoder
from medloupe.train import StageConfig, TrainConfig
from medloupe.train.objectives.grounding import GroundingObjectiveConfig
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

_PARTS: Final[Mapping[str, Part]] = {"language": SmallLanguage(), "encoder": TrainedEncoder()}
_SMALL: Final = (
    "planted lesions in warped MNI152 brains, not clinical data",
    "a four-layer language model of width 192, trained on the same questions and answers without images",
    "a few hundred steps at a learning rate of 1e-3, where a row states no other",
)
_ENCODER: Final = "EfficientNet-Lite0 at 96 pixels, trained before on these lesions' boxes, stands for the paper's encoder"


def plane_run() -> RunConfig:
    """The base in 2D: a frozen encoder, an MLP, alignment, then all of the language model."""
    return _run(
        _tower(), MLPConnectorConfig(depth=2), ImageTransform(fit="stretch"), CLOSED + BOXES
    )


def volume_run() -> RunConfig:
    """The base in 3D: the same encoder on each of 12 slices, their mean before the MLP."""
    view = SlicesTransform(
        transform=ImageTransform(fit="stretch"), selection=SliceSelection(count=SLICES)
    )
    connector = MeanSlicesConnectorConfig(place="before", connector=MLPConnectorConfig(depth=2))
    return _run(SlicesConfig(encoder=_tower()), connector, view, VOLUMES)


def encoders() -> Grid:
    """LiteGPT: two encoders or one."""
    large, small = _encoder(128, 16), _encoder(64, 16)
    grouped = _set("model.connector", {"name": "grouped", "group": 1})
    both = {"name": "joined", "encoders": [large, small], "axis": "tokens"}
    return Grid(
        name="encoders",
        title="One encoder or two",
        answers="LiteGPT, Tables 2 and 3",
        base=plane_run(),
        parts=_PARTS,
        rows=(
            Row(label="both", overrides=(*_encoded(both), grouped)),
            Row(label="larger view", overrides=(*_encoded(large), grouped)),
            Row(label="smaller view", overrides=(*_encoded(small), grouped)),
        ),
        measures=PLANE_MEASURES,
        claims=(
            Claim(
                first="both",
                second="larger view",
                paper="F1 60 against 59; accuracy at IoU 0.5 8.12 against 6.75 (BiomedCLIP)",
                because="The two views are one network's at two sizes, not two "
                "networks of different training: less that is new stands in the second.",
            ),
            Claim(
                first="both",
                second="smaller view",
                paper="F1 60 against 55; accuracy at IoU 0.5 8.12 against 2.86 (PubMedCLIP)",
            ),
        ),
        smaller=(
            *_SMALL,
            "two sizes of one network (64 and 16 tokens) stand for BiomedCLIP and PubMedCLIP",
            "no groups of five tokens, so that no row loses tokens to it",
        ),
    )


def scales() -> Grid:
    """Llama3-Med: one scale or three."""
    three = {"name": "scales", "encoder": _encoder(SIDE, 16), "scales": [SIDE, 2 * SIDE, 3 * SIDE]}
    return Grid(
        name="scales",
        title="One scale or three",
        answers="Llama3-Med, section 2 (no table of its own: Table 3 compares whole systems)",
        base=plane_run(),
        parts=_PARTS,
        rows=(Row(label="one scale"), Row(label="three scales", overrides=_encoded(three))),
        measures=PLANE_MEASURES,
        claims=(
            Claim(
                first="three scales",
                second="one scale",
                paper="no number: the text says that one scale limits the grasp of small signals",
            ),
        ),
        smaller=(
            *_SMALL,
            f"{SIDE}, {2 * SIDE} and {3 * SIDE} pixels for 378, 756 and 1134",
            _ENCODER,
        ),
    )


def volumes() -> Grid:
    """MedM-VL: the mean over slices, attention pooling, or a 3D encoder."""
    attention = {"name": "attention_pooling", "queries": 36, "heads": 8, "depth": 2}
    vit = {
        "name": "vit3d",
        "shape": [16, 64, 64],
        "patch": [4, 8, 8],
        "size": {"width": 192, "depth": 4, "heads": 6, "hidden": 768},
    }
    pooled = {"name": "pooled", "window": [2, 2, 2], "connector": {"name": "mlp", "depth": 2}}
    from_scratch = (
        _set("model.encoder", vit),
        _set("model.connector", pooled),
        _set("processor.transform", {"name": "volume"}),
        _set("train.stages.align.trainable", ["encoder", "connector"]),
        _set("train.stages.instruct.trainable", ["encoder", "connector", "language_model"]),
    )
    return Grid(
        name="volumes",
        title="Mean over slices, attention pooling, or a 3D encoder",
        answers="MedM-VL, Table 3",
        base=volume_run(),
        parts=_PARTS,
        rows=(
            Row(label="2D, mean"),
            Row(label="2D, attention", overrides=(_set("model.connector", attention),)),
            Row(label="3D encoder", overrides=from_scratch),
        ),
        measures=(VOLUME_ACCURACY,),
        claims=(
            Claim(
                first="2D, attention",
                second="2D, mean",
                paper="long 0.623 against 0.622, short 0.667 against 0.664, choice 0.924 against "
                "0.920, reports 0.439 against 0.441",
                because="The paper's own margin is 0.1 to 0.4 points, and on reports it is negative.",
            ),
            Claim(
                first="2D, mean",
                second="3D encoder",
                paper="long 0.622 against 0.619, short 0.664 against 0.658, choice 0.920 against "
                "0.924, reports 0.441 against 0.419",
                because="The 3D encoder is trained from scratch here, where M3D-CLIP was trained on "
                "CT before.",
            ),
        ),
        smaller=(*_SMALL, "12 slices of 96 pixels for 32 of 256, 36 queries for 256", _ENCODER),
    )


def layers() -> Grid:
    """MedM-VL: the last layer or the one before. A small tower is trained first, then read frozen."""
    tower = {"name": "siglip", "source": MADE + "tower", "image_size": SIDE}
    ground = StageConfig(
        name="ground",
        objective=GroundingObjectiveConfig(),
        trainable=("encoder", "connector"),
        learning_rate=1e-3,
        steps=INSTRUCT,
        batch_size=16,
    )
    trained = (*_encoded(tower), _set("train.stages", [ground.to_dict()]))
    start = {
        "folder": "row:the tower's training",
        "parts": ["encoder"],
        "allow_unused": ["encoder.tower.encoder.layers.5"],
    }
    begun = _set("model.start", start)
    return Grid(
        name="layers",
        title="The last layer or the one before",
        answers="MedM-VL, Table 4",
        base=plane_run(),
        parts={**_PARTS, "tower": SmallTower(image_size=SIDE, layers=6)},
        rows=(
            Row(label="the tower's training", overrides=trained),
            Row(label="layer -1", overrides=(*_encoded({**tower, "layer": -1}), begun)),
            Row(label="layer -2", overrides=(*_encoded({**tower, "layer": -2}), begun)),
        ),
        measures=PLANE_MEASURES,
        claims=(
            Claim(
                first="layer -1",
                second="layer -2",
                paper="better on 5 of 6 sets, by 0.006 to 0.017; MedPix 0.126 against 0.148",
                because="The tower was trained on this data's lesions by its last layer.",
            ),
        ),
        smaller=(
            *_SMALL,
            "a six-layer SigLIP, trained here on boxes and planes, stands for SigLIP",
        ),
    )


def encoder_training() -> Grid:
    """MedM-VL: the encoder frozen or trained in the second stage, in 2D."""
    parts = ["encoder", "connector", "language_model"]
    return Grid(
        name="encoder_training",
        title="The encoder frozen or trained",
        answers="MedM-VL, Figure 3 (a)",
        base=plane_run(),
        parts=_PARTS,
        rows=(
            Row(label="frozen"),
            Row(label="trained", overrides=(_set("train.stages.instruct.trainable", parts),)),
        ),
        measures=PLANE_MEASURES,
        claims=(Claim(first="trained", second="frozen", paper="a figure without numbers"),),
        smaller=(*_SMALL, _ENCODER),
    )


def language_training() -> Grid:
    """MedM-VL: the language model frozen, by LoRA at two rates, or all of it, at the paper's rates."""
    frozen = _set("train.stages.instruct.trainable", ["connector"])
    lora = _set("train.stages.instruct.lora", {"rank": 16, "alpha": 32})

    def rate(value: float) -> str:
        return f"train.stages.instruct.learning_rate={value}"

    slow = (
        "At 2e-5 a few hundred steps move little, whatever trains: the paper's runs have thousands."
    )
    return Grid(
        name="language_training",
        title="The language model frozen, by LoRA, or all of it",
        answers="MedM-VL, Figure 3 (b)",
        base=plane_run(),
        parts=_PARTS,
        rows=(
            Row(label="frozen, 2e-5", overrides=(frozen, rate(2e-5))),
            Row(label="LoRA, 2e-5", overrides=(lora, rate(2e-5))),
            Row(label="LoRA, 2e-4", overrides=(lora, rate(2e-4))),
            Row(label="all, 2e-5", overrides=(rate(2e-5),)),
            Row(label="all, 1e-3"),
        ),
        measures=PLANE_MEASURES,
        claims=(
            Claim(
                first="LoRA, 2e-4",
                second="LoRA, 2e-5",
                paper="a figure without numbers: significantly better",
            ),
            Claim(
                first="all, 2e-5",
                second="LoRA, 2e-4",
                paper="a figure without numbers: all of it is best",
                because=slow,
            ),
            Claim(
                first="LoRA, 2e-5",
                second="frozen, 2e-5",
                paper="a figure without numbers: frozen is worst",
                because=slow,
            ),
        ),
        smaller=(
            *_SMALL,
            _ENCODER,
            "LoRA's rank is 16 (the paper names none)",
            "the last row, all of it at this grid's own rate, is not in the paper",
        ),
    )


def stages() -> Grid:
    """MedM-VL: alignment first, or instruction tuning alone."""
    instruct = _instruct(CLOSED + BOXES)
    return Grid(
        name="stages",
        title="One stage or two",
        answers="MedM-VL, Table 5",
        base=plane_run(),
        parts=_PARTS,
        rows=(
            Row(label="two stages"),
            Row(label="one stage", overrides=(_set("train.stages", [instruct.to_dict()]),)),
        ),
        measures=PLANE_MEASURES,
        claims=(
            Claim(
                first="two stages",
                second="one stage",
                paper="better on 5 of 6 sets, MedMNIST 0.808 against 0.712, SLAKE 0.841 against "
                "0.817; MedPix 0.126 against 0.140",
                because="Both stages have the same rows here; the paper's first has captions besides.",
            ),
        ),
        smaller=(*_SMALL, _ENCODER, "the one stage has the second's steps, as in the paper"),
    )


def volume_start() -> Grid:
    """MedM-VL: 3D from scratch, also for twice as long, or from a 2D model."""
    plane = plane_run()
    in_2d = (
        _set("model", plane.model.to_dict()),
        _set("processor", plane.processor.to_dict()),
        _set("train", plane.train.to_dict()),
        _set("evaluate", plane.evaluate.to_dict()),
    )
    start = {
        "folder": "row:2D",
        "parts": ["connector", "language_model"],
        "rename": {"connector": "connector.connector"},
    }
    twice = (
        _set("train.stages.align.steps", 2 * ALIGN),
        _set("train.stages.instruct.steps", 2 * INSTRUCT),
    )
    return Grid(
        name="volume_start",
        title="3D from scratch or from a 2D model",
        answers="MedM-VL, Figure 3 (c)",
        base=volume_run(),
        parts=_PARTS,
        rows=(
            Row(label="2D", overrides=in_2d),
            Row(label="3D from scratch"),
            Row(label="3D from scratch, twice as long", overrides=twice),
            Row(label="3D from 2D", overrides=(_set("model.start", start),)),
        ),
        measures=(VOLUME_ACCURACY,),
        claims=(
            Claim(
                first="3D from 2D",
                second="3D from scratch",
                paper="a figure without numbers: better",
            ),
            Claim(
                first="3D from scratch, twice as long",
                second="3D from scratch",
                says="no more",
                paper="a figure without numbers: no consistent improvement",
                because="A model from scratch may not have finished learning in these few steps.",
            ),
            Claim(
                first="3D from 2D",
                second="3D from scratch, twice as long",
                paper="follows from the two above",
            ),
        ),
        smaller=(
            *_SMALL,
            _ENCODER,
            '"from scratch" means a fresh connector and the text-only language model',
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
        parts=_PARTS,
        rows=tuple(
            Row(label=f"[{token}]", overrides=(_set("processor.system", f"[{token}]"),))
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
        smaller=(*_SMALL, _ENCODER, "the word stands in the system message, before the image"),
    )


GRIDS: Final[Mapping[str, Callable[[], Grid]]] = {
    "encoders": encoders,
    "scales": scales,
    "volumes": volumes,
    "layers": layers,
    "encoder_training": encoder_training,
    "language_training": language_training,
    "stages": stages,
    "volume_start": volume_start,
    "identifiers": identifiers,
}


def grid(name: str) -> Grid:
    """The grid of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in GRIDS:
        raise ConfigError(f"unknown grid {name!r}; {did_you_mean(name, GRIDS)}")
    return GRIDS[name]()


def _run(
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
        train=TrainConfig(stages=(_align(tasks), _instruct(tasks)), save_every=200, keep=1),
        evaluate=EvaluateConfig(
            benchmark=Benchmark(
                name="grid", tasks=tasks, max_new_tokens=32, limit=90, resamples=500
            ),
            blind=False,
        ),
    )


def _align(tasks: tuple[str, ...]) -> StageConfig:
    return StageConfig(
        name="align",
        objective=LanguageObjectiveConfig(tasks=tasks),
        trainable=("connector",),
        learning_rate=1e-3,
        steps=ALIGN,
        batch_size=8,
    )


def _instruct(tasks: tuple[str, ...]) -> StageConfig:
    return StageConfig(
        name="instruct",
        objective=LanguageObjectiveConfig(tasks=tasks),
        trainable=("connector", "language_model"),
        learning_rate=1e-3,
        steps=INSTRUCT,
        batch_size=8,
    )


def _tower() -> EfficientNetLite0Config:
    return EfficientNetLite0Config(source=MADE + "encoder", image_size=SIDE, stride=16)


def _encoder(size: int, stride: int) -> dict[str, Any]:
    source = MADE + "encoder"
    return {"name": "efficientnet_lite0", "source": source, "image_size": size, "stride": stride}


def _encoded(encoder: dict[str, Any]) -> tuple[str, str]:
    """Another 2D encoder, and a transform that leaves to it what it decides."""
    return _set("model.encoder", encoder), _set("processor.transform", {"fit": "stretch"})


def _set(field: str, value: object) -> str:
    """`field=value`; JSON is YAML."""
    return f"{field}={json.dumps(value)}"
