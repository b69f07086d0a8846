"""Llama3-Med (Chen et al. 2024): three scales through one encoder, joined along channels, and Llama 3.

What the paper is silent about follows LLaVA's code base (Liu et al. 2024), which it builds on, and is
marked so below; each such choice is a field. Its own training is AdamW with a cosine schedule and
warm-up, in two stages (section 3, "Implementation details"; Tables 8 and 9).
"""

from __future__ import annotations

from medloupe.data.datasets.starter import bright_slices
from medloupe.data.datasets.vqa_rad import VqaRadConfig
from medloupe.data.mixture import Mixture, MixtureSource
from medloupe.evaluate.benchmark import Benchmark
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders.efficientnet import EfficientNetLite0Config
from medloupe.models.encoders.hf_vision import CLIPEncoderConfig
from medloupe.models.language import LanguageConfig
from medloupe.models.resolution.scales import ScalesConfig
from medloupe.models.vlm import Part
from medloupe.processing import ProcessorConfig
from medloupe.recipes.config import EvaluateConfig, ModelConfig, RunConfig
from medloupe.recipes.published import DFN5B, LLAMA_3_8B, VISION
from medloupe.train import StageConfig, TrainConfig
from medloupe.train.objectives.language import LanguageObjectiveConfig

# LLaVA-Med's instructions and the paper's own 20K (section 2, "Rationale of Data Synthesis"; A.1).
INSTRUCTIONS = ("llava_med_instruct", "llama3_med_ft_20k")


def llama3_med() -> RunConfig:
    """The paper's final model: 378, 756 and 1134 pixels, 729 tokens of 3 x 1280 channels."""
    return RunConfig(
        name="llama3_med",
        description="Llama3-Med 8B: DFN5B CLIP at three scales (S2) + Llama 3; published size",
        data=VqaRadConfig(),  # what is evaluated; it trains nothing
        model=ModelConfig(encoder=_scales(), connector=connector(), language=_llama()),
        processor=processor(),
        train=TrainConfig(stages=(align(), instruct(INSTRUCTIONS))),
        evaluate=zero_shot(),
    )


def _scales() -> ScalesConfig:
    """Section 2 and appendix D.1: 378, twice and three times that, joined as embeddings."""
    tower = CLIPEncoderConfig(
        source=DFN5B,  # appendix D.1
        architecture=VISION[DFN5B],
        image_size=378,  # appendix D.1
        layer=-2,  # the paper is silent; LLaVA's layer
        dtype="bfloat16",  # frozen in both stages; the paper is silent
    )
    return ScalesConfig(encoder=tower, scales=(378, 756, 1134))


def _llama() -> LanguageConfig:
    """Appendix D.1. It trains whole in the second stage, so its weights are kept in float32."""
    return LanguageConfig(source=LLAMA_3_8B)


def connector() -> MLPConnectorConfig:
    """The paper is silent; LLaVA-1.5's: two layers, GELU, the language model's width."""
    return MLPConnectorConfig(depth=2)


def processor() -> ProcessorConfig:
    """Max length 2048: Tables 8 and 9. About non-square images the paper is silent: they are padded to
    a square with the encoder's mean, as in LLaVA-1.5, so that everything stays in view."""
    return ProcessorConfig(
        transform=ImageTransform(fit="pad", padding="mean", interpolation="bicubic"),
        max_length=2048,
    )


def align() -> StageConfig:
    """Table 8 (pre-training); section 2: only the connector trains, on LLaVA-Med's captions."""
    return StageConfig(
        name="align",
        objective=LanguageObjectiveConfig(pack=False),  # a row is a sample, as in the batch size
        mixture=prepared("llava_med_alignment"),
        trainable=("connector",),
        learning_rate=1e-3,
        epochs=1,
        batch_size=16,
        accumulate=16,  # global batch 256
        warmup=0.03,
        weight_decay=0.0,
        clip=1.0,  # the paper is silent; LLaVA's
        precision="bf16",  # the paper is silent; LLaVA's
    )


def instruct(sources: tuple[str, ...]) -> StageConfig:
    """Table 9 (fine-tuning); section 2: language model and connector train, the encoder is frozen."""
    return StageConfig(
        name="instruct",
        objective=LanguageObjectiveConfig(pack=False),
        mixture=prepared(*sources),
        trainable=("connector", "language_model"),
        learning_rate=2e-5,
        epochs=1,
        batch_size=8,
        accumulate=16,  # global batch 128
        warmup=0.03,
        weight_decay=0.0,
        clip=1.0,
        precision="bf16",
    )


def prepared(*names: str) -> Mixture:
    """Data sets by size, each prepared in `data/NAME` below the current folder."""
    return Mixture(sources=tuple(MixtureSource(name=name, data=f"data/{name}") for name in names))


def zero_shot() -> EvaluateConfig:
    """Section 3.1. Table 3's split is the official one, which shares images between train and test: set
    data.split=official and data.allow_leak=true. The limit is LLaVA-Med's; the paper is silent."""
    return EvaluateConfig(benchmark=Benchmark(name="vqa_rad", max_new_tokens=1024))


def llama3_med_tiny() -> RunConfig:
    """The same composition at a sixth of the published scale, on starter lesions."""
    tower = EfficientNetLite0Config(image_size=112, stride=16)
    return tiny_run(
        name="llama3_med_tiny",
        description="Llama3-Med's three scales at 112, 224 and 336 pixels, on the starter's lesions",
        model=ModelConfig(
            encoder=ScalesConfig(encoder=tower, scales=(112, 224, 336)),
            connector=connector(),
        ),
    )


TINY_TASKS = ("plane", "presence", "side", "kind", "diagnosis", "count", "size")


def tiny_run(*, name: str, description: str, model: ModelConfig) -> RunConfig:
    """The paper's two stages on planted lesions, seen by SmolLM2-135M through `model`'s encoder."""
    return RunConfig(
        name=name,
        description=description,
        data=bright_slices(120, size=336),
        model=model,
        processor=processor(),
        train=TrainConfig(stages=tiny_stages(TINY_TASKS)),
        evaluate=tiny_evaluation(TINY_TASKS),
    )


def tiny_stages(
    tasks: tuple[str, ...], trainable: tuple[Part, ...] = ("connector", "language_model")
) -> tuple[StageConfig, StageConfig]:
    """Two stages of a few minutes: fewer steps, and a second rate at which they learn something."""
    align_tiny = StageConfig(
        name="align",
        objective=LanguageObjectiveConfig(tasks=tasks),
        trainable=("connector",),
        learning_rate=1e-3,
        steps=100,
        batch_size=1,
    )
    instruct_tiny = StageConfig(
        name="instruct",
        objective=LanguageObjectiveConfig(tasks=tasks),
        trainable=trainable,
        learning_rate=2e-4,
        steps=160,
        batch_size=1,
    )
    return align_tiny, instruct_tiny


def tiny_evaluation(tasks: tuple[str, ...]) -> EvaluateConfig:
    """Few questions a task, short answers."""
    return EvaluateConfig(
        benchmark=Benchmark(name="starter", tasks=tasks, max_new_tokens=16, limit=40)
    )
