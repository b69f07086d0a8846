"""What teachers over HTTP share: keys, time limits, and what each way to fail means.

A key is read from the environment when the teacher opens, lives in a header, and is cut out of every text
that comes back (servers quote keys in their errors).
"""

from __future__ import annotations

import abc
import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from medloupe.endpoints import (
    RETRIED,
    KeyName,
    Url,
    asked_wait,
    client_options,
    import_httpx,
    read_key,
    says_no_credit,
    settled_local,
    without_key,
)
from medloupe.synthesis.teachers.base import Answer, Failure, Teacher, TeacherConfig
from medloupe.synthesis.types import ChatMessage

if TYPE_CHECKING:
    import httpx

_REFUSED_FORM = re.compile(
    "response_format|json_schema|schema|grammar|guided|structured|tool|format", re.I
)
_SHOWN = 300


class HttpTeacherConfig(TeacherConfig, abc.ABC):
    """`key_env` names the environment variable that holds the key, "" where none is needed. `timeout` is
    of a whole request, in seconds. `local` states whether what is sent stays inside your walls; without it,
    this machine and private networks count as local.
    """

    free: ClassVar[frozenset[str]] = TeacherConfig.free | {
        "base_url",
        "key_env",
        "timeout",
        "stream",
        "local",
    }

    base_url: Url
    model: str
    key_env: KeyName = ""
    stream: bool = False
    timeout: float = Field(default=300.0, gt=0)
    local: bool | None = None

    @property
    def called(self) -> str:
        return self.label or self.model

    @property
    def is_local(self) -> bool:
        return settled_local(self.base_url) if self.local is None else self.local

    def key(self) -> str:
        """The key, "" where none is needed.

        Raises:
            ConfigError: the variable is not set, or holds what cannot be a key.
        """
        return read_key(
            self.key_env,
            who=f"teacher {self.called!r}",
            field="teachers.key_env",
            remedy=f"export {self.key_env}=... before the command (with Ray, on every machine)",
        )


class StreamError(Exception):
    """What came back is not a whole answer; the text says why."""


class HttpTeacher(Teacher):
    """One `httpx` client. Endpoints that refuse constrained output are asked with less of it from then
    on: `forms` are the ways to ask for it, strictest first, the last one "none".
    """

    def __init__(self, config: HttpTeacherConfig, *, forms: tuple[str, ...]) -> None:
        self._httpx = httpx = import_httpx()
        self._key = config.key()
        self._config = config
        self._forms = forms
        self._client = httpx.AsyncClient(
            headers={"User-Agent": "medloupe", **self.headers(self._key)},
            **client_options(httpx, timeout=config.timeout, local=config.is_local),
            # How many may be open is the asker's business; here only idle ones are kept.
            limits=httpx.Limits(max_keepalive_connections=config.concurrency),
        )

    @abc.abstractmethod
    def headers(self, key: str) -> dict[str, str]:
        """What names the user."""

    @abc.abstractmethod
    def request(
        self, messages: Sequence[ChatMessage], schema: Mapping[str, Any] | None, form: str
    ) -> tuple[str, dict[str, Any]]:
        """The url and the body."""

    @abc.abstractmethod
    def whole(self, data: Any) -> Answer:
        """The answer in a complete body; raises `StreamError`, `KeyError`, `TypeError`, ..."""

    @abc.abstractmethod
    async def streamed(self, events: AsyncIterator[Any]) -> Answer:
        """The answer in a stream of events; raises `StreamError` where it ends too early."""

    async def ask(
        self, messages: Sequence[ChatMessage], schema: Mapping[str, Any] | None
    ) -> Answer | Failure:
        forms = self._forms if schema is not None else ("none",)
        for number, form in enumerate(forms):
            said = await self._post(*self.request(messages, schema, form))
            if isinstance(said, Answer):
                # What one prompt alone was refused for must not loosen the form of all others.
                if schema is not None:
                    self._forms = min(self._forms, forms[number:], key=len)
                break
            if not isinstance(said, _FormRefusedFailure):
                break
        return said

    async def close(self) -> None:
        await self._client.aclose()

    async def _post(self, url: str, body: dict[str, Any]) -> Answer | Failure:
        httpx = self._httpx
        try:
            async with (
                asyncio.timeout(self._config.timeout),
                self._client.stream("POST", url, json=body) as response,
            ):
                if response.status_code != 200:
                    return self._refusal(response, await response.aread())
                return await self._read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            return self._failure("retry", f"cannot connect to {url}: {error}")
        except (TimeoutError, httpx.TimeoutException):
            reason = f"no whole answer within {self._config.timeout:g} s"
            return self._failure("retry", reason, paid=True)
        except (httpx.HTTPError, httpx.InvalidURL, StreamError) as error:
            reason = f"the answer broke off: {error or type(error).__name__}"
            return self._failure("retry", reason, paid=True)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = f"the answer is not in the protocol: {type(error).__name__} {error}"
            return self._failure("retry", reason, paid=True)

    async def _read(self, response: httpx.Response) -> Answer:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            answer = await self.streamed(_events(response))
        elif kind.endswith("json"):
            answer = self.whole(json.loads(await response.aread()))
        else:
            raise StreamError(f"content type {kind!r} is neither JSON nor an event stream")
        cleaned = {
            "text": without_key(answer.text, self._key),
            "model": without_key(answer.model, self._key),
        }
        return answer.model_copy(update=cleaned)

    def _refusal(self, response: httpx.Response, body: bytes) -> Failure:
        status, text = response.status_code, body.decode(errors="replace").strip()
        reason = f"HTTP {status}: {text}"
        if says_no_credit(status, text):
            return self._failure("stop", reason)
        if status in RETRIED or status >= 500:
            return self._failure("retry", reason, wait=asked_wait(response.headers))
        if status in (400, 422):
            kind = _FormRefusedFailure if _REFUSED_FORM.search(text) else Failure
            return kind(scope="row", reason=self._shown(reason))
        return self._failure("row" if status == 413 else "stop", reason)

    def _failure(
        self, scope: str, reason: str, *, wait: float | None = None, paid: bool = False
    ) -> Failure:
        return Failure.parse(
            {"scope": scope, "reason": self._shown(reason), "wait": wait, "paid": paid}
        )

    def _shown(self, text: str) -> str:
        """The start of a reason."""
        return without_key(text, self._key)[:_SHOWN]


class _FormRefusedFailure(Failure):
    """The endpoint does not know this way to constrain an answer."""


async def _events(response: httpx.Response) -> AsyncIterator[Any]:
    """The JSON of each server-sent event, up to `[DONE]` (given as None) or the end of the stream.

    Lines are cut at line feeds alone: `aiter_lines` also cuts at U+2028, which JSON may hold.
    """
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                yield None if data == b"[DONE]" else json.loads(data)
