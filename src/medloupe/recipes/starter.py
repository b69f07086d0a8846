"""The quickstart: a 135M language model and a small convolutional encoder learn to read planted lesions.

What is tuned stands in the two stages and in `StarterConfig`, nowhere else.
"""

from __future__ import annotations

from medloupe.data.audit import GateConfig
from medloupe.data.datasets.starter import bright_slices
from medloupe.data.datasets.starter.anatomy import PLANES
from medloupe.data.datasets.starter.lesions import KINDS
from medloupe.evaluate.benchmark import Benchmark, Stratum
from medloupe.evaluate.probes import default_probes
from medloupe.generate import GenerateConfig
from medloupe.models.connectors.words import WordsConnectorConfig
from medloupe.models.encoders.efficientnet import EfficientNetLite0Config
from medloupe.models.language import LanguageConfig
from medloupe.processing import ProcessorConfig
from medloupe.recipes.config import EvaluateConfig, ModelConfig, RunConfig
from medloupe.train import CurriculumConfig, LoraConfig, StageConfig, TrainConfig
from medloupe.train.objectives.grounding import GroundingObjectiveConfig
from medloupe.train.objectives.language import LanguageObjectiveConfig

SYSTEM = "You read medical images."
TASKS = ("plane", "presence", "side", "kind", "diagnosis", "count", "size")
PROBED = 12
"""Rows of a task that each probe but the swapped image asks."""


def starter() -> RunConfig:
    """Trains in minutes on two CPU cores."""
    return RunConfig(
        name="starter",
        description="SmolLM2-135M + EfficientNet-Lite0 on planted brain lesions; minutes on a CPU",
        data=bright_slices(320),
        model=ModelConfig(
            encoder=EfficientNetLite0Config(stride=16),
            connector=WordsConnectorConfig(
                words=(*KINDS, "left", "right", "small", "large"),
                image_words=PLANES,
                words_per_place=3,
            ),
            language=LanguageConfig(dtype="bfloat16"),
        ),
        processor=ProcessorConfig(system=SYSTEM),
        train=TrainConfig(stages=(_ground(), _instruct())),
        # every patient is drawn anew, so look-alikes are not searched for: half a minute on two cores
        audit=GateConfig(near="off"),
        evaluate=EvaluateConfig(
            benchmark=Benchmark(
                name="starter",
                tasks=TASKS,
                max_new_tokens=16,
                limit=100,
                strata=(Stratum(attribute="lesion_width", edges=(4, 6, 8)),),
            ),
            # ten minutes are for all of it: few rows for a probe, and no probabilities of options
            generate=GenerateConfig(option_probs=False),
            probes=tuple(
                probe if probe.limit is None else probe.model_copy(update={"limit": PROBED})
                for probe in default_probes()
            ),
        ),
    )


def _ground() -> StageConfig:
    """Image tokens learn what they show, without running the language model."""
    return StageConfig(
        name="ground",
        objective=GroundingObjectiveConfig(),
        trainable=("encoder", "connector"),
        learning_rate=1e-3,
        learning_rates={"connector": 3e-3},
        steps=220,
        batch_size=16,
        clip=5.0,
        curriculum=CurriculumConfig(attribute="smallest_lesion_percent", start=0.4, share=0.25),
    )


def _instruct() -> StageConfig:
    """The language model learns to answer from them; one row is an image with all its questions."""
    return StageConfig(
        name="instruct",
        objective=LanguageObjectiveConfig(tasks=TASKS),
        trainable=("language_model",),
        lora=LoraConfig(rank=16),
        learning_rate=1e-3,
        steps=280,
        batch_size=1,
    )


def starter_tiny() -> RunConfig:
    """Seconds, for tests and first steps with your own parts; it learns nothing of use."""
    return starter().with_overrides(
        [
            "name=starter_tiny",
            "description=The starter recipe at 64 pixels with a few steps, to try parts in seconds",
            "data.patients=20",
            "data.slices_per_patient=3",
            "data.size=64",
            "model.encoder.image_size=64",
            "model.language.dtype=float32",
            "train.save_every=2",
            "train.stages.ground.steps=4",
            "train.stages.ground.batch_size=4",
            "train.stages.ground.objective.min_count=1",
            "train.stages.instruct.steps=6",
            "train.stages.instruct.lora.rank=4",
            "evaluate.benchmark.tasks=[]",
            "evaluate.benchmark.resamples=100",
            "evaluate.benchmark.max_new_tokens=8",
        ]
    )
