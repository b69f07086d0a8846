"""Where an adapter cannot act, a model that has one is refused instead of answering without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from medloupe.errors import CheckpointError, ConfigError
from medloupe.models.vlm import VisionLanguageModel
from medloupe.models.weights import to_llava
from medloupe.serve.vllm import vllm_prompt


def test_vllm_and_llava_have_no_place_for_it(lab: Any, mixed: Any) -> None:
    with pytest.raises(ConfigError, match="has an adapter between its layers"):
        vllm_prompt(lab.model, lab.processor, lab.images, mixed)
    with pytest.raises(ConfigError, match="this model has 'hia'"):
        to_llava(lab.model)


def test_a_folder_without_its_tensors_is_refused(lab: Any, tmp_path: Path) -> None:
    lab.model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    names = sorted(name for name in tensors if name.startswith("adapter."))
    for name in names:
        del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"lack {len(names)} tensors, the first"):
        VisionLanguageModel.load(tmp_path)
