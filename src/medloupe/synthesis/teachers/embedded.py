"""A small language model inside this process: the pipeline runs offline, end to end.

The default is the starter's SmolLM2-135M. It shows that everything works; it is no teacher that one would
train on.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from medloupe.synthesis.teachers.base import Answer, Failure, Teacher, TeacherConfig
from medloupe.synthesis.types import ChatMessage

_MODEL = "SmolLM2-135M-Instruct"


class EmbeddedTeacherConfig(TeacherConfig):
    """`source` is a language model as in recipes: `starter`, a GGUF file, a folder or a hub id.

    Answers are the same for the same prompt: greedy at temperature 0, else drawn from `seed` and the
    prompt. Requests are worked on one after another. Small models lose a form on the way: with
    `structured`, braces and keys of the schema are written for them, and they fill in the texts, of
    `text_tokens` at most each.
    """

    source: str = "starter"
    dtype: Literal["float32", "bfloat16"] = "float32"
    temperature: float = Field(default=0.7, ge=0)
    max_tokens: int = Field(default=384, ge=1)
    concurrency: int = Field(default=1, ge=1)
    structured: bool = True
    text_tokens: int = Field(default=80, ge=1)
    seed: int = 0

    @property
    def called(self) -> str:
        return self.label or (_MODEL if self.source == "starter" else self.source)

    @property
    def is_local(self) -> bool:
        return True

    def open(self) -> Teacher:
        return EmbeddedTeacher(self)


class EmbeddedTeacher(Teacher):
    """Weights in memory. What consecutive prompts share (instructions, examples) is read once.

    Token ids are lists of L numbers, a batch of one `[1, L]`.
    """

    def __init__(self, config: EmbeddedTeacherConfig) -> None:
        from medloupe.models.language import LanguageConfig, load_language

        self._config = config
        self._model, self._tokenizer = load_language(
            LanguageConfig(source=config.source, dtype=config.dtype)
        )
        self._model.eval()
        self._busy = asyncio.Lock()
        self._read: tuple[list[int], Any] = ([], None)  # a prefix, and the cache that holds it

    async def ask(
        self, messages: Sequence[ChatMessage], schema: Mapping[str, Any] | None
    ) -> Answer | Failure:
        form = _form_of(schema) if self._config.structured else None
        async with self._busy:
            return await asyncio.to_thread(self._answer, list(messages), form)

    def _answer(self, messages: list[ChatMessage], form: _Form | None) -> Answer | Failure:
        import torch

        config = self._config
        ids = self._tokens(messages, asks=True)
        room = self._model.config.get_text_config().max_position_embeddings
        if len(ids) + config.max_tokens > room:
            reason = (
                f"the prompt's {len(ids)} tokens and {config.max_tokens} new ones are more than the "
                f"model's {room} positions"
            )
            return Failure(scope="row", reason=reason)
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(config.seed, messages))
            cache = self._cache(ids, self._tokens(messages[:-1], asks=False))
            text, made, whole = self._written(ids, cache, form)
        return Answer(
            text=text,
            model=_MODEL if config.source == "starter" else config.source,
            prompt_tokens=len(ids),
            completion_tokens=made,
            finish="stop" if whole else "length",
        )

    def _written(self, ids: list[int], cache: Any, form: _Form | None) -> tuple[str, int, bool]:
        """The answer, how many tokens it is, and whether it came to its end."""
        end = self._tokenizer.eos_token_id
        if form is None:
            new = self._more(ids, cache, [end], self._config.max_tokens)
            return self._decoded(new).strip(), len(new), new[-1] == end
        ends = {end, *self._quotes()}
        begun, rest, whole = len(ids), "", True
        items: list[dict[str, str]] = [{} for _ in range(form.items)]
        for number, name in form.slots():
            ids = ids + self._encoded(rest + form.lead(number, name))
            left = self._config.max_tokens - (len(ids) - begun)
            if left <= 0:
                whole = False
                break
            *kept, last = self._more(ids, cache, sorted(ends), min(left, self._config.text_tokens))
            # The last token is not in the cache yet, so that it can be cut where the text ends.
            rest = self._decoded([last])
            if last in ends:
                rest = rest.partition('"')[0]
            else:
                whole = False
            items[number][name] = (self._decoded(kept) + rest).strip()
            ids = ids + kept
        return json.dumps({form.key: items}, ensure_ascii=False), len(ids) - begun, whole

    def _more(self, ids: list[int], cache: Any, ends: list[int], limit: int) -> list[int]:
        """What the model says next, up to one of `ends`; `cache` grows with all but the last token."""
        import torch

        drawn: dict[str, Any] = {"do_sample": False}
        if self._config.temperature > 0:
            drawn = {"do_sample": True, "temperature": self._config.temperature}
        ids_1L = torch.tensor([ids])
        made_1L = self._model.generate(  # type: ignore[operator]
            ids_1L,
            attention_mask=torch.ones_like(ids_1L),
            max_new_tokens=limit,
            eos_token_id=ends,
            pad_token_id=self._tokenizer.eos_token_id,
            past_key_values=cache,
            **drawn,
        )
        new: list[int] = made_1L[0, len(ids) :].tolist()
        return new

    def _encoded(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    @functools.cache  # noqa: B019 (one teacher lives as long as its run)
    def _quotes(self) -> frozenset[int]:
        """The tokens that end a text in JSON."""
        texts = self._tokenizer.batch_decode([[n] for n in range(len(self._tokenizer))])
        return frozenset(n for n, text in enumerate(texts) if '"' in text)

    def _tokens(self, messages: list[ChatMessage], *, asks: bool) -> list[int]:
        if not messages:
            return []
        encoded: Any = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=asks, return_dict=True
        )
        return list(encoded["input_ids"])

    def _cache(self, ids: list[int], before: list[int]) -> Any:
        """A copy of the keys and values of all messages but the last, empty where they are no prefix.

        Where a prompt is cut depends on the prompt alone, so its answer does not depend on which prompts
        came earlier, down to the rounding.
        """
        import torch
        from transformers import DynamicCache

        if not before or ids[: len(before)] != before:
            return DynamicCache(config=self._model.config)
        if self._read[0] != before:
            cache = DynamicCache(config=self._model.config)
            self._model(torch.tensor([before]), past_key_values=cache, use_cache=True)
            self._read = (before, cache)
        return copy.deepcopy(self._read[1])


@dataclass(frozen=True)
class _Form:
    """A list of `items` objects under `key`, each with `fields` of text."""

    key: str
    items: int
    fields: tuple[str, ...]

    def slots(self) -> Iterator[tuple[int, str]]:
        """Number and field of every text, in the order in which they are written."""
        for number in range(self.items):
            for name in self.fields:
                yield number, name

    def lead(self, number: int, name: str) -> str:
        """What stands between the text before and this one."""
        if name != self.fields[0]:
            return f'", "{name}": "'
        return f'"}}, {{"{name}": "' if number else f'{{"{self.key}": [{{"{name}": "'


def _form_of(schema: Mapping[str, Any] | None) -> _Form | None:
    """What can be written for the model: an object with one list of objects of texts; None for others."""
    if schema is None or len(schema.get("properties", {})) != 1:
        return None
    ((key, value),) = schema["properties"].items()
    fields = value.get("items", {}).get("properties", {})
    if not fields or any(field.get("type") != "string" for field in fields.values()):
        return None
    return _Form(key, max(1, value.get("minItems", 1)), tuple(fields))


def _seed(seed: int, messages: list[ChatMessage]) -> int:
    text = f"{seed}:{json.dumps(messages, sort_keys=True)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
