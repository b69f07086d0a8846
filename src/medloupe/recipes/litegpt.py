"""LiteGPT (Le-Duc et al. 2024): two frozen encoders joined along tokens, Llama 2 with LoRA, VinDr-CXR.

Section 4.4 prints the initial, the least and the warm-up learning rate as one number, so the rate is
constant and its 1000 warm-up steps change nothing; the public code has 1e-6 for the last two. The size
of the global batch is not printed: 20 epochs of 549 iterations over the images with a finding (4,394 in
VinDr-CXR) make it 8. Whether that holds for the second stage is not said; here it does.
The last projection layer and the LoRA weights begin from MiniGPT-v2's third stage (section 3.1):
`models.weights.minigpt.load_minigpt`, from a file that has to be fetched by hand.
"""

from __future__ import annotations

from medloupe.data.datasets.starter import bright_slices
from medloupe.data.datasets.vindr_cxr import VindrCxrConfig
from medloupe.evaluate.benchmark import Benchmark
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors.grouped import GroupedConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.models.encoders.biomedclip import BiomedCLIPEncoderConfig
from medloupe.models.encoders.efficientnet import EfficientNetLite0Config
from medloupe.models.encoders.hf_vision import CLIPEncoderConfig
from medloupe.models.language import LanguageConfig
from medloupe.models.resolution.joined import JoinedConfig
from medloupe.processing import ProcessorConfig
from medloupe.processing.boxes import BoxEncoding
from medloupe.recipes.config import EvaluateConfig, ModelConfig, RunConfig
from medloupe.recipes.published import BIOMEDCLIP, LLAMA_2_7B, PUBMEDCLIP, VISION
from medloupe.train import LoraConfig, StageConfig, TrainConfig
from medloupe.train.objectives.language import LanguageObjectiveConfig

EPOCHS, ITERATIONS = 20, 549  # section 4.4
RATE = 1e-5  # section 4.4: initial, least and warm-up rate
BATCH = 8  # not printed; see the module's docstring


def litegpt() -> RunConfig:
    """BiomedCLIP's 196 tokens, then PubMedCLIP's 49, five by five: 49 tokens."""
    encoders = (_biomedclip(), _pubmedclip())
    return _run(
        "litegpt",
        "LiteGPT 7B: BiomedCLIP + PubMedCLIP, Llama 2 with LoRA, on VinDr-CXR; published size",
        JoinedConfig(encoders=encoders, axis="tokens"),
        group=5,  # section 3.1.2
    )


def litegpt_biomedclip() -> RunConfig:
    """Tables 1 to 5, "BiomedCLIP - Llama 2". Its group is not printed: four give 49 tokens, too."""
    description = "LiteGPT with BiomedCLIP alone, a row of its tables; published size"
    return _run("litegpt_biomedclip", description, _biomedclip(), group=4)


def litegpt_pubmedclip() -> RunConfig:
    """Tables 1 to 5, "PubMedCLIP - Llama 2". Its group is not printed: it has 49 tokens as it is."""
    description = "LiteGPT with PubMedCLIP alone, a row of its tables; published size"
    return _run("litegpt_pubmedclip", description, _pubmedclip(), group=1)


def _run(name: str, description: str, encoder: EncoderConfig, *, group: int) -> RunConfig:
    return RunConfig(
        name=name,
        description=description,
        # sections 4.1 and 4.2: conflicting readings left out, IoU 0.5; section 4.4: the questions
        data=VindrCxrConfig(tasks=("findings", "diagnosis"), wording="litegpt"),
        model=ModelConfig(
            encoder=encoder,
            connector=_connector(group, hidden=5632),
            language=LanguageConfig(
                source=LLAMA_2_7B,  # section 3.1.3
                quantization="int8",  # section 4.4: loaded in 8-bit precision
                dtype="bfloat16",  # of what is not quantised; the paper is silent
            ),
        ),
        processor=processor(),
        train=TrainConfig(
            stages=(_stage("identify", "findings"), _stage("diagnose", "diagnosis")), seed=42
        ),
        evaluate=EvaluateConfig(
            benchmark=Benchmark(
                name="vindr_cxr",
                tasks=("findings", "diagnosis"),
                max_new_tokens=512,  # the paper is silent; twenty findings with boxes fit
            )
        ),
    )


def _biomedclip() -> BiomedCLIPEncoderConfig:
    """Section 3.1.1, equation 1: the patch embeddings, 196 x 768, here after the final norm."""
    return BiomedCLIPEncoderConfig(source=BIOMEDCLIP, image_size=224, native_size=224)


def _pubmedclip() -> CLIPEncoderConfig:
    """Section 3.1.1, equation 2: 49 x 768, of the last layer, before the norm of the class token."""
    return CLIPEncoderConfig(
        source=PUBMEDCLIP, architecture=VISION[PUBMEDCLIP], image_size=224, layer=-1
    )


def _connector(group: int, *, hidden: int | None) -> GroupedConnectorConfig:
    """Section 3.1.2: two layers, GELU between; the second is MiniGPT-v2's 5632 -> 4096. The norm
    before is the public code's; the paper is silent."""
    return GroupedConnectorConfig(group=group, depth=2, hidden=hidden, norm=True)


def processor() -> ProcessorConfig:
    """Sections 3.3 and 4.2: MiniGPT-v2's prompt, boxes as whole numbers from 0 to 100, 224 x 224
    pixels (section 4.4) whatever the aspect ratio, the file's window or its full range."""
    return ProcessorConfig(
        transform=ImageTransform(fit="stretch", interpolation="bicubic"),
        boxes=BoxEncoding(form="angle", scale=100),
        prompt="minigpt_v2",
        max_length=1024,  # the public code's limit; the paper is silent
    )


def _stage(name: str, task: str) -> StageConfig:
    """Section 3.2 and section 4.4; the encoders are frozen in both stages (section 3.1.1)."""
    return StageConfig(
        name=name,
        objective=LanguageObjectiveConfig(tasks=(task,), pack=False),
        trainable=("connector", "language_model"),
        # section 4.4: rank 64 on W_q and W_v; alpha and dropout are the public code's
        lora=LoraConfig(rank=64, alpha=16, dropout=0.05, targets=("q_proj", "v_proj"), merge=False),
        learning_rate=RATE,
        min_learning_rate=1.0,  # as a share of the peak: constant
        warmup=0.0,  # 1000 steps at the same rate
        steps=EPOCHS * ITERATIONS,
        batch_size=BATCH,
        weight_decay=0.05,
        precision="bf16",
    )


TINY_TASKS = ("findings", "diagnosis")


def litegpt_tiny() -> RunConfig:
    """Two views of one image, 224 and 112 pixels, give 196 and 49 tokens, as in the paper."""
    encoders = (_large(), _small())
    return _tiny(
        "litegpt_tiny",
        "LiteGPT's joined encoders (196 + 49 tokens, five by five), on the starter's lesions",
        JoinedConfig(encoders=encoders, axis="tokens"),
        group=5,
    )


def litegpt_biomedclip_tiny() -> RunConfig:
    """The larger view alone, in groups of four."""
    description = "litegpt_tiny with its larger view alone, in groups of four"
    return _tiny("litegpt_biomedclip_tiny", description, _large(), group=4)


def litegpt_pubmedclip_tiny() -> RunConfig:
    """The smaller view alone, one token each."""
    description = "litegpt_tiny with its smaller view alone, ungrouped"
    return _tiny("litegpt_pubmedclip_tiny", description, _small(), group=1)


def _large() -> EfficientNetLite0Config:
    return EfficientNetLite0Config(image_size=224, stride=16)


def _small() -> EfficientNetLite0Config:
    return EfficientNetLite0Config(image_size=112, stride=16)


def _tiny(name: str, description: str, encoder: EncoderConfig, *, group: int) -> RunConfig:
    return RunConfig(
        name=name,
        description=description,
        data=bright_slices(120),
        model=ModelConfig(
            encoder=encoder,
            connector=_connector(group, hidden=None),
            language=LanguageConfig(dtype="bfloat16"),
        ),
        # SmolLM2's own prompt: it has not seen MiniGPT-v2's
        processor=processor().model_copy(update={"prompt": "template"}),
        train=TrainConfig(stages=(_tiny_stage("identify", 0), _tiny_stage("diagnose", 1))),
        evaluate=EvaluateConfig(
            benchmark=Benchmark(name="starter", tasks=TINY_TASKS, max_new_tokens=48, limit=40)
        ),
    )


def _tiny_stage(name: str, task: int) -> StageConfig:
    """Fewer steps, and a rate at which they learn something."""
    return StageConfig(
        name=name,
        objective=LanguageObjectiveConfig(tasks=TINY_TASKS[task : task + 1]),
        trainable=("connector", "language_model"),
        lora=LoraConfig(rank=16, alpha=32, targets=("q_proj", "v_proj"), merge=False),
        learning_rate=1e-3,
        min_learning_rate=1.0,
        warmup=0.0,
        steps=140,
        batch_size=2,
        weight_decay=0.05,
    )
