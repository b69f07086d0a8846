"""What the user sees: results on stdout, progress and errors on stderr.

On a terminal progress is a bar; elsewhere a line when a phase begins, at about every tenth of it and
when it ends.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from medloupe.errors import ConfigError, MedLoupeError

if TYPE_CHECKING:
    from medloupe.types import Generation

USER_ERROR = 2
SECONDS_BETWEEN_LINES = 1.0
# Faults of the machine or of rights that the user can mend; any other OSError is a bug.
_MENDABLE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EISDIR,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}

# Read by the libraries when they are imported, which is later.
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

out = Console(soft_wrap=True, highlight=False)
err = Console(soft_wrap=True, highlight=False, stderr=True)


class Bars:
    """A `Progress` callback: one bar, or one series of lines, per phase.

    The text before " (" names the phase; what follows (a loss) changes while it runs.
    """

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=err,
        )
        self._tasks: dict[str, TaskID] = {}
        self._phase, self._done = "", 0
        self._tenth, self._begun, self._last = -1, 0.0, 0.0

    def __enter__(self) -> Self:
        if err.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if err.is_terminal:
            self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        phase = what.partition(" (")[0]
        # a phase may run again: answers are asked for with and without the right image
        begins = phase != self._phase or done <= self._done
        self._phase, self._done = phase, done
        if err.is_terminal:
            self._draw(phase, what, done, total, begins)
        else:
            self._tell(what, done, total, begins)

    def _draw(self, phase: str, what: str, done: int, total: int, begins: bool) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(what, total=total)
        elif begins:
            self._progress.reset(self._tasks[phase], total=total)
        self._progress.update(self._tasks[phase], description=what, completed=done, total=total)

    def _tell(self, what: str, done: int, total: int, begins: bool) -> None:
        now = time.perf_counter()
        if begins:
            self._tenth, self._begun, self._last = -1, now, 0.0
        tenth = 10 * done // max(total, 1)
        due = tenth > self._tenth and now - self._last >= SECONDS_BETWEEN_LINES
        if due or done == total:
            self._tenth, self._last = tenth, now
            err.print(f"  {what}: {done:,} of {total:,} ({now - self._begun:.0f} s)", markup=False)


@contextmanager
def explained() -> Iterator[None]:
    """User mistakes and full disks become one message and exit code 2."""
    try:
        yield
    except MedLoupeError as error:
        complain(str(error))
        raise SystemExit(USER_ERROR) from error
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        complain(f"{error.filename or 'a file'}: {error.strerror}")
        raise SystemExit(USER_ERROR) from error


def writable(option: str, path: Path, *, file: bool = False) -> None:
    """Refuse, before any work, an output folder (or file) that cannot be made; makes nothing.

    By trying: rights alone do not tell (root may write anywhere, but not in /proc).

    Raises:
        ConfigError: naming the option and why.
    """
    place = path.parent if file else path
    try:
        if file and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option} {path} cannot be written: {error.strerror}",
            remedy=f"Name another {'file' if file else 'folder'}",
        ) from None


def complain(message: str) -> None:
    """One error message on stderr."""
    err.print("[bold red]Error:[/]", end=" ")
    err.print(message, markup=False)


def tell(line: str) -> None:
    """One line of plain text on stdout."""
    out.print(f"  {line}", markup=False)


def show_answer(answer: Generation) -> None:
    """The text, and each box in pixels of its image or voxels of its volume."""
    out.print(answer.text, markup=False)
    for box in answer.boxes:
        low, high, unit = [box.x1, box.y1], [box.x2, box.y2], "px"
        if box.z1 is not None and box.z2 is not None:
            low, high, unit = [*low, box.z1], [*high, box.z2], "voxels"
        corners = " to ".join(
            f"({', '.join(f'{x:.1f}' for x in corner)})" for corner in (low, high)
        )
        out.print(f"  box {box.label or '?'}: {corners} {unit}", markup=False)
    if answer.finish_reason == "length":
        err.print("  (the answer was cut at the limit of new tokens)", markup=False)


def quiet_libraries() -> None:
    """Their bars and notices would drown ours; what matters comes back as an error."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("pydicom", "nibabel.global", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # it sets its level itself, whenever a saved model makes transformers import it
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    for module in ("pydicom", "nilearn", "nibabel", "transformers", "peft"):
        warnings.filterwarnings("ignore", module=module)
