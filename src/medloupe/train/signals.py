"""Asked to stop: the step is finished, a checkpoint written, and the run ends in a way of its own.

Batch systems send SIGTERM some time before they kill; a user sends SIGINT (Ctrl-C), and a second one
interrupts at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from medloupe.errors import TrainingError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_STOPPED = 75
"""The exit code of a run that was asked to stop: EX_TEMPFAIL of sysexits.h, "try again"."""


class StoppedError(TrainingError):
    """The run was asked to stop, and goes on from here with --resume."""


class Asked:
    """Whether somebody asked, and by which signal."""

    def __init__(self) -> None:
        self.by: str | None = None


@contextmanager
def listening() -> Iterator[Asked]:
    """Inside, the first SIGTERM or SIGINT is noted; a second of its kind does what it did before.

    Only the main thread hears signals: elsewhere nothing is ever asked.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        asked.by = signal.Signals(number).name
        signal.signal(number, before[signal.Signals(number)])

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
