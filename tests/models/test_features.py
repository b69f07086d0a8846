"""Features from the store are the encoder's, to the bit, and never another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medloupe.models.features import FeatureStore
from medloupe.types import ImageInput


@pytest.fixture
def picture(frozen: Any) -> ImageInput:
    side = frozen.config.encoder["image_size"]
    return ImageInput(views=torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def frozen(lab: Any) -> Any:
    model = lab.model()
    model.requires_grad_(False)
    return model


def refuse(*_: object) -> None:
    raise AssertionError("the encoder was asked again")


def test_they_are_the_encoders_to_the_bit_and_made_once(
    frozen: Any, picture: ImageInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fresh,) = frozen.encode([picture])
    made = FeatureStore(tmp_path).of(frozen, "fp32").of(picture)
    known = FeatureStore(tmp_path).of(frozen, "fp32")
    monkeypatch.setattr(type(frozen), "encode", refuse)
    stored = known.of(picture)
    for image in (made, stored):
        assert torch.equal(image.features, fresh.features)
        assert image.grid == fresh.grid
        assert image.kind == "image"


def test_other_views_weights_or_configs_are_other_features(
    frozen: Any, picture: ImageInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(tmp_path)
    store.of(frozen, "fp32").of(picture)
    asked = []
    encode = type(frozen).encode

    def counted(model: Any, images: list[ImageInput]) -> list[ImageInput]:
        asked.append(len(images))
        return list(encode(model, images))

    monkeypatch.setattr(type(frozen), "encode", counted)
    assert isinstance(picture.views, torch.Tensor)
    store.of(frozen, "fp32").of(ImageInput(views=picture.views + 1e-3))
    assert len(asked) == 1
    before = frozen.config.encoder
    frozen.config.encoder = {**before, "note": "the same weights, read otherwise"}
    store.of(frozen, "fp32").of(picture)
    frozen.config.encoder = before
    assert len(asked) == 2
    next(frozen.encoder.parameters()).add_(0.01)
    store.of(frozen, "fp32").of(picture)
    assert len(asked) == 3


def test_precisions_have_features_of_their_own(
    frozen: Any, picture: ImageInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(tmp_path)
    store.of(frozen, "fp32").of(picture)
    with torch.autocast("cpu", torch.bfloat16):
        (fresh,) = frozen.encode([picture])
    made = store.of(frozen, "bf16").of(picture)
    monkeypatch.setattr(type(frozen), "encode", refuse)
    whole = store.of(frozen, "fp32").of(picture)
    for image in (made, store.of(frozen, "bf16").of(picture)):
        assert torch.equal(image.features, fresh.features)
        assert not torch.equal(image.features, whole.features)
        torch.testing.assert_close(image.features.float(), whole.features, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_type_comes_back_in_its_bits(
    frozen: Any,
    picture: ImageInput,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
) -> None:
    (fresh,) = frozen.encode([picture])
    cast = ImageInput(features=fresh.features.to(dtype), grid=fresh.grid)
    monkeypatch.setattr(type(frozen), "encode", lambda *_: [cast])
    FeatureStore(tmp_path).of(frozen, "fp32").of(picture)
    stored = FeatureStore(tmp_path).of(frozen, "fp32").of(picture)
    assert stored.features is not None
    assert stored.features.dtype == dtype
    assert torch.equal(stored.features, cast.features)
