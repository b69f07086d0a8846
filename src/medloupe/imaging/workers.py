"""The same work on many files in several processes, with results in the order of the jobs."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Final, TypeVar

from medloupe.errors import ImageError

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]

# Up to this many files, or bytes of volumes, starting workers takes longer than reading.
SERIAL: Final = 64
SERIAL_BYTES: Final = 2**27


def in_workers(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int | None,
    *,
    died: ImageError,
    serial: int = SERIAL,
    chunksize: int = 16,
) -> Generator[Result, None, None]:
    """`work` of every job, in `workers` processes (default: one per core, at most 8).

    At most `serial` jobs, or one worker, run in this process.

    Raises:
        ImageError: `died`; a worker process ended, e.g. because it ran out of memory.
    """
    workers = workers or min(os.cpu_count() or 1, 8)
    if workers == 1 or len(jobs) <= serial:
        yield from map(work, jobs)
        return
    with worker_pool(workers) as pool:
        try:
            yield from pool.map(work, jobs, chunksize=chunksize)
        except BrokenProcessPool as error:
            raise died from error
        finally:  # whoever stops listening wants no more of it
            pool.shutdown(cancel_futures=True)


def worker_pool(
    workers: int, begin: Callable[..., object] | None = None, *args: object
) -> ProcessPoolExecutor:
    """Processes that first run `begin(*args)`, and end with this one, also where it is killed.

    They are spawned, not forked: a fork of a process in which torch runs threads can hang. What is
    silenced here by a logger's level is so in them, too.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _begin, (_log_levels(), begin, args))


def _log_levels() -> dict[str, int]:
    loggers = logging.root.manager.loggerDict
    return {
        name: logger.level
        for name, logger in loggers.items()
        if isinstance(logger, logging.Logger) and logger.level != logging.NOTSET
    }


def _begin(
    log_levels: dict[str, int], begin: Callable[..., object] | None, args: tuple[object, ...]
) -> None:
    for name, level in log_levels.items():
        logging.getLogger(name).setLevel(level)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if begin is not None:
        begin(*args)


def _leave_with_parent() -> None:
    """A worker of a killed process would finish its job for nobody, and then wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers run this"
    parent.join()
    os._exit(1)


def counted(
    results: Iterable[Result], what: str, total: int, progress: Progress | None
) -> Iterator[Result]:
    """The results, each told to `progress` before it is passed on."""
    for done, result in enumerate(results, start=1):
        if progress is not None:
            progress(what, done, total)
        yield result
