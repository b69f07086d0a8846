from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from medloupe.errors import CheckpointError, ImageError, PromptError
from medloupe.generate import GenerateConfig, Predictor
from medloupe.types import Conversation, ImageRef, Message, Text


def ask(name: str, text: str, uri: str | None = None) -> Conversation:
    image = () if uri is None else (ImageRef(uri=uri),)
    return Conversation(
        id=name, messages=(Message(role="user", content=(*image, Text(text=text))),)
    )


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama", "sdpa"),
        ("llama", "eager"),
        ("qwen2", "sdpa"),
        ("gpt2", "sdpa"),
        ("mistral-window", "sdpa"),
    ],
)
def test_tokens_equal_transformers_greedy_one_at_a_time(
    make_lab: Callable[..., Any],
    mixed: list[Conversation],
    family: str,
    attention: str,
    share: bool,
) -> None:
    lab = make_lab(family, attention)
    truth = [lab.reference(row) for row in mixed]
    assert len(set(truth)) >= len(truth) - 2  # prompts that answer alike would prove little
    for batch_size in (32, 3, 1):
        said = lab.predictor(share_prefix=share, batch_size=batch_size)(mixed)
        assert [one.token_ids for one in said] == truth


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_rows_leave_the_batch_at_their_own_end(
    make_lab: Callable[..., Any], mixed: list[Conversation], family: str, share: bool
) -> None:
    lab = make_lab(family)
    free = [one.token_ids for one in lab.predictor()(mixed)]
    # Tokens that end some answers at their first, some later, some never.
    lab.ends_at(free[3][0], free[5][2], free[8][6])
    truth = [lab.reference(row) for row in mixed]
    lengths = [len(tokens) for tokens in truth]
    assert {1, 12} < set(lengths)
    assert len(set(lengths)) >= 4
    said = lab.predictor(share_prefix=share)(mixed)
    assert [one.token_ids for one in said] == truth
    for one in said:
        stopped = one.token_ids[-1] in lab.processor.end_token_ids
        assert one.finish_reason == ("stop" if stopped else "length")
        assert len(one.log_probs) == len(one.token_ids)


def test_log_probs_are_those_of_one_pass_over_the_whole_text(
    lab: Any, mixed: list[Conversation]
) -> None:
    for row, said in zip(mixed, lab.predictor()(mixed), strict=True):
        torch.testing.assert_close(
            torch.tensor(said.log_probs), lab.log_probs(row, said), atol=1e-4, rtol=1e-4
        )


def test_the_end_token_is_kept_as_a_token_and_not_as_text(lab: Any) -> None:
    row = ask("a", "Side?", "0.png")
    first = lab.predictor(max_new_tokens=1)([row])[0]
    assert (len(first.token_ids), first.finish_reason) == (1, "length")
    end = lab.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert lab.processor.end_token_ids[0] == end
    with torch.no_grad():  # the model now says <|im_end|> where it said its first token
        head = lab.model.language_model.get_output_embeddings().weight
        head[[first.token_ids[0], end]] = head[[end, first.token_ids[0]]].clone()
    said = lab.predictor()([row])[0]
    assert (said.text, said.token_ids, said.finish_reason) == ("", (end,), "stop")
    assert said.log_probs == pytest.approx(first.log_probs, abs=1e-5)


def test_one_new_token_stops_where_it_must(lab: Any, mixed: list[Conversation]) -> None:
    said = lab.predictor(max_new_tokens=1)(mixed)
    assert [one.token_ids for one in said] == [lab.reference(row, 1) for row in mixed]


def test_no_conversation_gives_no_answer(lab: Any) -> None:
    assert lab.predictor()([]) == []


def test_the_answer_of_a_row_is_never_shown_to_the_model(lab: Any) -> None:
    asked = ask("a", "Is there a lesion?", "0.png")
    told = Message(role="assistant", content=(Text(text="no, none at all"),))
    answered = asked.model_copy(update={"messages": (*asked.messages, told)})
    predict = lab.predictor()
    assert predict([answered])[0].token_ids == predict([asked])[0].token_ids


def test_a_prompt_that_ends_with_its_image_is_still_read_to_the_end(
    make_lab: Callable[..., Any],
) -> None:
    lab = make_lab(template="{% for m in messages %}{{ m.content }}{% endfor %}")
    rows = [
        Conversation(id=name, messages=(Message(role="user", content=(ImageRef(uri=uri),)),))
        for name, uri in [("a", "0.png"), ("b", "0.png"), ("c", "1.png")]
    ]
    said = lab.predictor()(rows)
    assert [one.token_ids for one in said] == [lab.reference(row) for row in rows]


@pytest.mark.parametrize("share", [True, False])
def test_each_image_is_encoded_once_a_call_and_each_prefix_read_once(
    lab: Any, mixed: list[Conversation], share: bool
) -> None:
    encoded: list[int] = []
    read: list[tuple[int, ...]] = []
    lab.model.encoder.register_forward_hook(lambda *a: encoded.append(len(a[1][0])))
    lab.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: read.append(tuple(kwargs["inputs_embeds"].shape[:2])),
        with_kwargs=True,
    )
    lab.predictor(share_prefix=share, max_new_tokens=1)(mixed)
    assert sum(encoded) == 3  # images 0, 1 and 2, however many rows show them
    rows = [lab.processor.encode(row.without_answer(), lab.images.size_of) for row in mixed]
    length = {row.ids[0]: len(row.input_ids) for row in rows}
    if not share:
        assert read == [(11, max(length.values()))]
        return
    # "text", "late" and "swapped" share nothing. Of the rest, three prefixes are read once each, then
    # eight branches. "<|im_start|>user\n" is 6 tokens, an image 9, "Before: " and " After: " 8 each.
    one, two = 6 + 9, 6 + 8 + 9 + 8 + 9
    alone = max(length[name] for name in ("text", "late", "swapped"))
    branches = [length[name] - one for name in ("a0", "a1", "a2", "turns", "b0", "b1")]
    branches += [length[name] - two for name in ("two", "two again")]
    assert read == [(3, alone), (3, two), (8, max(branches))]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_no_batch_is_larger_than_asked(lab: Any, mixed: list[Conversation], size: int) -> None:
    read: list[int] = []
    lab.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: read.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    lab.predictor(batch_size=size, max_new_tokens=2)(mixed)
    assert max(read) <= size


def test_no_step_is_spent_on_rows_that_have_ended(lab: Any, mixed: list[Conversation]) -> None:
    free = lab.predictor()(mixed)
    lab.ends_at(free[3].token_ids[0], free[5].token_ids[2])
    stepped: list[int] = []
    lab.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: stepped.append(
            len(kwargs["inputs_embeds"]) if kwargs["inputs_embeds"].shape[1] == 1 else 0
        ),
        with_kwargs=True,
    )
    said = lab.predictor()(mixed)
    assert min(len(one.token_ids) for one in said) == 1
    # Each token but an answer's last is read by exactly one step of one row.
    assert sum(stepped) == sum(len(one.token_ids) - 1 for one in said)


def test_an_answers_boxes_come_back_in_original_pixels(lab: Any) -> None:
    lab.processor.decode = lambda _: "ring lesion {<0><25><50><75>}"
    said = lab.predictor()([ask("a", "Where?", "0.png"), ask("b", "Where?")])
    (box,) = said[0].boxes
    # 40x30 padded to a square of 40: five rows of padding above.
    assert (box.label, box.x1, box.x2) == ("ring lesion", 0, 20)
    assert (box.y1, box.y2) == pytest.approx((5, 25))
    assert said[1].boxes == ()


def test_a_bad_row_is_named_before_anything_is_decoded(lab: Any, tmp_path: Path) -> None:
    good = ask("good", "Plane?", "0.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    steps: list[int] = []
    lab.model.language_model.register_forward_pre_hook(lambda *_: steps.append(1))
    predict = lab.predictor(batch_size=1)
    for bad, kind, words in [
        (ask("gone", "Plane?", "absent.png"), ImageError, "absent.png"),
        (ask("cut", "Plane?", "cut.png"), ImageError, "cut.png"),
        (ask("control", "Plane?<|im_end|>"), PromptError, "control token"),
        (Conversation(id="mute", messages=()), PromptError, "no question"),
        (ask("long", "word " * 1000), PromptError, "the limit is 2048"),
        (ask("position", "w" * 490), PromptError, "512 positions"),
    ]:
        with pytest.raises(kind, match=words) as caught:
            predict([good, bad])
        assert caught.value.fault.row == bad.id
    assert not steps


def test_a_prompt_may_use_the_last_position(lab: Any) -> None:
    empty = len(lab.processor.encode(ask("a", "w"), lab.images.size_of).input_ids) - 1
    fits = ask("a", "w" * (512 - 12 + 1 - empty))
    assert lab.predictor()([fits])[0].token_ids == lab.reference(fits)
    with pytest.raises(PromptError, match="512 positions"):
        lab.predictor()([ask("a", "w" * (512 - 12 + 2 - empty))])


def test_a_volume_is_refused_with_the_row(lab: Any) -> None:
    volume = ImageRef(uri="0.png", kind="volume")
    row = Conversation(id="v", messages=(Message(role="user", content=(volume,)),))
    with pytest.raises((PromptError, ImageError)) as caught:
        lab.predictor()([row])
    assert caught.value.fault.row == "v"


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(lab: Any, mixed: list[Conversation], fails: bool) -> None:
    before = {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}
    lab.model.train()
    lab.model.encoder.eval()
    modes = [module.training for module in lab.model.modules()]
    during: list[bool] = []
    lab.model.connector.register_forward_pre_hook(lambda m, _: during.append(m.training))
    predict = lab.predictor(precision="bf16")
    if fails:
        lab.processor.decode = lambda _: [][0]
        with pytest.raises(IndexError):
            predict(mixed)
    else:
        predict(mixed)
    assert not any(during)
    assert [module.training for module in lab.model.modules()] == modes
    after = lab.model.state_dict()
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_bf16_reads_the_language_model_in_bf16_and_answers(lab: Any) -> None:
    seen: Counter[torch.dtype] = Counter()
    lab.model.language_model.register_forward_pre_hook(
        lambda m, _a, kwargs: seen.update([m.dtype, kwargs["inputs_embeds"].dtype]),
        with_kwargs=True,
    )
    row = ask("a", "Side?", "0.png")
    exact = lab.predictor(max_new_tokens=1)([row])[0]
    seen.clear()
    rounded = lab.predictor(max_new_tokens=1, precision="bf16")([row])[0]
    assert set(seen) == {torch.bfloat16}
    assert rounded.log_probs[0] == pytest.approx(exact.log_probs[0], abs=0.3)
    assert rounded.log_probs[0] != exact.log_probs[0]


def test_seconds_add_up_and_progress_ends_full(lab: Any, mixed: list[Conversation]) -> None:
    calls: list[tuple[str, int, int]] = []
    said = lab.predictor(batch_size=3)(mixed, progress=lambda *call: calls.append(call))
    assert all(one.seconds > 0 for one in said)
    for what in ("read prompts and images", "answer"):
        done = [d for w, d, total in calls if w == what and total == len(mixed)]
        assert done == sorted(done)
        assert done[-1] == len(mixed)


def test_a_saved_folder_answers_alike(lab: Any, mixed: list[Conversation], tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    lab.model.save_pretrained(folder)
    lab.processor.save(folder)
    config = GenerateConfig(precision="fp32", max_new_tokens=12)
    loaded = Predictor.load(folder, root=tmp_path, config=config)
    assert [one.token_ids for one in loaded(mixed)] == [
        one.token_ids for one in lab.predictor()(mixed)
    ]
    with pytest.raises(CheckpointError, match="not a saved model"):
        Predictor.load(tmp_path, root=tmp_path)


@pytest.mark.parametrize("fields", [{"max_new_tokens": 0}, {"batch_size": 0}, {"precision": "fp8"}])
def test_config_refuses_what_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GenerateConfig(**fields)


def test_log_probs_are_logarithms_of_probabilities(lab: Any, mixed: list[Conversation]) -> None:
    for said in lab.predictor()(mixed):
        assert all(0 < math.exp(value) <= 1 for value in said.log_probs)
