"""A server on a socket of this machine that keeps what it is asked and misbehaves on command."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class LocalServer:
    """`behave(number, body)` names what happens to a request; `bodies` and `headers` are what came."""

    url: str = ""
    behave: Callable[[int, dict[str, Any]], str] = lambda *_: "ok"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    free: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    open_now: int = 0
    most_open: int = 0

    def count(self, body: dict[str, Any]) -> None:
        """Called with the lock held, for each request."""


@contextmanager
def listening(state: LocalServer, handler: type[LocalHandler], path: str = "") -> Iterator[None]:
    """Serve on a free port, for as long as the block takes; `state.url` ends in `path`."""
    http = _Http(("127.0.0.1", 0), handler)
    http.state = state
    state.url = f"http://127.0.0.1:{http.server_address[1]}{path}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        state.free.set()
        http.shutdown()
        http.server_close()
        thread.join()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    state: Any

    def handle_error(self, *_: object) -> None:
        """Clients go away, and are killed, on purpose."""


class LocalHandler(BaseHTTPRequestHandler):
    """Keeps a request and hands it to `act`."""

    protocol_version = "HTTP/1.1"
    server: _Http

    def act(self, how: str, body: dict[str, Any]) -> None:
        """Answer as `how` says."""
        raise NotImplementedError

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        state = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.count(body)
            state.bodies.append(body)
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            number = len(state.bodies)
            state.open_now += 1
            state.most_open = max(state.most_open, state.open_now)
        try:
            self.act(state.behave(number, body), body)
        finally:
            with state.lock:
                state.open_now -= 1

    def hang(self) -> None:
        """Say nothing until the server ends."""
        self.server.state.free.wait(20)
        self.close_connection = True

    def send(
        self,
        status: int,
        kind: str,
        data: bytes,
        headers: dict[str, str] | None = None,
        *,
        short: bool = False,
    ) -> None:
        """A whole answer; `short` sends half of the bytes it announces, and hangs up."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if short else data)
        if short:
            self.close_connection = True
