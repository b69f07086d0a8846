"""JSON files larger than one would hold in memory: one row, or one entry, at a time.

A file is read in pieces and each value is parsed by the standard decoder as soon as it is complete,
so memory is a few times the longest value, and the time is that of one pass over the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

from medloupe.errors import DataError

_PIECE: Final = 1 << 20  # characters
_LONGEST: Final = 64 << 20  # characters of one value: more is a broken file
_SPACE: Final = " \t\r\n"


def stream_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that holds one JSON list of them, in their order.

    Raises:
        DataError: missing, not UTF-8, not such a list, empty, cut off, or text after its end.
    """
    for number, row in enumerate(_values(path, "[", "]")):
        if not isinstance(row, dict):
            raise DataError("is not an object", file=str(path), row=f"number {number}")
        yield row


def stream_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """The (name, value) pairs of a file that holds one JSON object, in their order.

    Raises:
        DataError: as `stream_rows`, for an object.
    """
    yield from _values(path, "{", "}")


def _values(path: Path, start: str, end: str) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield from _Scanner(stream, path).values(start, end)
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: {error}", file=str(path)) from None
    except FileNotFoundError:
        raise DataError("no such file", remedy="Complete the copy", file=str(path)) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=str(path)) from None


class _Scanner:
    """A window on the text: `text[at:]` is what has been read and not been used yet."""

    def __init__(self, stream: TextIO, path: Path) -> None:
        self.stream, self.path = stream, path
        self.text, self.at, self.ended = "", 0, False
        self.decode = json.JSONDecoder().raw_decode

    def values(self, start: str, end: str) -> Iterator[Any]:
        if self.peek() != start:
            what = "list of rows" if start == "[" else "object of entries"
            raise DataError(f"holds no {what}", file=str(self.path))
        self.at += 1
        if self.peek() == end:
            raise DataError("is empty", remedy="Fetch the file again", file=str(self.path))
        while True:
            yield self.value() if start == "[" else self.entry()
            after = self.peek()
            self.at += 1
            if after == end:
                break
            if after != ",":
                raise self.broken(f"expected ',' or {end!r}, found {after!r}")
        if self.peek():
            raise self.broken("there is text after its end")

    def entry(self) -> tuple[str, Any]:
        name = self.value()
        if not isinstance(name, str) or self.peek() != ":":
            raise self.broken(f"expected a name and ':', found {name!r}")
        self.at += 1
        return name, self.value()

    def value(self) -> Any:
        """The next value; at most twice its text is parsed, since what is read doubles."""
        self.peek()
        while True:
            try:
                found, stop = self.decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended or len(self.text) - self.at > _LONGEST:
                    raise self.broken(error.msg) from None
            except RecursionError:
                raise self.broken("it is nested too deeply") from None
            else:
                # a number that touches the edge of what was read may go on beyond it
                if stop < len(self.text) or self.ended:
                    self.at = stop
                    return found
            self.read()

    def peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.read()

    def read(self) -> None:
        rest = self.text[self.at :]
        piece = self.stream.read(max(_PIECE, len(rest)))
        self.ended = not piece
        self.text, self.at = rest + piece, 0

    def broken(self, what: str) -> DataError:
        near = self.text[self.at : self.at + 40]
        return DataError(
            f"is not JSON: {what} near {near!r}",
            remedy="Fetch the file again; was it cut off?",
            file=str(self.path),
        )
