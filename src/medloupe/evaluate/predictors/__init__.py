"""Models that are not ours, asked what ours are asked: endpoints, Hugging Face models, and files of
answers that something else wrote."""

from __future__ import annotations

from typing import Final

HF: Final = "hf:"
"""What stands before the folder, or the hub id, of a model of transformers."""


def is_foreign(model: str) -> bool:
    """Whether a model is not ours, by what opens it: "hf:FOLDER", or the url of an endpoint."""
    return model.startswith((HF, "http://", "https://"))
