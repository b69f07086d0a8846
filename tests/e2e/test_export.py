"""`medloupe import` and `medloupe export` as a user runs them: a checkpoint in the original naming comes
in, answers, goes out as transformers' LLaVA, answers alike there, and comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from medloupe.errors import CheckpointError
from medloupe.models.vlm import VisionLanguageModel
from medloupe.processing import ImageSource, Processor
from medloupe.recipes.exchange import export_llava, import_model
from medloupe.types import Conversation, ImageRef, Message, Text

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: "
)
QUESTION = "Is there a lesion?"


@pytest.fixture(scope="module")
def published(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA-1.5 in small: a frozen tower that lies elsewhere, safetensors, a SentencePiece tokenizer."""
    torch.manual_seed(4)
    root = tmp_path_factory.mktemp("published")
    words = tiny.tokenizer("legacy", None)
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    clip = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=7,
    )
    CLIPVisionModel(clip).save_pretrained(root / "clip")
    tensors = {
        k: v + 0.2 * torch.randn_like(v) for k, v in LlamaForCausalLM(text).state_dict().items()
    }
    for name, shape in (
        ("0.weight", (32, 32)),
        ("0.bias", (32,)),
        ("2.weight", (32, 32)),
        ("2.bias", (32,)),
    ):
        tensors[f"model.mm_projector.{name}"] = 0.3 * torch.randn(shape)
    folder = root / "llava"
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    words.save_pretrained(folder)
    config = text.to_dict() | {
        "model_type": "llava",
        "mm_vision_tower": str(root / "clip"),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("picture") / "a.png"
    pixels = np.random.default_rng(1).integers(0, 255, (40, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture(scope="module")
def folders(
    medloupe: Callable[..., Any], published: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The folders of a round trip, and what each command said."""
    root = tmp_path_factory.mktemp("round")
    said = {
        "imported": medloupe("import", published, "--out", root / "imported").out,
        "exported": medloupe(
            "export", "--model", root / "imported", "--out", root / "exported"
        ).out,
    }
    import_model(str(root / "exported"), root / "back")
    return {"root": root, "said": said}


def asked(folder: Path, picture: Path) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Our model, the prompt's ids `[1, L]` and the view `[1, 3, S, S]`."""
    processor, model = Processor.load(folder), VisionLanguageModel.load(folder)
    images = ImageSource(picture.parent, processor.config.transform)
    ref = ImageRef(uri=picture.name)
    row = Conversation(id="r", messages=(Message(role="user", content=(ref, Text(text=QUESTION))),))
    ids = processor.encode(row, images.size_of).input_ids[None]
    view = images.inputs([ref])[0].views
    assert isinstance(view, torch.Tensor)
    return model, ids, view[None]


def test_an_import_says_what_was_loaded_and_from_where(folders: Any, published: Path) -> None:
    said = folders["said"]["imported"]
    assert "loaded: 25 tensors" in said
    assert f"from {published.parent / 'clip'}" in said
    report = json.loads((folders["root"] / "imported" / "import.json").read_text())
    assert "connector.layers.0.weight" in report["loaded"]
    assert all(name.startswith("encoder.") for name in report["kept"])


def test_the_prompt_comes_with_the_checkpoint(folders: Any, published: Path, picture: Path) -> None:
    words = AutoTokenizer.from_pretrained(published)
    model, ids, _ = asked(folders["root"] / "imported", picture)
    wanted = words(VICUNA).input_ids + [model.config.image_token_id] * 16
    wanted += words(f"\n{QUESTION} ASSISTANT:").input_ids[1:]
    assert ids[0].tolist() == wanted


def test_the_export_says_the_same_in_plain_transformers(folders: Any, picture: Path) -> None:
    model, ids, view = asked(folders["root"] / "imported", picture)
    llava = LlavaForConditionalGeneration.from_pretrained(folders["root"] / "exported").eval()
    settings = {"pixel_values": view, "max_new_tokens": 16, "do_sample": False}
    ours = model.generate(input_ids=ids, **settings)[0, ids.shape[1] :]
    theirs = llava.generate(input_ids=ids, **settings)[0, ids.shape[1] :]
    assert ours.tolist() == theirs.tolist()
    assert len(set(ours.tolist())) > 2


def test_what_came_back_is_what_went_out(folders: Any, picture: Path) -> None:
    before, ids, view = asked(folders["root"] / "imported", picture)
    after, again, pixels = asked(folders["root"] / "back", picture)
    assert again.tolist() == ids.tolist()
    assert torch.equal(pixels, view)
    own = after.state_dict()
    for name, tensor in before.state_dict().items():
        if own[name].shape == tensor.shape:
            assert torch.equal(own[name], tensor), name
        else:  # the vocabulary grew by the image token
            assert torch.equal(own[name][: len(tensor)], tensor), name
    first, second = (Processor.load(folders["root"] / n).config for n in ("imported", "back"))
    assert first == second


def test_an_imported_model_answers_from_the_command_line(
    medloupe: Callable[..., Any], folders: Any, picture: Path
) -> None:
    done = medloupe("ask", QUESTION, "--model", folders["root"] / "back", "--image", picture)
    assert done.out.strip()


def test_an_export_holds_an_image_processor_with_the_same_numbers(folders: Any) -> None:
    exported = folders["root"] / "exported"
    said = json.loads((exported / "preprocessor_config.json").read_text())
    transform = Processor.load(exported).config.transform
    assert said["image_processor_type"] == "LlavaImageProcessor"
    assert (said["do_pad"], said["size"]) == (True, {"height": 28, "width": 28})
    assert (said["image_mean"], said["image_std"]) == ([*transform.mean], [*transform.std])
    template = AutoTokenizer.from_pretrained(exported).chat_template
    assert "USER: " in template


def test_mistakes_are_told(
    medloupe: Callable[..., Any], published: Path, folders: Any, tmp_path: Path
) -> None:
    root = folders["root"]
    done = medloupe("import", published, "--out", root / "imported", code=2)
    assert "exists already" in done.err
    done = medloupe("import", published, "--out", tmp_path / "a", "--prompt", "vicuna", code=2)
    assert "did you mean 'vicuna_v1'" in done.err
    assert not (tmp_path / "a").exists()
    with pytest.raises(CheckpointError, match=r"holds none of config\.json"):
        import_model(str(tmp_path), tmp_path / "b")
    with pytest.raises(CheckpointError, match="not a saved model"):
        export_llava(tmp_path, tmp_path / "c")
