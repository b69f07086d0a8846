"""Anthropic's messages endpoint."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from medloupe.endpoints import KeyName, Url
from medloupe.synthesis.teachers.base import Answer, Finish, Teacher
from medloupe.synthesis.teachers.http import HttpTeacher, HttpTeacherConfig, StreamError
from medloupe.synthesis.types import ChatMessage

VERSION = "2023-06-01"
_TOOL = "write_conversation"
_FINISH: Mapping[str, Finish] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}


class AnthropicTeacherConfig(HttpTeacherConfig):
    """The default is the closed teacher of Llama3-Med. A schema is asked for as the input of a tool that
    the model must call, which every version of the API knows.
    """

    base_url: Url = "https://api.anthropic.com"
    model: str = "claude-3-opus-20240229"
    key_env: KeyName = "ANTHROPIC_API_KEY"
    structured: Literal["tool", "none"] = "tool"

    def open(self) -> Teacher:
        return AnthropicTeacher(self, forms=("tool", "none")[self.structured == "none" :])


class AnthropicTeacher(HttpTeacher):
    """POST {base_url}/v1/messages."""

    _config: AnthropicTeacherConfig

    def headers(self, key: str) -> dict[str, str]:
        return {"anthropic-version": VERSION} | ({"x-api-key": key} if key else {})

    def request(
        self, messages: Sequence[ChatMessage], schema: Mapping[str, Any] | None, form: str
    ) -> tuple[str, dict[str, Any]]:
        config = self._config
        system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
        body: dict[str, Any] = {
            "model": config.model,
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "messages": [dict(m) for m in messages if m["role"] != "system"],
        }
        if system:
            body["system"] = system
        if schema is not None and form == "tool":
            described = "Hand over the questions and answers."
            body["tools"] = [{"name": _TOOL, "description": described, "input_schema": schema}]
            body["tool_choice"] = {"type": "tool", "name": _TOOL}
        if config.stream:
            body["stream"] = True
        return f"{config.base_url}/v1/messages", body

    def whole(self, data: Any) -> Answer:
        pieces = [
            json.dumps(block["input"], ensure_ascii=False)
            if block["type"] == "tool_use"
            else block.get("text", "")
            for block in data["content"]
        ]
        return _answer("".join(pieces), data["model"], data["stop_reason"], data["usage"])

    async def streamed(self, events: AsyncIterator[Any]) -> Answer:
        pieces: list[str] = []
        usage: dict[str, Any] = {}
        model, reason = self._config.model, None
        async for event in events:
            kind = event["type"]
            if kind == "error":
                raise StreamError(f"the endpoint reports {event['error']}")
            if kind == "message_start":
                model, usage = event["message"]["model"], dict(event["message"]["usage"])
            elif kind == "content_block_delta":
                delta = event["delta"]
                pieces.append(delta.get("text") or delta.get("partial_json") or "")
            elif kind == "message_delta":
                reason = event["delta"].get("stop_reason") or reason
                usage |= event.get("usage") or {}
            elif kind == "message_stop":
                return _answer("".join(pieces), model, reason, usage)
        raise StreamError("the stream ended without message_stop")


def _answer(text: str, model: str, reason: str | None, usage: Mapping[str, Any]) -> Answer:
    cached = ("cache_creation_input_tokens", "cache_read_input_tokens")
    return Answer(
        text=text,
        model=model,
        prompt_tokens=usage["input_tokens"] + sum(usage.get(name) or 0 for name in cached),
        completion_tokens=usage["output_tokens"],
        finish=_FINISH.get(reason or "", "stop"),
    )
