"""Augmentation: pixels, boxes, words and affine change together, and always in the same way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medloupe.errors import ConfigError, DataError, ImageError
from medloupe.imaging.augment import Augmentation, Draw
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.windows import INVERTED, PADDING, Window
from medloupe.types import Box, Conversation, ImageRef, MedicalImage, Message, Text

STILL = {"rotation": 0.0, "zoom": 0.0, "shift": 0.0}
PLAIN = {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0, "noise": 0.0}


def row(box: Box, question: str, answer: str, *, name: str = "row-1") -> Conversation:
    return Conversation(
        id=name,
        messages=(
            Message(role="user", content=(ImageRef(uri="a.png"), Text(text=question))),
            Message(role="assistant", content=(Text(text=answer), box)),
        ),
    )


def picture(box: Box, width: int = 120, height: int = 90) -> MedicalImage:
    """Bright inside `box`, dark elsewhere."""
    array = np.zeros((1, height, width), np.float32)
    array[0, int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)] = 200
    return MedicalImage(
        array=array,
        units="stored",
        window=(128.0, 256.0),
        affine=np.diag([0.5, 0.7, 1.0, 1.0]),
        spacing=(1.0, 0.7, 0.5),
    )


def box_of(conversation: Conversation) -> Box:
    assert conversation.answer is not None
    (box,) = (part for part in conversation.answer.content if isinstance(part, Box))
    return box


@pytest.mark.parametrize(
    ("question", "answer", "label", "words", "mirrored"),
    [
        (
            "Is it left or right?",
            "In the left lung.",
            "left nodule",
            ("left side",),
            ("Is it right or left?", "In the right lung.", "right nodule", ("right side",)),
        ),
        (
            "病灶在左侧还是右侧？",
            "左肺上叶。",
            "左肺结节",
            ("左侧",),
            ("病灶在右侧还是左侧？", "右肺上叶。", "右肺结节", ("右侧",)),
        ),
    ],
)
def test_a_planted_left_flips_in_pixels_boxes_and_words(question, answer, label, words, mirrored):
    box = Box(label=label, words=words, x1=80, y1=20, x2=104, y2=44)
    image, conversation = picture(box), row(box, question, answer)
    always = Augmentation(flip=1, **STILL, **PLAIN)
    changed, (seen,) = always.apply(conversation, [image], seed=0, epoch=0)
    assert changed.question == mirrored[0]
    assert changed.answer is not None
    assert changed.answer.text == mirrored[1]
    moved = box_of(changed)
    assert (moved.label, moved.words) == mirrored[2:]
    assert (moved.x1, moved.y1, moved.x2, moved.y2) == (16, 20, 40, 44)
    assert (seen.array[0, 20:44, 16:40] == 200).all()
    assert seen.array.sum() == image.array.sum()
    # and in the view that the model gets
    view = ImageTransform(size=64).apply(seen)[0]
    shown = ImageTransform(size=64).geometry(*seen.size).forward_box(moved)
    inside = view[int(shown.y1) + 1 : int(shown.y2) - 1, int(shown.x1) + 1 : int(shown.x2) - 1]
    assert inside.min() > 1
    never, (same,) = Augmentation(**STILL, **PLAIN).apply(conversation, [image], seed=0, epoch=0)
    assert never == conversation
    assert np.array_equal(same.array, image.array)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 50), st.text(max_size=12), st.booleans())
def test_words_and_pixels_never_disagree(seed, epoch, name, flips):
    """Whatever is drawn: the bright block stands in the half that the answer names."""
    box = Box(label="left nodule", x1=80, y1=20, x2=104, y2=44)
    strong = Augmentation(rotation=20, zoom=0.2, shift=0.1, noise=0.05, flip=0.5 * flips)
    changed, (seen,) = strong.apply(
        row(box, "Side?", "left", name=f"r{name}"), [picture(box)], seed=seed, epoch=epoch
    )
    block = seen.array[0] > 100
    columns = np.argwhere(block)[:, 1] + 0.5
    assert changed.answer is not None
    named = changed.answer.text
    assert named == ("left" if columns.mean() > seen.size[0] / 2 else "right")
    assert flips or named == "left"
    moved = box_of(changed)
    assert moved.label == f"{named} nodule"
    rows = np.argwhere(block)[:, 0]
    assert moved.x1 - 1 <= columns.min()
    assert columns.max() <= moved.x2 + 1
    assert moved.y1 - 1 <= rows.min()
    assert rows.max() <= moved.y2 + 1
    assert 0 <= moved.x1 < moved.x2 <= seen.size[0]
    assert 0 <= moved.y1 < moved.y2 <= seen.size[1]


def test_it_depends_on_seed_epoch_and_row_alone():
    box = Box(label="", x1=50, y1=30, x2=70, y2=60)
    image, one = picture(box), row(box, "?", "!")

    def pixels(name: str = "row-1", **place: int) -> np.ndarray:
        at = {"seed": 3, "epoch": 1} | place
        changed = Augmentation().apply(one.model_copy(update={"id": name}), [image], **at)
        return changed[1][0].array

    assert np.array_equal(pixels(), pixels())
    for other in (pixels(seed=4), pixels(epoch=2), pixels(name="row-2")):
        assert not np.array_equal(pixels(), other)


def test_how_often_it_flips():
    box = Box(label="", x1=50, y1=30, x2=70, y2=60)
    half = Augmentation(flip=0.5, **STILL, **PLAIN)
    answers = [
        half.apply(row(box, "?", "left", name=str(n)), [picture(box)], seed=1, epoch=0)[0].answer
        for n in range(400)
    ]
    flipped = sum(answer is not None and answer.text == "right" for answer in answers)
    assert 150 < flipped < 250


def test_both_images_of_a_pair_are_mirrored_or_none():
    box = Box(label="", x1=10, y1=10, x2=20, y2=20)
    pair = Conversation(
        id="pair",
        messages=(
            Message(
                role="user",
                content=(ImageRef(uri="a"), ImageRef(uri="b"), Text(text="left or right?")),
            ),
        ),
    )
    sagittal = MedicalImage(
        array=np.zeros((1, 9, 9), np.float32),
        units="stored",
        affine=np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float),
    )
    always = Augmentation(flip=1, **STILL, **PLAIN)
    changed, images = always.apply(pair, [picture(box), picture(box)], seed=0, epoch=0)
    assert changed.question == "right or left?"
    assert all((image.array[0, 10:20, 100:110] == 200).all() for image in images)
    changed, images = always.apply(pair, [picture(box), sagittal], seed=0, epoch=0)
    assert changed == pair
    assert (images[0].array[0, 10:20, 10:20] == 200).all()


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Draw,
        angle=st.floats(-45, 45),
        zoom=st.floats(0.5, 2),
        shift=st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)),
    ),
    st.sampled_from([(1, 1), (1, 3000), (3000, 1), (120, 90), (57, 401)]),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_points_come_back_and_boxes_enclose(draw, size, places):
    geometry = draw.geometry(*size)
    points = np.array(places).reshape(2, 2) * size
    assert np.allclose(geometry.back(geometry.forward(points)), points, atol=1e-6)
    (x1, y1), (x2, y2) = np.sort(points, axis=0).tolist()
    box = Box(label="a", x1=x1, y1=y1, x2=x2, y2=y2, size_mm=(1.0, 2.0))
    turned = geometry.forward_box(box)
    corners = geometry.forward([[x1, y1], [x1, y2], [x2, y1], [x2, y2]])
    assert corners[:, 0].min() == pytest.approx(turned.x1)
    assert corners[:, 1].max() == pytest.approx(turned.y2)
    again = geometry.back_box(turned)
    assert again.x1 <= x1 + 1e-6
    assert again.y2 >= y2 - 1e-6
    both = geometry.then(ImageTransform(size=64).geometry(*size))
    expected = ImageTransform(size=64).geometry(*size).forward(geometry.forward(points))
    assert np.allclose(both.forward(points), expected, atol=1e-6)
    assert np.allclose(both.back(both.forward(points)), points, atol=1e-5)


def test_a_turn_by_hand():
    # a quarter anticlockwise round (50, 50): what was at the right is at the top
    quarter = Draw(angle=90).geometry(100, 100)
    assert np.allclose(quarter.forward([[90, 50], [50, 10]]), [[50, 10], [10, 50]])
    box = quarter.forward_box(Box(label="", x1=80, y1=40, x2=100, y2=50))
    assert np.allclose((box.x1, box.y1, box.x2, box.y2), (40, 0, 50, 20))
    both = quarter.then(quarter)
    assert np.allclose(both.matrix, Draw(angle=180).geometry(100, 100).matrix, atol=1e-12)
    third, rest = Draw(angle=30).geometry(100, 100), Draw(angle=12, zoom=1.5).geometry(100, 100)
    assert np.allclose(third.then(rest).matrix, rest.matrix @ third.matrix)
    assert np.allclose(third.then(rest).matrix, Draw(angle=42, zoom=1.5).geometry(100, 100).matrix)


@pytest.mark.parametrize("units", ["stored", "rgb"])
@pytest.mark.parametrize("draw", [Draw(angle=12), Draw(zoom=1.3), Draw(shift=(0.1, -0.05))])
def test_a_disc_lands_where_the_geometry_says_and_stays_in_the_patient(units, draw):
    y, x = np.mgrid[:90, :120] + 0.5
    disc = ((x - 70.5) ** 2 + (y - 40.5) ** 2 < 64) * 200.0
    if units == "rgb":
        array = np.stack([disc] * 3, axis=-1).astype(np.uint8)
    else:
        array = disc.astype(np.float32)[None]
    affine = np.array([[-0.5, 0, 0, 9], [0, -0.7, 0, 8], [0, 0, 2, 7], [0, 0, 0, 1]])
    image = MedicalImage(
        array=array, units=units, window=(128.0, 256.0), affine=affine, spacing=(2.0, 0.7, 0.5)
    )
    ref = Conversation(id="r", messages=(Message(role="user", content=(ImageRef(uri="a"),)),))

    class Fixed(Augmentation):
        def draw(self, *_: object) -> Draw:  # type: ignore[override]
            return draw

    _, (moved,) = Fixed(**STILL, **PLAIN).apply(ref, [image], seed=0, epoch=0)
    assert moved.array.dtype == array.dtype
    assert moved.array.shape == array.shape
    plane = (moved.array[..., 0] if units == "rgb" else moved.array[0]).astype(float)
    found = np.array([(x * plane).sum(), (y * plane).sum()]) / plane.sum()
    expected = draw.geometry(120, 90).forward([[70.5, 40.5]])[0]
    assert np.allclose(found, expected, atol=0.1)
    assert moved.affine is not None
    assert np.allclose(moved.affine @ [*(expected - 0.5), 0, 1], affine @ [70, 40, 0, 1], atol=1e-6)
    lengths = np.linalg.norm(moved.affine[:3, :3], axis=0)
    if draw.angle == 0:
        assert moved.spacing == pytest.approx(tuple(lengths[::-1]))


def test_grey_values_by_hand():
    # window 0 to 100: 25 -> 0.25; gamma 2 -> 0.0625; contrast 2 -> -0.375; brightness 0.5 -> 0.125
    image = MedicalImage(
        array=np.array([[[25.0, -50.0, np.nan, -2000.0]]], np.float32),
        units="HU",
        attributes={PADDING: "-2000 -2000"},
    )
    ref = Conversation(id="r", messages=(Message(role="user", content=(ImageRef(uri="a"),)),))

    class Fixed(Augmentation):
        def draw(self, *_: object) -> Draw:  # type: ignore[override]
            return Draw(gamma=2, contrast=2, brightness=0.5)

    window = Window(mode="custom", centre=50, width=100)
    _, (toned,) = Fixed(window=window).apply(ref, [image], seed=0, epoch=0)
    # -50 lies outside the window: (-0.5 - 0.5) * 2 + 1 = -1; NaN and padding stay
    assert toned.array[0, 0, [0, 1, 3]].tolist() == pytest.approx([12.5, -100, -2000], abs=1e-4)
    assert np.isnan(toned.array[0, 0, 2])
    assert toned.units == "HU"


def test_noise_has_the_size_it_says():
    flat = MedicalImage(
        array=np.full((1, 200, 200), 128, np.float32), units="stored", window=(128.0, 256.0)
    )
    ref = Conversation(id="r", messages=(Message(role="user", content=(ImageRef(uri="a"),)),))

    class Fixed(Augmentation):
        def draw(self, *_: object) -> Draw:  # type: ignore[override]
            return Draw(noise=0.02, noise_seed=5)

    _, (noisy,) = Fixed().apply(ref, [flat], seed=0, epoch=0)
    assert noisy.array.std() == pytest.approx(0.02 * 256, rel=0.03)
    assert noisy.array.mean() == pytest.approx(128, abs=0.1)


@pytest.mark.parametrize(
    ("attributes", "background"), [({}, 5), ({INVERTED: "true"}, 9), ({PADDING: "-7 -7"}, -7)]
)
def test_what_comes_in_from_outside_is_shown_black(attributes, background):
    array = np.full((1, 40, 40), 5, np.float32)
    array[0, 20:, 20:] = 9
    image = MedicalImage(array=array, units="stored", attributes=attributes)
    box = Box(label="", x1=19, y1=19, x2=21, y2=21)
    far = Augmentation(shift=0.4, rotation=0, zoom=0, **PLAIN)
    _, (moved,) = far.apply(row(box, "", ""), [image], seed=2, epoch=0)
    corners = {float(moved.array[0, a, b]) for a in (0, -1) for b in (0, -1)}
    assert background in corners
    assert corners <= {5, 9, background}


def test_a_box_at_the_edge_stays_in_the_picture():
    box = Box(label="", x1=0, y1=0, x2=4, y2=90)
    wild = Augmentation(shift=0.5, rotation=45, zoom=0.5, **PLAIN)
    for name in range(30):
        changed, (image,) = wild.apply(
            row(box, "", "", name=str(name)), [picture(box)], seed=0, epoch=0
        )
        moved = box_of(changed)
        assert 0 <= moved.x1 < moved.x2 <= 120
        assert 0 <= moved.y1 < moved.y2 <= 90
        assert image.array.max() > 20


def test_where_no_movement_keeps_the_box_nothing_moves():
    box = Box(label="", x1=0, y1=0, x2=120, y2=90)  # all of the picture
    far = Augmentation(shift=1, rotation=0, zoom=0, keep=1, **PLAIN)
    image = picture(Box(label="", x1=9, y1=9, x2=50, y2=50))
    changed, (seen,) = far.apply(row(box, "", ""), [image], seed=0, epoch=0)
    assert box_of(changed) == box
    assert np.array_equal(seen.array, image.array)


def test_what_does_not_fit_is_refused():
    box = Box(label="", x1=0, y1=0, x2=4, y2=9, image=3)
    with pytest.raises(DataError, match="0 images given for 1"):
        Augmentation().apply(row(box, "", ""), [], seed=0, epoch=0)
    with pytest.raises(DataError, match="image 3"):
        Augmentation().apply(row(box, "", ""), [picture(box)], seed=0, epoch=0)
    with pytest.raises(ConfigError, match="rotation"):
        Augmentation.parse({"rotation": 90})
    fine = box.model_copy(update={"image": 0})
    brain = Augmentation(window=Window(mode="brain"))
    with pytest.raises(ImageError, match="in HU"):
        brain.apply(row(fine, "", ""), [picture(fine)], seed=0, epoch=0)


def test_volumes_and_colour():
    box = Box(label="", x1=5, y1=5, x2=15, y2=15, z1=1, z2=3)
    volume = MedicalImage(
        array=np.random.default_rng(0).normal(size=(4, 20, 30)).astype(np.float32), units="HU"
    )
    window = Window(mode="rgb", channels=("lung", "bone", "brain"))
    changed, (seen,) = Augmentation(window=window).apply(
        row(box, "", ""), [volume], seed=0, epoch=0
    )
    assert seen.array.shape == (4, 20, 30)
    assert seen.array.dtype == np.float32
    assert (box_of(changed).z1, box_of(changed).z2) == (1, 3)
    colour = MedicalImage(
        array=np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8), units="rgb"
    )
    _, (seen,) = Augmentation().apply(row(box, "", ""), [colour], seed=0, epoch=0)
    assert seen.array.dtype == np.uint8
    assert not np.array_equal(seen.array, colour.array)
