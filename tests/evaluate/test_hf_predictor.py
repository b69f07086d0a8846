"""A tiny random LLaVA, saved as a folder, in the place of ours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from medloupe.errors import CheckpointError, ImageError, MedLoupeError, PromptError
from medloupe.evaluate.predictors.hf import HFConfig, HFPredictor
from medloupe.types import Conversation, Generation, ImageRef, Message, Text

SIDE, PATCH = 28, 14
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %} / {% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def silent(what: str, done: int, total: int) -> None:
    pass


def save_llava(folder: Path) -> Path:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="</s>", additional_special_tokens=["<image>"]
    )
    tokenizer.image_token = "<image>"
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    torch.manual_seed(5)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, image_size=SIDE, patch_size=PATCH, **sizes
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            max_position_embeddings=512,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
            **sizes,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # a random model might say an image token, a trained one does not
        model.get_output_embeddings().weight[config.image_token_index] = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    return root


def predictor(folder: Path, root: Path, **fields: Any) -> HFPredictor:
    config = {"source": str(folder), "precision": "fp32", "max_new_tokens": 6, **fields}
    return HFPredictor(HFConfig.parse(config), root)


def ask(name: str, text: str, *uris: str, **fields: Any) -> Conversation:
    content = (*(ImageRef(uri=uri) for uri in uris), Text(text=text))
    return Conversation(id=name, messages=(Message(role="user", content=content),), **fields)


def seen(predict: HFPredictor, ref: ImageRef) -> Image.Image:
    (pixels,) = predict.images.pictures(ref)
    assert not isinstance(pixels, str)
    return Image.fromarray(pixels).convert("RGB")


ROWS = [
    ask("a", "Is there a mass?", "0.png", options=("yes", "no", "not sure")),
    ask("b", "Which side of the patient is it on?", "1.png"),
    ask("text", "What is a mass?"),
    ask("two", "Compare.", "0.png", "2.png"),
]


def test_answers_are_transformers_own_one_at_a_time(folder: Path, pictures: Path) -> None:
    predict = predictor(folder, pictures, batch_size=3)
    said = predict(ROWS, progress=silent)
    for row, answer in zip(ROWS, said, strict=True):
        prompt = f"user: {'<image>' * len(row.images)}{row.question} / assistant: "
        shown = [seen(predict, ref) for ref in row.images]
        inputs = predict.processor(text=[prompt], images=shown or None, return_tensors="pt")
        whole = predict.model.generate(**inputs, do_sample=False, max_new_tokens=6)
        new = whole[0, inputs["input_ids"].shape[1] :].tolist()
        assert list(answer.token_ids) == new
        with torch.no_grad():
            inputs["input_ids"] = whole
            inputs["attention_mask"] = torch.ones_like(whole)
            logits = predict.model(**inputs).logits[0, -len(new) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(new)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.log_probs), expected, atol=1e-4, rtol=1e-4)
    assert len({answer.token_ids for answer in said}) == len(ROWS)


def test_options_are_read_whole_with_their_end(folder: Path, pictures: Path) -> None:
    predict = predictor(folder, pictures)
    (said,) = predict(ROWS[:1], progress=silent)
    shown = seen(predict, ROWS[0].images[0])
    totals = []
    for option in ROWS[0].options:
        text = f"user: <image>Is there a mass? / assistant: {option}</s>"
        inputs = predict.processor(text=[text], images=[shown], return_tensors="pt")
        ids = inputs["input_ids"][0]
        new = len(option) + 1  # one token a byte, and the end
        with torch.no_grad():
            log_probs = predict.model(**inputs).logits[0].log_softmax(-1)
        totals.append(
            sum(float(log_probs[at - 1, ids[at]]) for at in range(len(ids) - new, len(ids)))
        )
    weights = [math.exp(total) for total in totals]
    expected = [weight / sum(weights) for weight in weights]
    assert said.option_probs == pytest.approx(expected, rel=1e-3)
    assert (
        predictor(folder, pictures, option_probs=False)(ROWS[:1], progress=silent)[0].option_probs
        == ()
    )


def test_what_cannot_be_asked_is_told_row_by_row(folder: Path, pictures: Path) -> None:
    rows = [
        ask("gone", "Side?", "9.png"),
        ROWS[1],
        ask("long", "word " * 200, "0.png"),
        ask("token", "An <image> in words", "0.png"),
    ]
    predict = predictor(folder, pictures)
    heard: dict[int, Generation | MedLoupeError] = {}
    predict.answer_each(rows, heard.__setitem__, progress=silent)
    assert isinstance(heard[0], ImageError)
    assert isinstance(heard[1], Generation)
    assert isinstance(heard[3], PromptError)  # one image token more than images
    assert heard[3].fault.row == "token"
    alone = predict([ROWS[1]], progress=silent)[0]
    assert heard[1].token_ids == alone.token_ids
    with pytest.raises(ImageError):
        predict(rows, progress=silent)


def test_batches_that_are_done_are_left_out(folder: Path, pictures: Path) -> None:
    heard: list[int] = []
    predictor(folder, pictures, batch_size=1).answer_each(
        ROWS, lambda n, _: heard.append(n), progress=silent, done={0, 2}
    )
    assert sorted(heard) == [1, 3]


def test_the_identity_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    one = HFConfig(source=str(folder))
    assert one.identity() == HFConfig(source=str(folder), batch_size=2).identity()
    assert one.identity() != HFConfig(source=str(folder), slices=2).identity()
    other = save_llava(tmp_path)
    assert one.identity() == HFConfig(source=str(other)).identity()
    (other / "generation_config.json").write_text("{}")
    assert one.identity() != HFConfig(source=str(other)).identity()


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not an image-text-to-text model"):
        predictor(tmp_path, tmp_path)
