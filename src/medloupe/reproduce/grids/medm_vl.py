"""MedM-VL: volumes, layers, what trains, stages, warm starts."""

from __future__ import annotations

from medloupe.reproduce.grid import Claim, Grid, Row
from medloupe.reproduce.grids.shared import (
    ALIGN,
    BOXES,
    CLOSED,
    ENCODER,
    INSTRUCT,
    PARTS,
    PLANE_MEASURES,
    SIDE,
    SMALL,
    VOLUME_ACCURACY,
    assign,
    encoded,
    instruct,
    plane_run,
    volume_run,
)
from medloupe.reproduce.parts import MADE, SmallTower
from medloupe.train import StageConfig
from medloupe.train.objectives.grounding import GroundingObjectiveConfig


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
        assign("model.encoder", vit),
        assign("model.connector", pooled),
        assign("processor.transform", {"name": "volume"}),
        assign("train.stages.align.trainable", ["encoder", "connector"]),
        assign("train.stages.instruct.trainable", ["encoder", "connector", "language_model"]),
    )
    return Grid(
        name="volumes",
        title="Mean over slices, attention pooling, or a 3D encoder",
        answers="MedM-VL, Table 3",
        base=volume_run(),
        parts=PARTS,
        rows=(
            Row(label="2D, mean"),
            Row(label="2D, attention", overrides=(assign("model.connector", attention),)),
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
        smaller=(*SMALL, "12 slices of 96 pixels for 32 of 256, 36 queries for 256", ENCODER),
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
    trained = (*encoded(tower), assign("train.stages", [ground.to_dict()]))
    start = {
        "folder": "row:the tower's training",
        "parts": ["encoder"],
        "allow_unused": ["encoder.tower.encoder.layers.5"],
    }
    begun = assign("model.start", start)
    return Grid(
        name="layers",
        title="The last layer or the one before",
        answers="MedM-VL, Table 4",
        base=plane_run(),
        parts={**PARTS, "tower": SmallTower(image_size=SIDE, layers=6)},
        rows=(
            Row(label="the tower's training", overrides=trained),
            Row(label="layer -1", overrides=(*encoded({**tower, "layer": -1}), begun)),
            Row(label="layer -2", overrides=(*encoded({**tower, "layer": -2}), begun)),
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
            *SMALL,
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
        parts=PARTS,
        rows=(
            Row(label="frozen"),
            Row(label="trained", overrides=(assign("train.stages.instruct.trainable", parts),)),
        ),
        measures=PLANE_MEASURES,
        claims=(Claim(first="trained", second="frozen", paper="a figure without numbers"),),
        smaller=(*SMALL, ENCODER),
    )


def language_training() -> Grid:
    """MedM-VL: the language model frozen, by LoRA at two rates, or all of it, at the paper's rates."""
    frozen = assign("train.stages.instruct.trainable", ["connector"])
    lora = assign("train.stages.instruct.lora", {"rank": 16, "alpha": 32})

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
        parts=PARTS,
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
            *SMALL,
            ENCODER,
            "LoRA's rank is 16 (the paper names none)",
            "the last row, all of it at this grid's own rate, is not in the paper",
        ),
    )


def stages() -> Grid:
    """MedM-VL: alignment first, or instruction tuning alone."""
    only = [instruct(CLOSED + BOXES).to_dict()]
    return Grid(
        name="stages",
        title="One stage or two",
        answers="MedM-VL, Table 5",
        base=plane_run(),
        parts=PARTS,
        rows=(
            Row(label="two stages"),
            Row(label="one stage", overrides=(assign("train.stages", only),)),
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
        smaller=(*SMALL, ENCODER, "the one stage has the second's steps, as in the paper"),
    )


def volume_start() -> Grid:
    """MedM-VL: 3D from scratch, also for twice as long, or from a 2D model."""
    plane = plane_run()
    in_2d = (
        assign("model", plane.model.to_dict()),
        assign("processor", plane.processor.to_dict()),
        assign("train", plane.train.to_dict()),
        assign("evaluate", plane.evaluate.to_dict()),
    )
    start = {
        "folder": "row:2D",
        "parts": ["connector", "language_model"],
        "rename": {"connector": "connector.connector"},
    }
    twice = (
        assign("train.stages.align.steps", 2 * ALIGN),
        assign("train.stages.instruct.steps", 2 * INSTRUCT),
    )
    return Grid(
        name="volume_start",
        title="3D from scratch or from a 2D model",
        answers="MedM-VL, Figure 3 (c)",
        base=volume_run(),
        parts=PARTS,
        rows=(
            Row(label="2D", overrides=in_2d),
            Row(label="3D from scratch"),
            Row(label="3D from scratch, twice as long", overrides=twice),
            Row(label="3D from 2D", overrides=(assign("model.start", start),)),
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
            *SMALL,
            ENCODER,
            '"from scratch" means a fresh connector and the text-only language model',
        ),
    )
