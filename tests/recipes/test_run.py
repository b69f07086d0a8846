"""From config to model folder: what is written, what is refused, what is equal after loading."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from medloupe.data.dataset import load_dataset
from medloupe.errors import CheckpointError, ConfigError, DataError
from medloupe.models.vlm import VisionLanguageModel
from medloupe.recipes import load_run, run
from medloupe.recipes.config import RunConfig
from medloupe.recipes.manifest import code_revision
from medloupe.recipes.prepare import prepare
from medloupe.train.log import read_log
from medloupe.types import ImageInput


def silent(what: str, done: int, total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Trained:
    config: RunConfig
    data: Path
    out: Path


@pytest.fixture(scope="module")
def trained(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A finished run in bf16 with LoRA, as the starter is."""
    folder = tmp_path_factory.mktemp("trained")
    changes = [f"model.language.source={language}", "model.language.dtype=bfloat16"]
    config = load_run("starter_tiny", [*changes, "data.patients=12", "data.slices_per_patient=2"])
    prepare(config.data, folder / "data", root=None, progress=silent)
    run.train(config, folder / "data", folder / "run", progress=silent)
    return Trained(config, folder / "data", folder / "run")


def test_a_loaded_model_is_the_trained_one(trained: Trained) -> None:
    """Bit for bit, in the types it trained in: the saved folder holds two."""
    model, _, _ = run.build(trained.config, trained.data)
    loaded = run.load(trained.out / "model", root=trained.data).model
    fresh, kept = model.state_dict(), loaded.state_dict()
    assert {n: (t.shape, t.dtype) for n, t in fresh.items()} == {
        n: (t.shape, t.dtype) for n, t in kept.items()
    }
    ends = torch.load(trained.out / "checkpoints/01-instruct-end.pt", weights_only=True)["parts"]
    assert set(ends) == {"encoder", "connector", "language_model"}
    for part, weights in ends.items():
        for name, tensor in weights.items():
            assert torch.equal(kept[f"{part}.{name}"], tensor), f"{part}.{name}"


def test_features_are_kept_where_the_run_says(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory, in a folder or nowhere: the same numbers, as each step has one image."""
    # the second stage alone: it leaves the encoder as it is
    plain = {"steps": 3, "trainable": ("connector",), "lora": None}
    stage = trained.config.train.stages[-1].model_copy(update=plain)
    encode, in_bf16 = VisionLanguageModel.encode, list[bool]()

    def noted(model: VisionLanguageModel, images: Sequence[ImageInput]) -> list[ImageInput]:
        if any(image.features is None for image in images):
            in_bf16.append(torch.is_autocast_enabled("cpu"))
        return encode(model, images)

    monkeypatch.setattr(VisionLanguageModel, "encode", noted)
    kept = str(tmp_path / "kept")
    saying = {None: "in memory", kept: kept, "off": "not kept"}
    losses: dict[str | None, list[float]] = {}
    for number, (choice, said) in enumerate(saying.items()):
        train = trained.config.train.model_copy(update={"stages": (stage,)})
        config = trained.config.model_copy(update={"features": choice, "train": train})
        out, told = tmp_path / str(number), list[str]()
        in_bf16.clear()
        run.train(config, trained.data, out, progress=silent, tell=told.append)
        assert in_bf16 == [True] * 3  # three steps of one image
        (line,) = [line for line in told if line.startswith("features:")]
        assert said in line
        steps = [row for row in read_log(out / "train.jsonl") if row["event"] == "step"]
        losses[choice] = [row["loss"] for row in steps]
    assert losses[None] == losses[kept] == losses["off"]
    assert sum(file.stat().st_size for file in Path(kept).iterdir()) > 1000


def test_training_and_evaluation_see_the_same_tokens(trained: Trained) -> None:
    """Same transform, same encoder, same memory order: the very bits."""
    row = load_dataset(trained.data).split("test")[0]
    _, processor, images = run.build(trained.config, trained.data)
    predict = run.load(trained.out / "model", root=trained.data)
    assert torch.equal(images.view(row.images[0]), predict.images.view(row.images[0]))
    asked = row.without_answer()
    before = processor.encode(asked, images.size_of)
    after = predict.processor.encode(asked, predict.images.size_of)
    assert torch.equal(before.input_ids, after.input_ids)
    weight = predict.model.encoder.get_submodule("stem").get_parameter("0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_building_twice_gives_the_same_model(trained: Trained) -> None:
    first, second = (run.build(trained.config, trained.data)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_is_not_overwritten(trained: Trained) -> None:
    with pytest.raises(CheckpointError, match=r"has checkpoints already.*--resume"):
        run.train(trained.config, trained.data, trained.out, progress=silent)


def test_another_run_is_not_resumed(trained: Trained, tmp_path: Path) -> None:
    other = trained.config.with_overrides(["model.encoder.stride=8", "seed=1"])
    with pytest.raises(CheckpointError, match=r"had another model and another seed.*run\.yaml"):
        run.train(other, trained.data, trained.out, resume=True, progress=silent)
    smaller = trained.config.data.with_overrides(["patients=10"])
    prepare(smaller, tmp_path / "data", root=None, progress=silent)
    with pytest.raises(CheckpointError, match="had another data"):
        run.train(trained.config, tmp_path / "data", trained.out, resume=True, progress=silent)


def test_prepared_data_are_reused_only_for_the_same_config(trained: Trained) -> None:
    made = (trained.data / "conversations.jsonl").stat().st_mtime_ns
    again = prepare(trained.config.data, trained.data, root=None, progress=silent)
    assert again.fingerprint() == load_dataset(trained.data).fingerprint()
    assert (trained.data / "conversations.jsonl").stat().st_mtime_ns == made
    other = trained.config.data.with_overrides(["seed=1"])
    with pytest.raises(DataError, match="prepared otherwise"):
        prepare(other, trained.data, root=None, progress=silent)


def test_a_finished_run_is_known_by_its_config(trained: Trained, tmp_path: Path) -> None:
    assert run.is_trained(trained.config, trained.out)
    assert not run.is_trained(trained.config.with_overrides(["seed=1"]), trained.out)
    assert not run.is_trained(trained.config, tmp_path)
    assert not run.is_evaluated(trained.config, trained.out)


def test_a_run_starts_from_another(trained: Trained, tmp_path: Path) -> None:
    """Said and noted by name; a rate of nothing leaves the connector as it came."""
    start = [f"model.start.folder={trained.out}", "model.start.parts=[connector]"]
    config = trained.config.with_overrides([*start, "seed=1"])
    align = config.train.stages[-1].model_copy(
        update={"trainable": ("connector",), "lora": None, "steps": 1, "learning_rate": 1e-12}
    )
    train = config.train.model_copy(update={"stages": (align,)})
    config = config.model_copy(update={"train": train})
    said: list[str] = []
    run.train(config, trained.data, tmp_path, progress=silent, tell=said.append)
    ours, theirs = (run.load(p / "model", root=p).model for p in (tmp_path, trained.out))
    wanted = theirs.connector.state_dict()
    for name, tensor in ours.connector.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-9)
    (line,) = [line for line in said if ": loaded: " in line]
    assert line.startswith(f"start from {trained.out}: loaded: {len(wanted)} tensors")
    for folder in (tmp_path, tmp_path / "model"):
        report = json.loads((folder / "manifest.json").read_text("utf-8"))["start"]
        assert report["source"] == str(trained.out / "model")
        assert report["loaded"] == sorted(f"connector.{name}" for name in wanted)
        assert len(report["kept"]) + len(wanted) == len(ours.state_dict())
    assert run.load_run_of(tmp_path / "model") == config


def test_a_start_that_is_not_there(trained: Trained, tmp_path: Path) -> None:
    config = trained.config.with_overrides([f"model.start.folder={tmp_path / 'nowhere'}"])
    with pytest.raises(CheckpointError, match="no saved model here to start from"):
        run.train(config, trained.data, tmp_path / "run", progress=silent)


def test_plans_on_quantised_weights_are_refused_as_they_are_written() -> None:
    with pytest.raises(
        ConfigError, match=r"cannot be merged into quantised weights.*merge to false"
    ):
        load_run("starter_tiny", ["model.language.quantization=nf4"])


def test_the_manifest_names_config_data_and_code(trained: Trained) -> None:
    manifest = json.loads((trained.out / "model/manifest.json").read_text("utf-8"))
    assert manifest["config_fingerprint"] == trained.config.fingerprint()
    assert manifest["data_fingerprint"] == load_dataset(trained.data).fingerprint()
    assert run.load_run_of(trained.out / "model") == trained.config


def test_a_folder_without_a_checkout_has_no_revision(tmp_path: Path) -> None:
    assert code_revision(tmp_path) is None


def test_model_folders(trained: Trained, tmp_path: Path) -> None:
    assert run.model_folder(trained.out) == run.model_folder(trained.out / "model")
    with pytest.raises(CheckpointError, match=r"no saved model here.*medloupe train"):
        run.model_folder(tmp_path)


def test_foreign_code_is_refused_unless_trusted(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained.out / "model", folder)
    fields = trained.config.to_dict()
    fields["model"]["connector"] = "os.path:join"
    (folder / "run.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    with pytest.raises(ConfigError, match="--trust-code"):
        run.load_run_of(folder)
    with pytest.raises(ConfigError, match="is not a ConnectorConfig"):
        run.load_run_of(folder, trust_code=True)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files of this process cannot grow beyond 100 kB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_model_that_was_there(
    trained: Trained, tmp_path: Path, full_disk: None
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("the one before", encoding="utf-8")
    model, processor, _ = run.build(trained.config, trained.data)
    with pytest.raises(CheckpointError, match=r"could not be written.*--resume"):
        run.save_model(folder, model, processor, trained.config, {})
    assert (folder / "config.json").read_text("utf-8") == "the one before"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_where_decoded_images_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOUPE_CACHE", str(tmp_path / "cache"))
    assert load_run("starter_tiny").store == "cache"
    assert run.decoded_store(None) is None
    for name, folder in (
        ("cache", tmp_path / "cache/views"),
        (str(tmp_path / "a"), tmp_path / "a"),
    ):
        store = run.decoded_store(name)
        assert store is not None
        assert store.blobs.folder == folder
        assert folder.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cache folder cannot be used") as caught:
        run.decoded_store(str(tmp_path / "file" / "below"))
    assert caught.value.fault.field == "store"
