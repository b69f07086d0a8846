from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medloupe.errors import ConfigError
from medloupe.processing import collate, pack_branches
from medloupe.processing.packing import Budget, Cost, row_cost
from medloupe.types import ImageInput, ImageRef, ModelInput

IMAGE = 9  # the image token
A, B, C = (ImageRef(uri=f"{name}.png") for name in "abc")
SCAN = ImageRef(uri="scan.nii.gz", kind="volume")


def cost_of(image: ImageRef) -> Cost:
    """Two tokens an image, three a volume of five slices."""
    if image.kind == "volume":
        return Cost(image_tokens=3, passes=5, voxels=500)
    return Cost(image_tokens=2, passes=1, voxels=10)


def talk(name: str, *pieces: ImageRef | int | list[int], anchors: bool = False) -> ModelInput:
    """Numbers are prompt tokens, lists are answers, images stand where they are given."""
    ids: list[int] = []
    labels: list[int] = []
    images: list[ImageRef] = []
    for piece in pieces:
        if isinstance(piece, list):
            new, learned = piece, piece
        else:
            new = [piece] if isinstance(piece, int) else [IMAGE] * cost_of(piece).image_tokens
            learned = [-100] * len(new)
            images += [] if isinstance(piece, int) else [piece]
        ids, labels = ids + new, labels + learned
    ends = [[place, place] for place in range(len(ids) - len(images), len(ids))]
    return ModelInput(
        ids=(name,),
        input_ids=torch.tensor(ids),
        labels=torch.tensor(labels),
        position_ids=torch.arange(len(ids)),
        segments=torch.zeros(len(ids), dtype=torch.long),
        images=tuple(images),
        anchors=torch.tensor(ends, dtype=torch.long).view(-1, 2) if anchors else None,
    )


def packed(*rows: ModelInput, **limits: int) -> list[ModelInput]:
    return pack_branches(rows, image_token_id=IMAGE, cost_of=cost_of, budget=Budget(**limits))


def ids(rows: Sequence[ModelInput]) -> list[tuple[str, ...]]:
    return [row.ids for row in rows]


def test_branches_by_hand() -> None:
    """System word 1, image, shared instruction 5, and what differs."""
    (one,) = packed(
        talk("x", 1, A, 5, 2, [3, 4]), talk("y", 1, A, 5, 6, 2, [7]), talk("z", 1, A, 5, 8, [4])
    )
    assert one.ids == ("x", "y", "z")
    assert one.input_ids.tolist() == [1, IMAGE, IMAGE, 5, 2, 3, 4, 6, 2, 7, 8, 4]
    assert one.labels.tolist() == [-100] * 5 + [3, 4] + [-100] * 2 + [7, -100, 4]
    assert one.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 4, 5]
    assert one.segments.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert one.images == (A,)


def test_each_branch_keeps_the_token_that_predicts_its_first_label() -> None:
    """One question with several answers: all but the last token before these is shared."""
    (one,) = packed(talk("x", 1, A, 5, 6, [3]), talk("y", 1, A, 5, 6, [3, 4]))
    assert one.input_ids.tolist() == [1, IMAGE, IMAGE, 5, 6, 3, 6, 3, 4]
    assert one.segments.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert one.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6]


def test_an_answer_right_behind_the_image_leaves_nothing_to_share() -> None:
    rows = [talk("x", 1, A, [3]), talk("y", 1, A, [4])]
    assert ids(packed(*rows)) == [("x",), ("y",)]


def test_turns_stay_together_in_a_branch() -> None:
    (one,) = packed(talk("x", 1, A, 2, [3], 4, [5, 6]), talk("y", 1, A, 7, [3]))
    assert one.input_ids.tolist() == [1, IMAGE, IMAGE, 2, 3, 4, 5, 6, 7, 3]
    assert one.labels.tolist() == [-100] * 4 + [3, -100, 5, 6, -100, 3]
    assert one.segments.tolist() == [0] * 3 + [1] * 5 + [2] * 2


def test_a_common_first_answer_is_not_shared() -> None:
    """It is learned in both conversations, so it counts twice."""
    (one,) = packed(talk("x", 1, A, 2, [3], 4, [5]), talk("y", 1, A, 2, [3], 6, [7]))
    assert one.segments.tolist() == [0] * 3 + [1] * 4 + [2] * 4
    assert int((one.labels >= 0).sum()) == 4


def test_rows_that_do_not_share_a_prefix_stay_apart() -> None:
    rows = (
        talk("a", 1, A, 2, [3]),
        talk("other image", 1, B, 2, [3]),
        talk("other words", 7, A, 2, [3]),
        talk("text", 1, 2, [3]),
        talk("same text", 1, 2, [3]),
        talk("a again", 1, A, 5, [3]),
    )
    found = packed(*rows)
    assert ids(found) == [
        ("a", "a again"), ("other image",), ("other words",), ("text",), ("same text",)
    ]  # fmt: skip
    assert found[1:] == [rows[1], rows[2], rows[3], rows[4]]


def test_as_many_images_as_are_the_same() -> None:
    """A study and its priors: both priors where they are common, else the study alone."""
    rows = (
        talk("ab", 1, A, B, 2, [3]),
        talk("ac", 1, A, C, 2, [3]),
        talk("a", 1, A, 2, [3]),
        talk("ab again", 1, A, B, 4, [3]),
        talk("ba", 1, B, A, 2, [3]),
    )
    found = packed(*rows)
    assert ids(found) == [("ab", "ab again"), ("ac", "a"), ("ba",)]
    both, one, _ = found
    assert both.images == (A, B)
    assert both.segments.tolist() == [0] * 5 + [1, 1, 2, 2]
    assert one.images == (A, C)
    assert one.input_ids.tolist() == [1, IMAGE, IMAGE, IMAGE, IMAGE, 2, 3, 2, 3]
    assert one.segments.tolist() == [0] * 3 + [1] * 4 + [2] * 2
    assert one.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4]


def test_placeholders_of_different_images_are_not_taken_for_the_same_text() -> None:
    (one,) = packed(talk("x", 1, A, 5, B, 2, [3]), talk("y", 1, A, 5, C, 2, [3]))
    assert one.images == (A, B, C)
    assert one.segments.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_an_image_behind_an_answer_stays_in_its_branch() -> None:
    rows = [talk("x", 1, A, 2, [3], B, 4, [5]), talk("y", 1, A, 6, [3])]
    (one,) = packed(*rows)
    assert one.images == (A, B)
    assert one.segments.tolist() == [0] * 3 + [1] * 6 + [2] * 2
    late = talk("z", 1, 2, [3], A, 4, [5])
    assert packed(late, late) == [late, late]


def test_anchors_follow_the_images() -> None:
    """Rows end in the anchors of their images, one token each."""
    rows = [
        talk("x", 1, A, 5, [3], anchors=True),
        talk("y", 1, A, 6, B, 2, [3, 4], anchors=True),
        talk("z", 1, A, 7, C, [3, 4], anchors=True),
    ]
    (one,) = packed(*rows)
    assert one.images == (A, B, C)
    assert one.input_ids.tolist() == [1, 9, 9, 5, 3, 6, 9, 9, 2, 3, 4, 7, 9, 9, 3, 4]
    # of A where the first row has it, of the others at the end of their branches
    assert one.anchors is not None
    assert one.anchors[:, 0].tolist() == [4, 10, 15]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, [4]),
        ({"text_tokens": 9}, [4]),  # one of the prefix, two of each branch
        ({"text_tokens": 8}, [3, 1]),
        ({"text_tokens": 5}, [2, 2]),
        ({"text_tokens": 4}, [1] * 4),
        ({"text_tokens": 1}, [1] * 4),
        ({"image_tokens": 2, "passes": 1, "voxels": 10}, [4]),  # the image is there once
        ({"image_tokens": 1}, [1] * 4),
        ({"voxels": 9}, [1] * 4),
    ],
)
def test_a_packed_row_keeps_the_budget(limits: dict[str, int], expected: list[int]) -> None:
    rows = [talk(str(n), 1, A, n, [3]) for n in range(4)]
    found = packed(*rows, **limits)
    assert [len(row.ids) for row in found] == expected
    assert [name for row in found for name in row.ids] == ["0", "1", "2", "3"]
    costs = [row_cost(row, image_token_id=IMAGE, cost_of=cost_of) for row in found]
    budget = Budget(**limits)
    assert all(budget.holds(c) for c, row in zip(costs, found, strict=True) if len(row.ids) > 1)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"image_tokens": 12}, [3]),
        ({"image_tokens": 8}, [2, 1]),
        ({"passes": 11}, [2, 1]),
        ({"voxels": 1010}, [2, 1]),
        ({"voxels": 1009}, [1, 1, 1]),
    ],
)
def test_images_of_branches_count(limits: dict[str, int], expected: list[int]) -> None:
    """Two tokens and a unit of the shared image, three and five of each volume."""
    rows = [
        talk(str(n), 1, A, ImageRef(uri=f"{n}.nii.gz", kind="volume"), 5, [3]) for n in range(3)
    ]
    assert [len(row.ids) for row in packed(*rows, **limits)] == expected


def test_what_a_row_costs() -> None:
    row = talk("x", 1, A, SCAN, 5, A, [3, 4])
    cost = row_cost(row, image_token_id=IMAGE, cost_of=cost_of)
    assert cost == Cost(text_tokens=4, image_tokens=7, passes=7, voxels=520)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="text_tokens"):
        Budget.parse({"text_tokens": 0})


pieces = st.lists(
    st.one_of(
        st.sampled_from([A, B]), st.integers(1, 3), st.lists(st.integers(4, 6), min_size=1, max_size=2)
    ),
    min_size=1,
    max_size=6,
)  # fmt: skip


@given(st.lists(pieces, min_size=1, max_size=6), st.integers(3, 20))
@settings(max_examples=200, deadline=None)
def test_every_row_can_be_read_back(
    rows: list[list[ImageRef | int | list[int]]], limit: int
) -> None:
    """Prefix and branch k are the row again: tokens, labels, positions, images."""
    given_rows = [talk(str(n), 1, *row) for n, row in enumerate(rows)]
    found = packed(*given_rows, text_tokens=limit)
    again = {}
    for row in found:
        counts = [cost_of(image).image_tokens for image in row.images]
        starts = list(accumulate(counts, initial=0))[:-1]
        places = (row.input_ids == IMAGE).nonzero().flatten()[starts].tolist()
        assert len(row.ids) == max(int(row.segments.max()), 1)
        for number, name in enumerate(row.ids, start=int(len(row.ids) > 1)):
            seen = (row.segments == 0) | (row.segments == number)
            images = tuple(i for i, at in zip(row.images, places, strict=True) if seen[at])
            again[name] = (row.input_ids[seen], row.labels[seen], row.position_ids[seen], images)
            own = row.labels[row.segments == number]
            assert len(row.ids) == 1 or (int(own[0]) == -100 and len(own) > 0)
    for row in given_rows:
        tokens, labels, positions, images = again[row.ids[0]]
        assert tokens.tolist() == row.input_ids.tolist()
        assert labels.tolist() == row.labels.tolist()
        assert positions.tolist() == list(range(len(tokens)))
        assert images == row.images


def test_collate_pads_on_the_right() -> None:
    long, short = talk("x", 1, A, 2, [3]), talk("y", 5, [6])
    image = ImageInput(views=torch.zeros(3, 2, 2))
    batch = collate([long, short], pad_id=0, images=[image])
    assert batch.ids == ("x", "y")
    assert batch.input_ids.tolist() == [[1, IMAGE, IMAGE, 2, 3], [5, 6, 0, 0, 0]]
    assert batch.labels.tolist() == [[-100] * 4 + [3], [-100, 6, -100, -100, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 0, 0]]
    assert batch.segments.tolist() == [[0] * 5, [0, 0, -1, -1, -1]]
    assert batch.images == (image,)
    assert batch.anchors is None


def test_rows_one_after_another() -> None:
    (branches,) = packed(
        talk("x", 1, A, 2, [3], anchors=True), talk("y", 1, A, 4, [3], anchors=True)
    )
    odd = talk("z", [7], B, 5, [6], anchors=True)  # nothing predicts its first token
    batch = collate([branches, odd], pad_id=0, joined=True)
    assert batch.ids == ("x", "y", "z")
    assert batch.input_ids.tolist() == [[1, 9, 9, 2, 3, 4, 3, 7, 9, 9, 5, 6]]
    assert batch.labels.tolist() == [[-100] * 4 + [3, -100, 3] + [-100] * 4 + [6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 0, 1, 2, 3, 4]]
    assert batch.segments.tolist() == [[0] * 3 + [1, 1, 2, 2] + [0] * 5]
    assert batch.anchors is not None
    assert batch.anchors[:, 0].tolist() == [4, 11]
