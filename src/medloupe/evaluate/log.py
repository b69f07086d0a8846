"""An evaluation on disk: JSON lines, the header first, then rows, scores and metrics.

The header counts what follows, so a file that ends early is noticed. Scores meet their rows by id,
never by position. `read_log` takes only what is whole; `recover_log` takes what is there, counts what is
not, and keeps the count in the manifest.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medloupe.config import Config
from medloupe.errors import DataError, Fault
from medloupe.types import EvalLog, EvalRow, Metric, Score

_KINDS: dict[str, type[Config]] = {"row": EvalRow, "score": Score, "metric": Metric}
RECOVERED = "recovered"
"""Where a manifest keeps what was wrong with the file a log was recovered from: rule -> how often."""

_OF_SCORES = re.compile(r"\b(scores?|metrics?)\b")
_REMEDY = "Evaluate again, or read what is there: medloupe rescore FILE --recover"


def write_log(path: Path, log: EvalLog) -> None:
    """Write a log whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as stream:
            for line in _lines(log):
                stream.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What could be read of a log. With faults it has no scores and no metrics: they were of more.

    `counted` says how often each rule was broken.
    """

    log: EvalLog
    faults: tuple[Fault, ...]
    counted: dict[str, int]


def read_log(path: Path) -> EvalLog:
    """Read a log.

    Raises:
        DataError: naming the line: not a log, cut short, malformed, a repeated id, or a score of a row
            that is not there.
    """
    lines = [_parse(line, number, path) for number, line in enumerate(_text(path), start=1)]
    header = _header(lines[0] if lines else {}, path)
    found: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
    for number, line in enumerate(lines[1:], start=2):
        kind = line.pop("type", None)
        if kind not in found:
            raise DataError(f"unknown line type {kind!r}", file=str(path), row=f"line {number}")
        found[kind].append(_validate(_KINDS[kind], line, number, path))
    _require_complete(header, found, path)
    return _log(header, found)


def recover_log(path: Path) -> Recovered:
    """Read what is there of a log that was cut short or damaged.

    A probability that is no number and a box that is none are left out of their row; of two different
    answers with one id neither is taken, and the row counts as unscored. A row that lacks more, and one
    that the header counts and the file does not have, is missing. Each is a fault; the manifest counts
    those of rows under `RECOVERED`, the others are mended by scoring again.

    Raises:
        DataError: there is no such file, or its first line is no header.
    """
    lines = _text(path, errors="replace")  # a file may end within a letter
    header = _header(_parse(lines[0], 1, path) if lines else {}, path)
    salvage = _Salvage(path)
    for number, line in enumerate(lines[1:], start=2):
        salvage.take(line, number)
    salvage.close(header["counts"])
    log = _log(header, salvage.found)
    if salvage.faults:
        lasting = {r: n for r, n in salvage.counted.items() if not _OF_SCORES.search(r)}
        kept = {RECOVERED: dict(sorted(lasting.items()))} if lasting else {}
        update = {"manifest": {**log.manifest, **kept}, "scores": (), "metrics": ()}
        log = log.model_copy(update=update)
    return Recovered(log=log, faults=tuple(salvage.faults), counted=dict(salvage.counted))


def noted(log: EvalLog) -> dict[str, int]:
    """What a reader of its numbers must know of the answers, by kind, with counts above 0."""
    answered = [row for row in log.rows if not row.error]
    unscored = {score.id for score in log.scores if score.value is None and score.arm == "model"}
    known = sum(row.confidence is not None for row in answered)
    found = {
        "rows without an answer": len(log.rows) - len(answered),
        "empty answers": sum(
            not row.prediction.strip() and not row.predicted_boxes for row in answered
        ),
        "answers cut at the longest length": sum(r.finish_reason == "length" for r in answered),
        "answers without a probability": len(answered) - known if known else 0,
        "rows that some scorer could not score": len(unscored),
    }
    return {kind: count for kind, count in (found | faults_of(log)).items() if count}


def faults_of(log: EvalLog) -> dict[str, int]:
    """What was wrong with the answers' own file, or with a log that was cut, by kind."""
    found: dict[str, int] = {}
    for name in (RECOVERED, "faults"):
        said = log.manifest.get(name)
        if isinstance(said, dict):
            found |= {str(rule): int(count) for rule, count in said.items() if count}
    return found


class _Salvage:
    """Lines of a damaged log, one after another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
        self.faults: list[Fault] = []
        self.counted: Counter[str] = Counter()
        self._rows: dict[str, tuple[int, EvalRow]] = {}
        self._scored: set[tuple[str, str, str]] = set()

    def take(self, text: str, number: int) -> None:
        try:
            line = _parse(text, number, self.path)
        except DataError:
            self._fault("lines that are no JSON", f"line {number}")
            return
        kind = line.pop("type", None)
        match kind:
            case "row":
                self._row(line, number)
            case "score" | "metric":
                self._value(kind, line, number)
            case _:
                self._fault("lines of an unknown type", f"line {number}")

    def close(self, counts: dict[str, Any]) -> None:
        """See what is missing, and which scores are of rows that are not there."""
        self.found["row"] = [row for _, row in self._rows.values()]
        for kind, values in self.found.items():
            expected = counts.get(kind)
            if isinstance(expected, int) and expected > len(values):
                self._fault(f"missing {kind}s", None, times=expected - len(values))
        unknown = [score.id for score in self.found["score"] if score.id not in self._rows]
        for id in unknown:
            self._fault("scores of unknown rows", id)

    def _row(self, line: dict[str, Any], number: int) -> None:
        try:
            row = EvalRow.model_validate(line)
        except ValidationError as error:
            mended = self._mended(line, error, number)
            if mended is None:
                return
            row = mended
        if row.id not in self._rows:
            self._rows[row.id] = (number, row)
            return
        first, other = self._rows[row.id]
        if row == other:
            self._fault("rows that stand there twice", row.id)
            return
        self._fault("ids with two different rows", row.id)
        doubt = other.model_copy(update={"error": f"lines {first} and {number} differ"})
        self._rows[row.id] = (first, doubt)

    def _mended(self, line: dict[str, Any], error: ValidationError, number: int) -> EvalRow | None:
        """The row without the probabilities and boxes that are none, or None where more is wrong."""
        places = [fault["loc"] for fault in error.errors()]
        name = str(line.get("id", f"line {number}"))
        truth_is_whole = all(place[0] not in ("truth_boxes", "question_boxes") for place in places)
        for place in sorted({_part(place) for place in places}, key=_order, reverse=True):
            rule = _cut_out(line, place)
            if rule:
                self._fault(rule, name)
        try:
            row = EvalRow.model_validate(line)
        except ValidationError as left:
            field = ".".join(str(part) for part in left.errors()[0]["loc"])
            self._fault("rows that cannot be read", name, field=field)
            return None
        return (
            row if truth_is_whole else row.model_copy(update={"error": "its boxes are malformed"})
        )

    def _value(self, kind: str, line: dict[str, Any], number: int) -> None:
        try:
            value = _KINDS[kind].model_validate(line)
        except ValidationError:
            self._fault(f"{kind}s that cannot be read", f"line {number}")
            return
        if isinstance(value, Score):
            key = (value.id, value.scorer, value.arm)
            if key in self._scored:
                self._fault("scores that stand there twice", value.id)
                return
            self._scored.add(key)
        self.found[kind].append(value)

    def _fault(
        self, rule: str, row: str | None, *, field: str | None = None, times: int = 1
    ) -> None:
        counted = f"{times:,} {rule}" if times > 1 else rule
        self.faults.append(Fault(rule=counted, file=str(self.path), row=row, field=field))
        self.counted[rule] += times


_PROBABILITIES = ("confidence", "option_probs")
_BOXES = ("predicted_boxes", "boxes", "truth_boxes", "question_boxes")


def _part(place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The place in a row that can be left out: a probability, or one box of a list."""
    for depth, name in enumerate(place):
        if name in _PROBABILITIES:
            return place[: depth + 1]
        if name in _BOXES and len(place) > depth + 1:
            return place[: depth + 2]
    return place


def _order(place: tuple[int | str, ...]) -> list[str]:
    """The boxes of a list from the first to the last."""
    return [str(step).rjust(9) for step in place]


def _cut_out(line: dict[str, Any], place: tuple[int | str, ...]) -> str:
    """Leave a probability or a box out of a row, in place; the rule that it broke, "" for other parts."""
    *above, last = place
    holder: Any = line
    for step in above:
        known = isinstance(holder, dict) or (isinstance(holder, list) and isinstance(step, int))
        holder = holder[step] if known else None
    if isinstance(holder, dict) and last in _PROBABILITIES:
        holder[str(last)] = None if last == "confidence" else []
        return "probabilities that are no numbers"
    if isinstance(holder, list) and isinstance(last, int) and above[-1] in _BOXES:
        del holder[last]
        return "malformed boxes"
    return ""


def _text(path: Path, errors: str = "strict") -> Sequence[str]:
    try:
        with path.open(encoding="utf-8", errors=errors) as stream:
            return list(stream)
    except (FileNotFoundError, IsADirectoryError):
        raise DataError("no such evaluation log", file=str(path)) from None
    except UnicodeDecodeError as error:
        raise DataError(f"not an evaluation log: {error}", file=str(path)) from None


def _log(header: dict[str, Any], found: dict[str, list[Any]]) -> EvalLog:
    return EvalLog(
        benchmark=header["benchmark"],
        version=header["version"],
        manifest=header["manifest"],
        rows=tuple(found["row"]),
        scores=tuple(found["score"]),
        metrics=tuple(found["metric"]),
    )


def _lines(log: EvalLog) -> Iterator[dict[str, Any]]:
    yield {
        "type": "header",
        "benchmark": log.benchmark,
        "version": log.version,
        "manifest": log.manifest,
        "counts": {"row": len(log.rows), "score": len(log.scores), "metric": len(log.metrics)},
    }
    for kind, values in (("row", log.rows), ("score", log.scores), ("metric", log.metrics)):
        for value in values:
            yield {"type": kind, **value.to_dict()}


def _parse(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"not JSON: {error}", remedy=_REMEDY, file=str(path), row=f"line {number}"
        ) from None
    if not isinstance(value, dict):
        raise DataError("not a JSON object", file=str(path), row=f"line {number}")
    return value


def _header(header: dict[str, Any], path: Path) -> dict[str, Any]:
    fields = {"benchmark": str, "version": str, "manifest": dict, "counts": dict}
    if header.get("type") != "header" or not all(
        isinstance(header.get(name), kind) for name, kind in fields.items()
    ):
        raise DataError(
            "not an evaluation log: the first line is no header",
            remedy="Name a file written by 'medloupe evaluate'",
            file=str(path),
        )
    return header


def _validate(kind: type[Config], line: dict[str, Any], number: int, path: Path) -> Config:
    try:
        return kind.model_validate(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(
            first["msg"],
            remedy=_REMEDY,
            file=str(path),
            row=f"line {number}",
            field=field or None,
        ) from None


def _require_complete(header: dict[str, Any], found: dict[str, list[Any]], path: Path) -> None:
    for kind, values in found.items():
        expected = header["counts"].get(kind)
        if expected != len(values):
            raise DataError(
                f"the header counts {expected} {kind} lines, the file has {len(values)}",
                remedy=f"The file was cut short or edited. {_REMEDY}",
                file=str(path),
            )
    ids: set[str] = set()
    for row in found["row"]:
        if row.id in ids:
            raise DataError("two rows have the same id", file=str(path), row=row.id)
        ids.add(row.id)
    scored: set[tuple[str, str, str]] = set()
    for score in found["score"]:
        key = (score.id, score.scorer, score.arm)
        if score.id not in ids:
            raise DataError("a score of a row that is not there", file=str(path), row=score.id)
        if key in scored:
            raise DataError(f"scored twice by {score.scorer!r}", file=str(path), row=score.id)
        scored.add(key)
