"""Any model behind OpenAI's chat completions: hosted, vLLM, SGLang, llama.cpp, Ollama.

Pictures travel as PNG in data urls. What each way to fail means: an endpoint that is busy, slow or gone is
asked again with growing pauses; a row that it refuses, or that it does not answer in the end, is an error
of that row; a refused key, an unknown model or an empty account end the evaluation, and so do several rows
in a row without any answer. Every answer that comes in is told, also after one row has ended it all.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import random
import threading
import time
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, TypeAlias

from PIL import Image
from pydantic import BeforeValidator, Field, JsonValue

from medloupe.data.dataset import Progress
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
from medloupe.errors import MedLoupeError
from medloupe.evaluate.predictors.shown import Pixels, Showing, ShownConfig, Turn
from medloupe.generate.telling import all_told
from medloupe.types import Conversation, Generation, Hear

if TYPE_CHECKING:
    import httpx

_SHOWN: Final = 300  # characters of what an endpoint says
_AHEAD: Final = 2  # rows in hand for each request that may be open


class EndpointError(MedLoupeError):
    """A model behind an endpoint does not answer: one row, or at all."""


def _before_path(value: object) -> object:
    """The url without the path that is asked, which people paste with it."""
    if not isinstance(value, str):
        return value
    return value.removesuffix("/").removesuffix("/chat/completions")


class EndpointConfig(ShownConfig):
    """`url` ends before `/chat/completions` ("http://127.0.0.1:8000/v1"). `key_env` names the variable
    that holds the key, "" where none is needed.

    With `logprobs` the probability of an answer is that of its tokens, and those of options are taken from
    the `top_logprobs` most likely first tokens: an option that is not among them gets 0, and options that
    begin alike cannot be told apart and get none at all. An endpoint that refuses these fields is asked
    without. `extra` fields go into every request as they are. A request is tried `attempts` times,
    `backoff` seconds after the first failure and twice as long after each, `longest_wait` at most; `timeout`
    is in seconds without a byte.
    """

    # What may differ when an evaluation goes on: nothing that the model sees.
    free: ClassVar[frozenset[str]] = frozenset(
        {
            *("url", "key_env", "concurrency", "attempts", "backoff", "longest_wait", "timeout"),
            *("give_up_after", "local"),
        }
    )

    url: Annotated[Url, BeforeValidator(_before_path)]
    model: str = Field(min_length=1)
    key_env: KeyName = ""
    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    system: str | None = None
    logprobs: bool = True
    top_logprobs: int = Field(default=20, ge=0, le=20)
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    concurrency: int = Field(default=8, ge=1)
    attempts: int = Field(default=6, ge=1)
    backoff: float = Field(default=1.0, ge=0)
    longest_wait: float = Field(default=120.0, ge=0)
    timeout: float = Field(default=300.0, gt=0)
    give_up_after: int = Field(default=5, ge=1)
    local: bool | None = None

    @property
    def is_local(self) -> bool:
        """Whether pictures stay on this machine or in a private network."""
        return settled_local(self.url) if self.local is None else self.local

    def identity(self) -> str:
        """The same for requests that a model cannot tell apart."""
        decisive = {k: v for k, v in self.to_dict().items() if k not in self.free}
        return "endpoint " + json.dumps(decisive, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """`scope`: "retry" (it may pass), "form" (the request holds a field that the endpoint does not
    know), "row" (this one will never be answered), "stop" (none will)."""

    scope: Literal["retry", "form", "row", "stop"]
    reason: str
    wait: float | None = None


class EndpointPredictor:
    """Asks an endpoint; `images` is what it shows.

    Raises:
        MissingExtraError: httpx is not installed.
        ConfigError: the variable of the key is not set.
    """

    def __init__(self, config: EndpointConfig, root: Path) -> None:
        self._httpx = import_httpx()
        self.config, self.images = config, Showing(root, config)
        self._key = read_key(
            config.key_env,
            who=f"the model {config.model!r}",
            field="key_env",
            remedy=f"export {config.key_env}=... before the command",
        )
        self._asks_logprobs = config.logprobs

    def __call__(
        self, conversations: Sequence[Conversation], *, progress: Progress
    ) -> list[Generation]:
        """One `Generation` a conversation, in their order.

        Raises:
            EndpointError, ImageError, PromptError: of the first row without an answer.
        """
        return all_told(
            lambda hear: self.answer_each(conversations, hear, progress=progress),
            len(conversations),
        )

    def answer_each(
        self,
        conversations: Sequence[Conversation],
        hear: Hear,
        *,
        progress: Progress,
        done: Container[int] = (),
    ) -> None:
        """Tell what becomes of each conversation that is not `done`, as the endpoint answers.

        Raises:
            EndpointError: it will answer none: its key, model or account, or nobody is there. What it
                answered meanwhile is told first.
        """
        left = [number for number in range(len(conversations)) if number not in done]
        tell = _Telling(hear, progress, len(conversations) - len(left), len(conversations))
        sitting = _Sitting(self.config.give_up_after)
        running: dict[Future[_Outcome], int] = {}
        with self._client() as client, ThreadPoolExecutor(self.config.concurrency) as pool:
            waiting = iter(left)
            try:
                while True:
                    room = _AHEAD * self.config.concurrency - len(running)
                    for number in islice(waiting, 0 if sitting.ended.is_set() else room):
                        task = pool.submit(self._ask, client, conversations[number], sitting)
                        running[task] = number
                    if not running:
                        break
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for task in finished:
                        tell(running.pop(task), task.result())
            finally:
                sitting.ended.set()
                for task, number in running.items():  # of who is interrupted here
                    if not (task.cancel() or tell.failed or task.exception()):
                        tell.hear(number, task.result())
        if sitting.reason is not None:
            raise sitting.reason

    def _ask(self, client: httpx.Client, row: Conversation, sitting: _Sitting) -> _Outcome:
        """What becomes of a row. What ends the sitting does so here, before this thread takes another."""
        if sitting.ended.is_set():
            return None
        answer = self._answer(client, row, sitting)
        reason = answer if isinstance(answer, _StopError) else None
        if sitting.is_out_of_patience(answer):
            reason = self._gone(answer)
        if reason is None:
            return answer
        sitting.end(reason)
        return None

    def _gone(self, answer: _Outcome) -> _StopError:
        return _StopError(
            f"{self.config.give_up_after} rows in a row got no answer; the last: {answer}",
            remedy="See that the endpoint runs, and go on with --resume",
            file=self.config.url,
        )

    def _client(self) -> httpx.Client:
        headers = {"User-Agent": "medloupe"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        client: httpx.Client = self._httpx.Client(
            headers=headers,
            **client_options(self._httpx, timeout=self.config.timeout, local=self.config.is_local),
        )
        return client

    def _answer(self, client: httpx.Client, row: Conversation, sitting: _Sitting) -> _Outcome:
        """What becomes of a row, tried as often as allowed."""
        try:
            turns = self.images.turns(row)
        except MedLoupeError as error:
            return error.at(row=row.id)
        messages = _messages(turns, self.config.system)
        begun = time.perf_counter()
        attempt = 0
        while not sitting.ended.is_set():
            with_logprobs = self._asks_logprobs
            said = self._post(client, messages, with_logprobs=with_logprobs)
            if not isinstance(said, _Failure):
                return self._generation(said, row, time.perf_counter() - begun)
            if said.scope == "form":
                # another thread may have found this out meanwhile: then ask again all the same
                self._asks_logprobs = False
                continue
            if said.scope == "stop":
                return _StopError(
                    said.reason,
                    remedy="Mend this, and go on with --resume",
                    file=self.config.url,
                )
            if said.scope == "row":
                return EndpointError(said.reason, row=row.id)
            attempt += 1
            if attempt == self.config.attempts:
                reason = f"no answer after {attempt} attempts: {said.reason}"
                return _SilentError(reason, row=row.id)
            sitting.ended.wait(self._pause(attempt, said.wait))
        return None

    def _pause(self, attempt: int, asked: float | None) -> float:
        """Seconds: as many as the endpoint asks for, else more after every failure."""
        grown = self.config.backoff * 2.0 ** (attempt - 1) * random.uniform(0.75, 1.25)
        return min(self.config.longest_wait, max(grown, asked or 0.0))

    def _post(
        self, client: httpx.Client, messages: list[dict[str, Any]], *, with_logprobs: bool
    ) -> Mapping[str, Any] | _Failure:
        """The answer's choice, or why there is none."""
        config = self.config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": messages,
            "temperature": config.temperature,
            config.token_field: config.max_tokens,
            **config.extra,
        }
        if with_logprobs:
            body |= {"logprobs": True, "top_logprobs": config.top_logprobs}
        httpx = self._httpx
        try:
            response = client.post(f"{config.url}/chat/completions", json=body)
            if response.status_code != 200:
                return self._refusal(response, with_logprobs=with_logprobs)
            return self._choice(response.json())
        except httpx.TimeoutException:
            return _Failure(scope="retry", reason=f"nothing came within {config.timeout:g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = f"the endpoint cannot be reached: {error or type(error).__name__}"
            return _Failure(scope="retry", reason=self._clean(reason))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = f"the answer is not in the protocol: {type(error).__name__} {error}"
            return _Failure(scope="retry", reason=self._clean(reason))

    def _choice(self, data: Any) -> Mapping[str, Any] | _Failure:
        if data.get("error"):  # some routers put it into a body with status 200
            return _Failure(scope="retry", reason=self._clean(f"it reports {data['error']}"))
        choice: Mapping[str, Any] = data["choices"][0]
        message = choice["message"]
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            said = self._clean(str(message.get("refusal") or "its content filter"))
            return _Failure(scope="row", reason=f"the endpoint refuses: {said}")
        if message.get("content") is not None and not isinstance(message["content"], str):
            raise TypeError("content is no text")
        return choice

    def _refusal(self, response: httpx.Response, *, with_logprobs: bool) -> _Failure:
        status, text = response.status_code, response.text.strip()
        reason = self._clean(f"HTTP {status}: {text}")
        if says_no_credit(status, text):
            return _Failure(scope="stop", reason=reason)
        if status in RETRIED or status >= 500:
            return _Failure(scope="retry", reason=reason, wait=asked_wait(response.headers))
        if status in (400, 422) and with_logprobs and "logprobs" in text:
            return _Failure(scope="form", reason=reason)
        return _Failure(scope="row" if status in (400, 413, 422) else "stop", reason=reason)

    def _clean(self, text: str) -> str:
        """The start of what an endpoint says."""
        return without_key(text, self._key)[:_SHOWN]

    def _generation(
        self, choice: Mapping[str, Any], row: Conversation, seconds: float
    ) -> Generation:
        text = without_key(choice["message"].get("content") or "", self._key).strip()
        tokens = _tokens(choice)
        return Generation(
            text=text,
            log_probs=tuple(token.log_prob for token in tokens),
            boxes=self.images.boxes(text, row),
            finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
            seconds=seconds,
            option_probs=first_token_shares(row.options, tokens[0].others) if tokens else (),
        )


class _SilentError(EndpointError):
    """A row that was asked as often as allowed, without an answer."""


class _StopError(EndpointError):
    """What keeps every row from being answered."""


_Outcome: TypeAlias = Generation | MedLoupeError | None
"""Of a row; None where it was not asked to the end."""


class _Sitting:
    """What the threads of one call share: whether it has `ended`, and the `reason`, if there is one."""

    def __init__(self, patience: int) -> None:
        self.ended = threading.Event()
        self.reason: EndpointError | None = None
        self._patience, self._streak = patience, 0
        self._lock = threading.Lock()

    def is_out_of_patience(self, answer: _Outcome) -> bool:
        """Whether with this one too many rows in a row got no answer."""
        with self._lock:
            self._streak = self._streak + 1 if isinstance(answer, _SilentError) else 0
            return self._streak >= self._patience

    def end(self, reason: EndpointError) -> None:
        """Ask nobody any more."""
        with self._lock:
            self.reason = self.reason or reason
            self.ended.set()


class _Telling:
    """Passes outcomes on and counts them; `failed` where who hears them did."""

    def __init__(self, hear: Hear, progress: Progress, told: int, total: int) -> None:
        self._hear, self._progress = hear, progress
        self._told, self._total = told, total
        self.failed = False

    def __call__(self, number: int, answer: _Outcome) -> None:
        if answer is None:
            return
        self.hear(number, answer)
        self._told += 1
        self._progress("answer", self._told, self._total)

    def hear(self, number: int, answer: _Outcome) -> None:
        """Pass one on uncounted: progress may be what is interrupted."""
        if answer is None:
            return
        self.failed = True
        self._hear(number, answer)
        self.failed = False


@dataclass(frozen=True, kw_only=True)
class _Token:
    log_prob: float
    others: dict[str, float]


def _tokens(choice: Mapping[str, Any]) -> list[_Token]:
    """The answer's tokens with what else each might have been; none where the endpoint does not say."""
    found = []
    with contextlib.suppress(TypeError, KeyError, AttributeError, ValueError):
        for token in (choice.get("logprobs") or {}).get("content") or ():
            others = {str(o["token"]): float(o["logprob"]) for o in token.get("top_logprobs") or ()}
            found.append(_Token(log_prob=float(token["logprob"]), others=others))
        return found
    return []


def first_token_shares(options: Sequence[str], log_probs: Mapping[str, float]) -> tuple[float, ...]:
    """Probabilities of options from those of first tokens, scaled to sum to 1.

    A token counts for an option that begins with it, upper and lower case alike; () where one counts for
    two options, or none for any.
    """
    weights = [0.0] * len(options)
    for token, log_prob in log_probs.items():
        start = token.strip().lower()
        fits = [n for n, option in enumerate(options) if start and option.lower().startswith(start)]
        if len(fits) > 1:
            return ()
        if fits:
            weights[fits[0]] += math.exp(log_prob)
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights) if total > 0 else ()


def _messages(turns: Sequence[Turn], system: str | None) -> list[dict[str, Any]]:
    """Chat messages; a turn of text alone is a plain string, which every server takes."""
    first: list[dict[str, Any]] = []
    if system is not None and (not turns or turns[0].role != "system"):
        first.append({"role": "system", "content": system})
    return first + [{"role": turn.role, "content": _content(turn.parts)} for turn in turns]


def _content(parts: Sequence[str | Pixels]) -> str | list[dict[str, Any]]:
    if all(isinstance(part, str) for part in parts):
        return "".join(part for part in parts if isinstance(part, str))
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_url(part)}}
        for part in parts
    ]


def data_url(pixels: Pixels) -> str:
    """A picture as a PNG, lossless, in a url."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
