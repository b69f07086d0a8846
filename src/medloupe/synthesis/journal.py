"""What was asked and what came back, in SQLite, so that no answer is paid for twice or lost.

A request is noted before it is sent and an answer before it is parsed, each in a transaction that is on
the disk before the program goes on. After a kill, requests without an end are "lost": they may have been
answered and paid for. Their rows are asked once more, and the budget counts them at their upper estimate.
One process writes a journal at a time.
"""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from medloupe.errors import ConfigError
from medloupe.synthesis.teachers.base import Answer
from medloupe.synthesis.types import SynthesisError

JOURNAL_FILE = "journal.db"
_FORM = "1"
_TABLES = """
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests(
    number INTEGER PRIMARY KEY, row INTEGER NOT NULL, id TEXT NOT NULL, teacher TEXT NOT NULL,
    sent TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'open', reason TEXT NOT NULL DEFAULT '',
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cost REAL NOT NULL);
CREATE INDEX IF NOT EXISTS open_requests ON requests(state) WHERE state = 'open';
CREATE TABLE IF NOT EXISTS answers(
    row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, request INTEGER NOT NULL UNIQUE,
    teacher TEXT NOT NULL, date TEXT NOT NULL, answer TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS failures(
    row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, teacher TEXT NOT NULL, reason TEXT NOT NULL);
"""


@dataclass(frozen=True, kw_only=True)
class Use:
    """Requests and what they used up; `cost` in the currency of the prices."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Use) -> Use:
        return Use(
            requests=self.requests + other.requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost=self.cost + other.cost,
        )

    def __sub__(self, other: Use) -> Use:
        return Use(
            requests=self.requests - other.requests,
            prompt_tokens=self.prompt_tokens - other.prompt_tokens,
            completion_tokens=self.completion_tokens - other.completion_tokens,
            cost=self.cost - other.cost,
        )


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A journalled answer, the teacher's name and the day (UTC) it came."""

    teacher: str
    date: str
    answer: Answer


class Journal:
    """The journal of one output folder; `lost` is how many requests were open when it was last left."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / JOURNAL_FILE
        self._lock = FileLock(folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise SynthesisError(
                "another process writes into this folder",
                file=str(folder),
                remedy="Wait for it to end, or choose another --out",
            ) from None
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def _open(self) -> None:
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise SynthesisError(
                f"this is no journal of a synthesis: {error}",
                file=str(self.path),
                remedy="Choose another --out",
            ) from None
        if self.settle("form", _FORM) != _FORM:
            raise SynthesisError(
                "the journal is of another version of MedLoupe",
                file=str(self.path),
                remedy="Finish it with that version, or choose another --out",
            )
        done = self._db.execute("UPDATE requests SET state = 'lost' WHERE state = 'open'")
        self.lost = done.rowcount

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._lock.release()

    def settle(self, key: str, value: str) -> str:
        """The value that is noted under `key`; `value` is noted where there is none yet."""
        self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
        (found,) = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(found)

    def is_done(self, row: int) -> bool:
        """Whether the row has an answer, or was given up."""
        found = self._db.execute(
            "SELECT 1 FROM answers WHERE row = ?1 UNION ALL SELECT 1 FROM failures WHERE row = ?1",
            (row,),
        )
        return found.fetchone() is not None

    def begin(self, row: int, name: str, teacher: str, most: Use) -> int:
        """Note a request that is about to be sent, with the most that it can use; returns its number."""
        done = self._db.execute(
            "INSERT INTO requests(row, id, teacher, sent, prompt_tokens, completion_tokens, cost) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                row,
                name,
                teacher,
                _now().isoformat(timespec="seconds"),
                most.prompt_tokens,
                most.completion_tokens,
                most.cost,
            ),
        )
        assert done.lastrowid is not None
        return done.lastrowid

    def answered(self, request: int, answer: Answer, used: Use) -> None:
        """Keep an answer and what it really used, in one transaction."""
        with self._whole():
            self._end(request, "answered", "", used)
            self._db.execute(
                "INSERT INTO answers SELECT row, id, number, teacher, ?, ? FROM requests "
                "WHERE number = ?",
                (_now().date().isoformat(), answer.to_json(), request),
            )

    def failed(self, request: int, reason: str, used: Use) -> None:
        """Note how a request ended that brought no answer."""
        self._end(request, "failed", reason, used)

    def give_up(self, row: int, name: str, teacher: str, reason: str) -> None:
        """Note that a row will not be asked again."""
        self._db.execute(
            "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?)", (row, name, teacher, reason)
        )

    def forget_failures(self) -> int:
        """Rows that were given up are asked again; returns how many."""
        return self._db.execute("DELETE FROM failures").rowcount

    def result(self, row: int) -> Answered | str | None:
        """The answer of a row, the reason why it was given up, or None where it was not asked."""
        found = self._db.execute(
            "SELECT teacher, date, answer FROM answers WHERE row = ?", (row,)
        ).fetchone()
        if found is not None:
            teacher, date, answer = found
            read = Answer.model_validate_json(answer)
            return Answered(teacher=teacher, date=date, answer=read)
        failure = self._db.execute("SELECT reason FROM failures WHERE row = ?", (row,)).fetchone()
        return None if failure is None else str(failure[0])

    def use(self, *, state: str | None = None) -> dict[str, Use]:
        """What the requests of each teacher used, of all or of those that ended in `state`."""
        rows = self._db.execute(
            "SELECT teacher, COUNT(*), SUM(prompt_tokens), SUM(completion_tokens), SUM(cost) "
            "FROM requests WHERE ?1 IS NULL OR state = ?1 GROUP BY teacher ORDER BY teacher",
            (state,),
        )
        return {
            teacher: Use(requests=n, prompt_tokens=p, completion_tokens=c, cost=cost)
            for teacher, n, p, c, cost in rows
        }

    def models(self) -> Iterator[tuple[str, str, int]]:
        """Teacher, model as its endpoint reports it, and how many answers came from it."""
        yield from self._db.execute(
            "SELECT teacher, json_extract(answer, '$.model') AS model, COUNT(*) FROM answers "
            "GROUP BY teacher, model ORDER BY teacher, model"
        )

    def _end(self, request: int, state: str, reason: str, used: Use) -> None:
        done = self._db.execute(
            "UPDATE requests SET state = ?, reason = ?, prompt_tokens = ?, completion_tokens = ?, "
            "cost = ? WHERE number = ? AND state = 'open'",
            (state, reason, used.prompt_tokens, used.completion_tokens, used.cost, request),
        )
        assert done.rowcount == 1, f"request {request} ended twice"

    def _whole(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    """All or nothing."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


class Notes:
    """Texts by key on the disk, for as long as one pass lasts: what filters keep of accepted rows.

    `note` waits until `keep`, which follows an acceptance, or `drop`.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # a temporary file of SQLite's own
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("CREATE TABLE notes(key TEXT NOT NULL, text TEXT NOT NULL)")
        self._db.execute("CREATE INDEX by_key ON notes(key)")
        self._db.execute("CREATE TABLE members(kind TEXT, name TEXT, PRIMARY KEY(kind, name))")
        self._waiting: list[tuple[str, str]] = []

    def matches(self, key: str) -> tuple[str, ...]:
        """The texts accepted earlier under `key`, oldest first."""
        rows = self._db.execute("SELECT text FROM notes WHERE key = ? ORDER BY rowid", (key,))
        return tuple(text for (text,) in rows)

    def note(self, key: str, text: str) -> None:
        """Keep `text` under `key`, should this row be accepted."""
        self._waiting.append((key, text))

    def keep(self) -> None:
        """The row was accepted."""
        self._db.executemany("INSERT INTO notes VALUES (?, ?)", self._waiting)
        self._waiting = []

    def drop(self) -> None:
        """The row was rejected."""
        self._waiting = []

    def add(self, kind: str, name: str) -> bool:
        """Put `name` into the set `kind`; whether it is new there."""
        done = self._db.execute("INSERT OR IGNORE INTO members VALUES (?, ?)", (kind, name))
        return done.rowcount == 1

    def size(self, kind: str) -> int:
        """How many different names the set `kind` has."""
        found = self._db.execute("SELECT COUNT(*) FROM members WHERE kind = ?", (kind,))
        return int(found.fetchone()[0])

    def close(self) -> None:
        """The temporary file goes."""
        self._db.close()


def refuse_changed(journal: Journal, fixed: dict[str, Any]) -> None:
    """See that a run goes on with what it began with.

    Raises:
        ConfigError: naming every field that differs, with both values.
    """
    begun = json.loads(journal.settle("config", json.dumps(fixed, sort_keys=True)))
    differing = list(_differences(begun, json.loads(json.dumps(fixed)), ""))
    if differing:
        field, was, now = differing[0]
        others = ", ".join(name for name, _, _ in differing[1:])
        raise ConfigError(
            f"this folder was begun with {_short(was)}, the config now says {_short(now)}"
            + (f" (also different: {others})" if others else ""),
            field=field,
            file=str(journal.path),
            remedy="Put the field back to go on, or choose a new --out",
        )


def _differences(was: Any, now: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted(was.keys() | now.keys()):
            inner = f"{path}.{key}" if path else key
            yield from _differences(was.get(key), now.get(key), inner)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for number, (one, other) in enumerate(zip(was, now, strict=True)):
            yield from _differences(one, other, f"{path}.{number}")
    elif was != now:
        yield path, was, now


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
