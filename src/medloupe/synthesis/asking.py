"""Asking: every row without an answer is put to its teacher, several at once, and journalled.

Rows are read a window at a time. What each way to fail means: "retry" waits and asks again, "row" gives
the row up, "stop" ends the sitting. Nothing here looks at what an answer says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from medloupe.data.dataset import Progress
from medloupe.synthesis.budget import Budget, Pace
from medloupe.synthesis.config import SynthesisConfig
from medloupe.synthesis.journal import Journal, Use
from medloupe.synthesis.teachers.base import (
    Answer,
    Failure,
    Teacher,
    TeacherConfig,
    estimate_prompt,
    estimate_tokens,
)
from medloupe.synthesis.types import ChatMessage, PromptSet, SourceRow

_WINDOW = 2  # rows in hand for each request that may be open


@dataclass(frozen=True, kw_only=True)
class Halt:
    """Why a sitting ended before the last row. `fault`: something is wrong, not just used up."""

    reason: str
    fault: bool


def most_used(
    prompts: PromptSet, row: SourceRow, teacher: TeacherConfig
) -> tuple[list[ChatMessage], Use]:
    """The prompt of a row, and the most that asking it once can use."""
    found = prompts.of(row)
    messages, schema = found.messages(row), found.schema()
    prompt_tokens = estimate_prompt(messages)
    if schema is not None:
        prompt_tokens += estimate_tokens(json.dumps(schema))
    return messages, _use(teacher, prompt_tokens, teacher.max_tokens)


def _use(teacher: TeacherConfig, prompt_tokens: int, completion_tokens: int) -> Use:
    price = teacher.price
    return Use(
        requests=1,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost=price.of(prompt_tokens, completion_tokens) if price is not None else 0.0,
    )


class Asking:
    """One sitting. `rows` of `run` are those that still need an answer, with their places."""

    def __init__(
        self,
        config: SynthesisConfig,
        prompts: PromptSet,
        journal: Journal,
        teachers: Mapping[str, Teacher],
    ) -> None:
        self._limits = config.limits
        self._config, self._prompts, self._journal = config, prompts, journal
        self._teachers = teachers
        self._budget = Budget(config.limits, sum(journal.use().values(), Use()))
        self._halt: Halt | None = None
        self._answered: set[str] = set()  # teachers, in this sitting
        # By teacher, since its last answer.
        self._given_up: dict[str, list[tuple[int, str, str, str]]] = {}

    async def run(
        self, rows: Iterable[tuple[int, SourceRow]], *, total: int, progress: Progress
    ) -> Halt | None:
        """Ask until every row is done, or something ends the sitting; what is open is waited for."""
        clock = asyncio.get_running_loop().time
        configs = [t for t in self._config.teachers if t.called in self._teachers]
        self._open = {t.called: asyncio.Semaphore(t.concurrency) for t in configs}
        self._pace = {t.called: Pace(t, clock=clock) for t in configs}
        self._settled = asyncio.Condition()
        window = _WINDOW * sum(t.concurrency for t in configs)
        done = 0
        tasks: set[asyncio.Task[None]] = set()
        with self._interruptible():
            for place, row in rows:
                while len(tasks) >= window:
                    finished, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    done += self._collect(finished, done, total, progress)
                if self._halt is not None:
                    break
                tasks.add(asyncio.create_task(self._ask(place, row)))
            while tasks:
                finished, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                done += self._collect(finished, done, total, progress)
        if self._halt is None or not self._halt.fault:
            self._end()
        return self._halt

    def _collect(
        self, finished: set[asyncio.Task[None]], done: int, total: int, progress: Progress
    ) -> int:
        for task in finished:
            task.result()
        progress("ask", done + len(finished), total)
        return len(finished)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C sends nothing more and waits for the answers that are under way; a second one does
        what it always does."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            self._stop("interrupted", fault=False)
            loop.remove_signal_handler(signal.SIGINT)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop.add_signal_handler(signal.SIGINT, stop)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    async def _ask(self, place: int, row: SourceRow) -> None:
        teacher = self._config.teacher_of(row.id)
        messages, most = most_used(self._prompts, row, teacher)
        reason = ""
        for attempt in range(self._limits.retries + 1):
            said = await self._try(place, row, teacher, messages, most)
            if said is None:
                return
            reason = said.reason
            if said.scope == "stop":
                self._stop(f"teacher {teacher.called!r} cannot be used: {reason}", fault=True)
                return
            if said.scope == "row":
                self._journal.give_up(place, row.id, teacher.called, reason)
                return
            if attempt < self._limits.retries and not await self._wait(teacher, attempt, said):
                return
        reason = f"no answer in {self._limits.retries + 1} attempts, the last: {reason}"
        self._give_up(place, row, teacher.called, reason)

    async def _try(
        self,
        place: int,
        row: SourceRow,
        teacher: TeacherConfig,
        messages: list[ChatMessage],
        most: Use,
    ) -> Failure | None:
        """One request; None where it was answered or the sitting is over."""
        name = teacher.called
        async with self._open[name]:
            if not await self._reserved(most):
                return None
            used = Use()
            try:
                await self._pace[name].turn(most.tokens)
                if self._halt is not None:
                    return None
                request = self._journal.begin(place, row.id, name, most)
                said = await self._teachers[name].ask(messages, self._prompts.of(row).schema())
                used = _used(teacher, said, most)
                if isinstance(said, Failure):
                    self._journal.failed(request, said.reason, used)
                    return said
                self._journal.answered(request, said, used)
                self._pace[name].correct(most.tokens, used.tokens)
                self._answered.add(name)
                self._confirm_given_up(name)
                return None
            finally:
                async with self._settled:
                    self._budget.settle(most, used)
                    self._settled.notify_all()

    async def _reserved(self, most: Use) -> bool:
        """Set the most aside. What others have set aside may come back: wait for it before giving in."""
        async with self._settled:
            while self._halt is None:
                against = self._budget.reserve(most)
                if against is None:
                    return True
                if not self._budget.under_way:
                    self._stop(against, fault=False)
                    self._settled.notify_all()
                    break
                await self._settled.wait()
        return False

    async def _wait(self, teacher: TeacherConfig, attempt: int, said: Failure) -> bool:
        """Wait before the next attempt; False where the sitting is over."""
        limits = self._limits
        if said.wait is not None and said.wait > limits.longest_wait:
            self._stop(
                f"teacher {teacher.called!r} asks to wait {said.wait:,.0f} s, more than "
                f"limits.longest_wait = {limits.longest_wait:g}",
                fault=True,
            )
            return False
        grown = min(limits.longest_wait, limits.backoff * 2.0**attempt)
        seconds = grown * random.uniform(0.5, 1.0)
        if said.wait is not None:  # never sooner than it asks, and not all at the same moment
            self._pace[teacher.called].pause(said.wait)
            seconds = said.wait + min(seconds, 1.0)
        await asyncio.sleep(seconds)
        return self._halt is None

    def _give_up(self, place: int, row: SourceRow, teacher: str, reason: str) -> None:
        given_up = self._given_up.setdefault(teacher, [])
        given_up.append((place, row.id, teacher, reason))
        if len(given_up) >= self._limits.give_up_after:
            self._stop(
                f"{len(given_up)} rows in a row got no answer from teacher {teacher!r}, the last: "
                f"{reason}",
                fault=True,
            )

    def _confirm_given_up(self, teacher: str) -> None:
        """The endpoint works, so it was the rows."""
        for given_up in self._given_up.pop(teacher, ()):
            self._journal.give_up(*given_up)

    def _end(self) -> None:
        """Of a teacher that gave no answer at all, nobody knows whether it was the rows."""
        for teacher in self._answered:
            self._confirm_given_up(teacher)
        for teacher, given_up in self._given_up.items():
            reason = given_up[-1][-1]
            self._halt = Halt(reason=f"teacher {teacher!r} answered no row: {reason}", fault=True)

    def _stop(self, reason: str, *, fault: bool) -> None:
        self._halt = self._halt or Halt(reason=reason, fault=fault)


def _used(teacher: TeacherConfig, said: Answer | Failure, most: Use) -> Use:
    """What a request used: by the endpoint's own count, else by the estimate."""
    if isinstance(said, Failure):
        return most if said.paid else Use(requests=1)
    prompt_tokens = said.prompt_tokens if said.counted else most.prompt_tokens
    return _use(teacher, prompt_tokens, said.completion_tokens)
