"""A teacher that speaks the real protocols over a real socket, and misbehaves on command.

OpenAI's chat completions (whole and as server-sent events) and Anthropic's messages (both too). What
happens to a request is decided by `Server.behave(number, body)`, which names one of `BEHAVIOURS`. Every
request and every whole answer is counted by the text that was asked about.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from local_server import LocalHandler, LocalServer, listening

BEHAVIOURS = (
    "ok",
    "500",
    "429",
    "later",  # 429 with a Retry-After of an hour
    "400",
    "413",
    "401",
    "quota",
    "bad_format",  # 400 for whatever is asked
    "no_schema",  # 400 for every constraint
    "json_object_only",
    "hang",
    "short_body",  # fewer bytes than Content-Length says
    "cut_json",
    "html",
    "empty",  # no choices
    "error_body",  # an error with status 200
    "refusal",
    "length",
    "half_stream",
    "error_stream",
    "quoted_401",  # the key stands where a reason is cut
    "quoted_error",  # the same in a body or stream with status 200
    "no_usage",
)

_SYLLABLES = (
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "la",
    "me",
    "ni",
    "po",
    "ru",
    "sa",
    "te",
    "vi",
    "wo",
    "zu",
    "ka",
)


def conversation(asked: str) -> str:
    """What this teacher writes about a text: the same for the same text, two turns about the image."""
    digest = hashlib.sha256(asked.encode()).digest()
    words = ["".join(_SYLLABLES[b % 16] for b in digest[i : i + 3]) for i in range(28)]
    turns = [
        {
            "question": f"What lies next to the {' '.join(words[:4])} area?",
            "answer": f"The area lies next to a {' '.join(words[4:14])} band.",
        },
        {
            "question": f"How does the border beside the {' '.join(words[14:18])} part look?",
            "answer": f"It looks smooth and {' '.join(words[18:28])} towards the edge.",
        },
    ]
    return json.dumps({"turns": turns})


@dataclass
class Server(LocalServer):
    """`requests` and `answers` count by the last message."""

    reply: Callable[[str], str] = conversation
    requests: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)

    def count(self, body: dict[str, Any]) -> None:
        self.requests[body["messages"][-1]["content"]] += 1


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of this machine, for as long as the block takes."""
    state = Server()
    with listening(state, _Handler):
        yield state


class _Handler(LocalHandler):
    def act(self, how: str, body: dict[str, Any]) -> None:
        assert how in BEHAVIOURS, how
        asked = body["messages"][-1]["content"]
        key = self.headers.get("Authorization", self.headers.get("x-api-key", ""))
        form = body.get("response_format") or body.get("tools") or body.get("guided_json")
        kind = form.get("type") if isinstance(form, dict) else ""
        if how == "hang":
            self.hang()
        elif how in ("500", "400", "413"):
            self._error(int(how), f"{how} on purpose", {})
        elif how == "bad_format":
            self._error(400, "the text has an unsupported format", {})
        elif how == "429":
            self._error(429, "slow down", {"Retry-After": "0"})
        elif how == "later":
            self._error(429, "slow down", {"Retry-After": "3600"})
        elif how == "401":
            self._error(401, f"Incorrect API key provided: {key}", {})
        elif how == "quoted_401":
            self._error(401, self._quoted(), {})
        elif how == "quoted_error" and not body.get("stream"):
            data = {"error": {"message": self._quoted()}}
            self.send(200, "application/json", json.dumps(data).encode())
        elif how == "quota":
            self._error(429, "insufficient_quota: check your billing", {})
        elif (how == "no_schema" and form) or (how == "json_object_only" and kind == "json_schema"):
            self._error(400, "Unknown parameter: response_format", {})
        elif how == "html":
            self.send(200, "text/html", b"<html>log in</html>")
        elif how == "error_body":
            self.send(200, "application/json", json.dumps({"error": {"message": "x"}}).encode())
        elif how == "empty":
            self.send(200, "application/json", b'{"choices": [], "content": [], "usage": null}')
        else:
            self._answer(how, body, asked)

    def _answer(self, how: str, body: dict[str, Any], asked: str) -> None:
        state = self.server.state
        text = "I cannot help with that." if how == "refusal" else state.reply(asked)
        if how == "length":
            text = text[: len(text) // 2]
        claude = self.path.endswith("/messages")
        if body.get("stream"):
            whole = self._stream(how, (_claude_events if claude else _events)(how, body, text))
        else:
            data = json.dumps((_claude_whole if claude else _whole)(how, body, text)).encode()
            whole = how not in ("short_body", "cut_json")
            if how == "cut_json":
                data = data[: len(data) // 2]
            self.send(200, "application/json", data, short=how == "short_body")
        if whole:
            with state.lock:
                state.answers[asked] += 1

    def _stream(self, how: str, events: list[str]) -> bool:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        broken = how in ("half_stream", "error_stream", "quoted_error", "short_body", "cut_json")
        sent = "".join(events[: max(2, len(events) // 2)] if broken else events).encode()
        if how in ("error_stream", "quoted_error"):
            message = "overloaded" if how == "error_stream" else self._quoted()
            error = json.dumps({"type": "error", "error": {"message": message}})
            sent += f"event: error\ndata: {error}\n\n".encode()
        if how == "cut_json":
            sent = sent[:-20]
        for start in range(0, len(sent), 37):  # pieces that respect neither lines nor characters
            piece = sent[start : start + 37]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if how == "short_body":
            self.close_connection = True
            return False
        self.wfile.write(b"0\r\n\r\n")
        return not broken

    def _quoted(self) -> str:
        key = self.headers.get("Authorization", self.headers.get("x-api-key", ""))
        return "x" * 270 + key.removeprefix("Bearer ")

    def _error(self, status: int, message: str, headers: dict[str, str]) -> None:
        data = json.dumps({"error": {"message": message, "type": "error"}}).encode()
        self.send(status, "application/json", data, headers)


def _finish(how: str) -> str:
    return {"length": "length", "refusal": "content_filter"}.get(how, "stop")


def _usage(how: str, body: dict[str, Any], text: str) -> dict[str, int] | None:
    prompt = sum(len(message["content"]) for message in body["messages"]) // 4
    if how == "no_usage":
        return None
    return {"prompt_tokens": prompt, "completion_tokens": max(1, len(text) // 4)}


def _whole(how: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": f"{body['model']}-0613",
        "choices": [{"index": 0, "message": message, "finish_reason": _finish(how)}],
        "usage": _usage(how, body, text),
    }


def _events(how: str, body: dict[str, Any], text: str) -> list[str]:
    base = {"object": "chat.completion.chunk", "model": f"{body['model']}-0613"}
    chunks: list[dict[str, Any]] = [
        {"choices": [{"delta": {"content": text[i : i + 30]}, "finish_reason": None}]}
        for i in range(0, len(text), 30)
    ]
    chunks.append({"choices": [{"delta": {}, "finish_reason": _finish(how)}]})
    if how != "no_usage":
        chunks.append({"choices": [], "usage": _usage(how, body, text)})
    lines = [f"data: {json.dumps(base | c, ensure_ascii=False)}\n\n" for c in chunks]
    return [": keep alive\n\n", *lines, "data: [DONE]\n\n"]


def _claude_blocks(body: dict[str, Any], text: str) -> list[dict[str, Any]]:
    if body.get("tools") and text.startswith("{") and text.endswith("}"):
        return [{"type": "tool_use", "name": "write_conversation", "input": json.loads(text)}]
    return [{"type": "text", "text": text}]


def _claude_whole(how: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    used = _usage("ok", body, text)
    assert used is not None
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": f"{body['model']}-x",
        "content": _claude_blocks(body, text),
        "stop_reason": {"length": "max_tokens", "refusal": "refusal"}.get(how, "end_turn"),
        "usage": {
            "input_tokens": used["prompt_tokens"] - 1,
            "cache_read_input_tokens": 1,
            "output_tokens": used["completion_tokens"],
        },
    }


def _claude_events(how: str, body: dict[str, Any], text: str) -> list[str]:
    whole = _claude_whole(how, body, text)
    start = whole | {"content": [], "stop_reason": None}
    start["usage"] = whole["usage"] | {"output_tokens": 1}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    tool = whole["content"][0]["type"] == "tool_use"
    said = json.dumps(whole["content"][0]["input"], ensure_ascii=False) if tool else text
    name, kind = ("partial_json", "input_json_delta") if tool else ("text", "text_delta")
    for i in range(0, len(said), 30):
        delta = {"type": kind, name: said[i : i + 30]}
        events.append({"type": "content_block_delta", "index": 0, "delta": delta})
    usage = {"output_tokens": whole["usage"]["output_tokens"]}
    last = {"stop_reason": whole["stop_reason"]}
    events.append({"type": "message_delta", "delta": last, "usage": usage})
    events.append({"type": "message_stop"})
    return [f"event: {e['type']}\ndata: {json.dumps(e, ensure_ascii=False)}\n\n" for e in events]
