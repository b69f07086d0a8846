"""LoRA on the language model through peft, and nothing else of the model."""

from __future__ import annotations

import warnings

import peft

from medloupe.models.vlm import VisionLanguageModel
from medloupe.train.stages import LoraConfig


def attach_lora(model: VisionLanguageModel, config: LoraConfig) -> peft.PeftModel:
    """Inject adapters into `model.language_model`, in place; only they train there."""
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    spec = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model.language_model, spec)


def merge_lora(model: VisionLanguageModel, adapted: peft.PeftModel) -> None:
    """Add the adapters to the weights they adapt and take them off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # tied output embeddings are not adapted
        model.language_model = adapted.merge_and_unload()
