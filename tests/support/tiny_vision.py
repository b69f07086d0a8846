"""Encoders of two thin layers, as configs, for models that tests compose."""

from __future__ import annotations

from typing import Any

from transformers import CLIPVisionConfig

SIDE = 28
VIT = {
    "name": "vit3d",
    "shape": [8, 16, 16],
    "patch": [4, 8, 8],
    "size": {"width": 24, "depth": 2, "heads": 2, "hidden": 32},
}
POOLING = {"name": "attention_pooling", "queries": 5, "heads": 2}


def clip(patch: int = 14) -> dict[str, Any]:
    """One that reads pictures of `SIDE` pixels."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=patch,
    )
    return {"name": "clip", "architecture": vision.to_diff_dict(), "layer": -1}
