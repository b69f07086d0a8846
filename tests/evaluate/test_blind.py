"""Another patient's image of the same kind, and the answer that needs no image."""

from __future__ import annotations

from collections.abc import Callable

from medloupe.evaluate.majority import MajorityAnswers
from medloupe.evaluate.probes.swapped import swap_images
from medloupe.types import Conversation, ImageRef, Text

Ask = Callable[..., Conversation]


def ref(patient: int, name: str = "a", modality: str = "MR") -> ImageRef:
    return ImageRef(uri=f"{patient}/{name}.png", modality=modality)


def rows(ask: Ask, per_patient: list[int]) -> list[Conversation]:
    """Patient k has `per_patient[k]` images, each asked twice."""
    return [
        ask(f"{k}-{n}-{q}", [ref(k, str(n))], "?", Text(text="x"), patient_id=f"p{k}")
        for k, images in enumerate(per_patient)
        for n in range(images)
        for q in range(2)
    ]


def donors(asked: list[Conversation], seed: int = 0) -> dict[str, str]:
    """Own uri -> the uri shown instead."""
    pairs = zip(asked, swap_images(asked, seed=seed), strict=True)
    return {own.images[0].uri: new.images[0].uri for own, new in pairs if new is not None}


def test_every_image_is_shown_once_and_never_to_its_own_patient(ask: Ask) -> None:
    asked = rows(ask, [1, 3, 2, 2, 1])
    found = donors(asked)
    assert sorted(found.values()) == sorted(found)  # a permutation: the images stay the same
    assert all(own.split("/")[0] != new.split("/")[0] for own, new in found.items())


def test_questions_about_one_image_share_the_new_one_and_keep_everything_else(ask: Ask) -> None:
    asked = rows(ask, [1, 1, 1])
    for own, new in zip(asked, swap_images(asked, seed=3), strict=True):
        assert new is not None
        assert new.model_copy(update={"messages": own.messages}) == own
        assert new.question == own.question
        assert donors(asked, 3)[own.images[0].uri] == new.images[0].uri


def test_the_order_of_rows_does_not_matter_and_the_seed_does(ask: Ask) -> None:
    asked = rows(ask, [1] * 12)
    assert donors(asked) == donors(asked[::-1])
    assert donors(asked) != donors(asked, seed=1)


def test_a_patient_with_most_of_the_images_still_gets_others(ask: Ask) -> None:
    found = donors(rows(ask, [6, 1, 1]))
    assert len(found) == 8
    assert all(own.split("/")[0] != new.split("/")[0] for own, new in found.items())


def test_only_the_same_kind_and_number_of_images_will_do(ask: Ask) -> None:
    x = Text(text="x")
    asked = [
        ask("mr0", [ref(0)], "?", x, patient_id="p0"),
        ask("mr1", [ref(1)], "?", x, patient_id="p1"),
        ask("ct2", [ref(2, modality="CT")], "?", x, patient_id="p2"),
        ask("pair3", [ref(3, "a"), ref(3, "b")], "?", x, patient_id="p3"),
        ask("pair4", [ref(4, "a"), ref(4, "b")], "?", x, patient_id="p4"),
        ask("text5", [], "?", x, patient_id="p5"),
    ]
    found = swap_images(asked, seed=0)
    shown = [None if row is None else [image.uri for image in row.images] for row in found]
    assert shown == [
        ["1/a.png"], ["0/a.png"], None, ["4/a.png", "4/b.png"], ["3/a.png", "3/b.png"], None,
    ]  # fmt: skip


def test_without_patient_ids_every_image_is_its_own_patient(ask: Ask) -> None:
    asked = [ask(str(k), [ref(k)], "?", Text(text="x")) for k in range(3)]
    found = donors(asked)
    assert len(found) == 3
    assert all(own != new for own, new in found.items())


def test_the_most_frequent_answer_per_template_then_per_task(ask: Ask) -> None:
    def train(question: str, answer: str, task: str = "side") -> Conversation:
        return ask(f"{question}{answer}", [], question, Text(text=answer), task=task)

    majority = MajorityAnswers(
        [
            *[train("Which side?", "left")] * 2,
            train("Which side?", "right"),
            *[train("Where?", "right")] * 4,
            train("Tie?", "b", "tie"),
            train("Tie?", "a", "tie"),
        ]
    )
    assert majority.answer(train("Which side?", "?")) == "left"
    assert majority.answer(train("Where?", "?")) == "right"
    assert majority.answer(train("A new wording?", "?")) == "right"  # 5 right, 2 left in the task
    assert majority.answer(train("Tie?", "?", "tie")) == "a"
    assert majority.answer(train("Which side?", "?", "a new task")) is None
