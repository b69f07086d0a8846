"""The training log: one JSON object a line, written as it happens."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medloupe.errors import TrainingError


class TrainLog:
    """Appends rows. `event` is "stage" (what trains, what is frozen), "step", "refused" (a step that is not
    taken), "spike" (one whose loss stands out), "metrics" or "tracker" (one that failed)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row.

        Raises:
            TrainingError: it could not be written (disk full, no permission).
        """
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def rewind(self, stage: int, step: int) -> None:
        """Drop what a resumed run will write again: everything after `step` steps of `stage`.

        Raises:
            TrainingError: it could not be written; the log is as it was.
        """
        kept = [
            row
            for row in read_log(self.path)
            if row["number"] < stage or (row["number"] == stage and row["step"] <= step)
        ]
        scratch = self.path.with_suffix(".partial")
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            scratch.replace(self.path)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"the training log could not be written: {error}",
                file=str(self.path),
                remedy="Free disk space and run again with --resume; checkpoints are good",
            ) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line cut by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
