from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from medloupe.processing import collate, pack_branches
from medloupe.types import ImageInput, ImageRef, ModelInput

IMAGE = 9  # the image token
A, B = ImageRef(uri="a.png"), ImageRef(uri="b.png")


def row(
    name: str, prompt: list[int], answer: list[int], images: tuple[ImageRef, ...] = (A,)
) -> ModelInput:
    ids = prompt + answer
    return ModelInput(
        ids=(name,),
        input_ids=torch.tensor(ids),
        labels=torch.tensor([-100] * len(prompt) + answer),
        position_ids=torch.arange(len(ids)),
        segments=torch.zeros(len(ids), dtype=torch.long),
        images=images,
    )


def packed(*rows: ModelInput, limit: int = 100) -> list[ModelInput]:
    return pack_branches(rows, image_token_id=IMAGE, max_tokens=limit)


def test_branches_by_hand() -> None:
    rows = (
        row("x", [1, IMAGE, IMAGE, 2], [3, 4]),
        row("y", [1, IMAGE, IMAGE, 5, 6], [7]),
        row("z", [1, IMAGE, IMAGE, 8], [4]),
    )
    (one,) = packed(*rows)
    assert one.ids == ("x", "y", "z")
    assert one.input_ids.tolist() == [1, IMAGE, IMAGE, 2, 3, 4, 5, 6, 7, 8, 4]
    assert one.labels.tolist() == [-100] * 4 + [3, 4] + [-100] * 2 + [7, -100, 4]
    assert one.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4]
    assert one.segments.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert one.images == (A,)


def test_rows_that_do_not_share_a_prefix_stay_apart() -> None:
    rows = (
        row("a", [1, IMAGE, 2], [3]),
        row("other image", [1, IMAGE, 2], [3], (B,)),
        row("other words", [7, IMAGE, 2], [3]),
        row("two images", [1, IMAGE, IMAGE, 2], [3], (A, B)),
        row("swapped", [1, IMAGE, IMAGE, 2], [3], (B, A)),
        row("text", [1, 2], [3], ()),
        row("same text", [1, 2], [3], ()),
        row("a again", [1, IMAGE, 5], [3]),
    )
    found = packed(*rows)
    assert [r.ids for r in found] == [
        ("a", "a again"),
        ("other image",),
        ("other words",),
        ("two images",),
        ("swapped",),
        ("text",),
        ("same text",),
    ]
    for single in found[1:]:
        original = next(r for r in rows if r.ids == single.ids)
        assert single.input_ids.tolist() == original.input_ids.tolist()
        assert set(single.segments.tolist()) == {0}


def test_an_image_behind_an_answer_is_no_prefix() -> None:
    first = row("x", [1, 2], [3])
    talk = ModelInput(
        ids=("y",),
        input_ids=torch.tensor([1, IMAGE, 2, 3, IMAGE, 4]),
        labels=torch.tensor([-100, -100, -100, 3, -100, 4]),
        position_ids=torch.arange(6),
        segments=torch.zeros(6, dtype=torch.long),
        images=(A, B),
    )
    assert [r.ids for r in packed(talk, talk, first)] == [("y",), ("y",), ("x",)]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(100, [4]), (10, [4]), (9, [3, 1]), (8, [3, 1]), (6, [2, 2]), (5, [1] * 4), (1, [1] * 4)],
)
def test_a_packed_row_keeps_the_limit(limit: int, expected: list[int]) -> None:
    rows = [row(str(n), [1, IMAGE, n], [3]) for n in range(4)]  # prefix 2, branches of 2
    found = packed(*rows, limit=limit)
    assert [len(r.ids) for r in found] == expected
    assert all(len(r.input_ids) <= limit for r in found if len(r.ids) > 1)
    assert [name for r in found for name in r.ids] == ["0", "1", "2", "3"]


def test_collate_pads_on_the_right() -> None:
    long, short = row("x", [1, IMAGE, 2], [3]), row("y", [5], [6], ())
    image = ImageInput(views=torch.zeros(3, 2, 2))
    batch = collate([long, short], pad_id=0, images=[image])
    assert batch.ids == ("x", "y")
    assert batch.input_ids.tolist() == [[1, IMAGE, 2, 3], [5, 6, 0, 0]]
    assert batch.labels.tolist() == [[-100, -100, -100, 3], [-100, 6, -100, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert batch.segments.tolist() == [[0] * 4, [0, 0, -1, -1]]
    assert batch.images == (image,)


def test_packed_loss_and_gradient_equal_the_separate_rows(tiny: ModuleType, tmp_path: Any) -> None:
    lab = tiny.Lab.create(tmp_path)
    vlm = lab.model()
    context = lab.context(vlm)
    rows = [
        context.processor.encode(c, context.images.size_of) for c in lab.dataset.conversations[:6]
    ] + [context.processor.encode(lab.dataset.conversations[-1], context.images.size_of)]
    together = pack_branches(rows, image_token_id=vlm.config.image_token_id, max_tokens=400)
    assert [len(r.ids) for r in together] == [3, 3, 1]

    def gradients(batches: list[list[ModelInput]]) -> tuple[float, int, dict[str, torch.Tensor]]:
        vlm.zero_grad()
        total, count = 0.0, 0
        for chosen in batches:
            images = context.images.inputs([i for r in chosen for i in r.images])
            batch = collate(chosen, pad_id=0, images=images)
            tokens = vlm.image_tokens(batch.images)
            loss, counted = vlm.label_loss(
                batch.input_ids, batch.labels, batch.position_ids, batch.segments, tokens
            )
            loss.backward()
            total, count = total + float(loss.detach()), count + counted
        named = {n: p.grad.clone() for n, p in vlm.named_parameters() if p.grad is not None}
        return total, count, named

    loss, count, separate = gradients([[r] for r in rows])
    packed_loss, packed_count, packed_gradients = gradients([together])
    assert count == packed_count > 20
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert packed_gradients.keys() == separate.keys()
    largest = max(float(g.abs().max()) for g in separate.values())
    for name, gradient in separate.items():
        # measured: 1e-6 of the largest gradient of the parameter; 16 times that is allowed
        scale = float(gradient.abs().max()) + 1e-3 * largest
        assert float((packed_gradients[name] - gradient).abs().max()) < 1e-4 * scale, name
