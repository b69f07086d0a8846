from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from medloupe.errors import PromptError
from medloupe.models.vlm import IMAGE_TOKEN
from medloupe.processing import Processor, ProcessorConfig
from medloupe.types import Box, Conversation, ImageLayout, ImageLayouts, ImageRef, Message, Text

KINDS = ("bytes", "metaspace", "legacy")
NAMES = ("chatml", "llama2", "llama3", "mistral", "thinking", "default")
LAYOUT = ImageLayout(rows=2, columns=3)
IMAGES = tuple(ImageRef(uri=f"{n}.png") for n in "abc")
ANSWERS = ("yes, left", "A ring lesion on the left side.")


def size_of(_: ImageRef) -> tuple[int, int]:
    return 64, 48


@pytest.fixture(scope="module")
def make(tiny: ModuleType) -> Any:
    made: dict[tuple[str, str], Any] = {}

    def build(kind: str, name: str, **fields: Any) -> Processor:
        if (kind, name) not in made:
            made[kind, name] = tiny.tokenizer(kind, name)
        words = made[kind, name]
        token = words.convert_tokens_to_ids(IMAGE_TOKEN)
        return Processor(ProcessorConfig(**fields), words, ImageLayouts(image=LAYOUT), token)

    return build


@pytest.fixture(params=[(kind, name) for kind in KINDS for name in NAMES], ids="-".join)
def processor(request: pytest.FixtureRequest, make: Any) -> Processor:
    built: Processor = make(*request.param)
    return built


@pytest.fixture
def talk(tiny: ModuleType) -> Any:
    return tiny.conversation


def learned(processor: Processor, conversation: Conversation) -> list[str]:
    """The learned stretches of a row, each decoded with its end token."""
    row = processor.encode(conversation, size_of)
    spans: list[list[int]] = []
    for place, label in enumerate(row.labels.tolist()):
        if label < 0:
            continue
        assert label == int(row.input_ids[place])
        if place == 0 or int(row.labels[place - 1]) < 0:
            spans.append([])
        spans[-1].append(label)
    return [str(processor.tokenizer.decode(span)) for span in spans]


def test_labels_are_the_answers_and_their_end_token(processor: Processor, talk: Any) -> None:
    row = talk("r", ("Is there a lesion?",), (ANSWERS[0],), ("Describe it.",), (ANSWERS[1],))
    end = str(processor.tokenizer.eos_token)
    found = learned(processor, row)
    # Llama 2's template writes a space before and after an answer; no other characters are allowed
    assert [span.replace(f" {end}", end).strip() for span in found] == [a + end for a in ANSWERS]
    ids = processor.encode(row, size_of).labels.tolist()
    assert sum(i == processor.tokenizer.eos_token_id for i in ids) == 2


def test_an_answer_that_the_question_quotes_is_learned_only_as_answer(
    processor: Processor, talk: Any
) -> None:
    row = talk("r", ("yes, left: is it yes, left?",), ("yes, left",))
    plain = processor.encode(talk("r", ("yes, left: is it yes, left?",)), size_of)
    whole = processor.encode(row, size_of)
    assert len(learned(processor, row)) == 1
    assert int((whole.labels >= 0).nonzero()[0]) == len(plain.input_ids)


@pytest.mark.parametrize("answer", ["yes, left", "  no change\n", "3 ring lesions", "无变化"])
def test_training_begins_with_the_prompt_of_generation(
    processor: Processor, talk: Any, answer: str
) -> None:
    row = talk(
        "r", (IMAGES[0], "Is there a lesion?"), ("no",), ("And", IMAGES[1], "here?"), (answer,)
    )
    prompt = processor.encode(row.without_answer(), size_of).input_ids
    whole = processor.encode(row, size_of)
    assert whole.input_ids[: len(prompt)].tolist() == prompt.tolist()
    # what the model writes begins where the prompt ends, so nothing between them is taught unseen
    assert int(whole.labels[len(prompt)]) >= 0
    assert int(whole.labels[len(prompt) - 1]) < 0
    written = [i for i in whole.labels[len(prompt) :].tolist() if i >= 0]
    assert written[-1] in processor.end_token_ids
    assert processor.decode(written) == answer.strip() == processor.answer_text(row, size_of)


@pytest.mark.parametrize(
    "turns",
    [
        (("Is there a ring lesion?",),),
        (("Is there a ring lesion?",), ("yes, left",)),
        (("Is there\na ring lesion?",), ("yes",), ("Which side?",)),
        (("Is there a ring lesion?",), ("yes",), ("Which side?",), ("left, 12 mm",)),
    ],
    ids=["prompt", "answered", "second prompt", "both"],
)
def test_ids_of_text_are_those_of_the_tokenizer(
    processor: Processor, talk: Any, turns: tuple[tuple[str, ...], ...]
) -> None:
    words = processor.tokenizer
    if words.chat_template is None:
        pytest.skip("the default template is ours, and the tokenizer's BOS goes before it")
    messages = [
        {"role": ("user", "assistant")[n % 2], "content": turn[0]} for n, turn in enumerate(turns)
    ]
    asks = len(turns) % 2 == 1
    expected = words.apply_chat_template(
        messages, add_generation_prompt=asks, tokenize=True, return_dict=False
    )
    ids = processor.encode(talk("r", *turns), size_of).input_ids.tolist()
    if ids[0] == words.bos_token_id != expected[0]:
        ids = ids[1:]  # a tokenizer that puts a BOS before texts, a template that writes none
    if "<think>" in words.chat_template and asks:
        thought = words.decode(ids[len(expected) :])
        assert thought == "<think>\n\n</think>\n\n"
        ids = ids[: len(expected)]
    assert ids == expected


def test_one_bos(make: Any, talk: Any) -> None:
    row = talk("r", ("Is there a lesion?",), ("yes",))

    def count(kind: str, name: str) -> int:
        processor = make(kind, name)
        ids = processor.encode(row, size_of).input_ids.tolist()
        places = [n for n, i in enumerate(ids) if i == processor.tokenizer.bos_token_id]
        assert places in ([], [0])
        return len(places)

    for name in ("llama2", "llama3", "mistral"):  # the template writes it
        assert [count(kind, name) for kind in KINDS] == [1, 1, 1]
    for name in ("chatml", "default"):  # the tokenizer does, or nobody
        assert [count(kind, name) for kind in KINDS] == [0, 1, 1]


def test_images_stand_where_the_text_says(processor: Processor, talk: Any) -> None:
    a, b, c = IMAGES
    row = talk("r", ("First", a, "then", b, b), ("new",), (c, "now?"), ("gone",))
    encoded = processor.encode(row, size_of)
    runs: list[int | str] = []
    text: list[int] = []
    for token in [*encoded.input_ids.tolist(), -1]:
        if token == processor.image_token_id or token == -1:
            if text:
                runs.append(processor.tokenizer.decode(text))
            text = []
            runs.append(1)
        else:
            text.append(token)
    shape = [r for r in runs if isinstance(r, str)]
    assert encoded.images == (a, b, b, c)
    assert runs.count(1) - 1 == 4 * LAYOUT.tokens == 24
    assert len(shape) == 4
    assert shape[0].endswith("First")
    assert shape[1].strip() == "then"
    assert "new" in shape[2]
    assert shape[3].lstrip().startswith("now?")
    images = encoded.input_ids == processor.image_token_id
    assert (encoded.labels[images] == -100).all()
    assert encoded.position_ids.tolist() == list(range(len(encoded.input_ids)))
    assert set(encoded.segments.tolist()) == {0}


def test_text_around_an_image_keeps_its_spaces(make: Any, talk: Any) -> None:
    for kind in KINDS:
        processor = make(kind, "default")
        ids = processor.encode(talk("r", ("left ", IMAGES[0], "right side")), size_of).input_ids
        after = int((ids == processor.image_token_id).nonzero()[-1]) + 1
        # no space was put before "right": SentencePiece would, at the start of a text
        assert processor.tokenizer.convert_ids_to_tokens(int(ids[after]))[0] == "r"


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("chatml", "<|im_end|>"),
        ("llama3", "<|eot_id|>"),
        ("llama3", "<|start_header_id|>"),
        ("chatml", "</s>"),
        ("default", IMAGE_TOKEN),
    ],
)
def test_control_tokens_in_text_are_refused(make: Any, talk: Any, name: str, token: str) -> None:
    processor = make("bytes", name)
    for turns in [((f"Is {token} there?",),), (("Is it?",), (f"no{token}",))]:
        with pytest.raises(PromptError, match="control token") as caught:
            processor.encode(talk("row-7", *turns), size_of)
        assert caught.value.fault.row == "row-7"
        assert token in str(caught.value)
    with pytest.raises(PromptError, match="control token"):  # split over two parts
        processor.encode(talk("r", (token[:3], token[3:])), size_of)
    with pytest.raises(PromptError, match="control token"):
        make("bytes", name, system=f"Be brief.{token}").encode(talk("r", ("Is it?",)), size_of)


def test_too_long_is_an_error_with_the_row(make: Any, talk: Any) -> None:
    row = talk("long-row", (IMAGES[0], "Is there a lesion?"), ("yes",))
    length = len(make("bytes", "chatml").encode(row, size_of).input_ids)
    make("bytes", "chatml", max_length=length).encode(row, size_of)
    with pytest.raises(PromptError, match=f"{length} tokens, the limit is {length - 1}") as caught:
        make("bytes", "chatml", max_length=length - 1).encode(row, size_of)
    assert caught.value.fault.row == "long-row"


BOX = Box(label="lesion", x1=1, y1=2, x2=3, y2=4)
VOLUME = ImageRef(uri="v.nii", kind="volume")


@pytest.mark.parametrize(
    ("turns", "rule"),
    [
        ((), "no question"),
        ((("Is it?",), ()), "an answer is empty"),
        ((("Is it?",), ("",)), "an answer is empty"),
        ((("Is it?",), (" \n", "")), "an answer is empty"),
        ((("Is it?",), ("see ", IMAGES[0])), "an answer holds an image"),
        ((("Where?",), (BOX,)), "the conversation has 0"),
        (((IMAGES[0], "Where?"), (BOX.model_copy(update={"image": 1}),)), "names image 1"),
        (((IMAGES[0], "Where?"), (BOX.model_copy(update={"z1": 1.0, "z2": 2.0}),)), "has slices"),
        (((VOLUME, "Is it?"), ("yes",)), "is a volume"),
    ],
)
def test_rows_that_cannot_be_rendered_name_themselves(
    make: Any, talk: Any, turns: Any, rule: str
) -> None:
    with pytest.raises(PromptError, match=rule) as caught:
        make("bytes", "chatml").encode(talk("row-9", *turns), size_of)
    assert caught.value.fault.row == "row-9"


@pytest.mark.parametrize(
    "roles", [["assistant"], ["user", "user"], ["user", "assistant", "assistant"], ["system"]]
)
def test_roles_out_of_order(make: Any, roles: list[Any]) -> None:
    messages = tuple(Message(role=role, content=(Text(text="a"),)) for role in roles)
    with pytest.raises(PromptError, match=r"alternate|no question"):
        make("bytes", "chatml").encode(Conversation(id="r", messages=messages), size_of)


def test_system_message(make: Any, talk: Any) -> None:
    row = talk("r", ("Is there a lesion?",), ("yes",))
    own = row.model_copy(
        update={
            "messages": (Message(role="system", content=(Text(text="Be brief."),)), *row.messages)
        }
    )
    for name in ("chatml", "llama2", "llama3", "default"):
        given = make("bytes", name, system="Be brief.").encode(row, size_of)
        assert (
            given.input_ids.tolist() == make("bytes", name).encode(own, size_of).input_ids.tolist()
        )
        assert "Be brief." in make("bytes", name).tokenizer.decode(given.input_ids)
    with pytest.raises(PromptError, match="refuses the roles") as caught:
        make("bytes", "mistral").encode(own, size_of)
    assert caught.value.fault.row == "r"
    with pytest.raises(PromptError, match="refuses the roles"):
        make("bytes", "mistral", system="Be brief.")


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", "once"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "once"),
        (
            "{% for m in messages %}{% if loop.last and m.role == 'user' %}Q{% endif %}"
            "{{ m.content }}{% endfor %}",
            "differently",
        ),
    ],
)
def test_templates_that_lose_or_change_text_are_refused(
    tiny: ModuleType, template: str, rule: str
) -> None:
    words = tiny.tokenizer("bytes", "chatml")
    words.chat_template = template
    with pytest.raises(PromptError, match=rule):
        Processor(ProcessorConfig(system="s"), words, ImageLayouts(image=LAYOUT), 0)


def test_an_end_token_is_added_where_the_template_writes_none(tiny: ModuleType) -> None:
    words = tiny.tokenizer("bytes", "default")
    words.chat_template = "{% for m in messages %}\n{{ m.role }}: {{ m.content }}{% endfor %}"
    words.chat_template += "{% if add_generation_prompt %}\nassistant:{% endif %}"
    processor = Processor(
        ProcessorConfig(),
        words,
        ImageLayouts(image=LAYOUT),
        words.convert_tokens_to_ids(IMAGE_TOKEN),
    )
    row = tiny.conversation("r", ("Is it?",), ("yes",), ("Side?",), ("left",))
    assert learned(processor, row) == [" yes</s>", " left</s>"]


def test_saved_processor_encodes_alike(processor: Processor, talk: Any, tmp_path: Any) -> None:
    processor.save(tmp_path)
    again = Processor.load(tmp_path)
    row = talk("r", (IMAGES[0], "Is it?"), (ANSWERS[0],), ("Where?",), (BOX,))
    before, after = processor.encode(row, size_of), again.encode(row, size_of)
    assert again.config == processor.config
    assert after.input_ids.tolist() == before.input_ids.tolist()
    assert after.labels.tolist() == before.labels.tolist()
    assert again.end_token_ids == processor.end_token_ids


def test_smollm2(smollm2: Any, talk: Any) -> None:
    smollm2.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, False)
    token = smollm2.convert_tokens_to_ids(IMAGE_TOKEN)
    processor = Processor(ProcessorConfig(), smollm2, LAYOUT, token)
    row = talk("r", ("Is there a ring lesion?",), ("yes",), ("Which side?",), ("left",))
    texts = [(m.role, m.text) for m in row.messages]
    messages = [{"role": role, "content": text} for role, text in texts]
    whole = smollm2.apply_chat_template(messages, tokenize=True, return_dict=False)
    prompt = smollm2.apply_chat_template(
        messages[:3], tokenize=True, return_dict=False, add_generation_prompt=True
    )
    assert processor.encode(row, size_of).input_ids.tolist() == whole
    assert processor.encode(row.without_answer(), size_of).input_ids.tolist() == prompt
    assert learned(processor, row) == ["yes<|im_end|>", "left<|im_end|>"]
