"""OpenAI's chat completions on a socket of this machine, misbehaving on command.

`Server.behave(number, body)` names what happens to a request: "ok", a status ("429", "500", "400", "401"),
"no_logprobs" (400 for that field), "hang", "cut" (fewer bytes than said), "html", "error_body", "filtered",
"refused", "empty". Requests are kept whole.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[str, list[dict[str, Any]]]
"""The text, and its tokens as `logprobs.content` has them."""


@dataclass
class Server:
    url: str = ""
    behave: Callable[[int, dict[str, Any]], str] = lambda *_: "ok"
    reply: Callable[[dict[str, Any]], Reply] = lambda _: ("yes", [])
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    free: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    open_now: int = 0
    most_open: int = 0


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port, for as long as the block takes."""
    state = Server()
    http = _Http(("127.0.0.1", 0), _Handler)
    http.state = state
    state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        state.free.set()
        http.shutdown()
        http.server_close()
        thread.join()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    state: Server

    def handle_error(self, *_: object) -> None:
        """Clients go away on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        state = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.bodies.append(body)
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            number = len(state.bodies)
            state.open_now += 1
            state.most_open = max(state.most_open, state.open_now)
        try:
            self._act(state.behave(number, body), body)
        finally:
            with state.lock:
                state.open_now -= 1

    def _act(self, how: str, body: dict[str, Any]) -> None:
        if self.path != "/v1/chat/completions":
            self._error(404, "no such path")
        elif how == "hang":
            self.server.state.free.wait(20)
            self.close_connection = True
        elif how == "html":
            self._send(200, "text/html", b"<html>log in</html>")
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
        self._send(200, "application/json", data, short=how == "cut")

    def _error(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self._json(status, {"error": {"message": text}}, headers)

    def _json(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, "application/json", json.dumps(data).encode(), headers)

    def _send(
        self,
        status: int,
        kind: str,
        data: bytes,
        headers: dict[str, str] | None = None,
        *,
        short: bool = False,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if short else data)
        if short:
            self.close_connection = True
