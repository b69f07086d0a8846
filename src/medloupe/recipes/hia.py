"""HiA (Ding et al. 2024): a high-resolution, instruction-aware adapter on Qilin-Med-VL 13B.

The base is LLaVA-1.5's composition with Chinese-LLaMA2-13B-Chat. It stays frozen; the adapter and its
ResNet-50 train (section 2.2, last paragraph). What the paper leaves open is marked below; each such
choice is a field.
"""

from __future__ import annotations

from typing import Final

from medloupe.data.datasets.chili_joint import ChiliJointConfig
from medloupe.data.datasets.starter import StarterConfig
from medloupe.evaluate.benchmark import Benchmark
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.adapters import AdapterConfig
from medloupe.models.adapters.hia import HiaConfig
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders.convolutions import ResNetEncoderConfig
from medloupe.models.encoders.efficientnet import EfficientNetLite0Config
from medloupe.models.encoders.hf_vision import CLIPEncoderConfig
from medloupe.models.language import LanguageConfig
from medloupe.models.warm import StartConfig
from medloupe.processing import ProcessorConfig
from medloupe.recipes.config import EvaluateConfig, ModelConfig, RunConfig
from medloupe.recipes.llama3_med import tiny_stages
from medloupe.recipes.published import CHINESE_LLAMA2_13B, CLIP_L_336, VISION
from medloupe.train import StageConfig, TrainConfig
from medloupe.train.objectives.language import LanguageObjectiveConfig

# "Res." of the high-resolution image in the paper's headline rows (Table 3).
PIXELS: Final = 672
TASKS: Final = ("description", "disease", "location", "comparison")


def hia() -> RunConfig:
    """The paper's model. `model.start` is the base: `medloupe import` makes its folder from the
    published checkpoint."""
    return RunConfig(
        name="hia",
        description="HiA on Qilin-Med-VL 13B: ResNet-50 at 672 pixels, 2 layers; published size",
        data=ChiliJointConfig(),
        model=base().model_copy(
            update={"adapter": adapter(), "start": StartConfig(folder="models/qilin_med_vl")}
        ),
        processor=ProcessorConfig(
            # Qilin-Med-VL's; the paper is silent
            transform=ImageTransform(fit="pad", padding="mean", interpolation="bicubic"),
            prompt="vicuna_v1_interleaved",  # images stay where the sentence has them
            max_length=2048,  # section 3
        ),
        train=TrainConfig(stages=(tune(),)),
        evaluate=EvaluateConfig(
            benchmark=Benchmark(
                name="chili_joint",
                tasks=TASKS,
                max_new_tokens=512,  # the paper is silent
            )
        ),
    )


def base() -> ModelConfig:
    """Qilin-Med-VL: section 3, "Implementation Details"; layer -2 and the connector are LLaVA-1.5's."""
    return ModelConfig(
        encoder=CLIPEncoderConfig(
            source=CLIP_L_336,
            architecture=VISION[CLIP_L_336],
            image_size=336,
            layer=-2,
            dtype="bfloat16",
        ),
        connector=MLPConnectorConfig(depth=2),
        language=LanguageConfig(source=CHINESE_LLAMA2_13B, dtype="bfloat16"),
    )


def adapter() -> HiaConfig:
    """M = 256 (Table 4a), two layers (Table 4b); the queries are as wide as the language model, as in the
    public code (the paper leaves D open)."""
    return HiaConfig(
        encoder=ResNetEncoderConfig(image_size=PIXELS, stride=32),
        queries=256,
        heads=8,  # the public code's
        layers=2,
    )


def tune() -> StageConfig:
    """Section 3: 4 a GPU, 1 epoch, rate 2e-5, warm-up 0.03; only adapter and high-resolution encoder."""
    return StageConfig(
        name="tune",
        objective=LanguageObjectiveConfig(pack=False),
        trainable=("adapter",),
        learning_rate=2e-5,
        epochs=1,
        batch_size=4,  # of one GPU; the paper does not say on how many
        warmup=0.03,
        weight_decay=0.0,  # the paper is silent; LLaVA's
        precision="bf16",  # the paper is silent; LLaVA's
    )


TINY_TASKS: Final = ("report", "diagnosis", "side", "change")


def hia_tiny() -> RunConfig:
    """Alignment, then the language model, then the adapter at three times the base's resolution, on
    starter's four tasks in Chinese and English."""
    align, instruct = tiny_stages(TINY_TASKS)
    return RunConfig(
        name="hia_tiny",
        description="HiA at 336 pixels on a base at 112, starter's slices and pairs, zh and en",
        data=StarterConfig(
            patients=120,
            volumes_per_patient=0,
            size=336,
            conspicuity=1.0,
            lesion_width=(0.04, 0.12),
            most_lesions=1,
            tasks=TINY_TASKS,
        ),
        model=ModelConfig(
            encoder=EfficientNetLite0Config(image_size=112, stride=16),
            connector=MLPConnectorConfig(depth=2),
            adapter=tiny_adapter(),
        ),
        processor=ProcessorConfig(transform=ImageTransform(fit="pad", padding="mean")),
        train=TrainConfig(
            stages=(
                align,
                instruct,
                StageConfig(
                    name="tune",
                    objective=LanguageObjectiveConfig(tasks=TINY_TASKS, pack=False),
                    trainable=("adapter",),
                    learning_rate=5e-4,
                    # at 1e-3 its features became a constant (docs/results.md)
                    learning_rates={"adapter.encoder": 1e-5},
                    steps=160,
                    batch_size=2,
                ),
            )
        ),
        evaluate=EvaluateConfig(
            benchmark=Benchmark(name="starter", tasks=TINY_TASKS, max_new_tokens=64, limit=40)
        ),
    )


def tiny_adapter() -> AdapterConfig:
    """EfficientNet-Lite0 with its ImageNet weights reads the large view."""
    return HiaConfig(
        encoder=EfficientNetLite0Config(image_size=336, stride=32),
        queries=64,
        width=192,
        heads=8,
    )
