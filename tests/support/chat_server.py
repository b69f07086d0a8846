"""OpenAI's chat completions on a socket of this machine, misbehaving on command.

`Server.behave(number, body)` names what happens to a request: "ok", a status ("429", "500", "400", "401"),
"no_logprobs" (400 for that field), "hang", "cut" (fewer bytes than said), "html", "error_body", "filtered",
"refused", "empty". Requests are kept whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from local_server import LocalHandler, LocalServer, listening

Reply = tuple[str, list[dict[str, Any]]]
"""The text, and its tokens as `logprobs.content` has them."""


@dataclass
class Server(LocalServer):
    reply: Callable[[dict[str, Any]], Reply] = lambda _: ("yes", [])


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port, for as long as the block takes."""
    state = Server()
    with listening(state, _Handler, "/v1"):
        yield state


class _Handler(LocalHandler):
    def act(self, how: str, body: dict[str, Any]) -> None:
        if self.path != "/v1/chat/completions":
            self._error(404, "no such path")
        elif how == "hang":
            self.hang()
        elif how == "html":
            self.send(200, "text/html", b"<html>log in</html>")
        elif how == "error_body":
            self._json(200, {"error": {"message": "upstream"}})
        elif how == "empty":
            self._json(200, {"choices": []})
        elif how == "no_logprobs" and "logprobs" in body:
            self._error(400, "Unknown parameter: logprobs")
        elif how.isdigit():
            said = self.headers.get("Authorization", "")
            self._error(int(how), f"{how} on purpose for {said}", {"Retry-After": "0"})
        else:
            self._answer(how, body)

    def _answer(self, how: str, body: dict[str, Any]) -> None:
        text, tokens = self.server.state.reply(body)
        message = {"role": "assistant", "content": text}
        if how == "refused":
            message |= {"content": None, "refusal": "I cannot look at this."}
        choice: dict[str, Any] = {"index": 0, "message": message}
        choice["finish_reason"] = {"filtered": "content_filter", "length": "length"}.get(
            how, "stop"
        )
        if body.get("logprobs"):
            choice["logprobs"] = {"content": tokens}
        whole = {"id": "chatcmpl-1", "object": "chat.completion", "model": body["model"]}
        data = json.dumps(whole | {"choices": [choice]}).encode()
        self.send(200, "application/json", data, short=how == "cut")

    def _error(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self._json(status, {"error": {"message": text}}, headers)

    def _json(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        self.send(status, "application/json", json.dumps(data).encode(), headers)
