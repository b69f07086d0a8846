from __future__ import annotations

import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from medloupe.errors import ImageError
from medloupe.train.log import read_log
from medloupe.train.prefetch import Prefetch


@pytest.mark.parametrize("ahead", [0, 1, 3, 50])
def test_every_number_once_and_in_order(ahead: int) -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number * number

    with Prefetch(make, range(5, 25), ahead=ahead) as batches:
        assert [batches.next() for _ in range(20)] == [n * n for n in range(5, 25)]
    assert made == list(range(5, 25))


def test_no_more_are_made_than_asked_for() -> None:
    """The thread makes what there is room for and one more, which waits; leaving does not hang."""
    made: list[int] = []
    third = threading.Event()

    def make(number: int) -> int:
        made.append(number)
        if number == 2:
            third.set()
        return number

    with Prefetch(make, range(10**9), ahead=2):
        assert third.wait(timeout=30)
    assert made == [0, 1, 2]


def test_with_nothing_ahead_each_is_made_by_the_thread_that_asks() -> None:
    with Prefetch(lambda _: threading.current_thread(), range(2), ahead=0) as batches:
        assert batches.next() is threading.current_thread()
    with Prefetch(lambda _: threading.current_thread(), range(2), ahead=1) as batches:
        assert batches.next() is not threading.current_thread()


@pytest.mark.parametrize("ahead", [0, 3])
def test_an_error_comes_where_its_batch_would_have(ahead: int) -> None:
    def make(number: int) -> int:
        if number == 2:
            raise ImageError("not an image", file="x.png")
        return number

    with Prefetch(make, range(9), ahead=ahead) as batches:
        assert [batches.next(), batches.next()] == [0, 1]
        with pytest.raises(ImageError, match=r"x\.png.*not an image"):
            batches.next()


def test_nothing_is_made_while_it_is_paused() -> None:
    """What is ready can be taken; then there is room for more, and none is made."""
    begun = [threading.Event() for _ in range(9)]

    def make(number: int) -> int:
        begun[number].set()
        return number

    with Prefetch(make, range(9), ahead=1) as batches:
        assert begun[1].wait(timeout=30)  # 0 waits to be taken, 1 for room
        with batches.paused():
            assert [batches.next(), batches.next()] == [0, 1]
            assert not begun[2].wait(timeout=0.2)
        assert begun[2].wait(timeout=30)


def test_how_far_it_runs_ahead_changes_no_bit(tiny: ModuleType, lab: Any, tmp_path: Path) -> None:
    rows = {}
    for ahead in (0, 1, 7):
        run = tiny.two_stages(prefetch=ahead)
        lab.trainer(tmp_path / str(ahead), run).fit()
        logged = read_log(tmp_path / str(ahead) / "train.jsonl")
        rows[ahead] = [(r["loss"], r["grad_norm"]) for r in logged if r["event"] == "step"]
    assert rows[0] == rows[1] == rows[7]
    assert len(rows[0]) == 24


def test_a_bad_row_ends_the_run_with_its_own_message(
    tiny: ModuleType, lab: Any, tmp_path: Path
) -> None:
    """A picture that is broken once all rows were checked."""
    data = tiny.dataset(tmp_path / "data")

    def spoil(what: str, done: int, total: int) -> None:
        if what.startswith("train") and done == 1:
            for picture in (data.root / "images").iterdir():
                picture.write_bytes(b"no picture")

    trainer = lab.trainer(tmp_path, tiny.two_stages(), dataset=data, progress=spoil)
    trainer.context(trainer.config.stages[0]).images.keep_bytes = 1  # decode in every batch
    with pytest.raises(ImageError, match=r"images/\d\.png"):
        trainer.fit()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
