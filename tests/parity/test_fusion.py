"""Two encoders of one image against transformers' towers and a few lines of plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig
from transformers import SiglipVisionModel as Siglip

from medloupe.errors import ConfigError
from medloupe.imaging.composed import SeveralTransform
from medloupe.imaging.read import read_ref
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.encoders import EncoderConfig
from medloupe.models.resolution.joined import align
from medloupe.models.vlm import VisionLanguageModel, VLMConfig
from medloupe.processing import ImageSource
from medloupe.recipes.litegpt import litegpt
from medloupe.train.objectives.base import FrozenFeatures, StageContext
from medloupe.types import ImageInput, ImageLayout, ImageRef

# The same operations on the same weights: some units in the last place.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# A bias of the keys has no gradient but for rounding.
GRADIENTS = {"rtol": 1e-4, "atol": 1e-4}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
}
FINE = SiglipVisionConfig(**SIZES, patch_size=7)
COARSE = CLIPVisionConfig(**SIZES, patch_size=14)
MEAN = (0.5, 0.4, 0.3)
PARTS = [
    {"name": "siglip", "architecture": FINE.to_diff_dict()},
    {"name": "clip", "architecture": COARSE.to_diff_dict(), "layer": -1, "mean": MEAN},
]


def built(axis: str, parts: list[Any] = PARTS) -> Any:
    torch.manual_seed(1)
    config = EncoderConfig.parse({"name": "joined", "encoders": parts, "axis": axis})
    encoder = config.build().eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return encoder


def towers_of(encoder: Any) -> tuple[Any, Any]:
    """transformers' own two, with the weights of ours."""
    fine, coarse = Siglip(FINE).eval(), CLIPVisionModel(COARSE).eval()
    for theirs, ours in zip((fine, coarse), encoder.encoders, strict=True):
        assert not theirs.load_state_dict(ours.tower.state_dict(), strict=False).unexpected_keys
    return fine, coarse


def seen_by(towers: tuple[Any, Any], views: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Last layers, `[N, 16, 32]` and `[N, 4, 32]` without the class token."""
    states = [
        tower(pixel_values=view, output_hidden_states=True).hidden_states[-1]
        for tower, view in zip(towers, views, strict=True)
    ]
    return [states[0], states[1][:, 1:]]


def between_centres(small: int, large: int) -> torch.Tensor:
    """`[large, small]`: the weights of linear interpolation between cell centres."""
    places = ((torch.arange(large) + 0.5) * small / large - 0.5).clamp(0, small - 1)
    return (1 - (places[:, None] - torch.arange(small)).abs()).clamp(min=0)


def joined(features: list[torch.Tensor], axis: str) -> torch.Tensor:
    fine, coarse = features
    if axis == "tokens":
        return torch.cat([fine, coarse], dim=1)
    weights = between_centres(2, 4)
    grid_N22C = coarse.unflatten(1, (2, 2))
    large = torch.einsum("ra,sb,nabc->nrsc", weights, weights, grid_N22C)
    return torch.cat([fine, large.flatten(1, 2)], dim=-1)


@pytest.mark.parametrize("axis", ["tokens", "channels"])
def test_features_and_gradients_are_those_of_the_two_towers(axis: str) -> None:
    encoder = built(axis)
    towers = towers_of(encoder)
    views = (torch.randn(3, 3, 28, 28), torch.randn(3, 3, 28, 28))
    features, wanted = encoder(views), joined(seen_by(towers, views), axis)
    assert features.shape == ((3, 20, 32) if axis == "tokens" else (3, 16, 64))
    assert (encoder.layout.tokens, encoder.channels) == features.shape[1:]
    torch.testing.assert_close(features, wanted, **CLOSE)
    weights = torch.randn_like(wanted)
    (features * weights).sum().backward()
    (wanted * weights).sum().backward()
    for theirs, ours in zip(towers, encoder.encoders, strict=True):
        named = dict(theirs.named_parameters())
        grown = 0
        for name, parameter in ours.tower.named_parameters():
            torch.testing.assert_close(parameter.grad, named[name].grad, **GRADIENTS, msg=name)
            grown += parameter.grad is not None and bool(parameter.grad.any())
        assert grown > 20, "the gradient reaches one of the two only"


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 5), (8, 4), (7, 7), (1, 1)])
def test_grids_are_aligned_between_cell_centres(rows: int, columns: int) -> None:
    features = torch.randn(2, rows * columns, 3)
    to = ImageLayout(rows=8, columns=10)
    across, down = between_centres(columns, 10), between_centres(rows, 8)
    wanted = torch.einsum("ra,sb,nabc->nrsc", down, across, features.unflatten(1, (rows, columns)))
    ours = align(features, ImageLayout(rows=rows, columns=columns), to)
    torch.testing.assert_close(ours, wanted.flatten(1, 2), **CLOSE)


class TestViews:
    def test_each_encoder_has_its_own_size_and_normalisation(self, tmp_path: Path) -> None:
        small = PARTS[1] | {"image_size": 14}
        config = EncoderConfig.parse({"name": "joined", "encoders": [PARTS[0], small]})
        view = config.fitted(ImageTransform(fit="stretch", window="full"))
        assert isinstance(view, SeveralTransform)
        ref = noise(tmp_path, 0)
        image = read_ref(ref, tmp_path)
        made = view.apply(image)
        assert isinstance(made, tuple)
        for array, side, (mean, std) in zip(
            made, (28, 14), ((0.5,) * 2, (MEAN, config.encoders[1].std)), strict=True
        ):
            alone = ImageTransform.parse(
                {
                    "size": side,
                    "fit": "stretch",
                    "window": "full",
                    "mean": [mean] * 3 if isinstance(mean, float) else mean,
                    "std": [std] * 3 if isinstance(std, float) else std,
                }
            )
            assert np.array_equal(array, alone.apply(image))
        # boxes are written in the first one's view
        assert view.geometry(30, 20) == view.transforms[0].geometry(30, 20)

    def test_two_given_transforms_keep_their_choices(self) -> None:
        config = EncoderConfig.parse({"name": "joined", "encoders": PARTS})
        given = SeveralTransform(transforms=(ImageTransform(fit="pad"), ImageTransform(fit="crop")))
        fitted = config.fitted(given)
        assert isinstance(fitted, SeveralTransform)
        assert [one.fit for one in fitted.transforms] == ["pad", "crop"]
        three = SeveralTransform(transforms=(ImageTransform(),) * 3)
        with pytest.raises(ConfigError, match="2 encoders, 3 transforms"):
            config.fitted(three)


def test_litegpt_at_its_published_size_on_the_meta_device() -> None:
    """BiomedCLIP's 196 tokens, then PubMedCLIP's 49; all tensors are those of the two alone."""
    config = litegpt().model.encoder
    with torch.device("meta"):
        encoder = config.build()
        features = encoder((torch.empty(1, 3, 224, 224), torch.empty(1, 3, 224, 224)))
        alone = [part.build() for part in config.encoders]
    assert features.shape == (1, 245, 768)
    assert [part.layout.tokens for part in encoder.encoders] == [196, 49]
    wanted = {
        f"encoders.{number}.{name}": tensor.shape
        for number, part in enumerate(alone)
        for name, tensor in part.state_dict().items()
    }
    assert {name: tensor.shape for name, tensor in encoder.state_dict().items()} == wanted


@pytest.mark.parametrize(
    ("axis", "parts", "text"),
    [
        (
            "tokens",
            [PARTS[0], {"name": "efficientnet_lite0"}],
            "siglip 32, efficientnet_lite0 1280",
        ),
        ("tokens", [PARTS[0], {"name": "slices", "encoder": PARTS[1]}], "not all: .*slices"),
        ("channels", [PARTS[0], {"name": "vit3d"}], "not all: .*vit3d"),
        ("channels", [PARTS[0], PARTS[1] | {"class_token": "keep"}], "4x4, 1x5"),
    ],
)
def test_what_cannot_be_joined(axis: str, parts: list[Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        built(axis, parts)


def noise(folder: Path, seed: int) -> ImageRef:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{seed}.png")
    return ImageRef(uri=f"{seed}.png")


@pytest.mark.parametrize("axis", ["tokens", "channels"])
def test_frozen_features_are_made_once_and_give_the_same_tokens(axis: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    encoder = EncoderConfig.parse({"name": "joined", "encoders": PARTS, "axis": axis})
    text = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = VLMConfig(
        encoder=encoder.to_dict(),
        connector={"name": "grouped", "group": 4},
        language=AutoConfig.for_model("llama", **text).to_dict(),
        image_token_id=40,
    )
    model = VisionLanguageModel(config).eval()
    runs: list[int] = []
    model.encoder.register_forward_pre_hook(lambda _, views: runs.append(len(views[0][0])))
    images = ImageSource(tmp_path, encoder.fitted(ImageTransform()))
    context = StageContext(
        model=model,
        processor=None,  # type: ignore[arg-type]
        dataset=None,  # type: ignore[arg-type]
        images=images,
        frozen_encoder=True,
        precision="fp32",
        progress=lambda *_: None,
    )
    refs = [noise(tmp_path, seed) for seed in (0, 1)]
    frozen = FrozenFeatures(context)
    kept = frozen.of([refs[0], refs[1], refs[0]])
    assert frozen.of(refs) == kept[:2]
    assert runs == [1, 1]
    assert all(image.grid == model.encoder.layout for image in kept)
    tokens = model.image_tokens(kept)
    wanted = model.image_tokens([ImageInput(views=images.view(ref)) for ref in (*refs, refs[0])])
    for one, other in zip(tokens, wanted, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    torch.cat(tokens).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.connector.parameters())
