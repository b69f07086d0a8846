"""On disk: with its model, alone, and from outside of the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medloupe.config import trusting_code
from medloupe.errors import CheckpointError, ConfigError
from medloupe.models.adapters import AdapterConfig
from medloupe.models.adapters.files import load_adapter, save_adapter
from medloupe.models.vlm import VisionLanguageModel

MY_ADAPTER = '''
from torch import nn
from medloupe.models.adapters import Adapter, AdapterConfig


class GainConfig(AdapterConfig):
    """A linear layer, which takes its own dtype alone, after one layer."""

    after: int = 1

    def build(self, width, depth):
        return Gain((self.after,), width)


class Gain(Adapter):
    def __init__(self, places, width):
        super().__init__(places)
        self.mix = nn.Linear(width, width, bias=False)

    def forward(self, number, tokens_NKD, anchors_ND, details_NTC):
        assert anchors_ND is None and details_NTC is None
        return self.mix(tokens_NKD)

    def reset(self):
        nn.init.eye_(self.mix.weight)
'''


def test_a_saved_model_brings_its_adapter_back(lab, mixed, tmp_path: Path) -> None:
    wanted = lab.logits(*mixed)
    lab.model.save_pretrained(tmp_path)
    again = VisionLanguageModel.load(tmp_path).eval()
    assert again.config.adapter == lab.model.config.adapter
    state = again.state_dict()
    for name, tensor in lab.model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert torch.equal(
        type(lab)(model=again, processor=lab.processor, images=lab.images).logits(*mixed), wanted
    )


def test_a_model_without_one_says_so_on_disk(make_lab, tmp_path: Path) -> None:
    make_lab(None).model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["adapter"] is None
    assert saved["low_rank"] == {}
    assert VisionLanguageModel.load(tmp_path).adapter is None


def test_a_model_built_from_its_config_begins_as_the_identity(kit, make_lab, mixed) -> None:
    """transformers draws all weights of a new model anew; the adapter's come out as a fresh one's."""
    bare, lab = make_lab(None), make_lab(kit.hia(), trained=False)
    model = VisionLanguageModel(lab.model.config)
    report = model.load_state_dict(bare.model.state_dict(), strict=False)
    assert {name.partition(".")[0] for name in report.missing_keys} == {"adapter"}
    found = type(lab)(model=model.eval(), processor=lab.processor, images=lab.images)
    assert torch.equal(found.logits(*mixed), bare.logits(*mixed))
    layer = model.adapter.layers[0]
    assert bool(layer.inject.query.weight.any())
    assert float(layer.queries.detach().std()) == pytest.approx(0.02, rel=0.3)


def test_alone_onto_a_fresh_base(lab, make_lab, mixed, tmp_path: Path) -> None:
    wanted = lab.logits(*mixed)
    save_adapter(lab.model, tmp_path / "alone")
    names = set(load_file(tmp_path / "alone/adapter.safetensors"))
    assert names == set(lab.model.adapter.state_dict())
    bare = make_lab(None)
    config = load_adapter(bare.model, tmp_path / "alone")
    assert config == AdapterConfig.parse(lab.model.config.adapter)
    assert config.fitted(bare.images.transform) == lab.images.transform
    found = type(lab)(model=bare.model, processor=lab.processor, images=lab.images)
    assert torch.equal(found.logits(*mixed), wanted)
    bare.model.save_pretrained(tmp_path / "whole")
    again = VisionLanguageModel.load(tmp_path / "whole").eval()
    assert torch.equal(
        type(lab)(model=again, processor=lab.processor, images=lab.images).logits(*mixed), wanted
    )


def test_alone_onto_a_model_that_has_one_like_it(kit, lab, make_lab, mixed, tmp_path: Path) -> None:
    save_adapter(lab.model, tmp_path)
    fresh = make_lab(kit.hia(), trained=False)
    load_adapter(fresh.model, tmp_path)
    assert torch.equal(fresh.logits(*mixed), lab.logits(*mixed))


@pytest.mark.parametrize(
    ("language", "fields", "named"),
    [
        ({"hidden_size": 64}, None, "width 32, the model 64"),
        ({"num_hidden_layers": 5}, None, "decoder_layers 4, the model 5"),
        ({}, {"queries": 8}, "queries 6, the model 8"),
        ({}, {"anchor": "user"}, "anchor prompt, the model user"),
    ],
)
def test_what_differs_is_named_with_both_values(
    kit, lab, words, tmp_path: Path, language: dict[str, Any], fields: Any, named: str
) -> None:
    save_adapter(lab.model, tmp_path)
    adapter = None if fields is None else kit.hia(**fields)
    model = kit.tiny_vlm(len(words), adapter, **language)
    with pytest.raises(CheckpointError, match=named) as caught:
        load_adapter(model, tmp_path)
    assert caught.value.fault.field == named.split()[0]
    assert caught.value.fault.file == str(tmp_path / "adapter.json")
    assert (model.adapter is None) is (fields is None)


def test_a_folder_without_one_and_a_model_without_one(make_lab, lab, tmp_path: Path) -> None:
    bare = make_lab(None).model
    with pytest.raises(CheckpointError, match=r"no adapter\.json"):
        load_adapter(bare, tmp_path)
    with pytest.raises(CheckpointError, match="no adapter that could be saved"):
        save_adapter(bare, tmp_path)
    save_adapter(lab.model, tmp_path)
    (tmp_path / "adapter.safetensors").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="weights do not fit"):
        load_adapter(lab.model, tmp_path)


def test_one_from_outside_of_the_package(
    kit, make_lab, mixed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_gain.py").write_text(MY_ADAPTER)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = AdapterConfig.parse({"name": "my_gain:GainConfig", "after": 2})
    assert AdapterConfig.parse(config.to_dict()) == config
    lab = make_lab(None)
    before = lab.logits(*mixed)
    lab.model.put_on(config)
    assert not lab.model.question_dependent
    assert torch.equal(lab.logits(*mixed), before)
    with torch.no_grad():
        lab.model.adapter.mix.weight += torch.randn(kit.WIDTH, kit.WIDTH)
    after = lab.logits(*mixed)
    assert not torch.equal(after, before)
    lab.loss(*mixed).backward()
    assert bool(lab.model.adapter.mix.weight.grad.all())
    folder = tmp_path / "model"
    lab.model.save_pretrained(folder)
    save_adapter(lab.model, tmp_path / "alone")
    with pytest.raises(ConfigError, match="trust"):
        VisionLanguageModel.load(folder)
    with pytest.raises(ConfigError, match="trust"):
        load_adapter(make_lab(None).model, tmp_path / "alone")
    again = VisionLanguageModel.load(folder, trust_code=True).eval()
    bare = make_lab(None).model
    load_adapter(bare, tmp_path / "alone", trust_code=True)
    for model in (again, bare):
        found = type(lab)(model=model, processor=lab.processor, images=lab.images)
        assert torch.equal(found.logits(*mixed), after)
    lab.model.language_model.bfloat16()
    torch.testing.assert_close(lab.logits(*mixed).float(), after, rtol=0.1, atol=0.3)
    with trusting_code(False), pytest.raises(ConfigError, match="trust"):
        AdapterConfig.parse(config.to_dict())
