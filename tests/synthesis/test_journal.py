"""The journal survives its process; budgets are met, not passed; rates are kept."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from medloupe.errors import ConfigError
from medloupe.synthesis.budget import Budget, Limits, Pace
from medloupe.synthesis.journal import Answered, Journal, Notes, Use, refuse_changed
from medloupe.synthesis.teachers import Answer, TeacherConfig
from medloupe.synthesis.types import SynthesisError

MOST = Use(requests=1, prompt_tokens=100, completion_tokens=50, cost=0.5)
USED = Use(requests=1, prompt_tokens=90, completion_tokens=10, cost=0.25)
ANSWER = Answer(text="said", model="m-1", prompt_tokens=90, completion_tokens=10)


def test_an_answer_is_kept_and_counted(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        assert journal.result(3) is None
        journal.answered(journal.begin(3, "row-3", "t", MOST), ANSWER, USED)
        journal.failed(journal.begin(4, "row-4", "t", MOST), "500", Use(requests=1))
        journal.give_up(4, "row-4", "t", "gone")
        assert journal.is_done(3)
        assert journal.is_done(4)
    with Journal(tmp_path) as journal:
        found = journal.result(3)
        assert isinstance(found, Answered)
        assert (found.answer, found.teacher) == (ANSWER, "t")
        assert journal.result(4) == "gone"
        assert journal.lost == 0
        assert journal.use() == {"t": USED + Use(requests=1)}
        assert list(journal.models()) == [("t", "m-1", 1)]
        assert journal.forget_failures() == 1
        assert journal.result(4) is None


def test_a_row_has_one_answer(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.answered(journal.begin(3, "row-3", "t", MOST), ANSWER, USED)
        again = journal.begin(3, "row-3", "t", MOST)
        with pytest.raises(sqlite3.IntegrityError):
            journal.answered(again, ANSWER, USED)
        assert journal.use(state="open") == {"t": MOST}, "the whole transaction is undone"


def test_requests_under_way_at_a_kill_are_lost_and_counted_at_their_most(tmp_path: Path) -> None:
    code = (
        "import os, signal, pathlib\n"
        "from medloupe.synthesis.journal import Journal, Use\n"
        "from medloupe.synthesis.teachers import Answer\n"
        f"journal = Journal(pathlib.Path({str(tmp_path)!r}))\n"
        "most = Use(requests=1, prompt_tokens=100, completion_tokens=50, cost=0.5)\n"
        "answer = Answer(text='said', model='m-1', prompt_tokens=90, completion_tokens=10)\n"
        "used = Use(requests=1, prompt_tokens=90, completion_tokens=10, cost=0.25)\n"
        "journal.answered(journal.begin(0, 'a', 't', most), answer, used)\n"
        "journal.begin(1, 'b', 't', most)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=60)
    assert done.returncode == -signal.SIGKILL
    with Journal(tmp_path) as journal:
        assert journal.lost == 1
        assert journal.is_done(0)
        assert not journal.is_done(1)
        assert journal.use() == {"t": USED + MOST}
    with Journal(tmp_path) as journal:
        assert journal.lost == 0, "told once"
        assert journal.use(state="lost") == {"t": MOST}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(SynthesisError, match="another process"):
        Journal(tmp_path)
    with Journal(tmp_path):
        pass


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"something else" * 100)
    with pytest.raises(SynthesisError, match="no journal"):
        Journal(tmp_path)


def test_a_changed_config_names_the_field_and_both_values(tmp_path: Path) -> None:
    begun = {"seed": 0, "teachers": [{"model": "a", "top": 1}], "prompts": "caption"}
    with Journal(tmp_path) as journal:
        refuse_changed(journal, begun)
        refuse_changed(journal, dict(reversed(begun.items())))
        changed = begun | {"teachers": [{"model": "b", "top": 1}], "seed": 4}
        with pytest.raises(ConfigError, match=r"seed.*begun with 0.*says 4.*teachers\.0\.model"):
            refuse_changed(journal, changed)


def test_notes_wait_for_the_acceptance() -> None:
    notes = Notes()
    notes.note("k", "one")
    assert notes.matches("k") == ()
    notes.drop()
    notes.note("k", "two")
    notes.keep()
    notes.note("k", "three")
    notes.keep()
    assert notes.matches("k") == ("two", "three")
    assert [notes.add("ids", name) for name in "aba"] == [True, True, False]
    assert notes.size("ids") == 2
    notes.close()


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"requests": 2}, "limits.requests"),
        ({"tokens": 449}, "limits.tokens"),
        ({"cost": 1.4}, "limits.cost"),
    ],
)
def test_a_budget_counts_what_is_under_way(limits: dict[str, float], named: str) -> None:
    budget = Budget(Limits.parse(limits), Use())
    assert budget.reserve(MOST) is None
    assert budget.reserve(MOST) is None
    against = budget.reserve(MOST)
    assert against is not None
    assert named in against
    assert budget.under_way == 2
    budget.settle(MOST, USED)
    budget.settle(MOST, Use())
    assert budget.reserve(MOST) is None, "what was not used is free again"


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def times(pace: Pace, clock: Clock, tokens: list[int]) -> list[float]:
    async def run() -> list[float]:
        found = []
        for number in tokens:
            await pace.turn(number)
            found.append(clock.now - 1000)
        return found

    return asyncio.run(run())


def test_requests_and_tokens_a_minute() -> None:
    clock = Clock()
    config = TeacherConfig.parse({"name": "openai", "requests_per_minute": 30})
    pace = Pace(config, clock=clock, sleep=clock.sleep)
    assert times(pace, clock, [1, 1, 1]) == [0, 2, 4]
    clock = Clock()
    config = TeacherConfig.parse({"name": "openai", "tokens_per_minute": 6000})
    pace = Pace(config, clock=clock, sleep=clock.sleep)
    assert times(pace, clock, [100, 300, 100]) == [0, 1, 4]
    pace.correct(100, 50)
    assert times(pace, clock, [100]) == [4.5]


def test_a_pause_holds_every_request_back() -> None:
    clock = Clock()
    pace = Pace(TeacherConfig.parse("openai"), clock=clock, sleep=clock.sleep)
    pace.pause(30)
    assert times(pace, clock, [1, 1]) == [30, 30]
