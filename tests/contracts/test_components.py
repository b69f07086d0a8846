"""What every registered component keeps to. To stand in a family's table is to be tested here.

A component whose config needs a value has an example in `NEEDS`.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    ResNetConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    ViTConfig,
)

import medloupe
from medloupe.config import ComponentConfig, Config, import_class
from medloupe.errors import ConfigError
from medloupe.models.adapters import AdapterConfig, Span
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.types import ImageLayout, Record

NEEDS: dict[tuple[str, str], dict[str, Any]] = {
    ("connector", "words"): {"words": ["bright", "dark"], "image_words": ["axial"], "keep": 16},
    ("connector", "grouped"): {"group": 4},
    ("connector", "attention_pooling"): {"queries": 6, "heads": 2},
    ("connector", "perceiver"): {"queries": 6, "depth": 2, "heads": 2, "head_size": 4},
    ("connector", "q_former"): {"queries": 6, "width": 16, "depth": 3, "heads": 2, "inner": 24},
    ("connector", "by_kind"): {"image": "linear", "volume": {"name": "mlp"}},
}

for _module in pkgutil.walk_packages(medloupe.__path__, "medloupe."):
    importlib.import_module(_module.name)


def subclasses(kind: type) -> list[type]:
    return [kind, *(below for child in kind.__subclasses__() for below in subclasses(child))]


FAMILIES = [
    cls
    for cls in subclasses(ComponentConfig)
    if cls.__module__.startswith("medloupe.") and vars(cls).get("table")
]
COMPONENTS = [(family, name) for family in FAMILIES for name in family.table]
IDS = [f"{family.family}-{name}" for family, name in COMPONENTS]
every_component = pytest.mark.parametrize(("family", "name"), COMPONENTS, ids=IDS)


def example(family: type[ComponentConfig], name: str) -> ComponentConfig:
    return family.parse({"name": name, **NEEDS.get((family.family, name), {})})


def test_the_families_are_found() -> None:
    names = {family.family for family in FAMILIES}
    assert {"encoder", "connector", "adapter", "objective", "data set", "scorer"} <= names
    assert len(names) == len(FAMILIES)


@every_component
def test_it_is_importable_named_and_described(family: type[ComponentConfig], name: str) -> None:
    concrete = import_class(family.table[name], family)
    assert example(family, name).name == name
    assert type(example(family, name)) is concrete
    assert vars(concrete).get("__doc__"), f"{concrete.__name__} says nothing about itself"
    assert not getattr(concrete, "__abstractmethods__", frozenset())


@every_component
def test_it_round_trips(family: type[ComponentConfig], name: str, tmp_path: Path) -> None:
    config = example(family, name)
    assert family.parse(json.loads(config.to_json())) == config
    assert family.parse(yaml.safe_load(config.to_yaml())) == config
    assert family.parse(config.to_dict()).fingerprint() == config.fingerprint()
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert family.from_yaml(path) == config
    assert type(family.from_yaml(path)) is type(config)


def test_fingerprints_do_not_depend_on_the_process() -> None:
    code = (
        "import sys, json, importlib\n"
        "for module, cls, data in json.load(sys.stdin):\n"
        "    family = getattr(importlib.import_module(module), cls)\n"
        "    print(family.parse(data).fingerprint())\n"
    )
    asked = [
        (family.__module__, family.__qualname__, example(family, name).to_dict())
        for family, name in COMPONENTS
    ]
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | {"PYTHONHASHSEED": "17"},
    )
    wanted = [example(family, name).fingerprint() for family, name in COMPONENTS]
    assert result.stdout.split() == wanted
    assert len(set(wanted)) == len(wanted)


def test_equal_values_have_equal_fingerprints_in_any_order() -> None:
    first, second = ({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
    one, two = (Record(id="r", attributes=attributes) for attributes in (first, second))
    assert one == two
    assert one.fingerprint() == two.fingerprint()
    assert Record(id="r", attributes={"a": "2", "b": "1"}).fingerprint() != one.fingerprint()


@every_component
def test_an_unknown_field_answers_with_the_near_one(
    family: type[ComponentConfig], name: str
) -> None:
    fields = list(type(example(family, name)).model_fields)
    given = {"name": name, **NEEDS.get((family.family, name), {})}
    near = max(fields, key=len) if fields else None
    wrong = near + "x" if near else "nonsense"
    with pytest.raises(ConfigError, match=f"{wrong}: unknown field") as caught:
        family.parse(given | {wrong: 1})
    if near:
        assert f"did you mean {near!r}" in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.family)
def test_an_unknown_name_answers_with_the_near_one(family: type[ComponentConfig]) -> None:
    for name in family.table:
        with pytest.raises(ConfigError, match=f"unknown {family.family}") as caught:
            family.parse(name + "x")
        assert repr(name) in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.family)
def test_a_class_of_another_family_is_refused(family: type[ComponentConfig]) -> None:
    other = next(cls for cls in FAMILIES if cls is not family)
    path = next(iter(other.table.values()))
    with pytest.raises(ConfigError, match=f"is not a {family.__name__}"):
        family.parse({"name": path})


CONFIGS = sorted(
    (
        cls
        for cls in set(subclasses(Config))
        if cls.__module__.startswith("medloupe.")
        and not issubclass(cls, ComponentConfig)
        and not any(field.is_required() for field in cls.model_fields.values())
    ),
    key=lambda cls: cls.__qualname__,
)


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__qualname__)
def test_every_config_with_defaults_round_trips_and_is_frozen(cls: type[Config]) -> None:
    value = cls()
    assert cls.parse(yaml.safe_load(value.to_yaml())) == value
    assert cls.parse(json.loads(value.to_json())) == value
    with pytest.raises(ConfigError, match="unknown field"):
        cls.parse({"surely_not_a_field": 1})
    for field in cls.model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(value, field, None)


GRID = ImageLayout(rows=4, columns=4)
every_connector = pytest.mark.parametrize("name", list(ConnectorConfig.table))


def connector(name: str) -> Any:
    torch.manual_seed(0)
    config = example(ConnectorConfig, name)
    assert isinstance(config, ConnectorConfig)
    module = config.build(8, 12).eval()
    module.learn_words(lambda text: [ord(letter) % 50 for letter in text], torch.randn(50, 12))
    return module.for_kind("volume")


@every_connector
def test_a_connector_gives_the_tokens_it_promises(name: str) -> None:
    module = connector(name)
    tokens = module(torch.randn(3, GRID.tokens, 8), GRID)
    assert tokens.shape == (3, module.layout(GRID).tokens, 12)
    assert bool(tokens.isfinite().all())


@every_connector
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_connector_speaks_its_own_dtype(name: str, dtype: torch.dtype) -> None:
    module = connector(name).to(dtype)
    assert module(torch.randn(1, GRID.tokens, 8), GRID).dtype is dtype


@every_connector
def test_a_connector_treats_each_image_alone(name: str) -> None:
    module = connector(name)
    features = torch.randn(3, GRID.tokens, 8)
    alone = torch.cat([module(one[None], GRID) for one in features])
    torch.testing.assert_close(module(features, GRID), alone, rtol=1e-5, atol=1e-6)


@every_connector
def test_gradients_reach_every_parameter_of_a_connector(name: str) -> None:
    module = connector(name).train()
    features = torch.randn(2, GRID.tokens, 8, requires_grad=True)
    module(features, GRID).pow(2).sum().backward()
    idle = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert features.grad is not None
    assert bool((features.grad != 0).any(-1).all()), "a token is not read"


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}
# Sizes at which an encoder is quick; the norm is read, so that no parameter is idle.
TOWER = {"image_size": 64, "post_norm": True}
SMALL_VIT = {"width": 32, "depth": 2, "heads": 4, "hidden": 48}
VOLUME = {"shape": [8, 32, 32], "size": SMALL_VIT}
CONVOLUTIONS = {
    "resnet": ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 2, 1, 1], layer_type="basic"
    ).to_diff_dict(),
    "convnext": ConvNextConfig(
        hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_scale_init_value=0.5
    ).to_diff_dict(),
}
TINY: dict[str, dict[str, Any]] = {
    "efficientnet_lite0": {"image_size": 64, "stride": 16},
    "clip": TOWER | {"architecture": CLIPVisionConfig(**SMALL).to_diff_dict()},
    "siglip": TOWER | {"architecture": SiglipVisionConfig(**SMALL).to_diff_dict()},
    "siglip2": TOWER
    | {"architecture": Siglip2VisionConfig(**(SMALL | {"num_patches": 4})).to_diff_dict()},
    "dinov2": TOWER | {"architecture": Dinov2Config(**SMALL).to_diff_dict()},
    "dinov3": TOWER
    | {"architecture": DINOv3ViTConfig(**SMALL, num_register_tokens=2).to_diff_dict()},
    "hf_vision": TOWER | {"architecture": ViTConfig(**SMALL).to_diff_dict()},
    "biomedclip": TOWER | {"size": SMALL_VIT},
    "resnet": {"image_size": 64, "stride": 8, "architecture": CONVOLUTIONS["resnet"]},
    "convnext": {"image_size": 64, "architecture": CONVOLUTIONS["convnext"], "post_norm": True},
    "m3d_clip": VOLUME | {"native_shape": [8, 48, 32], "post_norm": True},
    "vit3d": VOLUME,
}
TINY |= {
    "scales": {"encoder": {"name": "clip"} | TINY["clip"], "scales": [64, 128]},
    "tiles": {"encoder": {"name": "dinov2"} | TINY["dinov2"]},
    "slices": {"encoder": {"name": "clip"} | TINY["clip"], "chunk": 2},
    "joined": {
        "encoders": [
            {"name": "clip"} | TINY["clip"],
            {"name": "biomedclip"} | TINY["biomedclip"] | {"image_size": 32},
        ]
    },
    "trimmed": {"encoder": {"name": "clip"} | TINY["clip"]},
    "by_kind": {
        "image": {"name": "clip"} | TINY["clip"],
        "volume": {"name": "vit3d"} | TINY["vit3d"],
    },
}
HOLDERS = ("scales", "tiles", "slices", "joined", "trimmed", "by_kind")
NEEDS |= {("encoder", name): TINY[name] for name in HOLDERS}
NEEDS |= {
    ("transform", "several"): {"transforms": [{"name": "image", "size": 32}, {"name": "tiles"}]},
    ("transform", "by_kind"): {"image": "tiles", "volume": "volume"},
    ("transform", "detailed"): {"base": "image", "detail": {"name": "image", "size": 448}},
    ("adapter", "hia"): {
        "encoder": {"name": "resnet"} | TINY["resnet"],
        "queries": 5,
        "heads": 2,
    },
}
# The shapes of one image's views where they are not one picture of 64 x 64.
SHAPES: dict[str, Any] = {
    "m3d_clip": (1, 8, 32, 32),
    "vit3d": (1, 8, 32, 32),
    "scales": (3, 128, 128),
    "tiles": (5, 3, 64, 64),
    "slices": (3, 3, 64, 64),
    "joined": ((3, 64, 64), (3, 32, 32)),
    "by_kind": (1, 8, 32, 32),
}
every_encoder = pytest.mark.parametrize("name", list(EncoderConfig.table))


def encoder(name: str) -> Any:
    assert name in TINY, f"give the encoder {name!r} a quick example"
    torch.manual_seed(0)
    module = EncoderConfig.parse({"name": name, **TINY[name]}).build().eval()
    return module.for_kind("volume") if "volume" in module.kinds else module


def views(name: str, images: int) -> Any:
    def random(shape: Any) -> Any:
        if isinstance(shape[0], tuple):
            return tuple(random(inner) for inner in shape)
        return torch.randn(images, *shape)

    return random(SHAPES.get(name, (3, 64, 64)))


def one_by_one(batch: Any) -> list[Any]:
    if isinstance(batch, tuple):
        return list(zip(*map(one_by_one, batch), strict=True))
    return list(batch.split(1))


@every_encoder
def test_an_encoder_gives_the_tokens_it_promises(name: str) -> None:
    module, batch = encoder(name), views(name, 3)
    with torch.no_grad():
        features = module(batch)
    assert features.shape == (3, module.grid(batch).tokens, module.channels)


@every_encoder
def test_an_encoder_treats_each_image_alone(name: str) -> None:
    module, batch = encoder(name), views(name, 3)
    with torch.no_grad():
        alone = torch.cat([module(one) for one in one_by_one(batch)])
        torch.testing.assert_close(module(batch), alone, rtol=1e-4, atol=1e-5)


@every_encoder
def test_gradients_reach_every_parameter_of_an_encoder(name: str) -> None:
    module = encoder(name).train()
    module(views(name, 2)).pow(3).sum().backward()
    idle = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@every_encoder
def test_training_mode_changes_no_feature_of_an_encoder(name: str) -> None:
    module, batch = encoder(name), views(name, 2)
    with torch.no_grad():
        assert torch.equal(module.train()(batch), module.eval()(batch))


@every_encoder
def test_an_encoder_is_rebuilt_from_its_saved_config(name: str) -> None:
    config = EncoderConfig.parse({"name": name, **TINY[name]}).resolved()
    again = EncoderConfig.parse(json.loads(config.to_json())).build()
    shapes = {key: value.shape for key, value in config.build().state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes


every_adapter = pytest.mark.parametrize("name", list(AdapterConfig.table))
HIDDEN, LAYERS = 12, 4


def adapter(name: str, *, trained: bool = False) -> Any:
    torch.manual_seed(0)
    config = example(AdapterConfig, name)
    assert isinstance(config, AdapterConfig)
    module = config.build(HIDDEN, LAYERS)
    module.reset()
    if trained:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return module.eval()


def adapted(module: Any, number: int, rows: list[int]) -> torch.Tensor:
    """Rows of 12 tokens after the layer, with an image of 4 in each; its question ends at the end."""
    torch.manual_seed(1)
    hidden = torch.randn(3, 12, HIDDEN)[rows]
    details = torch.randn(3, 16, module.encoder.channels)[rows] if module.encoder else ()
    spans = [Span(row=n, start=2, stop=6, anchor=11) for n in range(len(rows))]
    with module.acting(spans, list(details)):
        changed: torch.Tensor = module._hook(number, torch.nn.Identity(), (), hidden)
    assert changed.shape == hidden.shape
    assert torch.equal(changed[:, :2], hidden[:, :2])
    assert torch.equal(changed[:, 6:], hidden[:, 6:])
    return changed - hidden


@every_adapter
def test_a_fresh_adapter_is_the_identity_and_a_trained_one_is_not(name: str) -> None:
    for number in range(len(adapter(name).places)):
        assert not adapted(adapter(name), number, [0, 1, 2]).any()
        assert bool(adapted(adapter(name, trained=True), number, [0, 1, 2])[:, 2:6].any())


@every_adapter
def test_an_adapter_treats_each_image_alone(name: str) -> None:
    module = adapter(name, trained=True)
    for number in range(len(module.places)):
        together = adapted(module, number, [0, 1, 2])
        alone = torch.cat([adapted(module, number, [row]) for row in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@every_adapter
def test_an_adapter_rests_outside_of_acting(name: str) -> None:
    module = adapter(name, trained=True)
    assert module._hook(0, torch.nn.Identity(), (), torch.randn(1, 12, HIDDEN)) is None


@every_adapter
def test_gradients_reach_every_parameter_of_an_adapter(name: str) -> None:
    module = adapter(name, trained=True).train()
    sum(adapted(module, n, [0, 1]).pow(3).sum() for n in range(len(module.places))).backward()
    idle = [
        n
        for n, p in module.named_parameters()
        if not n.startswith("encoder.") and (p.grad is None or not p.grad.any())
    ]
    assert idle == []


@every_adapter
def test_an_adapter_is_between_layers_that_an_answer_can_see(name: str) -> None:
    places = adapter(name).places
    assert sorted(set(places)) == list(places)
    assert 0 <= places[0] <= places[-1] < LAYERS - 1


@every_adapter
def test_an_adapter_is_rebuilt_from_its_saved_config(name: str) -> None:
    config = example(AdapterConfig, name)
    assert isinstance(config, AdapterConfig)
    config = config.for_base(EncoderConfig.parse({"name": "clip"} | TINY["clip"])).resolved()
    again = AdapterConfig.parse(json.loads(config.to_json())).build(HIDDEN, LAYERS)
    shapes = {key: value.shape for key, value in config.build(HIDDEN, LAYERS).state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes
