"""Limits on what is spent, and on how fast."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pydantic import Field

from medloupe.config import Config
from medloupe.synthesis.journal import Use
from medloupe.synthesis.teachers.base import TeacherConfig


class Limits(Config):
    """Budgets are totals over all sittings of a run, None for no limit. What a request can use, by an upper
    estimate, is set aside before it is sent, so that a budget is met and not passed. A run that meets one
    stops and can go on with a higher one.

    A request is tried `1 + retries` times; waits double from `backoff` seconds, each with its own chance
    part, up to `longest_wait`. An endpoint that asks for a longer wait stops the run. So do
    `give_up_after` rows in a row without one answer from the same teacher, rows that it refused one by one
    not counted. `retry_failed` asks rows again that were given up.
    """

    requests: int | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0)
    cost: float | None = Field(default=None, ge=0)
    retries: int = Field(default=6, ge=0)
    backoff: float = Field(default=1.0, ge=0)
    longest_wait: float = Field(default=120.0, gt=0)
    give_up_after: int = Field(default=20, ge=1)
    retry_failed: bool = False

    @property
    def bounded(self) -> bool:
        """Whether the user has set any budget."""
        return not (self.requests is None and self.tokens is None and self.cost is None)


class Budget:
    """What was spent, and what is set aside for requests that are under way."""

    def __init__(self, limits: Limits, spent: Use) -> None:
        self._limits = limits
        self._spent = spent
        self._aside = Use()

    def reserve(self, most: Use) -> str | None:
        """Set aside the most that a request can use, or say which limit does not let it."""
        after = self._spent + self._aside + most
        for name, value in (
            ("requests", after.requests),
            ("tokens", after.tokens),
            ("cost", after.cost),
        ):
            limit = getattr(self._limits, name)
            if limit is not None and value > limit:
                return (
                    f"limits.{name} = {limit:,}: {self._number(name):,} used, and the next request "
                    f"could pass it"
                )
        self._aside += most
        return None

    @property
    def under_way(self) -> int:
        """Requests for which something is set aside."""
        return self._aside.requests

    def settle(self, most: Use, used: Use) -> None:
        """A request has ended: what it used in the place of what was set aside."""
        self._aside -= most
        self._spent += used

    def _number(self, name: str) -> float:
        return float(getattr(self._spent, name))


class Pace:
    """Requests and tokens a minute of one teacher, evenly spread, and the pauses it asks for.

    `clock` counts in seconds, `sleep` waits that long.
    """

    def __init__(
        self,
        teacher: TeacherConfig,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._requests, self._tokens = teacher.requests_per_minute, teacher.tokens_per_minute
        self._clock, self._sleep = clock, sleep
        self._next_request = self._next_token = self._resume = 0.0

    async def turn(self, tokens: int) -> None:
        """Wait until a request of about `tokens` may be sent."""
        now = self._clock()
        begin = max(now, self._next_request, self._next_token)
        if self._requests is not None:
            self._next_request = begin + 60 / self._requests
        if self._tokens is not None:
            self._next_token = begin + 60 * tokens / self._tokens
        while (wait := max(begin, self._resume) - self._clock()) > 0:
            await self._sleep(wait)

    def correct(self, estimated: int, used: int) -> None:
        """A request took `used` tokens instead."""
        if self._tokens is not None:
            self._next_token += 60 * (used - estimated) / self._tokens

    def pause(self, seconds: float) -> None:
        """Send nothing to this teacher for so long."""
        self._resume = max(self._resume, self._clock() + seconds)
