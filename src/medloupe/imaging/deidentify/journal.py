"""The private list of sources: which file became which, and so where a killed run goes on.

One JSON object a line; the first says with which settings and key the run began. It names original
files, so it lies beside the output folder, never inside, and only its owner can read it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self, TextIO

from pydantic import ValidationError

from medloupe.errors import ConfigError
from medloupe.imaging.deidentify.report import SourceRow


class Journal:
    """`rows` by source name; a row that is added stands in the file at once."""

    def __init__(self, path: Path, header: dict[str, Any], out: Path) -> None:
        """Open a new or an interrupted run.

        Raises:
            ConfigError: the folder `out` holds files of something else, or of other settings.
        """
        self._path, self._header = path, header
        self.rows = self._read(out)

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_name(f".{self._path.name}.tmp")
        with _private(aside) as stream:
            for line in (self._header, *(row.to_dict() for row in self.rows.values())):
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        aside.replace(self._path)
        self._stream: TextIO = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, row: SourceRow) -> None:
        self.rows[row.source] = row
        self._stream.write(json.dumps(row.to_dict(), ensure_ascii=False) + "\n")
        self._stream.flush()

    def _read(self, out: Path) -> dict[str, SourceRow]:
        if not self._path.exists():
            if out.is_dir() and any(out.iterdir()):
                raise ConfigError(
                    "the output folder is not empty, and no run was begun into it",
                    file=str(out),
                    remedy="Name a new folder",
                )
            return {}
        head, *lines = self._path.read_text(encoding="utf-8").split("\n")
        if head != json.dumps(self._header, ensure_ascii=False):
            raise ConfigError(
                "the run was begun with other settings, another key or another input",
                file=str(self._path),
                remedy="Repeat the first command to go on, or name a new folder",
            )
        rows = {}
        for line in lines:
            try:
                row = SourceRow.model_validate_json(line)
            except ValidationError:  # the last line of a killed run, and the empty one behind it
                continue
            rows[row.source] = row
        return rows


def _private(path: Path) -> TextIO:
    """A new file that only its owner can read."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    return os.fdopen(handle, "w", encoding="utf-8")
