"""HiA in any model: the identity while fresh, image tokens alone, each with its own question."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medloupe.errors import ConfigError, PromptError
from medloupe.models.adapters import Span, decoder_layers
from medloupe.models.adapters.hia import injected_layers
from medloupe.models.low_rank import LowRankConfig, attach

FAMILIES = (
    "llama", "qwen2", "qwen3", "mistral", "phi", "phi3", "gemma", "gemma2", "gpt_neox", "falcon",
    "gpt2", "opt", "mixtral",
)  # fmt: skip
every_family = pytest.mark.parametrize("family", FAMILIES)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@every_family
def test_a_fresh_adapter_changes_no_logit(kit, make_lab, mixed, family: str) -> None:
    fresh, bare = make_lab(kit.hia(), family, trained=False), make_lab(None, family)
    assert torch.equal(fresh.logits(*mixed), bare.logits(*mixed))


@every_family
def test_a_trained_one_changes_answers_and_image_tokens_alone(
    kit, make_lab, mixed, family: str
) -> None:
    lab, bare = make_lab(kit.hia(), family), make_lab(None, family)
    assert float((lab.logits(*mixed) - bare.logits(*mixed)).abs().max()) > 0.05
    batch = lab.batch(*mixed)
    is_image = batch.input_ids == lab.model.config.image_token_id
    seen, plain = lab.hidden(*mixed), bare.hidden(*mixed)
    # after layer 1 the first change; later layers carry it on to the text behind
    for layer in (0, 1):
        assert torch.equal(seen[layer], plain[layer])
    changed = (seen[2] != plain[2]).any(-1)
    assert torch.equal(changed, is_image)


def other(conversation: Any, turn: int, text: str) -> Any:
    """The conversation with another text in one of its messages."""
    messages = list(conversation.messages)
    part = messages[turn].content[-1].model_copy(update={"text": text})
    content = (*messages[turn].content[:-1], part)
    messages[turn] = messages[turn].model_copy(update={"content": content})
    return conversation.model_copy(update={"messages": tuple(messages)})


def first_label(row: Any) -> int:
    return int((row.labels >= 0).nonzero()[0])


@pytest.mark.parametrize("anchor", ["prompt", "user"])
def test_an_answer_reaches_nothing_before_it(kit, make_lab, mixed, anchor: str) -> None:
    """In training mode, in one padded batch, in every turn."""
    lab = make_lab(kit.hia(anchor=anchor))
    lab.model.train()
    told = [other(c, 1, "something else, and far longer than it was before") for c in mixed]
    before, after = lab.hidden(*mixed), lab.hidden(*told)
    rows = lab.rows(*mixed)
    for number, row in enumerate(rows):
        start = first_label(row)
        for layer, (one, two) in enumerate(zip(before, after, strict=True)):
            torch.testing.assert_close(
                one[number, :start], two[number, :start], msg=f"{row.ids}, layer {layer}", **CLOSE
            )


def test_a_later_answer_changes_no_image_and_an_earlier_one_only_later_images(
    kit, make_lab, mixed
) -> None:
    lab = make_lab(kit.hia())
    later = next(c for c in mixed if c.id == "later")
    (row,) = lab.rows(later)
    spans = [range(s, s + 4) for s in image_starts(lab, row)]
    whole = lab.hidden(later)[2][0]
    end = lab.hidden(other(later, 3, "both of them, in the middle"))[2][0]
    for span in spans:
        torch.testing.assert_close(end[list(span)], whole[list(span)], **CLOSE)
    middle = other(later, 1, "right")
    moved = image_starts(lab, lab.rows(middle)[0])
    changed = lab.hidden(middle)[2][0]
    assert moved[0] == spans[0].start
    torch.testing.assert_close(changed[list(spans[0])], whole[list(spans[0])], **CLOSE)
    for start, span in zip(moved[1:], spans[1:], strict=True):
        assert float((changed[start : start + 4] - whole[list(span)]).abs().max()) > 1e-3


def image_starts(lab: Any, row: Any) -> list[int]:
    places = (row.input_ids == lab.model.config.image_token_id).nonzero().flatten().tolist()
    return places[::4]


def test_an_earlier_image_keeps_its_own_question(kit, make_lab, mixed) -> None:
    """What the first turn made of its image is what it makes alone, without the turns that follow."""
    lab = make_lab(kit.hia())
    later = next(c for c in mixed if c.id == "later")
    first = later.model_copy(update={"messages": later.messages[:2]})
    length = len(lab.rows(first)[0].input_ids)
    for whole, alone in zip(lab.hidden(later), lab.hidden(first), strict=True):
        torch.testing.assert_close(whole[:, : length - 1], alone[:, : length - 1], **CLOSE)


@pytest.mark.parametrize("fields", [{}, {"anchor": "user"}, {"instruction_aware": False}])
def test_rows_in_a_batch_are_as_rows_alone(kit, make_lab, mixed, fields: dict[str, Any]) -> None:
    """Different numbers and sizes of images, padded on the right; and as prompts on the left."""
    lab = make_lab(kit.hia(**fields))
    together = lab.logits(*mixed)
    for number, conversation in enumerate(mixed):
        alone = lab.logits(conversation)
        torch.testing.assert_close(together[number, : alone.shape[1]], alone[0], **CLOSE)
    prompts = lab.rows(*(c.without_answer() for c in mixed))
    longest = max(len(row.input_ids) for row in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    anchors = []
    for number, row in enumerate(prompts):
        ids[number, longest - len(row.input_ids) :] = row.input_ids
        mask[number, longest - len(row.input_ids) :] = 1
        anchors.append(row.anchors + longest - len(row.input_ids))
    with torch.no_grad():
        left = lab.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            images=lab.images.inputs([image for row in prompts for image in row.images]),
            anchors=torch.cat(anchors),
        ).logits
    for number, conversation in enumerate(mixed):
        alone = lab.logits(conversation.without_answer())[0]
        torch.testing.assert_close(left[number, -len(alone) :], alone, **CLOSE)


def test_prompts_need_no_anchors_and_answers_do(kit, make_lab, mixed) -> None:
    """A prompt of one turn ends where its question does."""
    lab = make_lab(kit.hia())
    asked = [c.without_answer() for c in mixed if c.id in ("one", "two", "three")]
    batch = lab.batch(*asked)
    inputs = {
        "input_ids": batch.input_ids,
        "images": batch.images,
        "position_ids": batch.position_ids,
        "segments": batch.segments,
    }
    with torch.no_grad():
        found = lab.model(**inputs).logits
        assert torch.equal(found, lab.model(**inputs, anchors=batch.anchors).logits)
        with pytest.raises(PromptError, match="0 places where their questions end"):
            lab.model(**inputs, labels=batch.input_ids)
        with pytest.raises(PromptError, match="6 images, and 1 places"):
            lab.model(**inputs, anchors=batch.anchors[:1])
        square = torch.zeros(3, 1, *[batch.input_ids.shape[1]] * 2)
        with pytest.raises(PromptError, match="6 images, and 0 places"):
            lab.model(**inputs | {"segments": None}, attention_mask=square)


def test_what_the_adapter_reads_is_asked_for(lab, mixed) -> None:
    batch = lab.batch(mixed[0])
    plain = [type(image)(views=image.views) for image in batch.images]
    with pytest.raises(ConfigError, match="detail view, and an image comes without"):
        lab.model(input_ids=batch.input_ids, images=plain)
    with pytest.raises(ConfigError, match="1 images, and 0 detail views"):
        lab.model.label_loss(
            batch.input_ids,
            batch.labels,
            batch.position_ids,
            batch.segments,
            lab.model.image_tokens(plain),
            anchors=batch.anchors,
        )


def test_packed_questions_are_refused_where_an_image_sees_them(kit, make_lab, mixed) -> None:
    for aware in (True, False):
        lab = make_lab(kit.hia(instruction_aware=aware))
        batch = lab.batch(mixed[0])
        segments = batch.segments.clone()
        segments[0, -3:] = 1
        inputs = {"input_ids": batch.input_ids, "images": batch.images, "segments": segments}
        if aware:
            with pytest.raises(PromptError, match="several questions share an image"):
                lab.model(**inputs)
        else:
            lab.model(**inputs)


def test_the_question_changes_an_image_only_where_the_adapter_is_aware_of_it(
    kit, make_lab, mixed
) -> None:
    for aware in (True, False):
        lab = make_lab(kit.hia(instruction_aware=aware))
        assert lab.model.question_dependent is aware
        one, two = mixed[0], other(mixed[0], 0, "Which side, if any, of the two?")
        places = list(range(4 + image_starts(lab, lab.rows(one)[0])[0]))
        first, second = lab.hidden(one)[2][0, places], lab.hidden(two)[2][0, places]
        assert bool(((first - second).abs().max() > 1e-3).item()) is aware
        names = [n for n, _ in lab.model.adapter.named_parameters() if "instruct" in n]
        assert bool(names) is aware


def test_the_anchor_is_where_the_question_is_read(kit, make_lab, mixed) -> None:
    """Words of the template behind the user's text reach the image only from the prompt's end."""
    logits = [make_lab(kit.hia(anchor=anchor)).logits(mixed[0]) for anchor in ("prompt", "user")]
    assert float((logits[0] - logits[1]).abs().max()) > 1e-3


def test_without_high_resolution_the_views_have_the_bases_size(kit, make_lab, mixed) -> None:
    config = kit.hia(high_resolution=False).for_base(kit.base_encoder())
    assert config.encoder.image_size == 28
    assert config.for_base(kit.base_encoder()) == config
    lab = make_lab(kit.hia(high_resolution=False))
    assert lab.model.config.adapter == config.to_dict()
    batch = lab.batch(mixed[0])
    assert batch.images[0].detail.shape == batch.images[0].views.shape
    assert lab.model.details(batch.images)[0].shape == (16, 16)
    full = make_lab(kit.hia())
    assert full.batch(mixed[0]).images[0].detail.shape == (3, 64, 64)
    assert full.model.details(full.batch(mixed[0]).images)[0].shape == (64, 16)
    names = [name for name, _ in lab.model.adapter.named_parameters()]
    assert names == [name for name, _ in full.model.adapter.named_parameters()]


@pytest.mark.parametrize("size", [40, 72])
@pytest.mark.parametrize(
    "encoder",
    ["resnet", "efficientnet_lite0", "convnext", "siglip2"],
)
def test_any_encoder_at_any_size_it_takes(kit, make_lab, mixed, size: int, encoder: str) -> None:
    if encoder == "siglip2":
        size -= size % 16
    fields = kit.ENCODERS[encoder] | {"image_size": size}
    lab = make_lab(kit.hia(encoder=fields))
    assert lab.logits(*mixed).isfinite().all()
    lab.loss(*mixed).backward()
    assert any(p.grad is not None and p.grad.any() for p in lab.model.adapter.encoder.parameters())


def test_images_with_different_numbers_of_tokens(kit, mixed) -> None:
    """Two images whose tokens are 4 and 6, and detail features of two sizes: each as it is alone."""
    model = kit.tiny_vlm(50, kit.hia())
    stir = kit.stir
    stir(model.adapter)
    ids = torch.tensor([[1, *[49] * 4, 2, *[49] * 6, 3, 4, 5]])
    tokens = [torch.randn(4, kit.WIDTH), torch.randn(6, kit.WIDTH)]
    details = [torch.randn(9, 16), torch.randn(25, 16)]
    anchors = torch.tensor([[14, 14], [14, 14]])
    seen: list[torch.Tensor] = []
    layers = decoder_layers(model.language_model)
    layers[2].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    embeddings = model.embed(ids, tokens)

    def run(chosen: list[int]) -> torch.Tensor:
        spans = model.spans(ids, tokens, anchors)
        assert [(s.start, s.stop) for s in spans] == [(1, 5), (6, 12)]
        with (
            torch.no_grad(),
            model.acting([spans[n] for n in chosen], [details[n] for n in chosen]),
        ):
            model.language_model(inputs_embeds=embeddings)
        return seen.pop()[0]

    both, first, second = run([0, 1]), run([0]), run([1])
    torch.testing.assert_close(both[1:5], first[1:5], **CLOSE)
    assert not torch.equal(first[1:5], second[1:5])
    assert torch.equal(first[5], second[5])


def test_a_normed_sum_is_normed(kit, make_lab, mixed) -> None:
    lab = make_lab(kit.hia(post_norm=True), trained=False)
    (row,) = lab.rows(mixed[0])
    start = image_starts(lab, row)[0]
    tokens = lab.hidden(mixed[0])[2][0, start : start + 4]
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)


def test_layers_are_those_of_the_paper() -> None:
    assert injected_layers(40, 2) == (13, 26)
    assert injected_layers(40, 1) == (20,)
    assert injected_layers(40, 3) == (10, 20, 30)
    assert injected_layers(3, 1) == (1,)
    for depth, layers in ((2, 1), (3, 2), (4, 3)):
        with pytest.raises(ConfigError, match=f"needs at least {layers + 2}.*has {depth}"):
            injected_layers(depth, layers)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 5}, "5 heads do not divide 32 channels"),
        ({"width": 30}, "4 heads do not divide 30 channels"),
        ({"layers": 3}, "needs at least 5"),
        (
            {"encoder": {"name": "vit3d", "shape": [8, 32, 32], "size": "SMALL"}},
            "takes images, which the adapter's encoder cannot read",
        ),
    ],
)
def test_what_does_not_fit_is_said(kit, fields: dict[str, Any], message: str) -> None:
    encoder = fields.get("encoder")
    if encoder:
        small = {"width": 16, "depth": 1, "heads": 2, "hidden": 16}
        fields = {"encoder": encoder | {"size": small}}
    with pytest.raises(ConfigError, match=message):
        kit.tiny_vlm(50, kit.hia(**fields))


def test_a_model_has_one_adapter(kit) -> None:
    model = kit.tiny_vlm(50, kit.hia())
    with pytest.raises(ConfigError, match="has an adapter already"):
        model.put_on(kit.hia())


def test_a_width_of_its_own(kit, make_lab, mixed) -> None:
    lab, fresh = make_lab(kit.hia(width=12)), make_lab(kit.hia(width=12), trained=False)
    assert lab.model.adapter.layers[0].queries.shape == (6, 12)
    assert torch.equal(fresh.logits(*mixed), make_lab(None).logits(*mixed))
    assert not torch.equal(lab.logits(*mixed), fresh.logits(*mixed))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_checkpointing_changes_no_gradient(
    kit, make_lab, mixed, family: str, reentrant: bool
) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        lab = make_lab(kit.hia(), family)
        lab.model.requires_grad_(False)
        lab.model.adapter.requires_grad_(True)
        lab.model.train()
        if checkpointing:
            lab.model.activation_checkpointing_enable({"use_reentrant": reentrant})
            assert lab.model.adapter.gradient_checkpointing
        lab.loss(*mixed).backward()
        return {n: p.grad for n, p in lab.model.adapter.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    assert {name.partition(".")[0] for name in plain} == {"encoder", "layers"}
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name, **CLOSE)


def test_the_adapters_own_work_is_done_again_only_where_asked(
    kit, make_lab, mixed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medloupe.models.adapters.hia import HiaLayer

    calls = []
    forward = HiaLayer.forward
    monkeypatch.setattr(HiaLayer, "forward", lambda *a: calls.append(1) or forward(*a))
    lab = make_lab(kit.hia())
    for training, enabled, wanted in ((True, True, 4), (False, True, 2), (True, False, 2)):
        lab.model.train(training)
        lab.model.adapter.gradient_checkpointing = enabled
        calls.clear()
        lab.loss(mixed[0]).backward()
        assert len(calls) == wanted


def test_float32_masters_on_a_bfloat16_language_model(kit, make_lab, mixed) -> None:
    lab, fresh = make_lab(kit.hia()), make_lab(kit.hia(), trained=False)
    exact = lab.logits(*mixed)
    for one in (lab, fresh):
        one.model.language_model.bfloat16()
    rough = lab.logits(*mixed)
    assert rough.dtype is torch.bfloat16
    assert {p.dtype for p in lab.model.adapter.parameters()} == {torch.float32}
    assert float((rough.float() - exact).abs().max()) < 0.1 * float(exact.abs().max())
    bare = make_lab(None)
    bare.model.language_model.bfloat16()
    assert torch.equal(fresh.logits(*mixed), bare.logits(*mixed))
    lab.model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = lab.loss(*mixed)
    loss.backward()
    for name, parameter in lab.model.adapter.layers.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype is torch.float32
        assert parameter.grad.isfinite().all(), name


def test_low_rank_adapters_on_the_same_model(kit, make_lab, mixed) -> None:
    lab = make_lab(kit.hia())
    before = lab.logits(*mixed)
    adapter = {name for name, _ in lab.model.adapter.named_parameters()}
    attach(lab.model, "language_model", LowRankConfig(rank=2))
    attach(lab.model, "encoder", LowRankConfig(rank=2))
    assert {name for name, _ in lab.model.adapter.named_parameters()} == adapter
    assert all(p.requires_grad for p in lab.model.adapter.parameters())
    torch.testing.assert_close(lab.logits(*mixed), before, **CLOSE)
    lab.loss(*mixed).backward()
    grown = [n for n, p in lab.model.named_parameters() if p.grad is not None and p.grad.any()]
    assert {name.partition(".")[0] for name in grown} >= {"adapter", "language_model"}


def test_a_compiled_language_model(kit, make_lab, mixed) -> None:
    """Compiled before it runs, with and without images, by dynamo and AOT autograd."""
    lab = make_lab(kit.hia())
    wanted = [lab.logits(c) for c in mixed[:2]]
    lab.model.language_model.compile(backend="aot_eager")
    for conversation, logits in zip(mixed[:2], wanted, strict=True):
        torch.testing.assert_close(lab.logits(conversation), logits, **CLOSE)
    torch.testing.assert_close(lab.logits(mixed[0]), wanted[0], **CLOSE)


def test_a_copy_is_a_model_of_its_own(lab, mixed) -> None:
    import copy
    import dataclasses

    before = lab.logits(*mixed)
    twin = dataclasses.replace(lab, model=copy.deepcopy(lab.model))
    with torch.no_grad():
        for parameter in lab.model.adapter.parameters():
            parameter.zero_()
    assert torch.equal(twin.logits(*mixed), before)


def test_it_rests_where_no_image_is_read(lab, mixed) -> None:
    text = mixed[1]
    assert torch.equal(lab.logits(text), lab.logits(text))
    assert lab.model.adapter._acting is None
    with (
        pytest.raises(ZeroDivisionError),
        lab.model.adapter.acting([Span(row=0, start=0, stop=1, anchor=0)]),
    ):
        raise ZeroDivisionError
    assert lab.model.adapter._acting is None
