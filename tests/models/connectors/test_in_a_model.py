"""Connectors in a composed model: on disk and back, and images of any number of slices in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from medloupe.errors import CheckpointError
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.connectors.q_former import QFormerConnector
from medloupe.models.encoders import EncoderConfig
from medloupe.models.language import LanguageConfig
from medloupe.models.vlm import VisionLanguageModel
from medloupe.types import ImageInput, ImageLayout

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ATTENTION = {"name": "attention_pooling", "queries": 3, "heads": 4, "slice_position": "learned"}
PERCEIVER = {"name": "perceiver", "queries": 3, "depth": 2, "heads": 2, "head_size": 4}
FORMER = {"name": "q_former", "queries": 3, "width": 16, "depth": 2, "heads": 2, "inner": 24}
CONNECTORS = [
    {"name": "grouped", "group": 2, "norm": True},
    {"name": "pooled", "window": [1, 2, 1], "connector": {"name": "mlp", "position": 8}},
    {"name": "mean_slices"},
    {"name": "mean_slices", "place": "after"},
    ATTENTION,
    ATTENTION | {"slice_position": "sine", "norm": True},
    PERCEIVER,
    FORMER | {"slice_position": "learned"},
    {"name": "pooled", "window": [1, 2, 2], "connector": PERCEIVER},
]
every = pytest.mark.parametrize(
    "connector", CONNECTORS, ids=lambda c: "-".join(map(str, c.values()))[:40]
)


def volume(depth: int) -> ImageInput:
    """Features that were kept, of 2x2 tokens a slice."""
    grid = ImageLayout(depth=depth, rows=2, columns=2)
    return ImageInput(kind="volume", features=torch.randn(grid.tokens, 32), grid=grid)


@every
def test_a_saved_model_says_the_same(make_model, pixels, tmp_path: Path, connector: Any) -> None:
    model = make_model(connector=connector)
    images = [ImageInput(views=view) for view in pixels] + [volume(3)]
    model.save_pretrained(tmp_path)
    again = VisionLanguageModel.load(tmp_path).eval()
    assert again.config.connector == model.config.connector
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with torch.no_grad():
        for ours, theirs in zip(
            model.image_tokens(images), again.image_tokens(images), strict=True
        ):
            # Weights in a mapped file are aligned otherwise, which moves the last bits.
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@every
def test_slices_may_differ_from_image_to_image(make_model, connector: Any) -> None:
    """Nothing is padded: each comes out as it does alone."""
    model = make_model(connector=connector)
    images = [volume(depth) for depth in (3, 1, 5, 3)]
    with torch.no_grad():
        together = model.image_tokens(images)
        for image, tokens in zip(images, together, strict=True):
            (alone,) = model.image_tokens([image])
            assert image.grid is not None
            assert len(tokens) == model.connector.layout(image.grid).tokens
            torch.testing.assert_close(tokens, alone, **CLOSE)


@every
def test_a_fresh_model_starts_with_finite_unequal_tokens(
    make_model, pixels, connector: Any
) -> None:
    """Parameters outside of linear layers and norms are filled too, and each query is its own."""
    model = VisionLanguageModel(make_model(connector=connector).config).eval()
    with torch.no_grad():
        (tokens,) = model.image_tokens([ImageInput(views=pixels[0])])
    assert bool(tokens.isfinite().all())
    distances = torch.cdist(tokens, tokens) + torch.eye(len(tokens))
    assert distances.min() > 0


def test_connectors_by_kind_serve_one_conversation(make_model, pixels) -> None:
    model = make_model(connector="mlp")
    both = {"name": "by_kind", "image": "mlp", "volume": ATTENTION}
    model.connector = ConnectorConfig.parse(both).build(32, 32).eval()
    images = [volume(4), ImageInput(views=pixels[0]), volume(2)]
    with torch.no_grad():
        assert [len(tokens) for tokens in model.image_tokens(images)] == [3, 4, 3]


@pytest.mark.parametrize("outer", [None, "mean_slices", "by_kind"])
def test_published_weights_are_loaded_where_a_model_is_composed(
    language_folder: Path, tmp_path: Path, outer: str | None
) -> None:
    tower, blip2 = tmp_path / "tower", tmp_path / "blip2"
    sizes = {"hidden_size": 32, "intermediate_size": 48, "image_size": 28, "patch_size": 14}
    vision = CLIPVisionConfig(num_hidden_layers=1, num_attention_heads=4, **sizes)
    CLIPVisionModel(vision).save_pretrained(tower)
    published = ConnectorConfig.parse(FORMER).build(32, 99)
    assert isinstance(published, QFormerConnector)
    blip2.mkdir()
    torch.save(published.to_blip2() | {"odd": torch.zeros(1)}, blip2 / "pytorch_model.bin")
    former = FORMER | {"source": str(blip2)}
    config = {None: former, "mean_slices": {"name": "mean_slices", "connector": former},
              "by_kind": {"name": "by_kind", "image": former, "volume": "mlp"}}[outer]  # fmt: skip
    connector = ConnectorConfig.parse(config)
    if outer == "by_kind":
        both = connector.build(32, 32)
        both.load_pretrained()
        loaded = both.for_kind("image")
    else:
        model, _ = VisionLanguageModel.compose(
            EncoderConfig.parse({"name": "clip", "source": str(tower), "layer": -1}),
            connector,
            LanguageConfig(source=str(language_folder)),
        )
        loaded = model.connector if outer is None else model.connector.connector
    assert torch.equal(loaded.query, published.query)
    name = "layers.0.cross.value.weight"
    assert torch.equal(loaded.state_dict()[name], published.state_dict()[name])


def test_a_folder_without_a_q_former_is_refused(tmp_path: Path) -> None:
    torch.save({"odd": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    connector = ConnectorConfig.parse(FORMER | {"source": str(tmp_path)}).build(8, 12)
    with pytest.raises(CheckpointError, match="holds no tensor named query_tokens"):
        connector.load_pretrained()
