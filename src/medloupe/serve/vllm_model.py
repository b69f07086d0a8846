"""The class that vLLM builds for our checkpoints, `MedLoupeForVLLM`; it is made when it is asked for, so
that this file can be read without vLLM.

It holds the language model alone, in vLLM's own implementation: images come as embeddings (see
`medloupe.serve.vllm`), so the encoder's and connector's weights are left out.
Source: vLLM 0.33, "Multi-Modal Support", and its model interfaces (`SupportsMultiModal`,
`BaseMultiModalProcessor`). Registering, expanding prompts and loading weights were tried by hand against
vLLM 0.33's own Python code; its engine, which needs a GPU, was not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from medloupe.models.vlm import IMAGE_TOKEN, VisionLanguageModel

CLASS = "MedLoupeForVLLM"
LANGUAGE = "language_model."


def __getattr__(name: str) -> Any:
    """vLLM asks the module for the class by name."""
    if name == CLASS:
        return _made()
    raise AttributeError(name)


class _Info:
    """Any number of images a prompt, none of them touched by a Hugging Face processor."""

    ctx: Any

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        return {}

    def image_shape(self) -> tuple[int, int]:
        """(tokens, width) of one image, or of one unit where an image is cut into several."""
        config = self.ctx.get_hf_config()
        with torch.device("meta"):
            layouts = VisionLanguageModel(config).layouts
        found = [layout.tokens for layout in (layouts.image, layouts.volume) if layout is not None]
        return max(found), int(config.get_text_config().hidden_size)


class _Dummies:
    """What vLLM measures memory with."""

    info: Any

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return IMAGE_TOKEN * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any
    ) -> dict[str, Any]:
        del seq_len, mm_options
        return {"image": [torch.zeros(self.info.image_shape())] * mm_counts.get("image", 0)}


class _Processor:
    """Embeddings in, embeddings out: each placeholder becomes as many as its image has tokens."""

    info: Any

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, Any]:
        from vllm.multimodal.inputs import MultiModalFieldConfig

        del hf_inputs, hf_processor_mm_kwargs
        return {"image_embeds": MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        from vllm.multimodal.parse import ImageEmbeddingItems
        from vllm.multimodal.processing import PromptReplacement

        del hf_processor_mm_kwargs, out_mm_kwargs
        token = int(self.info.get_hf_config().image_token_id)

        def placeholders(number: int) -> list[int]:
            images = mm_items.get_items("image", ImageEmbeddingItems)
            return [token] * int(images.get_feature_size(number))

        return [PromptReplacement(modality="image", target=[token], replacement=placeholders)]


class _Model(nn.Module):
    """The language model; image tokens are merged into its embeddings by vLLM."""

    configure_mm_token_handling: Any
    _mark_language_model: Any

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        del i
        if modality == "image":
            return IMAGE_TOKEN
        raise ValueError(f"{modality} is not read; images and volumes come as image embeddings")

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix

        super().__init__()
        self.config = vllm_config.model_config.hf_config
        if self.config.adapter is not None:
            raise ValueError("the model has an adapter between its layers, which vLLM does not run")
        language = self.config.get_text_config()
        self.configure_mm_token_handling(
            vocab_size=language.vocab_size, mm_token_ids=[self.config.image_token_id]
        )
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=language,
                architectures=[MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[language.model_type]],
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: object) -> Any:
        """The images' tokens as they came, one `[U, D]` each."""
        return kwargs.get("image_embeds", [])

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        """Hidden states of the language model's decoder."""
        del kwargs
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(
            input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds
        )

    def compute_logits(self, hidden_states: torch.Tensor) -> Any:
        """Logits over the vocabulary."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        """The language model's tensors; those of the encoder and connector are passed over."""
        from vllm.model_executor.models.utils import AutoWeightsLoader

        own = ((name, tensor) for name, tensor in weights if name.startswith(LANGUAGE))
        return AutoWeightsLoader(self).load_weights(own)


@cache
def _made() -> type:
    """Our methods on vLLM's bases, with the processor registered."""
    from vllm.model_executor.models.interfaces import SupportsMultiModal, SupportsPP
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing import (
        BaseDummyInputsBuilder,
        BaseMultiModalProcessor,
        BaseProcessingInfo,
    )

    named = {"__module__": __name__}
    info = type("MedLoupeInfo", (_Info, BaseProcessingInfo), named)
    dummies = type("MedLoupeDummies", (_Dummies, BaseDummyInputsBuilder), named)
    processor = type("MedLoupeProcessor", (_Processor, BaseMultiModalProcessor), named)
    model: type = type(CLASS, (_Model, SupportsMultiModal, SupportsPP), named)
    register = MULTIMODAL_REGISTRY.register_processor(processor, info=info, dummy_inputs=dummies)
    made: type = register(model)
    return made
