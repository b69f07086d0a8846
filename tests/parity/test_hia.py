"""HiA against a few lines of plain torch, written from the paper's equations and pictures alone.

Both sides do the same sums in another order, in float64: outputs and gradients agree to 1e-9.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, ResNetConfig

from medloupe.models.adapters import AdapterConfig, Span

WIDTH, DEPTH, HEADS = 24, 7, 3
RESNET = ResNetConfig(
    embedding_size=6, hidden_sizes=[8, 10], depths=[1, 1], layer_type="basic"
).to_diff_dict()
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def language_model() -> Any:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).double().eval()


def adapter(**fields: Any) -> Any:
    encoder = {"name": "resnet", "architecture": RESNET, "image_size": 40, "stride": 8}
    config = AdapterConfig.parse(
        {"name": "hia", "encoder": encoder, "queries": 5, "heads": HEADS} | fields
    )
    torch.manual_seed(2)
    made = config.build(WIDTH, DEPTH).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return made


def cross_attention(weights: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """One query set `[Q, .]`, one memory `[S, .]`: softmax(q k / sqrt(d)) v, head by head."""
    x = F.layer_norm(x, x.shape[-1:], weights.query_norm.weight, weights.query_norm.bias)
    y = F.layer_norm(y, y.shape[-1:], weights.key_norm.weight, weights.key_norm.bias)
    q, k, v = x @ weights.query.weight.T, y @ weights.key.weight.T, y @ weights.value.weight.T
    size = q.shape[-1] // HEADS
    heads = []
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        heads.append(((q[:, part] @ k[:, part].T) / size**0.5).softmax(-1) @ v[:, part])
    return torch.cat(heads, -1) @ weights.out.weight.T


def reference(
    model: Any,
    hia: Any,
    embeddings: torch.Tensor,
    images: list[tuple[int, int, torch.Tensor]],
    n: int,
) -> torch.Tensor:
    """Logits of one row. `images` are (first token, number of tokens, detail features); all are asked
    about at the last place: eq. 2, Z' = CrossAtten(Q, Linear(Z)), V' = CrossAtten(V, Z'), V + V'."""
    after = [int(DEPTH * k / (n + 1)) for k in range(1, n + 1)]
    body, hidden = model.model, embeddings[None]
    places = torch.arange(embeddings.shape[0])[None]
    rotary = body.rotary_emb(hidden, places)
    mask = torch.full((embeddings.shape[0],) * 2, -1e30).triu(1)[None, None].double()
    for number, layer in enumerate(body.layers):
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, position_ids=places)
        if number not in after:
            continue
        own = hia.layers[after.index(number)]
        last, row = hidden[0, -1], hidden[0]
        for start, count, z in images:
            q = own.queries
            if own.instruct is not None:
                heard = own.instruct.weight @ last + own.instruct.bias
                q = F.layer_norm(q, q.shape[-1:]) + F.layer_norm(heard, heard.shape)
            seen = cross_attention(own.extract, q, z @ own.detail.weight.T + own.detail.bias)
            v = hidden[0, start : start + count]
            total = v + cross_attention(own.inject, v, seen)
            if own.norm is not None:
                total = F.layer_norm(total, (WIDTH,), own.norm.weight, own.norm.bias)
            row = torch.cat([row[:start], total, row[start + count :]])
        hidden = row[None]
    logits: torch.Tensor = model.lm_head(body.norm(hidden))[0]
    return logits


@pytest.mark.parametrize(
    ("fields", "n"),
    [
        ({}, 2),
        ({"layers": 1}, 1),
        ({"layers": 3, "width": 15}, 3),
        ({"instruction_aware": False}, 2),
        ({"post_norm": True}, 2),
    ],
)
def test_outputs_and_gradients_are_the_papers(fields: dict[str, Any], n: int) -> None:
    torch.manual_seed(3)
    model, views = language_model(), torch.randn(2, 3, 40, 40).double()
    embeddings = torch.randn(16, WIDTH).double()
    placed = [(2, 4), (8, 6)]
    found = []
    for mine in (True, False):
        hia = adapter(**fields)
        model = language_model()
        inputs = embeddings.clone().requires_grad_()
        features = hia.encoder(views)
        if mine:
            hia.attach(model)
            spans = [Span(row=0, start=s, stop=s + count, anchor=15) for s, count in placed]
            with hia.acting(spans, list(features)):
                logits = model(inputs_embeds=inputs[None]).logits[0]
        else:
            images = [(s, count, z) for (s, count), z in zip(placed, features, strict=True)]
            logits = reference(model, hia, inputs, images, n)
        (logits * torch.linspace(-1, 1, logits.numel()).double().view_as(logits)).sum().backward()
        gradients = {name: p.grad for name, p in hia.named_parameters() if p.grad is not None}
        found.append((logits.detach(), inputs.grad, gradients))
    (logits, grads, parameters), (wanted, wanted_grads, wanted_parameters) = found
    torch.testing.assert_close(logits, wanted, **CLOSE)
    torch.testing.assert_close(grads, wanted_grads, **CLOSE)
    assert parameters.keys() == wanted_parameters.keys()
    assert {name.partition(".")[0] for name in parameters} == {"encoder", "layers"}
    for name, gradient in parameters.items():
        torch.testing.assert_close(gradient, wanted_parameters[name], msg=name, **CLOSE)


def test_the_plain_model_is_the_reference_without_images() -> None:
    model, embeddings = language_model(), torch.randn(9, WIDTH).double()
    with torch.no_grad():
        wanted = model(inputs_embeds=embeddings[None]).logits[0]
        torch.testing.assert_close(reference(model, adapter(), embeddings, [], 2), wanted, **CLOSE)


def test_the_headline_models_size() -> None:
    """13 billion: 40 layers of width 5120, M = 256, n = 2. Numbers are never made."""
    with torch.device("meta"):
        built = AdapterConfig.parse(
            {"name": "hia", "encoder": {"name": "resnet", "image_size": 672}}
        ).build(5120, 40)
    assert built.places == (13, 26)
    counts = {
        "encoder": sum(p.numel() for p in built.encoder.parameters()),
        "layers": sum(p.numel() for p in built.layers.parameters()),
    }
    d, c, m = 5120, 2048, 256
    attention = 4 * d * d + 4 * d
    assert counts["layers"] == 2 * (m * d + (d + 1) * d + (c + 1) * d + 2 * attention)
    assert built.encoder.layout.tokens == 21 * 21
    assert 0.5e9 < sum(counts.values()) < 0.6e9  # the released code has about 0.56
