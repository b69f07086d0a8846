"""The attention mask of rows that hold one prefix and several branches.

A token sees the tokens before it in its own branch and in the prefix (segment 0), never another branch.
The mask is additive and float: a boolean 4D mask is silently wrong under eager attention.
"""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from medloupe.errors import ConfigError

# Families whose packed loss and gradients equal those of separate rows; tests/parity holds each of them.
# It is a list of what is proven, since others fail without a sound: recurrent layers (Jamba, RWKV,
# RecurrentGemma), ALiBi (MPT) and windows of their own (GPT-Neo) never see a 4D mask.
PACKABLE = (
    "biogpt", "gemma", "glm4", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo2",
    "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip


def branch_mask(segments_BL: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`[B, 1, L, L]`: 0 where the row may look, the most negative number where it may not.

    `segments_BL` is 0 on the prefix, k >= 1 on branch k and -1 on padding. A padding row looks at
    itself, so that no softmax is over nothing.
    """
    length = segments_BL.shape[1]
    query, key = segments_BL[:, :, None], segments_BL[:, None, :]
    before = torch.ones(length, length, dtype=torch.bool, device=segments_BL.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=segments_BL.device)
    visible = before & ((key == query) | (key == 0)) & (query >= 0) & (key >= 0)
    # bfloat16's lowest is finite in float32 too, so autocast does not turn it into -inf.
    lowest = torch.finfo(torch.float16 if dtype == torch.float16 else torch.bfloat16).min
    mask = torch.zeros(visible.shape, dtype=dtype, device=segments_BL.device)
    mask.masked_fill_(~(visible | itself), lowest)
    return mask[:, None]


def refuse_unmaskable(architecture: PretrainedConfig) -> None:
    """Refuse language models that are not known to be reached by a 4D mask in every layer.

    Raises:
        ConfigError: naming what stands in the way, with the remedy to train unpacked.
    """
    remedy = "Set train.pack=false for this language model"
    fields = architecture.to_dict()
    kinds = set(fields.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ConfigError(f"questions cannot be packed over layers {sorted(kinds)}", remedy=remedy)
    if fields.get("sliding_window") and fields.get("use_sliding_window", True):
        raise ConfigError("questions cannot be packed over a sliding window", remedy=remedy)
    if fields.get("model_type") not in PACKABLE:
        raise ConfigError(
            f"packing questions is not proven for {fields.get('model_type')!r} "
            f"(it is for {', '.join(PACKABLE)})",
            remedy=remedy,
        )
