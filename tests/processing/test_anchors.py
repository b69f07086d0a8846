"""Where questions are read: the same place in training and at inference, for every prompt format."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from medloupe.imaging.transforms import ImageTransform
from medloupe.models.vlm import IMAGE_TOKEN
from medloupe.processing import Processor, ProcessorConfig, collate, pack_branches
from medloupe.processing.formats import FORMATS
from medloupe.processing.packing import Budget, Cost
from medloupe.processing.processor import _last_shared
from medloupe.types import Conversation, ImageLayout, ImageLayouts, ImageRef, Message, Text

TOKENS = 4
TEMPLATES = ("chatml", "llama2", "llama3", "mistral", "thinking", "default")
KINDS = ("bytes", "metaspace", "legacy")
ONE_CAPTION = [name for name, form in FORMATS.items() if form.images == "only"]


def processor(tiny: ModuleType, kind: str, template: str, prompt: str, **fields: Any) -> Processor:
    words = tiny.tokenizer(kind, template)
    layouts = ImageLayouts(image=ImageLayout(rows=2, columns=2))
    config = ProcessorConfig(transform=ImageTransform(size=32), prompt=prompt, **fields)
    return Processor(config, words, layouts, words.convert_tokens_to_ids(IMAGE_TOKEN))


def encode(made: Processor, conversation: Conversation) -> Any:
    return made.encode(conversation, lambda _: (32, 32))


def image(number: int) -> ImageRef:
    return ImageRef(uri=f"{number}.png")


def text_of(made: Processor, tokens: torch.Tensor) -> str:
    return str(made.tokenizer.decode(tokens[tokens != made.image_token_id].tolist()))


FORMS = [(template, "template") for template in TEMPLATES]
FORMS += [("chatml", name) for name in FORMATS if name not in ("template", *ONE_CAPTION)]
every_form = pytest.mark.parametrize(("template", "prompt"), FORMS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def talk(tiny: ModuleType) -> Conversation:
    made: Conversation = tiny.conversation(
        "talk",
        (image(0), "Which side is the lesion on?"),
        ("left",),
        ("Is there a ring lesion?",),
        ("no",),
        (image(1), image(2), "What changed since?"),
        ("a dark wedge",),
    )
    return made


@every_kind
@every_form
def test_training_and_inference_read_questions_at_one_place(
    tiny: ModuleType, kind: str, template: str, prompt: str
) -> None:
    """The history, cut before any of its answers, ends where that turn's images are anchored."""
    made = processor(tiny, kind, template, prompt)
    whole = talk(tiny)
    row = encode(made, whole)
    assert row.anchors.dtype is torch.int64
    assert row.anchors.shape == (3, 2)
    for turns, images in ((1, [0]), (5, [0, 1, 2])):
        cut = whole.model_copy(update={"messages": whole.messages[:turns]})
        asked = encode(made, cut)
        length = len(asked.input_ids)
        if template == "thinking" and prompt == "template":
            # this template writes a thought before the last answer alone, so earlier turns differ
            assert int(asked.anchors[-1, 0]) == length - 1
            continue
        assert torch.equal(row.input_ids[:length], asked.input_ids)
        assert torch.equal(row.anchors[images], asked.anchors)
        assert asked.anchors[-1, 0] == length - 1


@every_kind
@every_form
def test_the_prompts_anchor_predicts_the_answers_first_token(
    tiny: ModuleType, kind: str, template: str, prompt: str
) -> None:
    row = encode(processor(tiny, kind, template, prompt), talk(tiny))
    learned = (row.labels >= 0).nonzero().flatten().tolist()
    starts = [place for place in learned if place - 1 not in learned]
    assert row.anchors[:, 0].tolist() == [starts[0] - 1, starts[2] - 1, starts[2] - 1]
    assert bool((row.labels[row.anchors] < 0).all())


@every_kind
@every_form
def test_the_users_anchor_ends_the_users_text(
    tiny: ModuleType, kind: str, template: str, prompt: str
) -> None:
    made = processor(tiny, kind, template, prompt)
    row = encode(made, talk(tiny))
    for anchor, said in zip(row.anchors[:, 1].tolist(), ["on?", "since?", "since?"], strict=True):
        assert text_of(made, row.input_ids[: anchor + 1]).rstrip().endswith(said)
        assert not text_of(made, row.input_ids[:anchor]).rstrip().endswith(said)
    assert bool((row.anchors[:, 1] <= row.anchors[:, 0]).all())


@pytest.mark.parametrize("prompt", ONE_CAPTION)
def test_where_the_question_is_dropped_it_ends_with_the_image(
    tiny: ModuleType, prompt: str
) -> None:
    made = processor(tiny, "bytes", "chatml", prompt)
    row = encode(made, tiny.conversation("c", (image(0), "Describe."), ("A ring lesion.",)))
    last = int((row.input_ids == made.image_token_id).nonzero()[-1])
    assert row.anchors.tolist() == [[int((row.labels >= 0).nonzero()[0]) - 1, last]]
    bare = encode(made, tiny.conversation("c", (image(0), "Describe.")))
    assert torch.equal(bare.anchors, row.anchors)


def test_text_before_and_between_images_and_none_at_all(tiny: ModuleType) -> None:
    made = processor(tiny, "bytes", "chatml", "template", system="Say little.")
    between = encode(made, tiny.conversation("c", ("Compare ", image(0), " with ", image(1))))
    places = (between.input_ids == made.image_token_id).nonzero().flatten().tolist()
    assert between.anchors[:, 0].tolist() == [len(between.input_ids) - 1] * 2
    for anchor in between.anchors[:, 1].tolist():
        assert text_of(made, between.input_ids[: anchor + 1]).rstrip().endswith("with")
        assert places[TOKENS - 1] < anchor < places[TOKENS]
    alone = encode(made, tiny.conversation("c", (image(0),)))
    assert alone.anchors[0, 1] == (alone.input_ids == made.image_token_id).nonzero()[-1]
    assert encode(made, tiny.conversation("c", ("Hello?",), ("no",))).anchors.shape == (0, 2)


def test_an_image_in_the_system_message_waits_for_the_first_question(tiny: ModuleType) -> None:
    made = processor(tiny, "bytes", "chatml", "template")
    system = Message(role="system", content=(Text(text="An atlas: "), image(0)))
    asked = tiny.conversation("c", ("Which side?",), ("left",), ("And now?",))
    row = encode(made, asked.model_copy(update={"messages": (system, *asked.messages)}))
    assert row.anchors[0, 0] == (row.labels >= 0).nonzero()[0] - 1


def test_batches_carry_anchors_row_after_row(tiny: ModuleType) -> None:
    made = processor(tiny, "bytes", "chatml", "template")
    rows = [
        encode(made, talk(tiny)),
        encode(made, tiny.conversation("t", ("Side?",), ("left",))),
        encode(made, tiny.conversation("o", (image(3), "Side?"), ("left",))),
    ]
    batch = collate(rows, pad_id=0)
    assert batch.anchors is not None
    assert torch.equal(batch.anchors, torch.cat([rows[0].anchors, rows[2].anchors]))


def test_packed_rows_keep_those_of_their_first_branch(tiny: ModuleType) -> None:
    made = processor(tiny, "bytes", "chatml", "template")
    rows = [
        encode(made, tiny.conversation(name, (image(0), name), ("left",)))
        for name in ("Which side?", "Side, please?")
    ]
    (packed,) = pack_branches(
        rows,
        image_token_id=made.image_token_id,
        cost_of=lambda _: Cost(image_tokens=TOKENS),
        budget=Budget(),
    )
    assert torch.equal(packed.anchors, rows[0].anchors)
    first = int(packed.anchors[0, 0])
    assert packed.segments[first] == 1
    assert torch.equal(packed.input_ids[: first + 1], rows[0].input_ids[: first + 1])


@pytest.mark.parametrize(
    ("alone", "whole", "place"),
    [
        ([1, 2, 3], [1, 2, 3, 4], 2),  # the text ends where a token does
        ([1, 2, 3], [1, 2, 34], 2),  # its last token grew into what follows
        ([1, 2, 3, 4], [1, 2, 345, 6], 2),  # its last two became one
        ([1, 2], [1], 0),
    ],
)
def test_a_token_that_reaches_over_the_end_of_the_text_holds_it(
    alone: list[int], whole: list[int], place: int
) -> None:
    assert _last_shared(alone, whole) == place
