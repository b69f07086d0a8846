"""Named prompts, token for token, against the text that each family's public code writes and the way in
which it tokenises it: cut at the images, every piece a text of its own, one BOS (LLaVA and MedM-VL)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from medloupe.errors import ConfigError, PromptError
from medloupe.models.vlm import IMAGE_TOKEN
from medloupe.processing import Processor, ProcessorConfig
from medloupe.processing.formats import FORMATS
from medloupe.types import Conversation, ImageLayout, ImageLayouts, ImageRef, Message, Text

LAYOUT = ImageLayout(rows=2, columns=3)
IMAGE = ImageRef(uri="a.png")
OTHER = ImageRef(uri="b.png")
Q1, A1, Q2, A2 = "Is there a ring lesion?", "yes, left", "Which side?", "left, 12 mm"

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)
LLAVA = (
    "You are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language."
)
# Whole conversations as published; the prompt of generation is what stands before the sign §.
PUBLISHED = {
    "vicuna_v1": f"{VICUNA}USER: <image>\n{Q1} ASSISTANT: {A1}</s>USER: {Q2} ASSISTANT:§ {A2}</s>",
    "vicuna_v1_interleaved": (
        f"{VICUNA}USER: <image>\n{Q1} ASSISTANT: {A1}</s>USER: {Q2} ASSISTANT:§ {A2}</s>"
    ),
    "mistral_instruct": f"[INST] <image>\n{Q1} [/INST] {A1} </s>[INST] {Q2} [/INST]§ {A2} </s>",
    "llava_llama_2": (
        f"[INST] <<SYS>>\n{LLAVA}\n<</SYS>>\n\n<image>\n{Q1} [/INST] {A1} </s><s>[INST] {Q2} "
        f"[/INST]§ {A2} </s>"
    ),
    "chatml_direct": (
        "<|im_start|>system\nAnswer the questions.<|im_end|>"
        f"<|im_start|>user\n<image>\n{Q1}<|im_end|><|im_start|>assistant\n{A1}<|im_end|>"
        f"<|im_start|>user\n{Q2}<|im_end|><|im_start|>assistant\n§{A2}<|im_end|>"
    ),
    "qwen_1_5": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<image>\n{Q1}<|im_end|>\n<|im_start|>assistant\n{A1}<|im_end|>\n"
        f"<|im_start|>user\n{Q2}<|im_end|>\n<|im_start|>assistant\n§{A2}<|im_end|>\n"
    ),
}
KINDS = ("bytes", "metaspace", "legacy")


def size_of(_: ImageRef) -> tuple[int, int]:
    return 64, 48


def processor(tiny: ModuleType, kind: str, prompt: str) -> Processor:
    # chatml's words end with <|im_end|>: the tokenizer's EOS, as Qwen's is
    words = tiny.tokenizer(kind, "chatml" if prompt in ("chatml_direct", "qwen_1_5") else "llama2")
    token = words.convert_tokens_to_ids(IMAGE_TOKEN)
    layouts = ImageLayouts(image=LAYOUT)
    return Processor(ProcessorConfig(prompt=prompt), words, layouts, token)


def cut_at_images(made: Processor, text: str) -> list[int]:
    """LLaVA's `tokenizer_image_token`, in other words."""
    words, ids = made.tokenizer, []
    for number, piece in enumerate(text.split("<image>")):
        tokens = words(piece).input_ids
        begins = bool(tokens) and tokens[0] == words.bos_token_id
        ids += [made.image_token_id] * (LAYOUT.tokens if number else 0)
        ids += tokens[1:] if number and begins else tokens
    return ids


def talk(*turns: tuple[Any, ...]) -> Conversation:
    messages = tuple(
        Message(
            role=("user", "assistant")[place % 2],
            content=tuple(Text(text=p) if isinstance(p, str) else p for p in turn),
        )
        for place, turn in enumerate(turns)
    )
    return Conversation(id="r", messages=messages)


ROW = talk((IMAGE, Q1), (A1,), (Q2,), (A2,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", PUBLISHED)
def test_token_ids_are_the_published_ones(tiny: ModuleType, prompt: str, kind: str) -> None:
    made = processor(tiny, kind, prompt)
    before, after = PUBLISHED[prompt].split("§")
    encoded = made.encode(ROW, size_of)
    assert encoded.input_ids.tolist() == cut_at_images(made, before + after)
    asked = made.encode(ROW.without_answer(), size_of).input_ids.tolist()
    assert asked == cut_at_images(made, before)
    learned = made.tokenizer.decode([i for i in encoded.labels.tolist() if i >= 0])
    end = "<|im_end|>" if "<|im_end|>" in after else "</s>"
    assert [part.strip() for part in learned.split(end)] == [A1, A2, ""]


def test_a_leading_space_stands_behind_an_image_where_it_did_in_training(tiny: ModuleType) -> None:
    """Llama's 29871 between the image and the line break: LLaVA-1.5 has seen nothing else."""
    made = processor(tiny, "legacy", "vicuna_v1")
    ids = made.encode(ROW, size_of).input_ids
    after = int((ids == made.image_token_id).nonzero()[-1]) + 1
    found = made.tokenizer.convert_ids_to_tokens(ids[after : after + 2].tolist())
    assert found == ["▁", "\n"]


@pytest.mark.parametrize("kind", ["metaspace", "legacy"])
def test_minigpt_v2_tokenises_prompt_segments_and_answers_apart(
    tiny: ModuleType, kind: str
) -> None:
    made = processor(tiny, kind, "minigpt_v2")
    words, image = made.tokenizer, [made.image_token_id] * LAYOUT.tokens

    def plain(text: str) -> list[int]:
        return list(words(text, add_special_tokens=False).input_ids)

    asked = [words.bos_token_id, *plain("[INST] <Img>"), *image]
    asked += plain(f"</Img> [identify] {Q1} [/INST]")
    row = talk((IMAGE, f"[identify] {Q1}"), (A1,), (Q2,), (A2,))
    first = row.model_copy(update={"messages": row.messages[:1]})
    assert made.encode(first, size_of).input_ids.tolist() == asked
    whole = asked + plain(A1 + "</s>") + plain(f"<s>[INST] {Q2} [/INST]") + plain(A2 + "</s>")
    assert made.encode(row, size_of).input_ids.tolist() == whole


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_stage_shows_the_image_and_learns_the_caption_alone(
    tiny: ModuleType, kind: str
) -> None:
    row = talk((IMAGE, "Describe the image."), (A1,))
    for prompt, end in (("plain", "\n"), ("plain_unended", "")):
        made = processor(tiny, kind, prompt)
        encoded = made.encode(row, size_of)
        wanted = cut_at_images(made, "<image>" + A1 + end)
        assert encoded.input_ids.tolist() == wanted
        start = wanted.index(made.image_token_id) + LAYOUT.tokens
        assert encoded.labels.tolist() == [-100] * start + wanted[start:]
        with pytest.raises(PromptError, match="one caption"):
            made.encode(ROW, size_of)
        with pytest.raises(PromptError, match="no image to show"):
            made.encode(talk(("Describe the image.",)), size_of)


def test_images_stand_where_the_family_puts_them(tiny: ModuleType) -> None:
    row = talk(("Before:", IMAGE, "after:", OTHER, "Compare. "), ("no change",))
    wanted = {
        "vicuna_v1": "<image>\n<image>\nBefore:after:Compare. ASSISTANT: no change</s>",
        "vicuna_v1_interleaved": (
            "Before:\n<image>\nafter:\n<image>\nCompare. ASSISTANT: no change</s>"
        ),
    }
    for prompt, text in wanted.items():
        made = processor(tiny, "bytes", prompt)
        ids = made.encode(row, size_of).input_ids.tolist()
        assert ids == cut_at_images(made, f"{VICUNA}USER: {text}")
    alone = processor(tiny, "bytes", "vicuna_v1").encode(talk((IMAGE,)), size_of)
    made = processor(tiny, "bytes", "vicuna_v1")
    assert alone.input_ids.tolist() == cut_at_images(made, f"{VICUNA}USER: <image> ASSISTANT:")


def test_a_system_message_takes_the_place_of_the_formats_own(tiny: ModuleType) -> None:
    for prompt in ("vicuna_v1", "llava_llama_2", "mistral_instruct", "qwen_1_5"):
        words = processor(tiny, "bytes", prompt)
        config = words.config.model_copy(update={"system": "Be brief."})
        made = Processor(config, words.tokenizer, words.layouts, words.image_token_id)
        text = made.tokenizer.decode(made.encode(ROW, size_of).input_ids)
        assert text.count("Be brief.") == 1
        assert VICUNA not in text
        assert LLAVA not in text


def test_an_unknown_format_answers_with_the_near_one() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown prompt format 'vicuna'; did you mean 'vicuna_v1'"
    ):
        ProcessorConfig.parse({"prompt": "vicuna"})


@pytest.mark.parametrize("prompt", FORMATS)
def test_a_format_is_saved_with_the_processor(tiny: ModuleType, prompt: str, tmp_path: Any) -> None:
    made = processor(tiny, "legacy", prompt)
    made.save(tmp_path)
    again = Processor.load(tmp_path)
    assert again.config.prompt == prompt
    row = talk((IMAGE, Q1), (A1,))
    before, after = made.encode(row, size_of), again.encode(row, size_of)
    assert before.input_ids.tolist() == after.input_ids.tolist()
    assert before.labels.tolist() == after.labels.tolist()
