"""The next micro-batches, made in a thread while a step runs.

One thread makes all of them, in order, so the order and every bit of them are the same however far it
runs ahead. What it calls (`Objective.micro`) reads nothing that training changes and draws no random
number: files, tokens, and an encoder that is frozen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from types import TracebackType
from typing import Generic, Self, TypeVar

Made = TypeVar("Made")


class Prefetch(Generic[Made]):
    """`make(number)` for the numbers of a range, at most `ahead` of them before they are asked for.

    With 0 each is made when it is asked for, in the thread that asks. What `make` raises is raised by the
    `next` that would have given its result.
    """

    def __init__(self, make: Callable[[int], Made], numbers: range, *, ahead: int) -> None:
        self._make, self._numbers = make, numbers
        self._inline = iter(numbers)
        self._queue: Queue[Made | _Failed] = Queue(maxsize=ahead)
        self._making, self._closing = threading.Lock(), threading.Event()
        self._thread = (
            threading.Thread(target=self._run, name="prefetch", daemon=True) if ahead else None
        )

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        if self._thread is None:
            return
        while self._thread.is_alive():
            self._drain()  # it may wait for room
            self._thread.join(timeout=0.05)

    def next(self) -> Made:
        """The next one."""
        if self._thread is None:
            return self._make(next(self._inline))
        made = self._queue.get()
        if isinstance(made, _Failed):
            raise made.error
        return made

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing is being made: what it reads may be used otherwise."""
        with self._making:
            yield

    def _run(self) -> None:
        for number in self._numbers:
            if self._closing.is_set():
                return
            made: Made | _Failed
            try:
                with self._making:
                    made = self._make(number)
            except Exception as error:  # whatever it is, it belongs to the thread that asks
                made = _Failed(error)
            self._queue.put(made)
            if isinstance(made, _Failed):
                return

    def _drain(self) -> None:
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            return


class _Failed:
    def __init__(self, error: Exception) -> None:
        self.error = error
