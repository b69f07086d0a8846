"""What is kept of a frozen encoder, and what is not."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch

from medloupe.train.objectives import base
from medloupe.train.objectives.base import FrozenFeatures


@pytest.mark.parametrize("room", [0, 1, 100])
def test_features_beyond_the_limit_are_made_again_with_the_same_bits(
    lab: Any, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    context = dataclasses.replace(lab.context(lab.model()), frozen_encoder=True)
    refs = list(
        {ref.to_json(): ref for row in lab.dataset.conversations for ref in row.images}.values()
    )
    first = FrozenFeatures(context).of(refs)
    monkeypatch.setattr(base, "KEPT_BYTES", room * first[0].features.nbytes)
    runs = []
    encode = context.model.encode
    monkeypatch.setattr(context.model, "encode", lambda images: runs.append(1) or encode(images))
    features = FrozenFeatures(context)
    for _ in range(2):
        again = features.of(refs)
        assert all(torch.equal(a.features, b.features) for a, b in zip(again, first, strict=True))
    assert len(runs) == len(refs) + max(len(refs) - room, 0)


def test_sources_of_a_mixture_share_no_row(tiny: ModuleType, lab: Any) -> None:
    """Two sources about the same images: each row counts for one of them."""
    twice = [
        row.model_copy(update={"id": f"{source}:{row.id}"})
        for source in ("a", "b")
        for row in lab.dataset.conversations
    ]
    data = dataclasses.replace(lab.dataset, conversations=tuple(twice))
    stage = tiny.language_stage()
    context = lab.context(lab.model(), data)
    together = stage.objective.build(context).rows
    apart = stage.objective.build(dataclasses.replace(context, mixed=True)).rows
    assert any({name[0] for name in row.ids} == {"a", "b"} for row in together)
    assert all(len({name[0] for name in row.ids}) == 1 for row in apart)
    assert sorted(n for row in apart for n in row.ids) == sorted(row.id for row in twice)
