"""MedM-VL (Shi et al. 2025): SigLIP or M3D-CLIP, an MLP or attention pooling, Qwen2.5-3B; 2D and 3D.

Table 1 prints batch sizes without saying of what: here they are global ones. (In the public scripts they
are per device: on two of them, and with accumulation over 2 and 4 batches in 2D, 256 and 128 rows a step
in 2D, 32 and 16 in 3D. Set `accumulate` for that.) Cosine schedule, warm-up 0.03 and weight decay 0 are
the public scripts'; the paper is silent. Both stages keep the question, and the prompt is the language
model's own; `processor.prompt=vicuna_v1_interleaved` is that of the first public checkpoints.
"""

from __future__ import annotations

from typing import Final

from medloupe.data.datasets.base import DatasetConfig
from medloupe.data.datasets.ct_rate import CtRateConfig
from medloupe.data.datasets.slake import SlakeConfig
from medloupe.data.datasets.starter import StarterConfig, bright_slices
from medloupe.evaluate.benchmark import Benchmark
from medloupe.imaging.composed import SlicesTransform, VolumeTransform
from medloupe.imaging.slices import SliceSelection
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.views import ViewTransform
from medloupe.imaging.windows import Window
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.connectors.attention_pooling import AttentionPoolingConfig
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.connectors.pooling import MeanSlicesConnectorConfig, PooledConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.models.encoders.efficientnet import EfficientNetLite0Config
from medloupe.models.encoders.hf_vision import SiglipEncoderConfig
from medloupe.models.encoders.vit import ViTSize
from medloupe.models.encoders.vit3d import M3DCLIPEncoderConfig, ViT3DConfig
from medloupe.models.language import LanguageConfig
from medloupe.models.resolution.units import SlicesConfig
from medloupe.models.vlm import PARTS
from medloupe.processing import ProcessorConfig
from medloupe.recipes.config import EvaluateConfig, ModelConfig, RunConfig
from medloupe.recipes.llama3_med import prepared, tiny_evaluation, tiny_stages
from medloupe.recipes.published import M3D_CLIP, QWEN_2_5_3B, SIGLIP_256, VISION
from medloupe.train import StageConfig, TrainConfig
from medloupe.train.objectives.language import LanguageObjectiveConfig

SLICES: Final = 32  # section 4.1: volumes of 32 x 256 x 256
PIXELS: Final = 256
# Section 3.1, in the order of the text.
MULTI_TASK: Final = (
    "medmnist",
    "mimic_cxr",
    "mpx_single",
    "path_vqa",
    "slake",
    "sa_med2d",
    "llava_med_instruct",
)


def medm_vl_2d() -> RunConfig:
    """Sections 2.1, 3 and 4.1: SigLIP's 256 tokens, a two-layer MLP; then everything trains."""
    return RunConfig(
        name="medm_vl_2d",
        description="MedM-VL-2D 3B: SigLIP + Qwen2.5, every part trains; published size",
        data=SlakeConfig(languages=("en",)),  # one of Table 2's benchmarks
        model=ModelConfig(
            encoder=_siglip(), connector=MLPConnectorConfig(depth=2), language=_qwen()
        ),
        processor=_processor(ImageTransform(fit="stretch")),
        train=TrainConfig(
            stages=(
                _align(batch=64).model_copy(update={"mixture": prepared("llava_pretrain")}),
                _instruct(batch=16, epochs=3).model_copy(update={"mixture": prepared(*MULTI_TASK)}),
            )
        ),
        evaluate=EvaluateConfig(benchmark=Benchmark(name="slake", max_new_tokens=256)),
    )


def medm_vl_ct_chest() -> RunConfig:
    """The public checkpoint's composition, `medm_vl_ct_chest_attn`, which leads Table 3."""
    return _ct_chest("medm_vl_ct_chest", *_attention())


def medm_vl_ct_chest_3d() -> RunConfig:
    """Equation 4: M3D-CLIP's 2048 tokens of a volume, averaged 2 x 2 x 2 to 256."""
    encoder = M3DCLIPEncoderConfig(source=M3D_CLIP, shape=(SLICES, PIXELS, PIXELS))
    connector = PooledConnectorConfig(window=(2, 2, 2), connector=MLPConnectorConfig(depth=2))
    view = VolumeTransform(shape=encoder.shape, window=_hounsfield())
    return _ct_chest("medm_vl_ct_chest_3d", "M3D-CLIP", encoder, connector, view)


def medm_vl_ct_chest_avg() -> RunConfig:
    """Equation 7: SigLIP on each slice, the mean over slices before the connector."""
    connector = MeanSlicesConnectorConfig(place="before", connector=MLPConnectorConfig(depth=2))
    what, encoder = "SigLIP per slice, averaged", SlicesConfig(encoder=_siglip())
    return _ct_chest("medm_vl_ct_chest_avg", what, encoder, connector, _slices_view())


def medm_vl_ct_chest_attn() -> RunConfig:
    """Equation 6: SigLIP on each slice, 256 queries over all slices' tokens. 256, the 8 heads and the
    lack of slice positions are the public code's; the paper is silent."""
    return _ct_chest("medm_vl_ct_chest_attn", *_attention())


def _attention() -> tuple[str, EncoderConfig, ConnectorConfig, ViewTransform]:
    connector = AttentionPoolingConfig(queries=256, heads=8, slice_position=None, depth=2)
    what = "SigLIP per slice, attention pooling"
    return what, SlicesConfig(encoder=_siglip()), connector, _slices_view()


def _ct_chest(
    name: str, what: str, encoder: EncoderConfig, connector: ConnectorConfig, view: ViewTransform
) -> RunConfig:
    """Section 3: reports first, then all of CT-RATE, with its own split."""
    return RunConfig(
        name=name,
        description=f"MedM-VL-CT-Chest 3B: {what} + Qwen2.5; published size",
        data=CtRateConfig(tasks=("vqa",), validation=0.0),
        model=ModelConfig(encoder=encoder, connector=connector, language=_qwen()),
        processor=_processor(view),
        train=TrainConfig(
            stages=(
                _align(batch=16, tasks=("report_generation",)),
                _instruct(batch=8, epochs=1),
            )
        ),
        evaluate=EvaluateConfig(benchmark=Benchmark(name="ct_rate", max_new_tokens=512)),
    )


def _siglip() -> SiglipEncoderConfig:
    """Section 4.1, and Table 4: the last layer. Float32, since it trains in the second stage."""
    return SiglipEncoderConfig(
        source=SIGLIP_256, architecture=VISION[SIGLIP_256], image_size=PIXELS, layer=-1
    )


def _qwen() -> LanguageConfig:
    """Section 4.1. It trains whole in the second stage."""
    return LanguageConfig(source=QWEN_2_5_3B)


def _hounsfield() -> Window:
    """-1000 to 1000 HU: the public code's clip; the paper is silent."""
    return Window(mode="medm_vl")


def _slices_view() -> SlicesTransform:
    """Section 4.1: 32 slices of 256 x 256. Here they are 32 of the volume's own, evenly spread, where
    the paper resizes the volume along z as well."""
    return SlicesTransform(
        transform=ImageTransform(fit="stretch", window=_hounsfield()),
        selection=SliceSelection(count=SLICES),
    )


def _processor(view: ViewTransform) -> ProcessorConfig:
    """Table 1: sequence length 2048. Section 4.1: images are resized to 256 x 256."""
    return ProcessorConfig(transform=view, max_length=2048)


def _align(*, batch: int, tasks: tuple[str, ...] = ()) -> StageConfig:
    """Table 1, pre-training; section 3.2: only the connector trains."""
    return StageConfig(
        name="align",
        objective=LanguageObjectiveConfig(tasks=tasks, pack=False),
        trainable=("connector",),
        learning_rate=1e-3,
        epochs=1,
        batch_size=batch,
        warmup=0.03,
        weight_decay=0.0,
        precision="bf16",  # section 4.1
    )


def _instruct(*, batch: int, epochs: float) -> StageConfig:
    """Table 1, instruction tuning; section 3.2: every part trains."""
    return StageConfig(
        name="instruct",
        objective=LanguageObjectiveConfig(pack=False),
        trainable=PARTS,
        learning_rate=2e-5,
        epochs=epochs,
        batch_size=batch,
        warmup=0.03,
        weight_decay=0.0,
        precision="bf16",
    )


PLANE_TASKS = ("plane", "presence", "side", "kind", "diagnosis", "count", "size")
VOLUME_TASKS = ("volume_presence", "volume_side")


def medm_vl_2d_tiny() -> RunConfig:
    """SigLIP becomes EfficientNet-Lite0, which trains in the second stage as SigLIP does."""
    data = bright_slices(120)
    return _tiny(
        "medm_vl_2d_tiny",
        "MedM-VL-2D with EfficientNet-Lite0 and SmolLM2, on the starter's slices",
        data,
        EfficientNetLite0Config(stride=32),
        MLPConnectorConfig(depth=2),
        ImageTransform(fit="stretch"),
        PLANE_TASKS,
    )


def medm_vl_ct_chest_tiny() -> RunConfig:
    """`medm_vl_ct_chest_attn_tiny` by the public checkpoint's name."""
    return _tiny_attention("medm_vl_ct_chest_tiny")


def medm_vl_ct_chest_3d_tiny() -> RunConfig:
    """M3D-CLIP becomes a small 3D ViT from scratch, since no published one is small."""
    encoder = ViT3DConfig(
        shape=(16, 64, 64),
        patch=(4, 8, 8),
        size=ViTSize(width=192, depth=4, heads=6, hidden=768),
    )
    connector = PooledConnectorConfig(window=(2, 2, 2), connector=MLPConnectorConfig(depth=2))
    return _tiny_volumes(
        "medm_vl_ct_chest_3d_tiny",
        "MedM-VL-CT-Chest with a small 3D ViT from scratch, on the starter's volumes",
        encoder,
        connector,
        VolumeTransform(shape=encoder.shape),
    )


def medm_vl_ct_chest_avg_tiny() -> RunConfig:
    """EfficientNet-Lite0 on each of 12 slices, their mean."""
    return _tiny_volumes(
        "medm_vl_ct_chest_avg_tiny",
        "MedM-VL-CT-Chest with a mean over 12 slices, on the starter's volumes",
        _tiny_slices(),
        MeanSlicesConnectorConfig(place="before", connector=MLPConnectorConfig(depth=2)),
        _tiny_slices_view(),
    )


def medm_vl_ct_chest_attn_tiny() -> RunConfig:
    """EfficientNet-Lite0 on each of 12 slices, read by 32 queries."""
    return _tiny_attention("medm_vl_ct_chest_attn_tiny")


def _tiny_attention(name: str) -> RunConfig:
    return _tiny_volumes(
        name,
        "MedM-VL-CT-Chest with attention pooling over 12 slices, on the starter's volumes",
        _tiny_slices(),
        AttentionPoolingConfig(queries=32, heads=8, depth=2),
        _tiny_slices_view(),
    )


def _tiny_slices() -> SlicesConfig:
    return SlicesConfig(encoder=EfficientNetLite0Config(image_size=96, stride=16))


def _tiny_slices_view() -> SlicesTransform:
    return SlicesTransform(
        transform=ImageTransform(fit="stretch"), selection=SliceSelection(count=12)
    )


def _tiny_volumes(
    name: str,
    description: str,
    encoder: EncoderConfig,
    connector: ConnectorConfig,
    view: ViewTransform,
) -> RunConfig:
    data = StarterConfig(
        patients=160,
        slices_per_patient=0,
        series_per_patient=0,
        volumes_per_patient=1,
        conspicuity=1.0,
        languages=("en",),
    )
    return _tiny(name, description, data, encoder, connector, view, VOLUME_TASKS)


def _tiny(
    name: str,
    description: str,
    data: DatasetConfig,
    encoder: EncoderConfig,
    connector: ConnectorConfig,
    view: ViewTransform,
    tasks: tuple[str, ...],
) -> RunConfig:
    return RunConfig(
        name=name,
        description=description,
        data=data,
        model=ModelConfig(encoder=encoder, connector=connector),
        processor=_processor(view),
        train=TrainConfig(stages=tiny_stages(tasks, trainable=PARTS)),
        evaluate=tiny_evaluation(tasks),
    )
