"""Left and right: pixels, boxes and words change together or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medloupe.errors import DataError, ImageError
from medloupe.imaging.transforms import HorizontalFlip, swap_sides
from medloupe.types import Box, Conversation, ImageRef, MedicalImage, Message, Text

SWAPS = [
    ("Left lung", "Right lung"),
    ("left-sided effusion", "right-sided effusion"),
    ("LEFT", "RIGHT"),
    ("Is it left or right?", "Is it right or left?"),
    ("the rightmost lobe", "the leftmost lobe"),
    ("RUL nodule, LLQ pain", "LUL nodule, RLQ pain"),
    ("leftover bright cleft", "leftover bright cleft"),
    ("upright film", "upright film"),
    ("all right ribs", "all left ribs"),
    ("病灶在左侧还是右侧？", "病灶在右侧还是左侧？"),
    ("左肺上叶", "右肺上叶"),
    ("约3厘米左右，右肺", "约3厘米左右，左肺"),
    ("左右肺分别见三个和两个结节", "右左肺分别见三个和两个结节"),
    ("左氧氟沙星", "左氧氟沙星"),
    ("右left左", "左right右"),
]


@pytest.mark.parametrize(("text", "mirrored"), SWAPS)
def test_sides_in_text(text, mirrored):
    assert swap_sides(text) == mirrored
    assert swap_sides(mirrored) == text


@given(st.lists(st.sampled_from(["left", "Right", "LEFT", "a", "-", " ", "左", "右", "all", "."])))
def test_twice_is_the_identity(words):
    text = " ".join(words)
    assert swap_sides(swap_sides(text)) == text


def conversation() -> Conversation:
    first, second = ImageRef(uri="a.png"), ImageRef(uri="b.png")
    return Conversation(
        id="c1",
        messages=(
            Message(
                role="user",
                content=(
                    first,
                    second,
                    Text(text="Which side? "),
                    Box(
                        label="left nodule",
                        words=("left side", "small"),
                        x1=10,
                        y1=20,
                        x2=30,
                        y2=40,
                        image=1,
                    ),
                ),
            ),
            Message(role="assistant", content=(Text(text="Left."),)),
        ),
        template="side",
        options=("left", "right"),
        attributes={"side": "left", "kind": "ring"},
    )


def test_a_conversation_is_mirrored_as_a_whole():
    flip = HorizontalFlip()
    mirrored = flip.flip_conversation(conversation(), [(50, 50), (100, 80)])
    assert mirrored.answer is not None
    assert mirrored.answer.text == "Right."
    assert mirrored.options == ("right", "left")
    assert mirrored.attributes == {"side": "right", "kind": "ring"}
    box = mirrored.messages[0].content[3]
    words = ("right side", "small")
    assert box == Box(label="right nodule", words=words, x1=70, y1=20, x2=90, y2=40, image=1)
    assert mirrored.images == conversation().images
    assert flip.flip_conversation(mirrored, [(50, 50), (100, 80)]) == conversation()


def test_sizes_must_be_those_of_the_images():
    with pytest.raises(DataError, match="1 sizes for 2 images"):
        HorizontalFlip().flip_conversation(conversation(), [(50, 50)])


def test_a_box_of_an_image_that_is_not_there():
    row = Conversation(
        id="c2",
        messages=(Message(role="user", content=(Box(label="", x1=0, y1=0, x2=1, y2=1),)),),
    )
    with pytest.raises(DataError, match=r"row 'c2'.*image 0"):
        HorizontalFlip().flip_conversation(row, [])


@pytest.mark.parametrize("units", ["stored", "rgb"])
def test_pixels_and_boxes_go_to_the_same_place(units):
    array = np.zeros((8, 10, 3), np.uint8)
    array[2:4, 1:4] = 255
    if units == "stored":
        array = array[None, ..., 0].astype(np.float32)
    image = MedicalImage(array=array, units=units)
    flip = HorizontalFlip()
    box = flip.geometry(*image.size).forward_box(Box(label="", x1=1, y1=2, x2=4, y2=4))
    flipped = flip.apply(image).array
    plane = flipped[0] if units == "stored" else flipped[..., 0]
    inside = plane[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)]
    assert (inside == 255).all()
    assert (plane == 255).sum() == inside.size
    assert np.array_equal(flip.apply(flip.apply(image)).array, image.array)


def test_a_sagittal_view_has_no_sides_to_swap():
    affine = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)
    image = MedicalImage(array=np.zeros((1, 4, 4), np.float32), units="stored", affine=affine)
    with pytest.raises(ImageError, match="sagittal"):
        HorizontalFlip().apply(image)
