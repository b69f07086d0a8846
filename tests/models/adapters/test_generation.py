"""An adapter acts while images are read, with each row's own offset and question, and then rests."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medloupe.generate import GenerateConfig, Predictor

TOKENS = 10


def predictor(lab: Any, **fields: Any) -> Predictor:
    fields = {"precision": "fp32", "max_new_tokens": TOKENS} | fields
    return Predictor(lab.model, lab.processor, lab.images, GenerateConfig(**fields))


def by_transformers(lab: Any, conversation: Any, *, use_cache: bool = True) -> tuple[int, ...]:
    """transformers' own greedy generate, one prompt at a time."""
    prompt = lab.processor.encode(conversation.without_answer(), lab.images.size_of)
    whole = lab.model.generate(
        input_ids=prompt.input_ids[None],
        attention_mask=torch.ones_like(prompt.input_ids)[None],
        images=lab.images.inputs(prompt.images),
        anchors=prompt.anchors,
        do_sample=False,
        use_cache=use_cache,
        max_new_tokens=TOKENS,
        eos_token_id=list(lab.processor.end_token_ids),
        pad_token_id=0,
    )
    return tuple(whole[0, len(prompt.input_ids) :].tolist())


def without_cache(lab: Any, conversation: Any) -> tuple[int, ...]:
    """The whole text is read again for every token; anchors stay where the questions end."""
    prompt = lab.processor.encode(conversation.without_answer(), lab.images.size_of)
    ids = prompt.input_ids
    for _ in range(TOKENS):
        with torch.no_grad():
            logits = lab.model(
                input_ids=ids[None],
                images=lab.images.inputs(prompt.images),
                anchors=prompt.anchors,
            ).logits
        ids = torch.cat([ids, logits[0, -1:].argmax(-1)])
        if int(ids[-1]) in lab.processor.end_token_ids:
            break
    return tuple(ids[len(prompt.input_ids) :].tolist())


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {}),
        ("llama", {"anchor": "user"}),
        ("llama", {"instruction_aware": False}),
        ("qwen2", {}),
        ("gpt2", {}),
        ("gpt_neox", {}),
    ],
)
def test_batched_cached_alone_and_without_a_cache(
    kit, make_lab, mixed, family: str, fields: dict[str, Any]
) -> None:
    lab = make_lab(kit.hia(**fields), family)
    truth = [without_cache(lab, row) for row in mixed]
    assert len(set(truth)) >= len(truth) - 2  # prompts that answer alike would prove little
    assert [by_transformers(lab, row) for row in mixed] == truth
    for batch_size in (32, 2, 1):
        said = predictor(lab, batch_size=batch_size)(mixed)
        assert [one.token_ids for one in said] == truth
    bare = make_lab(None, family)
    assert [one.token_ids for one in predictor(bare)(mixed)] != truth


@pytest.mark.parametrize("aware", [True, False])
def test_two_questions_in_both_orders(kit, make_lab, talk, aware: bool) -> None:
    """About one image: only where no question reaches the image may they share its tokens."""
    lab = make_lab(kit.hia(instruction_aware=aware))
    rows = [talk([0, "Side?"], name="a"), talk([0, "Is there a ring lesion?"], name="b")]
    predict = predictor(lab)
    prompts = lab.rows(*rows)
    groups = [group for batch in predict._plan(prompts) for group in batch]
    assert [bool(group.prefix) for group in groups] == ([False] * 2 if aware else [True])
    first, second = predict(rows)
    again = predict(rows[::-1])
    assert [one.token_ids for one in again] == [second.token_ids, first.token_ids]
    assert [one.token_ids for one in (first, second)] == [without_cache(lab, r) for r in rows]


def test_prompts_that_end_with_their_image_share_nothing(kit, make_lab, talk) -> None:
    """Else the image's last token would be read apart from the others."""
    lab = make_lab(kit.hia(instruction_aware=False), prompt="plain")
    rows = [talk([0, "Describe."], name="a"), talk([0, "Describe."], name="b")]
    assert [one.token_ids for one in predictor(lab)(rows)] == [without_cache(lab, r) for r in rows]


def test_no_cache_in_transformers_forgets_no_anchor(kit, make_lab, mixed) -> None:
    """transformers hands images over once; without a cache its later steps would read none."""
    lab = make_lab(kit.hia())
    assert by_transformers(lab, mixed[0], use_cache=False) == without_cache(lab, mixed[0])


def test_images_are_read_once_for_several_batches(
    kit, make_lab, mixed, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(kit.hia())
    seen: list[int] = []
    details = type(lab.model).details
    monkeypatch.setattr(
        type(lab.model),
        "details",
        lambda self, images: seen.append(len(images)) or details(self, images),
    )
    predictor(lab, batch_size=1)(mixed)
    assert sum(seen) <= 8  # 4 pictures; one is let go of when no later batch seems to need it
    assert lab.model.adapter._acting is None


def test_in_bfloat16_answers_stay_close(kit, make_lab, mixed) -> None:
    lab = make_lab(kit.hia())
    exact, rough = predictor(lab)(mixed), predictor(lab, precision="bf16")(mixed)
    first = [(a.log_probs[0], b.log_probs[0]) for a, b in zip(exact, rough, strict=True)]
    assert max(abs(a - b) for a, b in first) < 0.3
    assert {p.dtype for p in lab.model.parameters()} == {torch.float32}


def test_beams_read_the_same_places(kit, make_lab, mixed) -> None:
    """Anchors are spread over beams as every other tensor is."""
    lab = make_lab(kit.hia())
    prompt = lab.rows(mixed[0].without_answer())[0]
    once = lab.model.prepare_inputs_for_generation(
        prompt.input_ids[None], anchors=prompt.anchors, is_first_iteration=True
    )
    assert torch.equal(once["anchors"], prompt.anchors)
    _, kwargs = lab.model._expand_inputs_for_generation(
        expand_size=2, input_ids=prompt.input_ids[None], anchors=prompt.anchors
    )
    assert torch.equal(kwargs["anchors"], prompt.anchors.repeat_interleave(2, 0))
