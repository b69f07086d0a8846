"""Warm starts: what is taken, from where, and that nothing is passed over in silence."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig

from medloupe.errors import CheckpointError, ConfigError
from medloupe.models.low_rank import LowRankConfig, attach, carried_adapters, is_adapter
from medloupe.models.vlm import VisionLanguageModel
from medloupe.models.warm import StartConfig, warm_start
from medloupe.train.stages import TrainConfig

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
FLAT = {"name": "clip", "architecture": CLIPVisionConfig(**VISION).to_diff_dict(), "image_size": 28}


def fresh(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    """Other weights than those that `make_model` makes; returns a copy."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def start(folder: Path, **fields: Any) -> StartConfig:
    return StartConfig.parse({"folder": str(folder)} | fields)


@pytest.fixture
def saved(make_model, tmp_path: Path) -> Path:
    """A 2D model on disk."""
    make_model(tied=True).save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


def test_parts_are_taken_and_others_left(make_model, saved: Path) -> None:
    model, source = make_model(tied=True), VisionLanguageModel.load(saved).state_dict()
    before = fresh(model)
    report = warm_start(model, start(saved.parent, parts=["connector"]))  # the run's folder will do
    for name, tensor in model.state_dict().items():
        wanted = source if name.startswith("connector.") else before
        assert torch.equal(tensor, wanted[name]), name
    own = sorted(before)
    assert report.loaded == tuple(n for n in own if n.startswith("connector."))
    assert report.kept == tuple(n for n in own if not n.startswith("connector."))
    published = load_file(saved / "model.safetensors")
    assert report.unread == tuple(sorted(n for n in published if not n.startswith("connector.")))
    assert report.parameters == sum(p.numel() for p in model.connector.parameters())
    assert report.casts == {}
    assert report.lines()[0] == "loaded: 4 tensors (2,112 numbers): connector 4"


def test_a_tied_table_that_is_saved_once_is_whole(make_model, saved: Path) -> None:
    model = make_model(tied=True)
    fresh(model)
    report = warm_start(model, start(saved))
    assert report.kept == ()
    for name, tensor in VisionLanguageModel.load(saved).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    untied = make_model(tied=False)
    with pytest.raises(
        CheckpointError, match=r"'language_model\.lm_head\.weight' of the model is not"
    ):
        warm_start(untied, start(saved))
    kept = warm_start(untied, start(saved, allow_missing=["language_model.lm_head"])).kept
    assert kept == ("language_model.lm_head.weight",)


def test_two_tables_do_not_become_one(make_model, tmp_path: Path) -> None:
    make_model(tied=False).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"differ.*are one tensor here"):
        warm_start(make_model(tied=True), start(tmp_path))


def test_a_3d_model_from_a_2d_one(make_model, saved: Path) -> None:
    """Slices go through the 2D encoder; the connector is another and stays fresh."""
    model = make_model(
        tied=True,
        encoder={"name": "slices", "encoder": FLAT},
        connector={"name": "mean_slices", "connector": "mlp"},
    )
    before = fresh(model)
    rename = {"encoder": "encoder.encoder"}
    report = warm_start(model, start(saved, parts=["encoder", "language_model"], rename=rename))
    source = VisionLanguageModel.load(saved).state_dict()
    for name, tensor in source.items():
        ours = f"encoder.{name}" if name.startswith("encoder.") else name
        wanted = tensor if not name.startswith("connector.") else before.get(ours)
        if wanted is not None:
            assert torch.equal(model.state_dict()[ours], wanted), ours
    assert {name.partition(".")[0] for name in report.kept} == {"connector"}
    with pytest.raises(CheckpointError) as caught:
        warm_start(model, start(saved, parts=["encoder"]))
    text = str(caught.value)
    assert "'encoder.tower" in text
    assert "fits nothing" in text
    assert "Choose parts, rename prefixes" in text
    assert caught.value.fault.field == "model.start"


def test_the_longest_prefix_counts_and_ends_at_a_dot(make_model, saved: Path) -> None:
    model = make_model(tied=True, encoder={"name": "slices", "encoder": FLAT})
    tower = {"encoder": "nowhere", "encoder.tower.": "encoder.encoder.tower."}
    warm_start(model, start(saved, parts=["encoder"], rename=tower | {"connector": "connector"}))
    with pytest.raises(CheckpointError, match="rename has 'enc', and no tensor begins so"):
        warm_start(model, start(saved, parts=["encoder"], rename={"enc": "encoder.encoder"}))


def altered(saved: Path, **changes: torch.Tensor | None) -> Path:
    """The saved model with tensors put in, or taken out (None)."""
    tensors = load_file(saved / "model.safetensors")
    for name, tensor in changes.items():
        del tensors[name.replace("__", ".")]
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    return saved


def test_a_key_that_fits_nothing_is_an_error_unless_allowed(make_model, saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors |= {"connector.gate.weight": torch.ones(3), "ema.step": torch.ones(1)}
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    model = make_model(tied=True)
    with pytest.raises(CheckpointError, match=r"2 things do not agree.*gate.*ema.*allow_unused"):
        warm_start(model, start(saved))
    report = warm_start(model, start(saved, allow_unused=["connector.gate", "ema"]))
    assert report.allowed == ("connector.gate.weight", "ema.step")
    assert any("allowed to fit nothing: 2 tensors" in line for line in report.lines())
    with pytest.raises(CheckpointError, match=r"'connector\.gate\.weight' fits nothing"):
        warm_start(model, start(saved, allow_unused=["connector.ga", "ema"]))


def test_a_tensor_that_is_missing(make_model, saved: Path) -> None:
    altered(saved, connector__layers__0__bias=None)
    with pytest.raises(
        CheckpointError, match=r"'connector\.layers\.0\.bias' of the model is not in it"
    ):
        warm_start(make_model(tied=True), start(saved))
    model = make_model(tied=True)
    before = fresh(model)["connector.layers.0.bias"]
    report = warm_start(model, start(saved, allow_missing=["connector.layers.0"]))
    assert report.kept == ("connector.layers.0.bias",)
    assert torch.equal(model.state_dict()["connector.layers.0.bias"], before)


def test_shapes_must_agree(make_model, saved: Path) -> None:
    altered(saved, connector__layers__0__bias=torch.ones(5))
    with pytest.raises(
        CheckpointError, match=r"has shape \[5\], 'connector.layers.0.bias' has \[32\]"
    ):
        warm_start(make_model(tied=True), start(saved))


def test_casts_are_stated(make_model, saved: Path) -> None:
    name, rounded = "connector.layers.0.weight", 0.1 * torch.randn(32, 32).bfloat16()
    altered(saved, connector__layers__0__weight=rounded)
    model = make_model(tied=True)
    report = warm_start(model, start(saved, parts=["connector"]))
    assert report.casts == {"bfloat16 to float32": 1}
    assert report.lines()[-1] == "cast from bfloat16 to float32: 1 tensors"
    assert model.state_dict()[name].dtype is torch.float32
    assert torch.equal(model.state_dict()[name], rounded.float())


def test_kept_adapters_come_along(make_model, tmp_path: Path) -> None:
    source = make_model()
    attach(source, "language_model", LowRankConfig(rank=2))
    fresh(source)
    source.save_pretrained(tmp_path)
    model = make_model()
    report = warm_start(model, start(tmp_path))
    assert report.adapters == ("language_model",)
    assert carried_adapters(model) == {"language_model": LowRankConfig(rank=2)}
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    other = make_model()
    warm_start(other, start(tmp_path, parts=["connector", "encoder"]))
    assert carried_adapters(other) == {}


def test_shards_are_one_checkpoint(make_model, tmp_path: Path) -> None:
    source = make_model()
    source.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = make_model()
    fresh(model)
    assert warm_start(model, start(tmp_path)).kept == ()
    assert all(torch.equal(model.state_dict()[n], t) for n, t in source.state_dict().items())


@pytest.fixture(scope="module")
def run(tiny: ModuleType, lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of another run: a connector, then kept adapters."""
    out = tmp_path_factory.mktemp("other-run")
    align = tiny.language_stage("align", trainable=("connector",), steps=2)
    lora = {"rank": 2, "merge": False}
    tune = tiny.language_stage("tune", trainable=("language_model",), steps=2, lora=lora)
    lab.trainer(out, TrainConfig(stages=(align, tune))).fit()
    return out / "checkpoints"


class TestStages:
    """The last checkpoint of a stage of another run."""

    def test_the_connector_of_stage_one(self, lab: Any, run: Path) -> None:
        model = lab.model()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        report = warm_start(model, start(run / "00-align-end.pt", parts=["connector"]))
        ends = torch.load(run / "00-align-end.pt", weights_only=True)["parts"]["connector"]
        for name, tensor in model.state_dict().items():
            part, _, rest = name.partition(".")
            assert torch.equal(tensor, ends[rest] if part == "connector" else before[name]), name
        assert len(report.loaded) == len(ends) == 4

    def test_what_a_stage_left_alone_is_not_in_its_checkpoint(self, lab: Any, run: Path) -> None:
        with pytest.raises(CheckpointError, match="of the model is not in it"):
            warm_start(lab.model(), start(run / "00-align-end.pt"))
        text = start(
            run / "01-tune-end.pt", parts=["language_model"], allow_missing=["language_model"]
        )
        report = warm_start(lab.model(), text)
        assert report.adapters == ("language_model",)
        assert all(is_adapter(name) for name in report.loaded)

    def test_a_file_that_is_none(self, lab: Any, tmp_path: Path) -> None:
        inside, garbage = tmp_path / "00-align-0000002.pt", tmp_path / "x.pt"
        torch.save({"step": 2}, inside)
        garbage.write_bytes(b"no checkpoint")
        for file, text in ((inside, "not the last checkpoint of a stage"), (garbage, "cannot be")):
            with pytest.raises(CheckpointError, match=text) as caught:
                warm_start(lab.model(), start(file, parts=["connector"]))
            assert caught.value.fault.file == str(file)


def test_nothing_there(make_model, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no saved model here to start from"):
        warm_start(make_model(), start(tmp_path / "nowhere"))


def test_quantised_weights_are_refused(make_model, saved: Path) -> None:
    model = make_model(tied=True)
    model.config.quantization_config = {"load_in_4bit": True}
    with pytest.raises(ConfigError, match="Leave language_model out of parts"):
        warm_start(model, start(saved))
    warm_start(model, start(saved, parts=["connector", "encoder"]))
