"""VQA-RAD, split by image. It has no boxes, so the connector first learns alone, from answers."""

from __future__ import annotations

from medloupe.data.datasets.vqa_rad import VqaRadConfig
from medloupe.evaluate.benchmark import Benchmark
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders.efficientnet import EfficientNetLite0Config
from medloupe.models.language import LanguageConfig
from medloupe.processing import ProcessorConfig
from medloupe.recipes.config import EvaluateConfig, ModelConfig, RunConfig
from medloupe.train import LoraConfig, StageConfig, TrainConfig
from medloupe.train.objectives.language import LanguageObjectiveConfig


def vqa_rad_starter() -> RunConfig:
    """The parts of the starter on real questions; give your copy with --root."""
    return RunConfig(
        name="vqa_rad_starter",
        description="SmolLM2-135M + EfficientNet-Lite0 on VQA-RAD by image; needs --root",
        data=VqaRadConfig(),
        model=ModelConfig(
            encoder=EfficientNetLite0Config(stride=32),
            connector=MLPConnectorConfig(depth=2, position=16),
            language=LanguageConfig(dtype="bfloat16"),
        ),
        processor=ProcessorConfig(system="You read medical images. Answer in a few words."),
        train=TrainConfig(stages=(_align(), _instruct())),
        evaluate=EvaluateConfig(benchmark=Benchmark(name="vqa_rad", max_new_tokens=32)),
    )


def _align() -> StageConfig:
    return StageConfig(
        name="align",
        objective=LanguageObjectiveConfig(),
        trainable=("connector",),
        learning_rate=1e-3,
        epochs=1,
        batch_size=1,
    )


def _instruct() -> StageConfig:
    return StageConfig(
        name="instruct",
        objective=LanguageObjectiveConfig(),
        trainable=("connector", "language_model"),
        lora=LoraConfig(rank=16),
        learning_rate=5e-4,
        learning_rates={"connector": 2e-4},
        epochs=3,
        batch_size=1,
    )
