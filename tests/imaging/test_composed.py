"""Transforms of transforms: what a model is shown, where boxes go, and that the store keeps it all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from medloupe.config import Config
from medloupe.errors import ConfigError, ImageError
from medloupe.imaging import windows
from medloupe.imaging.composed import (
    ByKindTransform,
    DetailedTransform,
    SeveralTransform,
    SlicesTransform,
    VolumeTransform,
)
from medloupe.imaging.read import read_ref
from medloupe.imaging.slices import SliceSelection
from medloupe.imaging.store import DecodedStore
from medloupe.imaging.tiles import TiledTransform
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.views import ViewTransform, is_plane
from medloupe.imaging.windows import Window, settled
from medloupe.types import Box, ImageRef, MedicalImage, VoiTable

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SMALL = ImageTransform(size=16, **PLAIN)  # type: ignore[arg-type]
SLICES = SlicesTransform(transform=SMALL, selection=SliceSelection(count=3))
VOLUME = VolumeTransform(shape=(4, 16, 16))
EVERY: dict[str, ViewTransform] = {
    "image": SMALL,
    "tiles": TiledTransform(transform=SMALL),
    "slices": SLICES,
    "volume": VOLUME,
    "several": SeveralTransform(transforms=(SMALL, ImageTransform(size=8))),
    "by_kind": ByKindTransform(image=TiledTransform(transform=SMALL), volume=VOLUME),
    "by_kind, several": ByKindTransform(
        image=SeveralTransform(transforms=(SMALL, SMALL)), volume=SLICES
    ),
    "detailed": DetailedTransform(base=SMALL, detail=ImageTransform(size=24)),
    "detailed, by_kind": DetailedTransform(
        base=ByKindTransform(image=SMALL, volume=VOLUME),
        detail=ByKindTransform(image=TiledTransform(transform=SMALL), volume=SLICES),
    ),
}
FOR_VOLUMES = ("slices", "volume", "by_kind", "by_kind, several", "detailed, by_kind")


def volume(*shape: int, seed: int = 0, kind: str = "volume", **fields: object) -> MedicalImage:
    values = np.random.default_rng(seed).normal(0, 300, shape or (7, 20, 30)).astype(np.float32)
    source = ImageRef.parse({"uri": "v.nii", "kind": kind})
    return MedicalImage(array=values, units="HU", source=source, **fields)  # type: ignore[arg-type]


def whole_looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows whenever a whole volume is looked through for its range."""
    looks: list[int] = []
    plain = windows._full_range
    monkeypatch.setattr(
        windows, "_full_range", lambda image: (looks.append(len(image.array)), plain(image))[1]
    )
    return looks


def test_every_transform_is_here() -> None:
    assert {name.partition(",")[0] for name in EVERY} == set(ViewTransform.table)


class TestSlices:
    def test_each_chosen_slice_is_a_view(self) -> None:
        image = volume()
        views = SLICES.apply(image)
        # slabs of 7/3: the slices in their middles, 1, 3 and 5
        alone = [SMALL.apply(image, index=index) for index in (1, 3, 5)]
        assert np.array_equal(views, np.stack(alone))
        assert SLICES.units((30, 20, 7)) == 3
        assert SLICES.units((30, 20, 2)) == 2
        assert SLICES.units((30, 20)) == 1

    def test_without_a_selection_all_slices_are_shown(self) -> None:
        views = SlicesTransform(transform=SMALL).apply(volume(5, 20, 30))
        assert not isinstance(views, tuple)
        assert views.shape == (5, 3, 16, 16)

    def test_a_picture_is_one_slice(self) -> None:
        picture = volume(1, 20, 30, kind="image")
        assert np.array_equal(SLICES.apply(picture), SMALL.apply(picture)[None])
        colour = MedicalImage(array=np.zeros((20, 30, 3), np.uint8), units="rgb")
        assert np.array_equal(SLICES.apply(colour), SMALL.apply(colour)[None])

    @pytest.mark.parametrize("mode", ["full", "file", "lung", ["lung", "full", "bone"]])
    def test_a_window_over_the_whole_volume_is_worked_out_once(
        self, mode: str | list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A volume of hundreds of slices would be looked through hundreds of times."""
        data = mode if isinstance(mode, str) else {"mode": "rgb", "channels": mode}
        transform = SMALL.model_copy(update={"window": Window.parse(data)})
        image = volume()
        alone = np.stack([transform.apply(image, index=index) for index in range(7)])
        asked = whole_looks(monkeypatch)
        assert np.array_equal(SlicesTransform(transform=transform).apply(image), alone)
        assert len(asked) == (0 if mode == "lung" else 1)
        if transform.window.channels is None:
            VolumeTransform(window=transform.window).apply(image)
            assert len(asked) == (0 if mode == "lung" else 2)

    def test_slices_by_mm_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="by count, not by every_mm"):
            SlicesTransform.parse({"selection": {"every_mm": 5}})


class TestVolume:
    def test_it_is_the_trilinear_resize_of_display_values(self) -> None:
        """Torch's, whose corners are outer edges too. Without smoothing, since torch has none."""
        image = volume(6, 10, 12)
        transform = VolumeTransform(
            shape=(4, 16, 9), smooth=False, window=Window(mode="lung"), mean=0.2, std=0.5
        )
        lung = (image.array - (-600 - 0.5 - 1499 / 2)) / 1499
        shown = torch.from_numpy(np.clip(lung, 0, 1))[None, None]
        wanted = F.interpolate(shown, size=(4, 16, 9), mode="trilinear", align_corners=False)
        # SimpleITK interpolates in float64, torch in float32; of values up to 1, over std 0.5
        torch.testing.assert_close(
            torch.from_numpy(transform.apply(image)), (wanted[0] - 0.2) / 0.5, rtol=0, atol=1e-5
        )

    def test_slices_stand_in_their_order(self) -> None:
        ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (8, 4, 4))
        image = dataclasses.replace(volume(8, 4, 4), array=np.ascontiguousarray(ramp))
        (view,) = VolumeTransform(shape=(4, 2, 2), window=Window(mode="full")).apply(image)
        assert (np.diff(view[:, 0, 0]) > 0.1).all()
        assert view.std(axis=(1, 2)).max() < 1e-6

    @pytest.mark.parametrize("mode", ["full", "file"])
    def test_its_range_is_that_of_the_whole_volume(self, mode: str) -> None:
        image = volume(5, 8, 8)
        view = VolumeTransform(shape=(5, 8, 8), window=Window.parse(mode)).apply(image)
        low, high = image.array.min(), image.array.max()
        assert np.allclose(view[0], (image.array - low) / (high - low), atol=1e-5)

    def test_a_picture_is_refused_with_its_name(self) -> None:
        with pytest.raises(ImageError, match=r"one 2D image.*kind: volume") as caught:
            VOLUME.apply(volume(1, 20, 30, kind="image"))
        assert caught.value.fault.file == "v.nii"
        assert VOLUME.apply(volume(1, 20, 30)).shape == (1, 4, 16, 16)  # a volume of one slice

    def test_three_windows_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="one channel"):
            VolumeTransform.parse({"window": {"mode": "rgb", "channels": ["lung", "bone", "full"]}})


def test_a_settled_window_shows_the_same() -> None:
    table = VoiTable(first=-100, shown=np.linspace(0, 255, 200, dtype=np.float32))
    for image in (
        volume(),
        volume(window=(40.0, 80.0)),
        volume(voi_table=table),
        volume(attributes={windows.PADDING: "-2000 -500", windows.INVERTED: "true"}),
    ):
        for mode in ("file", "full", "brain", "litegpt"):
            window = Window(mode=mode)  # type: ignore[arg-type]
            for index in range(3):
                shown = windows.grey_values(image, window, index=index)
                again = windows.grey_values(image, settled(image, window), index=index)
                assert np.array_equal(shown, again)


class TestPlaces:
    """Boxes are written where the view shows them."""

    SIZE = st.tuples(st.integers(1, 600), st.integers(1, 600), st.integers(1, 200))
    SHARE = st.floats(0, 1)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(SIZE, st.sampled_from(FOR_VOLUMES), st.tuples(*[SHARE] * 6))
    def test_points_of_a_volume_come_back(
        self, size: tuple[int, int, int], name: str, shares: tuple[float, ...]
    ) -> None:
        placement = EVERY[name].placement(size)
        lows = [min(a, b) * n for a, b, n in zip(shares[:3], shares[3:], size, strict=True)]
        highs = [max(a, b) * n for a, b, n in zip(shares[:3], shares[3:], size, strict=True)]
        corners = dict(zip(("x1", "y1", "z1", "x2", "y2", "z2"), lows + highs, strict=True))
        box = Box(label="a", **corners)  # type: ignore[arg-type]
        seen = placement.forward_box(box)
        again = placement.back_box(seen)
        for field, value in corners.items():
            assert getattr(again, field) == pytest.approx(value, abs=1e-6)
        assert seen.z1 is not None
        # z is a share of the whole, whatever is shown of it
        assert seen.z1 / placement.view[2] == pytest.approx(lows[2] / size[2], abs=1e-9)

    @pytest.mark.parametrize("name", FOR_VOLUMES)
    def test_a_bright_voxel_is_where_the_geometry_says(self, name: str) -> None:
        array = np.zeros((12, 40, 40), np.float32)
        array[5:7, 24:30, 8:12] = 100
        image = dataclasses.replace(volume(12, 40, 40), array=array)
        transform = EVERY[name]
        if isinstance(transform, DetailedTransform):
            transform = transform.base
        if isinstance(transform, ByKindTransform):
            transform = transform.volume
        if isinstance(transform, SlicesTransform):
            transform = transform.model_copy(update={"selection": SliceSelection(count=6)})
            view = np.asarray(transform.apply(image))[:, 0]
        else:
            view = np.asarray(transform.apply(image))[0]
        box = Box(label="a", x1=8, x2=12, y1=24, y2=30, z1=5, z2=7)
        seen = transform.placement((40, 40, 12)).forward_box(box)
        weights = np.clip(view, 0, None) / np.clip(view, 0, None).sum()
        z, y, x = (
            (weights.sum(axis=others) * (np.arange(n) + 0.5)).sum()
            for others, n in zip(((1, 2), (0, 2), (0, 1)), view.shape, strict=True)
        )
        assert seen.z1 is not None
        assert seen.z2 is not None
        assert x == pytest.approx((seen.x1 + seen.x2) / 2, abs=0.3)
        assert y == pytest.approx((seen.y1 + seen.y2) / 2, abs=0.3)
        assert z == pytest.approx((seen.z1 + seen.z2) / 2, abs=0.6)  # of a slab, its middle slice

    def test_each_kind_has_its_own_view(self) -> None:
        transform = EVERY["by_kind"]
        assert transform.placement((30, 20)) == SMALL.geometry(30, 20)
        assert transform.placement((30, 20, 9)).view == (16, 16, 4)
        assert transform.units((30, 20, 9)) == 1
        assert transform.units((30, 20)) == 5  # an overview and two by two tiles
        several = EVERY["by_kind, several"]
        assert several.units((30, 20, 9)) == 3
        assert several.units((30, 20)) == 1


@pytest.mark.parametrize("name", list(EVERY))
def test_units_are_those_that_are_made(name: str) -> None:
    transform = EVERY[name]
    shapes: tuple[tuple[int, ...], ...] = ((30, 20), (20, 50))
    if name in FOR_VOLUMES:
        shapes += ((30, 20, 7), (10, 10, 2))
    for size in shapes:
        if name == "volume" and len(size) == 2:
            continue
        depth = size[2] if len(size) == 3 else 1
        image = volume(depth, size[1], size[0], kind="volume" if len(size) == 3 else "image")
        assert is_plane(image) == (len(size) == 2)
        views = transform.apply(image)
        while isinstance(views, tuple):
            views = views[0]
        made = len(views) if views.ndim == 4 and views.shape[0] != 1 else 1
        assert transform.units(size) == made


@pytest.mark.parametrize("name", list(EVERY))
def test_the_store_keeps_it_to_the_bit(name: str, tmp_path: Path) -> None:
    transform = EVERY[name]
    nibabel.save(nibabel.Nifti1Image(volume().array.T, np.eye(4)), tmp_path / "v.nii.gz")
    refs = [ImageRef(uri="v.nii.gz", frame=2)] if name != "volume" else []
    if name in FOR_VOLUMES:
        refs.append(ImageRef(uri="v.nii.gz", kind="volume"))
    for ref in refs:
        plain = transform.apply(read_ref(ref, tmp_path))
        for _ in range(2):  # the second is read back
            view = DecodedStore(tmp_path / "store").view(ref, tmp_path, transform)
            assert same(transform.normalise(view.display), plain)
            assert view.size == ((30, 20) if ref.kind == "image" else (30, 20, 7))


def same(one: object, other: object) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, np.ndarray) and np.array_equal(one, other)


@pytest.mark.parametrize("name", list(EVERY))
def test_people_see_an_image_of_the_original_size(name: str) -> None:
    image = volume() if name in FOR_VOLUMES else volume(1, 20, 30, kind="image")
    shown = EVERY[name].shown(image)
    assert shown.shape[:2] == (20, 30)
    assert shown.dtype == np.uint8


@pytest.mark.parametrize("name", list(EVERY))
def test_a_transform_is_a_value(name: str) -> None:
    transform = EVERY[name]
    again = ViewTransform.parse(transform.to_dict())
    assert again == transform
    assert again.fingerprint() == transform.fingerprint()
    if "version" in type(transform).model_fields:
        with pytest.raises(ConfigError, match="version"):
            type(transform).parse(transform.to_dict() | {"version": 2})
    assert isinstance(again, Config)
