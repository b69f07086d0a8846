from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medloupe.errors import PromptError
from medloupe.imaging.composed import SlicesTransform, VolumeTransform
from medloupe.imaging.slices import SliceSelection
from medloupe.imaging.transforms import Geometry, HorizontalFlip, ImageTransform
from medloupe.models.vlm import IMAGE_TOKEN
from medloupe.processing import BoxEncoding, Processor, ProcessorConfig
from medloupe.types import Box, Conversation, ImageLayout, ImageLayouts, ImageRef

ENCODINGS = [
    BoxEncoding(form=form, scale=scale, decimals=decimals)
    for form in ("angle", "square")
    for scale, decimals in ((100, 0), (1000, 0), (1, 0), (1, 4), (100, 1))
]
WIDE = ImageTransform(size=64, fit="pad").geometry(200, 100)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        # 200 x 100 padded into 64 x 64: scale 0.32, 16 rows of padding above. The corners
        # (50, 25) and (150, 75) become (16, 24) and (48, 40), over 64: 0.25 0.375 0.75 0.625.
        (BoxEncoding(), "{<25><38><75><62>}"),
        (BoxEncoding(scale=1000), "{<250><375><750><625>}"),
        (BoxEncoding(form="square", scale=1), "[0.25, 0.38, 0.75, 0.62]"),
        (BoxEncoding(form="square", scale=1, decimals=4), "[0.2500, 0.3750, 0.7500, 0.6250]"),
    ],
)
def test_written_by_hand(encoding: BoxEncoding, text: str) -> None:
    box = Box(label="lesion", x1=50, y1=25, x2=150, y2=75)
    assert encoding.write(box, WIDE) == text


def test_read_by_hand() -> None:
    text = "ring {<25><25><75><75>}, dark wedge {<0><25><50><50>}."
    ring, wedge = BoxEncoding().read(text, [WIDE])
    # 0.25 of the view is pixel 16; (16 - 0) / 0.32 = 50 and (16 - 16) / 0.32 = 0
    assert (ring.label, ring.x1, ring.y1, ring.x2, ring.y2) == ("ring", 50, 0, 150, 100)
    assert (wedge.label, wedge.x1, wedge.y1, wedge.x2, wedge.y2) == ("dark wedge", 0, 0, 100, 50)


def test_a_marked_name_is_the_label_whatever_stands_before_it() -> None:
    """LiteGPT's answers begin with words of their own (appendix B.1)."""
    told = (
        "Local diseases of this chest radiograph are <p>Aortic enlargement</p> {<10><20><30><40>},"
        "<p>Nodule/Mass</p> {<1><2><3><4>}."
    )
    labels = [box.label for box in BoxEncoding().read(told, [WIDE])]
    assert labels == ["Aortic enlargement", "Nodule/Mass"]


@given(
    encoding=st.sampled_from(ENCODINGS),
    fit=st.sampled_from(["pad", "stretch"]),
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_reading_inverts_writing_up_to_rounding(
    encoding: BoxEncoding,
    fit: Any,
    width: int,
    height: int,
    corners: tuple[float, float, float, float],
) -> None:
    geometry = ImageTransform(size=224, fit=fit).geometry(width, height)
    (x1, x2), (y1, y2) = sorted(corners[:2]), sorted(corners[2:])
    box = Box(label="a", x1=x1 * width, y1=y1 * height, x2=x2 * width, y2=y2 * height)
    seen = geometry.forward_box(box)
    if seen.x1 == seen.x2 or seen.y1 == seen.y2:
        return  # an empty box has no text
    text = encoding.write(box, geometry)
    (again,) = encoding.read(text, [geometry])
    decimals = encoding.decimals or (2 if encoding.scale == 1 else 0)
    step = 0.5 * 10**-decimals / encoding.scale  # in shares of the view
    for name, axis in (("x1", 0), ("x2", 0), ("y1", 1), ("y2", 1)):
        allowed = step * geometry.view[axis] / geometry.scale[axis]
        assert abs(getattr(again, name) - getattr(box, name)) <= allowed * (1 + 1e-6) + 1e-9
    if again.x1 < again.x2 and again.y1 < again.y2:  # else it is thinner than a step of the scale
        assert encoding.write(again, geometry) == text


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("edge", [1, 64])
def test_the_whole_image_is_zero_to_scale(encoding: BoxEncoding, edge: int) -> None:
    whole = Box(label="", x1=-3, y1=-3, x2=edge + 3, y2=edge + 3)
    (again,) = encoding.read(encoding.write(whole, Geometry.identity((edge, edge))), [WIDE])
    assert (again.x1, again.x2) == (0, 200)
    assert encoding.without_boxes("a " + encoding.write(whole, WIDE) + " b") == "a b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no lesion",
        "{<25><38><75>}",
        "{<25><38><75><62><1>}",
        "{25 38 75 62}",
        "{<25><38><75><62>",
        "<25><38><75><62>",
        "{<75><38><25><62>}",
        "{<25><62><75><38>}",
        "{<-1><38><75><62>}",
        "{<25><38><101><62>}",
        "{<25><38><x><62>}",
        "{<><><><>}",
        "{<nan><0><1><1>}",
        "[25, 38, 75, 62]",
    ],
)
def test_malformed_boxes_are_no_boxes(text: str) -> None:
    assert BoxEncoding().read(text, [WIDE]) == []
    good = BoxEncoding().read(f"{text} ring {{<25><38><75><62>}}", [WIDE])
    assert [box.x1 for box in good][-1:] == [50]


def test_square_form_reads_only_squares() -> None:
    encoding = BoxEncoding(form="square", scale=1)
    assert encoding.read("[0.1, 0.2, 0.3]", [WIDE]) == []
    assert encoding.read("[0.1, 0.2, 1.3, 0.4]", [WIDE]) == []
    assert encoding.read("{<0><0><1><1>}", [WIDE]) == []
    assert len(encoding.read("[0.1,0.3,0.3,0.4] and [ 0 , 0 , 1 , 1 ]", [WIDE])) == 2


def test_a_box_outside_the_view_is_an_error() -> None:
    view = ImageTransform(size=64, fit="crop").geometry(200, 100)
    with pytest.raises(PromptError, match="fit: pad"):
        BoxEncoding().write(Box(label="a", x1=0, y1=0, x2=50, y2=100), view)
    # half inside: the part that is seen
    assert (
        BoxEncoding().write(Box(label="a", x1=0, y1=0, x2=100, y2=100), view) == "{<0><0><50><100>}"
    )


IMAGE = ImageRef(uri="a.png")
SIZE = (200, 100)


@pytest.fixture
def row(tiny: ModuleType) -> Conversation:
    asked = Box(label="ring", x1=20, y1=0, x2=60, y2=100)
    answer = Box(label="left ring", x1=20, y1=10, x2=40, y2=30)
    made: Conversation = tiny.conversation(
        "r",
        (IMAGE, "Is the lesion ", asked, " on the left?"),
        ("left ", answer),
        attributes={"side": "left"},
    )
    return made


def test_encoding_and_flip_change_the_text_and_not_the_data(
    tiny: ModuleType, row: Conversation
) -> None:
    """The data are written once; scale, form and mirror image are chosen behind them."""
    words = tiny.tokenizer("bytes", "chatml")
    before = row.to_json()

    def texts(conversation: Conversation, boxes: BoxEncoding) -> tuple[str, str]:
        config = ProcessorConfig(transform=ImageTransform(size=64, fit="stretch"), boxes=boxes)
        token = words.convert_tokens_to_ids(IMAGE_TOKEN)
        processor = Processor(
            config, words, ImageLayouts(image=ImageLayout(rows=1, columns=1)), token
        )
        encoded = processor.encode(conversation, lambda _: SIZE)
        answer = words.decode([i for i in encoded.labels.tolist() if i >= 0])
        question = words.decode(encoded.input_ids[encoded.labels < 0])
        (box,) = processor.read_boxes(answer, conversation, lambda _: SIZE)
        truth = conversation.messages[1].content[1]
        assert isinstance(truth, Box)
        assert [box.x1, box.y1, box.x2, box.y2] == pytest.approx(
            [truth.x1, truth.y1, truth.x2, truth.y2], abs=1.0
        )
        return question.split("user\n")[1].split("<|im_end|>")[0], answer

    flipped = HorizontalFlip().flip_conversation(row, [SIZE])
    small, large = BoxEncoding(scale=100), BoxEncoding(scale=1000)
    assert texts(row, small) == (
        IMAGE_TOKEN + "Is the lesion {<10><0><30><100>} on the left?",
        "left {<10><10><20><30>}<|im_end|>",
    )
    assert texts(row, large) == (
        IMAGE_TOKEN + "Is the lesion {<100><0><300><1000>} on the left?",
        "left {<100><100><200><300>}<|im_end|>",
    )
    assert texts(flipped, small) == (
        IMAGE_TOKEN + "Is the lesion {<70><0><90><100>} on the right?",
        "right {<80><10><90><30>}<|im_end|>",
    )
    assert texts(flipped, BoxEncoding(form="square", scale=1))[1] == (
        "right [0.80, 0.10, 0.90, 0.30]<|im_end|>"
    )
    assert row.to_json() == before
    assert HorizontalFlip().flip_conversation(flipped, [SIZE]) == row


def test_each_box_is_written_in_the_view_of_its_own_image(tiny: ModuleType) -> None:
    words = tiny.tokenizer("bytes", "default")
    first, second = ImageRef(uri="a.png"), ImageRef(uri="b.png")
    row = tiny.conversation(
        "r",
        (first, second, "Compare."),
        (
            Box(label="", x1=0, y1=0, x2=50, y2=50, image=0),
            Box(label="", x1=0, y1=0, x2=50, y2=50, image=1),
        ),
    )
    sizes = {"a.png": (100, 100), "b.png": (50, 100)}
    config = ProcessorConfig(transform=ImageTransform(size=64, fit="stretch"))
    processor = Processor(config, words, ImageLayouts(image=ImageLayout(rows=1, columns=1)), 0)
    text = processor.answer_text(row, lambda ref: sizes[ref.uri])
    assert text == "{<0><0><50><50>}{<0><0><100><50>}"


DEEP = SlicesTransform(
    transform=ImageTransform(size=64, fit="pad"), selection=SliceSelection(count=10)
)


class TestVolumes:
    """Six numbers: a corner, then the other."""

    @pytest.mark.parametrize(
        ("encoding", "text"),
        [
            # x and y as above in `test_written_by_hand`; slices 10 to 30 of 40
            (BoxEncoding(), "{<25><38><25><75><62><75>}"),
            (BoxEncoding(scale=1000), "{<250><375><250><750><625><750>}"),
            (BoxEncoding(form="square", scale=1), "[0.25, 0.38, 0.25, 0.75, 0.62, 0.75]"),
        ],
    )
    def test_written_by_hand(self, encoding: BoxEncoding, text: str) -> None:
        box = Box(label="lesion", x1=50, y1=25, z1=10, x2=150, y2=75, z2=30)
        volume = VolumeTransform(shape=(8, 32, 32)).placement((200, 100, 40))
        assert encoding.write(box, DEEP.placement((200, 100, 40))) == text
        stretched = encoding.write(box, volume)
        z = encoding.read(text, [volume])[0]
        assert (z.z1, z.z2) == (10, 30)
        assert encoding.read(stretched, [volume])[0] == box.model_copy(update={"label": ""})

    @given(
        encoding=st.sampled_from(ENCODINGS),
        transform=st.sampled_from([DEEP, VolumeTransform(shape=(8, 32, 32))]),
        size=st.tuples(st.integers(1, 600), st.integers(1, 600), st.integers(1, 400)),
        corners=st.tuples(*[st.floats(0, 1)] * 6),
    )
    @settings(max_examples=200, deadline=None, derandomize=True)
    def test_reading_inverts_writing_up_to_rounding(
        self, encoding: BoxEncoding, transform: Any, size: Any, corners: tuple[float, ...]
    ) -> None:
        placement = transform.placement(size)
        edges = {}
        for place, (axis, length) in enumerate(zip("xyz", size, strict=True)):
            low, high = sorted(corners[2 * place : 2 * place + 2])
            edges |= {f"{axis}1": low * length, f"{axis}2": high * length}
        box = Box(label="a", **edges)
        seen = placement.forward_box(box)
        if any(getattr(seen, f"{axis}1") >= getattr(seen, f"{axis}2") for axis in "xyz"):
            return  # an empty box has no text
        text = encoding.write(box, placement)
        (again,) = encoding.read(text, [placement])
        decimals = encoding.decimals or (2 if encoding.scale == 1 else 0)
        step = 0.5 * 10**-decimals / encoding.scale  # in shares of the view
        scales = placement.matrix.diagonal()[:3]
        for axis, view, scale in zip("xyz", placement.view, scales, strict=True):
            for edge in "12":
                apart = abs(getattr(again, axis + edge) - getattr(box, axis + edge))
                assert apart <= step * view / scale * (1 + 1e-6) + 1e-6

    def test_a_box_through_all_slices_has_four_numbers(self) -> None:
        placement = DEEP.placement((200, 100, 40))
        flat = Box(label="", x1=50, y1=25, x2=150, y2=75)
        assert BoxEncoding().write(flat, placement) == BoxEncoding().write(flat, WIDE)
        (again,) = BoxEncoding(scale=1, decimals=4).read(
            "{<0.25><0.375><0.75><0.625>}", [placement]
        )
        assert again == flat

    def test_slices_have_no_place_in_a_picture(self) -> None:
        deep = Box(label="lesion", x1=0, y1=0, z1=0, x2=9, y2=9, z2=1)
        with pytest.raises(PromptError, match=r"'lesion' has slices.*kind: volume"):
            BoxEncoding().write(deep, WIDE)
        assert BoxEncoding().read("{<0><0><0><9><9><9>}", [WIDE]) == []

    def test_a_box_beside_the_volume(self) -> None:
        beyond = Box(label="a", x1=0, y1=0, z1=40, x2=9, y2=9, z2=41)
        with pytest.raises(PromptError, match="outside the part"):
            BoxEncoding().write(beyond, DEEP.placement((200, 100, 40)))

    @pytest.mark.parametrize(
        "text", ["{<0><0><50><9><9><20>}", "{<0><0><0><9><9>}", "{<0><0><0><9><9><101>}"]
    )
    def test_malformed_boxes_are_no_boxes(self, text: str) -> None:
        assert BoxEncoding().read(text, [DEEP.placement((200, 100, 40))]) == []

    def test_a_box_goes_to_the_last_image_of_its_kind(self) -> None:
        deep = DEEP.placement((200, 100, 40))
        text = "a {<0><0><0><9><9><9>} b {<0><0><9><9>}"

        def owners(*placements: Any) -> list[int]:
            return [box.image for box in BoxEncoding().read(text, placements)]

        assert owners(WIDE, deep) == [1, 0]
        assert owners(deep, WIDE, deep, WIDE) == [2, 3]
        assert owners(WIDE) == [0]  # the first is no box of a picture
        assert owners(deep) == [0, 0]  # the second goes through all slices
        assert owners() == []
