"""Composed from parts on disk: pretrained detail encoders, and quantised language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    ResNetConfig,
    ResNetModel,
)

from medloupe.models.adapters import AdapterConfig
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.models.language import LanguageConfig
from medloupe.models.vlm import VisionLanguageModel
from medloupe.types import ImageInput


@pytest.fixture
def sources(kit: Any, words: Any, tmp_path: Path) -> dict[str, str]:
    """A tower, a ResNet and a Llama as wide as nf4 wants it, each as a folder."""
    torch.manual_seed(1)
    CLIPVisionModel(CLIPVisionConfig(**kit.TOWER)).save_pretrained(tmp_path / "tower")
    ResNetModel(ResNetConfig(**kit.RESNET)).save_pretrained(tmp_path / "resnet")
    fields = kit.GROUPED | {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    settings = AutoConfig.for_model("llama", vocab_size=len(words), **fields)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "language")
    words.save_pretrained(tmp_path / "language")
    return {name: str(tmp_path / name) for name in ("tower", "resnet", "language")}


def compose(sources: dict[str, str], **language: Any) -> VisionLanguageModel:
    torch.manual_seed(2)
    detail = {"name": "resnet", "source": sources["resnet"], "image_size": 64}
    model, _ = VisionLanguageModel.compose(
        EncoderConfig.parse({"name": "clip", "source": sources["tower"]}),
        ConnectorConfig.parse("mlp"),
        LanguageConfig(source=sources["language"], **language),
        AdapterConfig.parse({"name": "hia", "encoder": detail, "queries": 6, "heads": 4}),
    )
    return model.eval()


def logits(model: VisionLanguageModel) -> torch.Tensor:
    torch.manual_seed(3)
    tokens = model.layouts.image.tokens if model.layouts.image else 0
    ids = torch.tensor([[5, *[model.config.image_token_id] * tokens, 6, 7]])
    image = ImageInput(views=torch.randn(3, 28, 28), detail=torch.randn(3, 64, 64))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, images=[image]).logits
    return found


def test_the_detail_encoder_is_the_published_one(kit: Any, sources: dict[str, str]) -> None:
    model = compose(sources)
    assert model.adapter is not None
    assert model.adapter.encoder is not None
    published = ResNetModel.from_pretrained(sources["resnet"]).state_dict()
    for name, tensor in model.adapter.encoder.state_dict().items():
        assert torch.equal(tensor, published[name.removeprefix("tower.")]), name
    assert model.config.adapter["encoder"]["architecture"]  # nothing is read from there again
    fresh = logits(model)
    kit.stir(model.adapter)
    assert not torch.equal(logits(model), fresh)  # hooks are on the language model that runs


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_on_a_quantised_language_model(
    kit: Any, sources: dict[str, str], tmp_path: Path, kind: str
) -> None:
    """The adapter's own linear layers stay as they are, before and after loading."""
    pytest.importorskip("bitsandbytes", reason="the extra 'quantized' is not installed")
    model = compose(sources, quantization=kind)
    assert model.adapter is not None
    kit.stir(model.adapter)
    wanted = logits(model)
    model.save_pretrained(tmp_path / "saved")
    again = VisionLanguageModel.load(tmp_path / "saved").eval()
    assert again.adapter is not None
    state = again.adapter.state_dict()
    for name, tensor in model.adapter.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert {type(m) for n, m in again.adapter.named_modules() if n.endswith("query")} == {
        torch.nn.Linear
    }
    assert torch.equal(logits(again), wanted)
