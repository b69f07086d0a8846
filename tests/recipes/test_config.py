"""A run as one value: recipes, files, overrides, and the view that follows the encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medloupe.errors import ConfigError
from medloupe.imaging.transforms import ImageTransform
from medloupe.recipes import RECIPES, load_run, recipe
from medloupe.recipes.config import RunConfig

every_recipe = pytest.mark.parametrize("name", list(RECIPES))


@every_recipe
def test_a_recipe_is_named_described_and_survives_yaml(name: str, tmp_path: Path) -> None:
    config = recipe(name)
    assert config.name == name
    assert config.description
    path = tmp_path / "run.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_run(str(path)) == config
    assert load_run(str(path)).fingerprint() == config.fingerprint()


@every_recipe
def test_the_view_is_the_encoders(name: str) -> None:
    config = recipe(name)
    transform = config.processor.transform
    assert config.model.fitted(transform) == transform


@every_recipe
def test_stages_start_from_weights_that_may_train(name: str) -> None:
    """The language model is kept in bf16 only where nothing but adapters trains on it."""
    config = recipe(name)
    whole = [s for s in config.train.stages if "language_model" in s.trainable and s.lora is None]
    assert not whole or config.model.language.dtype == "float32"


def test_unknown_names_and_files() -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'startr'; did you mean 'starter'"):
        load_run("startr")
    with pytest.raises(ConfigError, match=r"'nowhere.yaml': no such file"):
        load_run("nowhere.yaml")
    with pytest.raises(ConfigError, match="unknown connector 'mpl'; did you mean 'mlp'"):
        load_run("starter", ["model.connector.name=mpl"])


def test_another_encoder_brings_its_view() -> None:
    changed = load_run("starter", ["model.encoder.image_size=448", "seed=3"])
    assert changed.processor.transform.size == 448
    assert changed.processor.system == recipe("starter").processor.system
    assert changed.seed == 3


def test_a_view_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"transform.size is 300, but the encoder wants 224"):
        load_run("starter", ["processor.transform.size=300"])
    agreed = ["processor.transform.size=256", "model.encoder.image_size=256"]
    assert load_run("starter", agreed).processor.transform.size == 256


def test_a_file_may_leave_the_view_out() -> None:
    fields = recipe("starter").to_dict()
    for name in ("size", "mean", "std"):
        del fields["processor"]["transform"][name]
    assert RunConfig.parse(fields) == recipe("starter")
    fields["processor"]["transform"] |= {"fit": "crop"}
    assert RunConfig.parse(fields).processor.transform.fit == "crop"
    del fields["processor"]
    assert RunConfig.parse(fields).processor.transform == ImageTransform(
        mean=(0.498, 0.498, 0.498), std=(0.502, 0.502, 0.502)
    )


def test_a_name_is_a_field_like_others_unless_it_names_a_component() -> None:
    renamed = load_run("starter", ["name=mine", "evaluate.benchmark.name=ours"])
    assert (renamed.name, renamed.evaluate.benchmark.name) == ("mine", "ours")
    assert renamed.train == recipe("starter").train


def test_another_component_takes_its_own_fields() -> None:
    changes = ["model.connector.name=linear", "data.name=vqa_rad", "data.test=0.5"]
    changed = load_run("starter", changes)
    assert changed.model.connector.name == "linear"
    assert changed.data.to_dict()["test"] == 0.5
    with pytest.raises(ConfigError, match="patience: unknown field; did you mean 'patients'"):
        load_run("vqa_rad_starter", ["data.name=starter", "data.patience=3"])


def test_the_yaml_names_every_component() -> None:
    shown = yaml.safe_load(recipe("starter").to_yaml())
    assert shown["model"]["encoder"]["name"] == "efficientnet_lite0"
    assert shown["train"]["stages"][-1]["objective"]["name"] == "language"


def test_wrong_entries_of_a_list_are_not_also_told_as_missing() -> None:
    wrong = [f"train.stages.{stage}.epochs=often" for stage in ("ground", "instruct")]
    with pytest.raises(ConfigError) as caught:
        recipe("starter").with_overrides(wrong)
    said = str(caught.value)
    assert "train.stages.0.epochs" in said
    assert "train.stages.1.epochs" in said
    assert "at least 1" not in said
