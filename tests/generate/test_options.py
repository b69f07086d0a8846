"""Probabilities of options and of boxes, and answers told row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medloupe.errors import ImageError, MedLoupeError, PromptError
from medloupe.types import Conversation, Generation, ImageRef, Message, Text

OPTIONS = ("yes", "no", "not at all, as far as one can see")


def ask(
    name: str, text: str, uri: str | None = None, options: tuple[str, ...] = ()
) -> Conversation:
    image = () if uri is None else (ImageRef(uri=uri),)
    message = Message(role="user", content=(*image, Text(text=text)))
    return Conversation(id=name, messages=(message,), options=options)


def shares(lab: Any, row: Conversation) -> list[float]:
    """By one forward pass over each whole text: prompt, option, end token; nothing shared."""
    totals = []
    for option in row.options:
        said = Message(role="assistant", content=(Text(text=option),))
        whole = row.model_copy(update={"messages": (*row.messages, said)})
        read = lab.processor.encode(whole, lab.images.size_of)
        with torch.no_grad():
            logits = lab.model(
                input_ids=read.input_ids[None], images=lab.images.inputs(read.images)
            ).logits[0]
        log_probs = logits.double().log_softmax(-1)
        end = lab.processor.end_token_ids[0]
        last = max(n for n, label in enumerate(read.labels.tolist()) if label == end)
        first = last - len(option)  # a token a byte
        assert lab.processor.tokenizer.decode(read.input_ids[first:last]) == option
        totals.append(
            math.fsum(float(log_probs[n - 1, read.input_ids[n]]) for n in range(first, last + 1))
        )
    weights = [math.exp(total - max(totals)) for total in totals]
    return [weight / math.fsum(weights) for weight in weights]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("family", "attention"),
    [("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa"), ("mistral-window", "sdpa")],
)
def test_options_have_the_probability_of_one_pass_over_the_whole_text(
    make_lab: Callable[..., Any],
    mixed: list[Conversation],
    family: str,
    attention: str,
    share: bool,
) -> None:
    lab = make_lab(family, attention)
    rows = [
        row.without_answer().model_copy(update={"options": OPTIONS[: n % 4]})
        for n, row in enumerate(mixed)
    ]
    plain = lab.predictor(share_prefix=share, option_probs=False)(rows)
    said = lab.predictor(share_prefix=share, batch_size=5)(rows)
    for row, one, without in zip(rows, said, plain, strict=True):
        assert one.option_probs == pytest.approx(shares(lab, row), rel=1e-4, abs=1e-9)
        assert one.token_ids == without.token_ids  # reading options changes no answer
        assert without.option_probs == ()
        if row.options:
            assert math.fsum(one.option_probs) == pytest.approx(1)


def test_many_options_are_read_in_parts(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ask("a", "Which?", "0.png", tuple(f"choice number {n}" for n in range(9)))
    whole = lab.predictor()([row])[0].option_probs
    monkeypatch.setattr("medloupe.generate.decode._OPTION_TOKENS", 40)
    assert lab.predictor()([row])[0].option_probs == pytest.approx(whole, rel=1e-5)
    assert len(set(whole)) == 9


def test_an_option_that_cannot_be_said_is_named(lab: Any) -> None:
    with pytest.raises(PromptError, match="control token") as caught:
        lab.predictor()([ask("odd", "Which?", "0.png", ("yes", "<|im_end|>"))])
    assert caught.value.fault.row == "odd"


def test_a_box_has_the_geometric_mean_of_the_tokens_that_spell_it(lab: Any) -> None:
    text = "mass {<0><25><50><75>} and a cyst {<1><2><3><4>}"
    tokens = lab.processor.tokenizer.encode(text, add_special_tokens=False)
    assert len(tokens) == len(text)  # a token a byte
    lab.processor.__dict__["end_token_ids"] = (-1,)  # nothing that a model says
    own = lab.processor.decode
    lab.processor.decode = lambda ids: own(tokens[: len(ids)])
    said = lab.predictor(max_new_tokens=len(tokens))([ask("a", "Where?", "0.png")])[0]
    assert len(said.token_ids) == len(tokens)
    first, second = said.boxes
    for box, start, end in (
        (first, text.index("{"), text.index("}") + 1),
        (second, text.rindex("{"), len(text)),
    ):
        mean = math.fsum(said.log_probs[start:end]) / (end - start)
        assert box.score == pytest.approx(math.exp(mean))
    assert first.score != second.score


def test_errors_are_told_first_and_the_others_answered(lab: Any, tmp_path: Path) -> None:
    rows = [ask("a", "Plane?", "0.png"), ask("gone", "Plane?", "9.png"), ask("b", "Side?", "1.png")]
    heard: list[tuple[int, Generation | MedLoupeError]] = []
    predict = lab.predictor()
    predict.answer_each(rows, lambda *told: heard.append(told))
    assert next(number for number, _ in heard) == 1
    assert len(heard) == 3
    assert isinstance(heard[0][1], ImageError)
    assert heard[0][1].fault.row == "gone"
    alone = {n: predict([rows[n]])[0].token_ids for n in (0, 2)}
    assert {n: one.token_ids for n, one in heard if isinstance(one, Generation)} == alone


def test_an_image_that_goes_away_after_the_check_costs_its_own_rows(
    lab: Any, tmp_path: Path
) -> None:
    rows = [ask(f"{n}", "Plane?", f"{n % 2}.png") for n in range(4)]
    truth = [one.token_ids for one in lab.predictor()(rows)]
    lab.images.keep_bytes = 0  # only the newest view stays

    def lose(what: str, done: int, total: int) -> None:
        if what.startswith("read") and done == total:
            (tmp_path / "0.png").unlink()

    lab.images._views.clear()
    heard: dict[int, Generation | MedLoupeError] = {}
    lab.predictor().answer_each(rows, heard.__setitem__, progress=lose)
    assert [isinstance(heard[n], ImageError) for n in range(4)] == [True, False, True, False]
    assert [heard[n].token_ids for n in (1, 3)] == [truth[1], truth[3]]


def test_batches_that_are_done_are_not_decoded_again_and_the_rest_has_the_same_bits(
    lab: Any, mixed: list[Conversation]
) -> None:
    predict = lab.predictor(batch_size=3)
    whole: dict[int, Any] = {}
    predict.answer_each(mixed, whole.__setitem__)
    first = list(whole)[:4]  # a batch and a part of the next
    rest: dict[int, Any] = {}
    predict.answer_each(mixed, rest.__setitem__, done=set(first))
    assert set(rest) == set(list(whole)[3:])
    for number, answer in rest.items():
        assert answer.token_ids == whole[number].token_ids
        assert answer.log_probs == whole[number].log_probs
