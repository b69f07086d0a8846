"""Chat completions as OpenAI defined them: hosted, vLLM, llama.cpp, Ollama, and everything alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, JsonValue

from medloupe.endpoints import Url
from medloupe.synthesis.teachers.base import Answer, Finish, Teacher, estimate_tokens
from medloupe.synthesis.teachers.http import HttpTeacher, HttpTeacherConfig, StreamError
from medloupe.synthesis.types import ChatMessage

Structured = Literal["json_schema", "guided_json", "json_object", "none"]
_FINISH: Mapping[str, Finish] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "refusal",
    "tool_calls": "stop",
}


class OpenAITeacherConfig(HttpTeacherConfig):
    """The default is the open teacher of Llama3-Med, in a vLLM of your own.

    `structured` is the strictest way to ask for an answer in the schema's form; an endpoint that refuses
    it is asked with `json_object`, then without. `extra` fields go into every request as they are.
    """

    base_url: Url = "http://127.0.0.1:8000/v1"
    model: str = "meta-llama/Meta-Llama-3-70B-Instruct"
    structured: Structured = "json_schema"
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra: dict[str, JsonValue] = Field(default_factory=dict)

    def open(self) -> Teacher:
        forms = (self.structured, *(f for f in ("json_object", "none") if f != self.structured))
        return OpenAITeacher(self, forms=("none",) if self.structured == "none" else forms)


class OpenAITeacher(HttpTeacher):
    """POST {base_url}/chat/completions."""

    _config: OpenAITeacherConfig

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}

    def request(
        self, messages: Sequence[ChatMessage], schema: Mapping[str, Any] | None, form: str
    ) -> tuple[str, dict[str, Any]]:
        config = self._config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": list(messages),
            "temperature": config.temperature,
            config.token_field: config.max_tokens,
            **_constraint(schema, form),
            **config.extra,
        }
        if config.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return f"{config.base_url}/chat/completions", body

    def whole(self, data: Any) -> Answer:
        _refuse_error(data)
        (choice, *_) = data["choices"]
        message = choice["message"]
        text, refused = message.get("content") or "", message.get("refusal")
        return self._answer(
            refused or text,
            str(data.get("model") or self._config.model),
            "refusal" if refused else _FINISH.get(choice.get("finish_reason") or "stop", "stop"),
            data.get("usage"),
        )

    async def streamed(self, events: AsyncIterator[Any]) -> Answer:
        pieces: list[str] = []
        model, usage, finish, done, refused = self._config.model, None, None, False, False
        async for event in events:
            if event is None:
                done = True
                break
            _refuse_error(event)
            model, usage = event.get("model") or model, event.get("usage") or usage
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                pieces.append(delta.get("content") or delta.get("refusal") or "")
                refused = refused or bool(delta.get("refusal"))
                finish = choice.get("finish_reason") or finish
        if finish is None and not done:
            raise StreamError("the stream ended without finish_reason or [DONE]")
        kind: Finish = "refusal" if refused else _FINISH.get(finish or "stop", "stop")
        return self._answer("".join(pieces), str(model), kind, usage)

    def _answer(self, text: str, model: str, finish: Finish, usage: Any) -> Answer:
        return Answer(
            text=text,
            model=model,
            finish=finish,
            prompt_tokens=int(usage["prompt_tokens"]) if usage else 0,
            completion_tokens=int(usage["completion_tokens"]) if usage else estimate_tokens(text),
            counted=bool(usage),
        )


def _constraint(schema: Mapping[str, Any] | None, form: str) -> dict[str, Any]:
    """The fields that hold an answer to the schema."""
    if schema is None or form == "none":
        return {}
    if form == "guided_json":  # vLLM before it knew response_format
        return {"guided_json": schema}
    if form == "json_object":
        return {"response_format": {"type": "json_object"}}
    named = {"name": "conversation", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _refuse_error(data: Any) -> None:
    """Some routers put an error into a body with status 200."""
    if data.get("error"):
        raise StreamError(f"the endpoint reports {data['error']}")
