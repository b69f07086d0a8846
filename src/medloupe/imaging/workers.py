"""The same work on many files in several processes, with results in the order of the jobs."""

from __future__ import annotations

import multiprocessing
import os
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
    # Spawned, not forked: a fork of a process in which torch runs threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield from pool.map(work, jobs, chunksize=chunksize)
        except BrokenProcessPool as error:
            raise died from error
        finally:  # whoever stops listening wants no more of it
            pool.shutdown(cancel_futures=True)


def counted(
    results: Iterable[Result], what: str, total: int, progress: Progress | None
) -> Iterator[Result]:
    """The results, each told to `progress` before it is passed on."""
    for done, result in enumerate(results, start=1):
        if progress is not None:
            progress(what, done, total)
        yield result
