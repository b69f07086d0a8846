"""Small parts load as published ones do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, SiglipVisionModel

from medloupe.data.dataset import Dataset, DatasetCard, load_dataset, write_dataset
from medloupe.errors import CheckpointError
from medloupe.models.encoders.efficientnet import EfficientNetLite0Config
from medloupe.processing import ProcessorConfig
from medloupe.reproduce import Grid
from medloupe.reproduce.parts import SmallLanguage, SmallTower, TrainedEncoder
from medloupe.types import Conversation, Message, Text

SMALL = SmallLanguage(vocabulary=320, width=16, hidden=32, layers=2, heads=2, steps=40)


def silent(what: str, done: int, total: int) -> None:
    """Nobody watches."""


def questions(folder: Path) -> Dataset:
    rows = [
        Conversation(
            id=split,
            messages=(
                Message(role="user", content=(Text(text="Which plane is this?"),)),
                Message(role="assistant", content=(Text(text=f"{answer} 12"),)),
            ),
            patient_id=split,
            split=split,
        )
        for split, answer in (("train", "coronal"), ("test", "sagittal"))
    ]
    return write_dataset(folder, DatasetCard(name="questions"), rows)


def test_a_language_model_learns_the_training_text_and_no_other(tmp_path: Path) -> None:
    data = questions(tmp_path / "data")
    told = []
    SMALL.made(tmp_path / "a", data, ProcessorConfig(), lambda what, *_: told.append(what))
    losses = [float(what.rpartition(" ")[2].rstrip(")")) for what in told if "loss" in what]
    assert losses[-1] < losses[0] - 0.5
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    text = "<|im_start|>user\n{<12><0><99><100>} 左<|im_end|>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.convert_tokens_to_ids("1")) == 2, "digits stand alone"
    words = "".join(tokenizer.get_vocab())
    assert "coronal" in words
    assert "sagittal" not in words
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert model.config.num_hidden_layers == 2


def test_it_is_made_once_and_always_the_same(tmp_path: Path) -> None:
    data = questions(tmp_path / "data")
    state = torch.get_rng_state()
    brief = SMALL.model_copy(update={"steps": 2})
    made = [brief.made(tmp_path / name, data, ProcessorConfig(), silent) for name in "ab"]
    assert torch.equal(torch.get_rng_state(), state)
    one, other = ((folder / "model.safetensors").read_bytes() for folder in made)
    assert one == other
    (made[0] / "model.safetensors").write_bytes(b"mine")
    brief.made(tmp_path / "a", data, ProcessorConfig(), silent)
    assert (made[0] / "model.safetensors").read_bytes() == b"mine"


def test_a_tower_loads_as_siglip(tmp_path: Path) -> None:
    tower = SmallTower(image_size=32, width=16, layers=2, heads=2)
    tower.made(tmp_path / "t", questions(tmp_path / "data"), ProcessorConfig(), silent)
    loaded = SiglipVisionModel.from_pretrained(tmp_path / "t")
    assert loaded.config.hidden_size == 16


def test_an_encoder_learns_the_boxes_and_is_loaded_by_its_folder(
    tiny_grid: Grid, begun: Path, tmp_path: Path
) -> None:
    data = load_dataset(begun / "data" / tiny_grid.base.data.fingerprint())
    words = SMALL.made(tmp_path / "words", data, ProcessorConfig(), silent)
    part = TrainedEncoder(language=str(words), image_size=64, steps=3, batch_size=2)
    folder = part.made(tmp_path / "encoder", data, ProcessorConfig(), silent)
    assert [file.name for file in folder.iterdir()] == ["model.safetensors"]
    fresh = EfficientNetLite0Config(image_size=64, stride=16).build()
    fresh.load_pretrained()
    trained = EfficientNetLite0Config(source=str(folder), image_size=128, stride=16).build()
    trained.load_pretrained()
    assert trained.state_dict().keys() == fresh.state_dict().keys()
    assert not torch.equal(trained.stem[0].weight, fresh.stem[0].weight)
    deeper = EfficientNetLite0Config(source=str(folder), stride=32).build()
    with pytest.raises(CheckpointError, match="lacks"):
        deeper.load_pretrained()
    absent = EfficientNetLite0Config(source=str(tmp_path)).build()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        absent.load_pretrained()
