"""Both protocols, whole and streamed, through a real socket; and every way to fail."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import json
import sys
from typing import Any

import pytest
import torch

from medloupe.endpoints import asked_wait
from medloupe.errors import ConfigError, MissingExtraError
from medloupe.synthesis.teachers import Answer, Failure, TeacherConfig
from medloupe.synthesis.teachers.base import Price, estimate_tokens

MESSAGES = [
    {"role": "system", "content": "You write about images."},
    {"role": "user", "content": "example"},
    {"role": "assistant", "content": "an example's answer"},
    {"role": "user", "content": "A section of tissue, 染色 \u2028 é."},
]
SCHEMA = {"type": "object", "properties": {"turns": {"type": "array"}}}
KEY = "sk-very-secret-0123456789"
both = pytest.mark.parametrize("protocol", ["openai", "anthropic"])
ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def teacher(server: Any, protocol: str, **fields: Any) -> TeacherConfig:
    base = server.url + ("/v1" if protocol == "openai" else "")
    stated = {"name": protocol, "base_url": base, "model": "m", "timeout": 10, "key_env": ""}
    return TeacherConfig.parse(stated | fields)


def ask(config: TeacherConfig, times: int = 1, schema: Any = None) -> Any:
    async def run() -> list[Answer | Failure]:
        opened = config.open()
        try:
            return [await opened.ask(MESSAGES, schema) for _ in range(times)]
        finally:
            await opened.close()

    said = asyncio.run(run())
    return said[0] if times == 1 else said


def behave(server: Any, *how: str) -> None:
    server.behave = lambda number, _: how[min(number, len(how)) - 1]


@both
@ways
def test_an_answer_its_model_and_its_tokens(
    teacher_server: Any, protocol: str, stream: bool
) -> None:
    teacher_server.reply = lambda asked: f"said: {asked}"
    said = ask(teacher(teacher_server, protocol, stream=stream))
    assert isinstance(said, Answer)
    assert said.text == f"said: {MESSAGES[-1]['content']}"
    assert said.model == ("m-0613" if protocol == "openai" else "m-x")
    assert said.finish == "stop"
    counted = MESSAGES if protocol == "openai" else MESSAGES[1:]
    assert said.prompt_tokens == sum(len(m["content"]) for m in counted) // 4
    assert said.completion_tokens == len(said.text) // 4
    assert said.counted


@both
@ways
def test_the_schema_is_asked_for(teacher_server: Any, protocol: str, stream: bool) -> None:
    said = ask(teacher(teacher_server, protocol, stream=stream), schema=SCHEMA)
    assert json.loads(said.text)["turns"][0]["question"]
    (body,) = teacher_server.bodies
    if protocol == "openai":
        assert body["response_format"]["json_schema"]["schema"] == SCHEMA
        assert body["messages"] == MESSAGES
    else:
        assert body["tools"][0]["input_schema"] == SCHEMA
        assert body["tool_choice"] == {"type": "tool", "name": body["tools"][0]["name"]}
        assert body["system"] == MESSAGES[0]["content"]
        assert body["messages"] == MESSAGES[1:]


@both
def test_an_endpoint_that_refuses_the_schema_is_asked_without(
    teacher_server: Any, protocol: str
) -> None:
    behave(teacher_server, "no_schema")
    first, second = ask(teacher(teacher_server, protocol), times=2, schema=SCHEMA)
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    refused = 2 if protocol == "openai" else 1
    assert len(teacher_server.bodies) == refused + 2, "what was refused is not tried again"
    assert not {"response_format", "tools"} & teacher_server.bodies[-1].keys()


def test_one_prompt_that_is_refused_loosens_no_other(teacher_server: Any) -> None:
    behave(teacher_server, "bad_format", "bad_format", "bad_format", "ok")
    first, second = ask(teacher(teacher_server, "openai"), times=2, schema=SCHEMA)
    assert isinstance(first, Failure)
    assert first.scope == "row"
    assert isinstance(second, Answer)
    assert teacher_server.bodies[-1]["response_format"]["type"] == "json_schema"


def test_the_next_best_constraint_is_used(teacher_server: Any) -> None:
    behave(teacher_server, "json_object_only")
    ask(teacher(teacher_server, "openai"), schema=SCHEMA)
    assert teacher_server.bodies[-1]["response_format"] == {"type": "json_object"}
    ask(teacher(teacher_server, "openai", structured="guided_json"), schema=SCHEMA)
    assert teacher_server.bodies[-1]["guided_json"] == SCHEMA


def test_fields_of_the_request(teacher_server: Any) -> None:
    config = teacher(
        teacher_server,
        "openai",
        max_tokens=77,
        temperature=0.25,
        token_field="max_completion_tokens",
        extra={"seed": 3},
    )
    ask(config)
    (body,) = teacher_server.bodies
    assert (body["max_completion_tokens"], body["temperature"], body["seed"]) == (77, 0.25, 3)
    assert "max_tokens" not in body


@both
@ways
@pytest.mark.parametrize(
    ("how", "finish"), [("refusal", "refusal"), ("length", "length"), ("no_usage", "stop")]
)
def test_how_an_answer_ended(
    teacher_server: Any, protocol: str, stream: bool, how: str, finish: str
) -> None:
    behave(teacher_server, how)
    said = ask(teacher(teacher_server, protocol, stream=stream))
    assert said.finish == finish
    assert said.completion_tokens > 0
    assert said.counted == (how != "no_usage" or protocol == "anthropic")


@both
@pytest.mark.parametrize(
    ("how", "scope", "paid"),
    [
        ("500", "retry", False),
        ("429", "retry", False),
        ("400", "row", False),
        ("413", "row", False),
        ("401", "stop", False),
        ("quota", "stop", False),
        ("short_body", "retry", True),
        ("cut_json", "retry", True),
        ("html", "retry", True),
        ("empty", "retry", True),
        ("error_body", "retry", True),
    ],
)
def test_what_a_failure_means(
    teacher_server: Any, protocol: str, how: str, scope: str, paid: bool
) -> None:
    behave(teacher_server, how)
    said = ask(teacher(teacher_server, protocol))
    assert isinstance(said, Failure), said
    assert (said.scope, said.paid) == (scope, paid), said.reason


@both
@pytest.mark.parametrize("how", ["half_stream", "error_stream", "short_body", "cut_json"])
def test_a_stream_that_breaks_is_no_answer(teacher_server: Any, protocol: str, how: str) -> None:
    behave(teacher_server, how, "ok")
    first, second = ask(teacher(teacher_server, protocol, stream=True), times=2)
    assert isinstance(first, Failure), first
    assert (first.scope, first.paid) == ("retry", True)
    assert isinstance(second, Answer), "the connection is usable again"


def test_silence_and_closed_doors(teacher_server: Any) -> None:
    behave(teacher_server, "hang")
    said = ask(teacher(teacher_server, "openai", timeout=0.2))
    assert (said.scope, said.paid) == ("retry", True)
    assert "0.2 s" in said.reason
    config = teacher(teacher_server, "openai", base_url="http://127.0.0.1:9/v1")
    said = ask(config)
    assert (said.scope, said.paid) == ("retry", False)
    assert "cannot connect" in said.reason


def test_the_wait_that_an_endpoint_asks_for(teacher_server: Any) -> None:
    behave(teacher_server, "later")
    assert ask(teacher(teacher_server, "openai")).wait == 3600
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    wait = asked_wait({"retry-after": email.utils.format_datetime(soon, usegmt=True)})
    assert wait is not None
    assert 90 < wait <= 100
    assert asked_wait({"retry-after": "soon"}) is None
    assert asked_wait({}) is None


@both
def test_the_key_comes_from_the_environment_and_is_never_shown(
    teacher_server: Any, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = teacher(teacher_server, protocol, key_env="MY_KEY")
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        config.open()
    monkeypatch.setenv("MY_KEY", KEY)
    behave(teacher_server, "401")
    said = ask(config)
    sent = teacher_server.headers[0]
    assert sent.get("x-api-key", sent.get("authorization", "")).endswith(KEY)
    assert KEY not in said.reason
    assert "[key]" in said.reason
    assert KEY not in config.to_yaml()


@pytest.mark.parametrize(
    "key", ["sk very", "sk\u00a0very", "sk-\u043a\u043b", "sk\nvery", "sk\x7f", "\u201csk\u201d"]
)
def test_what_cannot_be_a_key_is_refused_and_not_repeated(
    teacher_server: Any, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ConfigError, match="MY_KEY") as error:
        teacher(teacher_server, "openai", key_env="MY_KEY").open()
    assert key not in str(error.value)


@both
@ways
@pytest.mark.parametrize("how", ["quoted_401", "quoted_error"])
def test_no_part_of_a_key_is_left_where_a_reason_is_cut(
    teacher_server: Any, protocol: str, stream: bool, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    behave(teacher_server, how)
    said = ask(teacher(teacher_server, protocol, key_env="MY_KEY", stream=stream))
    assert isinstance(said, Failure)
    assert KEY[:4] not in said.reason
    assert len(said.reason) <= 300


def test_a_key_in_the_models_name_is_cut_out(
    teacher_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    said = ask(teacher(teacher_server, "openai", key_env="MY_KEY", model=KEY))
    assert said.model == "[key]-0613"


def test_no_proxy_stands_before_a_local_teacher(
    teacher_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    config = teacher(teacher_server, "openai")
    assert config.is_local
    assert isinstance(ask(config), Answer)
    monkeypatch.setenv("http_proxy", teacher_server.url)
    away = teacher(teacher_server, "openai", base_url="http://elsewhere.invalid/v1")
    assert not away.is_local
    assert isinstance(ask(away), Answer), "one elsewhere is called as the environment says"


def test_a_full_window_is_an_answer_that_was_cut() -> None:
    from medloupe.synthesis.teachers.anthropic import _answer

    usage = {"input_tokens": 1, "output_tokens": 1}
    assert _answer("t", "m", "model_context_window_exceeded", usage).finish == "length"


@pytest.mark.parametrize(
    "fields",
    [
        {"key_env": KEY},
        {"base_url": f"https://user:{KEY}@host/v1"},
        {"base_url": f"https://host/v1?key={KEY}"},
    ],
)
def test_a_key_in_the_config_is_refused_and_not_repeated(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as error:
        TeacherConfig.parse({"name": "openai"} | fields)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("url", "stated", "local"),
    [
        ("http://127.0.0.1:8000/v1", None, True),
        ("http://[::1]:8000", None, True),
        ("http://localhost:11434/v1", None, True),
        ("http://localhost.invalid", None, False),
        ("http://10.0.0.5/v1", None, True),
        ("https://8.8.8.8/v1", None, False),
        ("https://8.8.8.8/v1", True, True),
        ("http://127.0.0.1:8000", False, False),
        ("https://api.anthropic.invalid", None, False),
    ],
)
def test_what_counts_as_local(url: str, stated: bool | None, local: bool) -> None:
    config = TeacherConfig.parse({"name": "openai", "base_url": url, "local": stated})
    assert config.is_local is local


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtraError, match=r"medloupe\[synthesis\]"):
        TeacherConfig.parse("openai").open()


def test_prices_and_estimates() -> None:
    assert Price(prompt=15, completion=75).of(2_000_000, 1_000_000) == 105
    assert estimate_tokens("肺" * 30) == 31


def embedded(language: Any, **fields: Any) -> TeacherConfig:
    stated = {"name": "embedded", "source": str(language), "max_tokens": 8}
    return TeacherConfig.parse(stated | fields)


@pytest.fixture(scope="module")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random Llama with a tokenizer of bytes and a chat template, in a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    letters = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=letters | {"<end>": len(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens(['?"'])  # a token that ends a text in its middle
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<end>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        eos_token_id=len(letters),
        bos_token_id=None,
        initializer_range=0.5,  # so that what it says depends on all it has read
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def answers(config: TeacherConfig, *prompts: list[dict[str, str]]) -> list[Any]:
    async def run() -> list[Answer | Failure]:
        opened = config.open()
        return list(await asyncio.gather(*(opened.ask(prompt, SCHEMA) for prompt in prompts)))

    return asyncio.run(run())


def prompt(last: str, first: str = "You write.") -> list[dict[str, str]]:
    return [{"role": "system", "content": first}, {"role": "user", "content": last}]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_embedded_teacher_says_the_same_whatever_it_was_asked_before(
    tiny_language: Any, temperature: float
) -> None:
    config = embedded(tiny_language, temperature=temperature)
    asked = [prompt("one"), prompt("two"), prompt("three", "Other words."), prompt("one")]
    together = answers(config, *asked)
    apart = [answers(config, one)[0] for one in asked]
    assert together == apart
    assert together[0] == together[3]
    assert together[0].completion_tokens <= 8
    assert together[0].prompt_tokens == len("system:You write.") + len("user:one") + 2 + 10


def test_the_embedded_teacher_is_the_plain_model(tiny_language: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_language)
    model = AutoModelForCausalLM.from_pretrained(tiny_language).eval()
    ids = tokenizer.apply_chat_template(
        prompt("one"), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    made = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    (said,) = answers(embedded(tiny_language, temperature=0), prompt("one"))
    assert said.text == tokenizer.decode(made, skip_special_tokens=True).strip()


def test_a_prompt_longer_than_the_model_is_a_row_that_cannot_be_asked(tiny_language: Any) -> None:
    (said,) = answers(embedded(tiny_language), prompt("x" * 240))
    assert isinstance(said, Failure)
    assert said.scope == "row"
    assert "256 positions" in said.reason


def test_drawing_leaves_the_random_state_of_the_process_alone(tiny_language: Any) -> None:
    before = torch.random.get_rng_state()
    answers(embedded(tiny_language, temperature=1.0), prompt("one"))
    assert torch.equal(torch.random.get_rng_state(), before)


def filled(config: TeacherConfig, last: str, items: int = 2) -> Answer:
    """The answer to one prompt in the form of a list of questions and answers."""
    text = {"type": "string"}
    turn = {"type": "object", "properties": {"question": text, "answer": text}}
    turns = {"type": "array", "items": turn, "minItems": items}
    schema = {"type": "object", "properties": {"turns": turns}}

    async def run() -> Answer | Failure:
        return await config.open().ask(prompt(last), schema)

    said = asyncio.run(run())
    assert isinstance(said, Answer)
    return said


@pytest.mark.parametrize("items", [1, 3])
def test_the_embedded_teacher_fills_in_the_form(tiny_language: Any, items: int) -> None:
    config = embedded(tiny_language, temperature=1.0, max_tokens=170, text_tokens=4)
    said = filled(config, "one", items)
    turns = json.loads(said.text)["turns"]
    assert [list(turn) for turn in turns] == [["question", "answer"]] * items
    assert said == filled(config, "one", items)
    assert said != filled(config, "two", items)
    assert said.finish == "length", "a random model never writes a quotation mark in time"
    assert said.completion_tokens <= 170


def test_a_text_ends_at_its_quotation_mark_and_the_form_goes_on(
    tiny_language: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medloupe.synthesis.teachers.embedded import EmbeddedTeacher

    seen: list[str] = []
    texts = iter(['What is it?"', 'A band"', "Where?", "There."])

    def more(self: Any, ids: list[int], cache: Any, ends: list[int], limit: int) -> list[int]:
        seen.append(self._decoded(ids).partition("assistant:")[2])
        text = next(texts)
        end = [] if text.endswith('"') else [self._tokenizer.eos_token_id]
        return [*self._encoded(text), *end]

    monkeypatch.setattr(EmbeddedTeacher, "_more", more)
    said = filled(embedded(tiny_language, max_tokens=120), "one")
    assert json.loads(said.text)["turns"] == [
        {"question": "What is it?", "answer": "A band"},
        {"question": "Where?", "answer": "There."},
    ]
    assert said.finish == "stop"
    whole = '{"turns": [{"question": "What is it?", "answer": "A band"}, {"question": "Where?", "answer": "'
    assert seen[-1] == whole
    assert [whole.startswith(text) for text in seen] == [True] * 4


def test_a_form_that_does_not_fit_is_cut_and_says_so(tiny_language: Any) -> None:
    said = filled(embedded(tiny_language, max_tokens=60, text_tokens=30), "one", items=3)
    assert said.finish == "length"
    assert len(json.loads(said.text)["turns"]) == 3
