"""The ledger: one JSON object a line for every finished run, in the order in which they finished."""

from __future__ import annotations

import os
from pathlib import Path

from medloupe.config import Config
from medloupe.data.jsonl import parse_row
from medloupe.errors import ConfigError, DataError
from medloupe.reproduce.grid import Grid


class Entry(Config):
    """A finished run. `rows` is the grid's `rows_fingerprint`, `key` the run's, `date` UTC."""

    grid: str
    version: int
    rows: str
    label: str
    seed: int
    key: str
    seconds: float
    date: str


class Ledger:
    """Appends entries; a line that a kill cut short is dropped before the next one is written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[Entry]:
        """
        Raises:
            DataError: a line that is no entry.
        """
        if not self.path.is_file():
            return []
        whole = self.path.read_text(encoding="utf-8").rpartition("\n")[0]
        found = []
        for number, line in enumerate(whole.splitlines(), start=1):
            entry, faults = parse_row(Entry, line, file=self.path)
            if entry is None:
                raise DataError(f"not a ledger: {faults[0].rule}", file=f"{self.path}:{number}")
            found.append(entry)
        return found

    def add(self, entry: Entry) -> None:
        """Append an entry and wait until it is on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = self.path.read_bytes() if self.path.is_file() else b""
        with self.path.open("ab") as stream:
            stream.truncate(before.rfind(b"\n") + 1)
            stream.write(entry.to_json().encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def seconds(self) -> dict[str, float]:
        """How long each finished run took, by key."""
        return {entry.key: entry.seconds for entry in self.entries()}

    def refuse_changed(self, grid: Grid) -> None:
        """No tuning until rows agree: what has a result stays as it is.

        Raises:
            ConfigError: results of this version were made with other rows, measures or claims.
        """
        fixed = grid.rows_fingerprint()
        for entry in self.entries():
            if (entry.grid, entry.version) == (grid.name, grid.version) and entry.rows != fixed:
                raise ConfigError(
                    f"grid {grid.name!r} has results of version {grid.version}, and its rows, measures "
                    "or claims have changed since",
                    file=str(self.path),
                    remedy="Raise the grid's version, so that old results stay apart, or undo the "
                    "change",
                )
