"""LLaVA-Med with Mistral: Llama3-Med's own baseline, a row of its Table 3.

"We trained an independent LLaVA-Med native model from scratch, however, using Mistral-7B" (section 3,
"Baselines"). Its encoder and data are not named. "Native" is taken to mean those of LLaVA-Med v1.5, which
has the same language model: CLIP ViT-L/14 at 336 pixels, and the 60K instructions without the paper's own
20K. Everything else is `llama3_med`'s, so that the two differ in encoder, scales, language model and data.
"""

from __future__ import annotations

from medloupe.data.datasets.vqa_rad import VqaRadConfig
from medloupe.models.encoders.efficientnet import EfficientNetLite0Config
from medloupe.models.encoders.hf_vision import CLIPEncoderConfig
from medloupe.models.language import LanguageConfig
from medloupe.recipes.config import ModelConfig, RunConfig
from medloupe.recipes.llama3_med import align, connector, instruct, processor, tiny_run, zero_shot
from medloupe.recipes.published import CLIP_L_336, MISTRAL_7B, VISION
from medloupe.train import TrainConfig


def llava_med_mistral() -> RunConfig:
    """The baseline at its published size."""
    tower = CLIPEncoderConfig(
        source=CLIP_L_336,  # LLaVA-Med v1.5
        architecture=VISION[CLIP_L_336],
        image_size=336,
        layer=-2,
        dtype="bfloat16",
    )
    return RunConfig(
        name="llava_med_mistral",
        description="LLaVA-Med 7B with Mistral, Llama3-Med's baseline; published size",
        data=VqaRadConfig(),
        model=ModelConfig(
            encoder=tower,
            connector=connector(),
            language=LanguageConfig(source=MISTRAL_7B),  # Llama3-Med, appendix D.1
        ),
        # LLaVA-Med v1.5's prompt, which is Mistral's own with the images in front
        processor=processor().model_copy(update={"prompt": "mistral_instruct"}),
        train=TrainConfig(stages=(align(), instruct(("llava_med_instruct",)))),
        evaluate=zero_shot(),
    )


def llava_med_mistral_tiny() -> RunConfig:
    """`llama3_med_tiny` at one scale: the smallest."""
    return tiny_run(
        name="llava_med_mistral_tiny",
        description="The baseline of llama3_med_tiny: one scale of 112 pixels, on the starter's lesions",
        model=ModelConfig(
            encoder=EfficientNetLite0Config(image_size=112, stride=16), connector=connector()
        ),
    )
