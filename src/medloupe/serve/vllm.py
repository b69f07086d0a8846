"""MedLoupe's models under vLLM: the plugin's entry point, and what a client sends.

vLLM runs the language model. Images are encoded by MedLoupe, with the very transform, encoder and
connector of training, and reach vLLM as embeddings; so windows, volumes, several encoders and every
connector work, and vLLM's own image processing has no part in it. Start vLLM with
`enable_mm_embeds=True` (`--enable-mm-embeds`). A composition that equals LLaVA's needs none of this:
`medloupe export --to llava` writes what vLLM knows by itself.
Source: vLLM 0.33, "Plugin System" and "Registering a Model". Tests see the registration; no answer was
generated under vLLM, whose engine needs a GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from packaging.version import Version

from medloupe.errors import ConfigError, MissingExtraError
from medloupe.models.vlm import VisionLanguageModel
from medloupe.processing import ImageSource, Processor
from medloupe.types import Conversation

# The first version whose model interface (`embed_multimodal`, token prompts) `vllm_model` was written for.
OLDEST = "0.33"
ARCHITECTURE = VisionLanguageModel.__name__
MODEL = "medloupe.serve.vllm_model:MedLoupeForVLLM"


def register() -> None:
    """The entry point `vllm.general_plugins`: tell vLLM which class runs our checkpoints.

    vLLM calls it in each of its processes, some of them more than once.

    Raises:
        MissingExtraError: vLLM is not installed, or older than `OLDEST`.
    """
    _refuse_old()
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, MODEL)


def vllm_prompt(
    model: VisionLanguageModel,
    processor: Processor,
    images: ImageSource,
    conversation: Conversation,
) -> dict[str, Any]:
    """A question as `vllm.LLM.generate` takes it: token ids with one placeholder an image, and each
    image's tokens `[U, D]`. Images that come several times are encoded as often.

    Raises:
        PromptError, ImageError: what is wrong with the conversation or an image.
        ConfigError: the model has an adapter, which vLLM's language model would leave out.
    """
    if model.adapter is not None:
        raise ConfigError(
            "vLLM runs the language model alone, and this model has an adapter between its layers",
            field="adapter",
            remedy="Generate with MedLoupe (medloupe ask, medloupe evaluate)",
        )
    row = processor.encode(conversation.without_answer(), images.size_of)
    with torch.no_grad():
        tokens = model.image_tokens(images.inputs(row.images))
    ids = one_placeholder_each(
        row.input_ids.tolist(), [len(tokens_UD) for tokens_UD in tokens], processor.image_token_id
    )
    return {"prompt_token_ids": ids, "multi_modal_data": {"image": tokens}}


def one_placeholder_each(
    input_ids: Sequence[int], counts: Sequence[int], image_token_id: int
) -> list[int]:
    """The ids with each image's run of placeholders, `counts` long, as a single one."""
    ids: list[int] = []
    place, images = 0, iter(counts)
    while place < len(input_ids):
        ids.append(input_ids[place])
        place += next(images) if input_ids[place] == image_token_id else 1
    return ids


def _refuse_old() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError.naming("vllm", extra="vllm", line=f'pip install "vllm>={OLDEST}"')
    try:
        found = version("vllm")
    except PackageNotFoundError:
        found = "0"
    if Version(found) < Version(OLDEST):
        raise MissingExtraError(
            f"vLLM {found} is too old for MedLoupe's plugin, which needs {OLDEST}",
            remedy=f'Install it with: pip install "vllm>={OLDEST}"',
        )
