"""The transform that makes an encoder's views, from one that says only what a person chose."""

from __future__ import annotations

from typing import Any

import pytest

from medloupe.errors import ConfigError
from medloupe.imaging.composed import SeveralTransform, VolumeTransform
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.views import ViewTransform
from medloupe.imaging.windows import Window
from medloupe.models.encoders import EncoderConfig, undecided

LUNG = Window(mode="lung")
SMALL = {"name": "vit3d", "shape": [8, 32, 32], "mean": 0.5, "std": 0.25}


def volume(**fields: Any) -> VolumeTransform:
    return VolumeTransform(**({"shape": (8, 32, 32), "mean": 0.5, "std": 0.25} | fields))


def test_a_plain_transform_gives_its_window_to_a_volume() -> None:
    config = EncoderConfig.parse(SMALL)
    assert config.fitted(ImageTransform(window=LUNG)) == volume(window=LUNG)
    assert config.fitted(ImageTransform(fit="stretch")) == volume()


def test_a_saved_plain_transform_is_still_plain() -> None:
    """Read back from a file every field is stated."""
    again = ViewTransform.parse(ImageTransform(window=LUNG).to_dict())
    assert EncoderConfig.parse(SMALL).fitted(again) == volume(window=LUNG)


def test_a_volume_transform_keeps_its_choices_and_what_is_fitted_fits_again() -> None:
    config = EncoderConfig.parse(SMALL)
    fitted = config.fitted(VolumeTransform(window=LUNG, smooth=False))
    assert fitted == volume(window=LUNG, smooth=False)
    assert config.fitted(fitted) == fitted
    assert config.fitted(ViewTransform.parse(undecided(fitted.to_dict()))) == fitted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (VolumeTransform(shape=(8, 32, 16)), "shape is .* but the encoder wants"),
        (VolumeTransform(std=2.0), r"std is 2.0, but the encoder wants 0\.25"),
        (ImageTransform(size=336), "size is for 2D images"),
        (SeveralTransform(transforms=(ImageTransform(),)), "takes one volume"),
    ],
)
def test_what_a_volume_encoder_cannot_take_is_refused(given: ViewTransform, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderConfig.parse(SMALL).fitted(given)


def test_a_plane_encoder_takes_no_volume() -> None:
    with pytest.raises(ConfigError, match="takes one 2D view"):
        EncoderConfig.parse({"name": "biomedclip"}).fitted(VolumeTransform())


def test_an_interpolated_size_is_the_size_of_the_view() -> None:
    fitted = EncoderConfig.parse({"name": "biomedclip", "image_size": 384}).fitted(ImageTransform())
    assert isinstance(fitted, ImageTransform)
    assert fitted.size == 384
    plain = EncoderConfig.parse({"name": "biomedclip"}).fitted(ImageTransform())
    assert isinstance(plain, ImageTransform)
    assert (plain.size, plain.mean[0]) == (224, 0.48145466)
