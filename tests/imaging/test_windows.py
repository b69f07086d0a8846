"""Grey values to display values: hand-computed against DICOM PS3.3 C.11.2."""

from __future__ import annotations

import numpy as np
import pytest

from medloupe.errors import ConfigError, ImageError
from medloupe.imaging.windows import (
    HU_WINDOWS,
    INVERTED,
    PADDING,
    SIGMOID,
    Window,
    grey_values,
    to_display,
    window_of,
)
from medloupe.types import MedicalImage, Units


def grey(values: list[float], *, units: Units = "HU", **fields: object) -> MedicalImage:
    array = np.array([[values]], dtype=np.float32)  # [D, H, W] = [1, 1, n]
    return MedicalImage(array=array, units=units, **fields)  # type: ignore[arg-type]


def shown(image: MedicalImage, **window: object) -> list[int]:
    return to_display(image, Window(**window))[0].tolist()  # type: ignore[arg-type]


def test_linear_of_the_standards_example():
    # C.11.2.1.2.1, c = 2048, w = 4096, y from 0 to 255: the clause's own note gives
    # y = ((x - 2047.5) / 4095 + 0.5) * 255, black below 0, white above 4095
    image = grey([-1, 0, 1, 1023, 2047, 2048, 4094, 4095, 9999])
    expected = [0, 0, 0, 64, 127, 128, 255, 255, 255]
    assert [round(((x - 2047.5) / 4095 + 0.5) * 255) for x in (1023, 2047, 2048)] == [64, 127, 128]
    assert shown(image, mode="custom", centre=2048, width=4096) == expected


def test_linear_of_a_narrow_window():
    # c = 40, w = 80 (brain): from 0 to 79; 10 -> 10 / 79 * 255 = 32.28; 40 -> 129.11
    assert shown(grey([-5, 0, 10, 40, 79, 80]), mode="brain") == [0, 0, 32, 129, 255, 255]


def test_width_one_is_a_step():
    # c = 10, w = 1: black up to 9.5, white above
    image = grey([9, 9.5, 9.6, 10])
    assert shown(image, mode="custom", centre=10, width=1) == [0, 0, 255, 255]


def test_sigmoid():
    # C.11.2.1.3.1: 255 / (1 + exp(-4 (x - c) / w)); c = 100, w = 200
    image = grey([-1e6, 0, 100, 150, 200], window=(100.0, 200.0), attributes={SIGMOID: "true"})
    assert shown(image) == [0, 30, 128, 186, 225]
    assert shown(image, mode="full")[2] == 255  # another window is LINEAR again


def test_file_window_else_full_range():
    assert shown(grey([0, 50, 100], window=(50.5, 101.0))) == [0, 128, 255]
    assert shown(grey([-1000, 0, 1000])) == [0, 128, 255]
    assert shown(grey([-1000, 0, 1000], window=(0.5, 2.0)), mode="full") == [0, 128, 255]


def test_full_range_of_fractions():
    assert shown(grey([0.0, 0.25, 1.0], units="stored"), mode="full") == [0, 64, 255]


def test_a_constant_image_is_black():
    assert shown(grey([7, 7, 7]), mode="full") == [0, 0, 0]


def test_monochrome1_is_turned_over():
    image = grey([0, 100, 255], window=(128.0, 256.0), attributes={INVERTED: "true"})
    assert shown(image) == [255, 155, 0]


def test_padding_is_black_and_does_not_stretch_the_range():
    values = [-2000.0, 0.0, 50.0, 100.0]
    padded = grey(values, attributes={PADDING: "-2000.0 -2000.0"})
    assert shown(padded, mode="full") == [0, 0, 128, 255]
    assert shown(grey(values), mode="full") == [0, 243, 249, 255]
    inverted = grey(values, attributes={PADDING: "-2000.0 -2000.0", INVERTED: "true"})
    assert shown(inverted, mode="full") == [0, 255, 128, 0]


def test_values_that_are_not_finite_are_black():
    assert shown(grey([np.nan, 0, 10, np.inf])) == [0, 0, 255, 0]
    assert shown(grey([np.nan, np.nan])) == [0, 0]


def test_what_a_name_means_never_changes():
    """Saved models name these: a new setting gets a new name."""
    assert HU_WINDOWS == {
        "lung": (-600, 1500),
        "mediastinum": (50, 350),
        "bone": (400, 1800),
        "brain": (40, 80),
        "stroke": (40, 40),
        "subdural": (75, 215),
        "soft_tissue": (40, 375),
        "abdomen": (50, 400),
        "liver": (30, 150),
        "medm_vl": (0.5, 2001),
    }


def test_medm_vl_clips_to_a_thousand():
    # -1000 to 1000 in 255 steps: 0 -> 127.5
    image = grey([-3000, -1000, -500, 0, 500, 1000, 3000])
    shown_there = grey_values(image, Window(mode="medm_vl"))[0]
    assert shown_there.tolist() == [0, 0, 63.75, 127.5, 191.25, 255, 255]


@pytest.mark.parametrize("name", list(HU_WINDOWS))
def test_named_windows_need_hounsfield_units(name):
    with pytest.raises(ImageError, match="is in HU"):
        window_of(grey([1, 2], units="stored"), Window(mode=name))


def test_named_windows_on_air_fat_water_and_bone():
    image = grey([-1000, -100, 0, 1000])
    # lung: c = -600, w = 1500 runs from -1350 to 149
    assert shown(image, mode="lung") == [60, 213, 230, 255]
    # mediastinum: c = 50, w = 350 runs from -125 to 224
    assert shown(image, mode="mediastinum") == [0, 18, 91, 255]
    # bone: c = 400, w = 1800 runs from -500 to 1299
    assert shown(image, mode="bone") == [0, 57, 71, 213]


def test_three_windows_make_three_channels():
    image = grey([-1000, -100, 0, 1000])
    window = Window.parse({"mode": "rgb", "channels": ["lung", "mediastinum", "bone"]})
    planes = to_display(image, window)
    assert planes.shape == (1, 4, 3)
    for channel, name in enumerate(("lung", "mediastinum", "bone")):
        assert planes[0, :, channel].tolist() == shown(image, mode=name)
    assert Window.parse(window.to_dict()) == window
    assert window.fingerprint() != Window().fingerprint()
    custom = {"mode": "custom", "centre": 10, "width": 20}
    mixed = Window.parse({"mode": "rgb", "channels": ["full", custom, "brain"]})
    assert to_display(image, mixed)[0, :, 1].tolist() == shown(image, **custom)


def test_a_window_saved_before_there_were_three_is_the_same_value():
    before = {"mode": "lung", "centre": None, "width": None}
    assert Window.parse(before).to_dict() == before
    assert Window().fingerprint() == "7e9e635fb3f5a67a"


def test_litegpt_by_hand():
    # (x - 100) / 200 * 127.5 + 127.5, cut off: 0 -> 63.75, 100 -> 127.5, 200 -> 191.25
    image = grey([-1000, 0, 100, 200, 1000], window=(100.0, 200.0))
    assert shown(image, mode="litegpt") == [0, 63, 127, 191, 255]
    assert shown(image) == [0, 0, 128, 255, 255]  # the standard's function uses all greys
    inverted = grey([0, 100, 200], window=(100.0, 200.0), attributes={INVERTED: "true"})
    assert shown(inverted, mode="litegpt") == [191, 127, 63]


def test_litegpt_without_a_window_is_mean_and_range():
    # mean 2.5, range 10: (0 - 2.5) / 10 * 127.5 + 127.5 = 95.6
    assert shown(grey([0, 0, 0, 10], units="stored"), mode="litegpt") == [95, 95, 95, 223]
    assert shown(grey([7, 7], units="stored"), mode="litegpt") == [127, 127]
    assert shown(grey([np.nan, 0, 10]), mode="litegpt") == [0, 63, 191]
    assert shown(grey([np.nan]), mode="litegpt") == [0]


def test_colour_is_shown_as_it_is():
    array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    image = MedicalImage(array=array, units="rgb")
    assert np.array_equal(to_display(image, Window(mode="brain")), array)


def test_a_volume_shows_its_middle_slice():
    array = np.stack([np.full((2, 2), k, np.float32) for k in range(5)])
    image = MedicalImage(array=array, units="stored", window=(128.0, 256.0))
    assert to_display(image).tolist() == [[2, 2], [2, 2]]
    assert to_display(image, index=4).tolist() == [[4, 4], [4, 4]]
    with pytest.raises(ImageError, match="slices 0 to 4"):
        to_display(image, index=5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "custom"}, "needs centre and width"),
        ({"mode": "lung", "centre": 1.0}, "has its own centre"),
        ({"mode": "custom", "centre": 1.0, "width": 0.5}, "at least 1"),
        ({"mode": "rgb"}, "needs three windows"),
        ({"mode": "lung", "channels": ["lung", "bone", "brain"]}, "no other mode has them"),
        ({"mode": "rgb", "channels": ["lung", "bone"]}, "channels"),
        ({"mode": "rgb", "channels": ["lung", "bone", "rgb"]}, "needs three windows"),
    ],
)
def test_windows_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Window.parse(fields)
