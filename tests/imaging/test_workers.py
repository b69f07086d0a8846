"""Work in several processes. The work is that of the standard library: children import no test."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medloupe.errors import ImageError
from medloupe.imaging.workers import SERIAL, counted, in_workers, worker_pool

MANY = SERIAL + 1
DIED = ImageError("a worker process died", file="here")


@pytest.mark.parametrize(("count", "workers"), [(3, 2), (MANY, 1), (MANY, 2), (0, 2)])
def test_results_come_in_the_order_of_the_jobs(count: int, workers: int) -> None:
    jobs = list(range(-count, 0))
    assert list(in_workers(abs, jobs, workers, died=DIED)) == [-job for job in jobs]


def test_many_jobs_leave_this_process_and_few_do_not() -> None:
    own = str(os.getpid())
    link = "/proc/self"
    if not Path(link).is_symlink():
        pytest.skip("needs /proc to tell processes apart")
    assert set(in_workers(os.readlink, [link] * 2, 2, died=DIED)) == {own}
    assert own not in set(in_workers(os.readlink, [link] * MANY, 2, died=DIED))


def test_a_worker_that_ends_is_the_error_it_was_told() -> None:
    with pytest.raises(ImageError, match="file 'here': a worker process died"):
        list(in_workers(os._exit, [1] * MANY, 2, died=DIED))


def test_an_error_of_the_work_is_no_death() -> None:
    with pytest.raises(FileNotFoundError):
        list(in_workers(os.stat, ["/no/such/file"] * MANY, 2, died=DIED))


def test_what_is_silenced_here_is_silenced_in_workers() -> None:
    chatty = logging.getLogger("a_chatty_library")  # crosses over by its name
    chatty.setLevel(logging.ERROR)
    with worker_pool(1) as pool:
        heard = pool.submit(logging.Logger.isEnabledFor, chatty, logging.WARNING).result()
    assert not heard


def test_workers_of_a_killed_process_end_with_it() -> None:
    script = (
        "import time\n"
        "from medloupe.imaging.workers import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    with worker_pool(1) as pool:\n"
        "        import os; print(pool.submit(os.getpid).result(), flush=True)\n"
        "        pool.submit(time.sleep, 600); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)  # it is there
        parent.kill()
        # the pipe closes when the last process that holds it has ended
        assert parent.communicate(timeout=60) == ("", None)


def test_counting_tells_each_before_it_is_passed_on() -> None:
    told: list[tuple[str, int, int]] = []
    results = counted("ab", "letters", 2, lambda *said: told.append(said))
    assert next(iter(results)) == "a"
    assert told == [("letters", 1, 2)]
    assert list(results) == ["b"]
    assert told == [("letters", 1, 2), ("letters", 2, 2)]
    assert list(counted("ab", "letters", 2, None)) == ["a", "b"]
