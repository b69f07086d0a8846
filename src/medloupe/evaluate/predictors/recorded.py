"""Answers that something else wrote: JSON lines of `id` and `answer`, as `medloupe predict` writes them.

Whatever is wrong with a file is told, counted and shown: a row without an answer, or with two, is an error
of that row; ids of no row, probabilities that are none, malformed boxes and unreadable lines are counted in
`faults`. Files know nothing of probes, so nothing is asked under them.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from medloupe.data.dataset import Progress
from medloupe.errors import DataError, MedLoupeError
from medloupe.generate.telling import all_told
from medloupe.types import Box, Conversation, Generation, Hear


class RecordedPredictor:
    """Answers from a file; `faults` counts what could not be used, by what was wrong.

    A line is `{"id", "answer"}` and, where known, `"boxes"` (`{label, x1, y1, x2, y2, score}` in original
    pixels, or `{"label", "pixels": [x1, y1, x2, y2], "score"}`), `"confidence"`, `"option_probs"` (a list in
    the order of the options, or by option) and `"finish_reason"`.

    Raises:
        DataError: there is no such file, or no line of it is an answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: Counter[str] = Counter()
        self._lines: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", file=str(path)) from None
        for line in filter(None, map(bytes.strip, lines)):
            self._take(line)
        if not self._lines:
            raise DataError(
                "no line is an answer",
                remedy='Write one JSON object a line, with "id" and "answer"',
                file=str(path),
            )

    def __call__(
        self, conversations: Sequence[Conversation], *, progress: Progress
    ) -> list[Generation]:
        """One `Generation` a conversation, in their order.

        Raises:
            DataError: of the first row without an answer, or with two.
        """
        return all_told(
            lambda hear: self.answer_each(conversations, hear, progress=progress),
            len(conversations),
        )

    def answer_each(
        self,
        conversations: Sequence[Conversation],
        hear: Hear,
        *,
        progress: Progress,
        done: Container[int] = (),
    ) -> None:
        """Tell what the file says of each conversation."""
        for number, row in enumerate(conversations):
            if number not in done:
                hear(number, self._answer(row))
        progress("answer", len(conversations), len(conversations))

    def count_unknown(self, rows: Iterable[Conversation]) -> int:
        """How many ids of the file are of none of these rows; also noted in `faults`."""
        found = len(self._lines.keys() - {row.id for row in rows})
        if found:
            self.faults["ids of no row"] = found
        return found

    def _take(self, line: bytes) -> None:
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            self.faults["lines that are not JSON"] += 1
            return
        if not isinstance(data, dict) or not isinstance(data.get("id"), str):
            self.faults["lines without an id"] += 1
            return
        self._lines[data["id"]].append(data)

    def _answer(self, row: Conversation) -> Generation | MedLoupeError:
        lines = self._lines.get(row.id, [])
        if len(lines) != 1:
            rule = f"the file has {len(lines) or 'no'} answers to this row"
            return DataError(rule, file=str(self.path), row=row.id)
        data = lines[0]
        text = data.get("answer", data.get("prediction"))
        if data.get("error"):
            return DataError(str(data["error"]), row=row.id)
        if not isinstance(text, str):
            return DataError("the answer is no text", file=str(self.path), row=row.id)
        sure = self._probability(data.get("confidence"))
        reason: Literal["stop", "length"] = (
            "length" if data.get("finish_reason") == "length" else "stop"
        )
        return Generation(
            text=text,
            log_probs=() if sure is None else (math.log(sure),) if sure else (-math.inf,),
            boxes=self._boxes(data.get("boxes")),
            finish_reason=reason,
            option_probs=self._option_probs(data.get("option_probs"), row.options),
        )

    def _probability(self, value: Any) -> float | None:
        """A number from 0 to 1; what is none is counted, and nothing is no fault."""
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            self.faults["probabilities that are none"] += 1
            return None
        return float(value)

    def _option_probs(self, given: Any, options: Sequence[str]) -> tuple[float, ...]:
        if not given or not options:
            return ()
        values = [given.get(option) for option in options] if isinstance(given, dict) else given
        if not isinstance(values, list) or len(values) != len(options) or None in values:
            self.faults["option_probs of other options"] += 1
            return ()
        found = [self._probability(value) for value in values]
        return () if None in found else tuple(value for value in found if value is not None)

    def _boxes(self, given: Any) -> tuple[Box, ...]:
        boxes = []
        for item in given if isinstance(given, list) else []:
            try:
                boxes.append(_box(item))
            except (ValidationError, TypeError, ValueError, LookupError):
                self.faults["malformed boxes"] += 1
        if given is not None and not isinstance(given, list):
            self.faults["malformed boxes"] += 1
        return tuple(boxes)


def _box(item: Any) -> Box:
    if "pixels" not in item:
        return Box.model_validate(item)
    names = (
        ("x1", "y1", "x2", "y2")
        if len(item["pixels"]) == 4
        else ("x1", "y1", "z1", "x2", "y2", "z2")
    )
    edges = dict(zip(names, item["pixels"], strict=True))
    kept = {name: item[name] for name in ("image", "score") if item.get(name) is not None}
    return Box.model_validate({"label": item.get("label", ""), **edges, **kept})
