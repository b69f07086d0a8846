"""The detail view: the base's geometry at another size, filled in by a run's config, read beside cached
features of the base."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medloupe.errors import ConfigError
from medloupe.imaging.composed import (
    ByKindTransform,
    DetailedTransform,
    SeveralTransform,
    SlicesTransform,
    VolumeTransform,
)
from medloupe.imaging.slices import SliceSelection
from medloupe.imaging.store import DecodedStore
from medloupe.imaging.tiles import TiledTransform
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.windows import Window
from medloupe.models.adapters.detail import at_size_of, detail_of, detailed
from medloupe.models.encoders import EncoderConfig
from medloupe.models.features import FeatureStore
from medloupe.models.vlm import VisionLanguageModel, VLMConfig
from medloupe.processing import ImageSource
from medloupe.train.objectives.base import FrozenFeatures
from medloupe.types import Box, ImageRef, MedicalImage

HALF = (0.5, 0.5, 0.5)


def encoder(**data: Any) -> EncoderConfig:
    return EncoderConfig.parse(data)


def picture(height: int, width: int) -> MedicalImage:
    """A bright square on black, off the middle."""
    array = np.zeros((1, height, width), dtype=np.float32)
    array[0, height // 4 : height // 2, width // 8 : width // 4] = 200
    return MedicalImage(array=array, units="stored", source=ImageRef(uri="p.png"))


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(48, 64), (90, 30), (40, 40)])
def test_both_views_show_the_same_place(kit, fit: Any, shape: tuple[int, int]) -> None:
    base = kit.base_encoder().fitted(ImageTransform(fit=fit))
    joined = detailed(base, encoder(**kit.resnet(112)))
    assert isinstance(joined.detail, ImageTransform)
    assert (joined.detail.size, joined.detail.fit) == (112, fit)
    small, large = joined.base.geometry(*shape[::-1]), joined.detail.geometry(*shape[::-1])
    points = np.array([[0.0, 0.0], [3.0, 9.0], [shape[1] * 1.0, shape[0] * 1.0]])
    # padding is whole pixels, so that of the two may differ by half a pixel of the smaller
    np.testing.assert_allclose(large.forward(points), 4 * small.forward(points), atol=2.0)
    shown, seen = joined.apply(picture(*shape))
    assert (shown.shape, seen.shape) == ((3, 28, 28), (3, 112, 112))
    bright = [np.argwhere(view[0] > view[0].mean()).mean(0) for view in (shown, seen)]
    np.testing.assert_allclose(bright[1] + 0.5, 4 * (bright[0] + 0.5), atol=2.5)


def test_everything_else_is_the_bases(kit) -> None:
    base = kit.base_encoder().fitted(ImageTransform(fit="crop", window=Window(mode="full")))
    joined = detailed(base, encoder(**kit.resnet(96)))
    size = (60, 40)
    assert joined.geometry(*size) == base.geometry(*size)
    assert joined.placement(size) == base.placement(size)
    assert joined.units(size) == base.units(size)
    assert joined.detail.window == base.window
    np.testing.assert_array_equal(joined.shown(picture(40, 60)), base.shown(picture(40, 60)))
    np.testing.assert_array_equal(joined.apply(picture(40, 60))[0], base.apply(picture(40, 60)))


def test_each_encoder_normalises_its_own_view(kit) -> None:
    base = kit.base_encoder().fitted(ImageTransform())
    fields = kit.resnet(28) | {"mean": HALF, "std": HALF}
    shown, seen = detailed(base, encoder(**fields)).apply(picture(28, 28))
    assert seen.max() == pytest.approx(1.0, abs=0.6)
    assert seen.min() == -1.0
    assert shown.min() == pytest.approx(-base.mean[0] / base.std[0])


SLICED = {"name": "slices", "encoder": "RESNET"}
SMALL = {"width": 16, "depth": 1, "heads": 2, "hidden": 16}
SOLID = {"name": "vit3d", "shape": [8, 64, 64], "size": SMALL}


def test_whatever_makes_the_bases_views(kit) -> None:
    """Tiles show the whole in detail; slices are the same slices; a volume's are cut from all of it."""
    flat = encoder(**kit.resnet(64))
    slices = encoder(name="slices", encoder=kit.resnet(64))
    by_kind = encoder(name="by_kind", image=kit.resnet(64), volume=SOLID)
    plain = ImageTransform(size=28, fit="crop", mean=HALF)
    chosen = SlicesTransform(transform=plain, selection=SliceSelection(count=3))
    wide = VolumeTransform(shape=(4, 32, 32))
    view = flat.fitted(ImageTransform(fit="crop"))
    assert detail_of(TiledTransform(transform=plain), flat) == view
    assert detail_of(SeveralTransform(transforms=(plain, plain)), flat) == view
    cut = detail_of(chosen, slices)
    assert cut == SlicesTransform(transform=view, selection=chosen.selection)
    assert detail_of(chosen, flat) == view
    stretched = flat.fitted(ImageTransform(fit="stretch"))
    assert detail_of(wide, slices) == SlicesTransform(transform=stretched)
    assert detail_of(wide, encoder(**SOLID)) == encoder(**SOLID).fitted(VolumeTransform())
    both = ByKindTransform(image=plain, volume=wide)
    assert detail_of(both, slices) == ByKindTransform(
        image=SlicesTransform(transform=view), volume=SlicesTransform(transform=stretched)
    )
    assert detail_of(both, by_kind) == ByKindTransform(
        image=view, volume=encoder(**SOLID).fitted(VolumeTransform())
    )


def test_without_high_resolution(kit) -> None:
    base = kit.base_encoder()
    assert at_size_of(encoder(**kit.resnet(64)), base) == encoder(**kit.resnet(28))
    sliced = at_size_of(encoder(name="slices", encoder=kit.resnet(64)), base)
    assert sliced == encoder(name="slices", encoder=kit.resnet(28))
    both = encoder(name="by_kind", image=kit.resnet(64), volume=sliced.to_dict())
    assert at_size_of(both, base).image == encoder(**kit.resnet(28))
    with pytest.raises(ConfigError, match="cannot be fed views of another size"):
        at_size_of(encoder(**SOLID), base)


def test_a_detail_view_that_is_not_the_bases_is_refused(kit) -> None:
    base = kit.base_encoder().fitted(ImageTransform(fit="crop"))
    fine = encoder(**kit.resnet(64))
    good = detailed(base, fine)
    assert detailed(good, fine) == good
    for detail, message in (
        (ImageTransform(fit="pad"), "geometry and the window of the base's view"),
        (ImageTransform(fit="crop", size=32), "size is 32, but the encoder wants 64"),
    ):
        with pytest.raises(ConfigError, match=message):
            detailed(DetailedTransform(base=base, detail=detail), fine)


@pytest.mark.parametrize("kept", [False, True])
def test_images_come_with_both_views(kit, pictures: Path, tmp_path: Path, kept: bool) -> None:
    base = kit.base_encoder().fitted(ImageTransform())
    joined = detailed(base, encoder(**kit.resnet(64)))
    store = DecodedStore(tmp_path) if kept else None
    refs = [ImageRef(uri=f"{n}.png") for n in range(4)]
    for _ in range(2):
        source = ImageSource(pictures, joined, store=store)
        for image, ref in zip(source.inputs(refs), refs, strict=True):
            alone = ImageSource(pictures, base)
            fine = ImageSource(pictures, joined.detail)
            assert torch.equal(image.views, alone.view(ref))
            assert torch.equal(image.detail, fine.view(ref))
            assert source.size_of(ref) == alone.size_of(ref)
    assert ImageSource(pictures, base).inputs(refs)[0].detail is None


def test_boxes_stay_in_the_bases_view(kit, make_lab, tiny, pictures) -> None:
    box = Box(label="ring", x1=4, y1=5, x2=20, y2=15)
    row = tiny.conversation("b", (ImageRef(uri="0.png"), "Where?"), (box,))
    lab, bare = make_lab(kit.hia()), make_lab(None)
    for one in (lab, bare):
        text = one.processor.answer_text(row, one.images.size_of)
        assert one.processor.read_boxes(text, row, one.images.size_of)[0].x1 == pytest.approx(
            4, abs=1
        )
    assert torch.equal(lab.rows(row)[0].input_ids, bare.rows(row)[0].input_ids)


@pytest.mark.parametrize("stored", [False, True])
def test_cached_features_of_the_base_and_fresh_details(
    kit, make_lab, mixed, tiny, tmp_path: Path, stored: bool
) -> None:
    lab = make_lab(kit.hia())
    store = FeatureStore(tmp_path / "features") if stored else None
    context = tiny_context(lab, store)
    refs = [image for conversation in mixed for image in conversation.images]
    fresh = lab.images.inputs(refs)
    for _ in range(2):
        kept = FrozenFeatures(context).of(refs)
        for one, image in zip(kept, fresh, strict=True):
            assert one.views is None
            assert torch.equal(one.detail, image.detail)
            (features,) = lab.model.encode([image])
            assert torch.equal(one.features, features.features)
            assert torch.equal(features.detail, image.detail)
    held = FrozenFeatures(context)
    held.of(refs)
    assert all(image.detail is None for image in held._features.values())
    bare = make_lab(None)
    if stored:  # another adapter, or none, finds the same features
        before = len(list((tmp_path / "features").rglob("*")))
        FrozenFeatures(tiny_context(bare, FeatureStore(tmp_path / "features"))).of(refs)
        assert len(list((tmp_path / "features").rglob("*"))) == before


def tiny_context(lab: Any, store: FeatureStore | None) -> Any:
    from medloupe.data.dataset import Dataset
    from medloupe.train.objectives.base import StageContext

    return StageContext(
        model=lab.model,
        processor=lab.processor,
        dataset=Dataset.__new__(Dataset),
        images=lab.images,
        frozen_encoder=True,
        precision="fp32",
        progress=lambda *_: None,
        features=store,
    )


def volumes_model(kit: Any, base: EncoderConfig, fine: dict[str, Any]) -> Any:
    adapter = kit.hia(encoder=fine)
    torch.manual_seed(1)
    fields = kit.FAMILIES["llama"] | {"vocab_size": 50}
    connector = {"name": "by_kind", "image": "mlp", "volume": "mlp"}
    model = VisionLanguageModel(
        VLMConfig(
            encoder=base.to_dict(),
            connector=connector if base.name == "by_kind" else {"name": "mlp"},
            language={"model_type": "llama"} | fields,
            image_token_id=49,
            adapter=adapter.to_dict(),
        )
    ).eval()
    kit.stir(model.adapter)
    return model, adapter.fitted(base.fitted(ImageTransform()))


@pytest.mark.parametrize("which", ["slices", "by_kind", "solid"])
def test_volumes_and_pictures_in_one_row(kit, which: str) -> None:
    tower = {"name": "clip", "architecture": kit.TOWER, "image_size": 28, "layer": -1}
    sliced = {"name": "slices", "encoder": kit.resnet(64)}
    small = {"name": "vit3d", "shape": [4, 32, 32], "size": SMALL}
    base, fine = {
        "slices": (encoder(name="slices", encoder=tower), sliced),
        "by_kind": (encoder(name="by_kind", image=tower, volume=small), sliced),
        "solid": (encoder(**small), SOLID),
    }[which]
    model, transform = volumes_model(kit, base, fine)
    volume = MedicalImage(
        array=np.random.default_rng(0).uniform(0, 200, (5, 40, 30)).astype(np.float32),
        units="stored",
        source=ImageRef(uri="v", kind="volume"),
    )
    images = [volume] if which == "solid" else [picture(40, 30), volume, picture(20, 50)]
    inputs = [as_input(transform, image) for image in images]
    tokens = model.image_tokens(inputs)
    ids = [1]
    for one in tokens:
        ids += [*[49] * len(one), 2]
    ids += [3, 4]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), images=inputs).logits
        assert logits.isfinite().all()
        zeros = [dataclasses.replace(one, detail=torch.zeros_like(one.detail)) for one in inputs]
        assert not torch.equal(model(input_ids=torch.tensor([ids]), images=zeros).logits, logits)
    assert len(model.details(inputs)) == len(images)


def as_input(transform: DetailedTransform, image: MedicalImage) -> Any:
    from medloupe.types import ImageInput

    assert image.source is not None
    shown, seen = transform.apply(image)
    return ImageInput(
        kind=image.source.kind, views=torch.from_numpy(shown), detail=torch.from_numpy(seen)
    )


def test_volumes_that_the_adapter_cannot_read(kit) -> None:
    base = encoder(name="slices", encoder=kit.resnet(32))
    with pytest.raises(ConfigError, match="takes volumes, which the adapter's encoder cannot read"):
        volumes_model(kit, base, kit.resnet(64))
