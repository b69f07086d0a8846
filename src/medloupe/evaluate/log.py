"""An evaluation on disk: JSON lines, the header first, then rows, scores and metrics.

The header counts what follows, so a file that ends early is noticed. Scores meet their rows by id,
never by position.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medloupe.config import Config
from medloupe.errors import DataError
from medloupe.types import EvalLog, EvalRow, Metric, Score

_KINDS: dict[str, type[Config]] = {"row": EvalRow, "score": Score, "metric": Metric}


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


def read_log(path: Path) -> EvalLog:
    """Read a log.

    Raises:
        DataError: naming the line: not a log, cut short, malformed, a repeated id, or a score of a row
            that is not there.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            lines = [_parse(line, number, path) for number, line in enumerate(stream, start=1)]
    except (FileNotFoundError, IsADirectoryError):
        raise DataError("no such evaluation log", file=str(path)) from None
    except UnicodeDecodeError as error:
        raise DataError(f"not an evaluation log: {error}", file=str(path)) from None
    header = _header(lines, path)
    found: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
    for number, line in enumerate(lines[1:], start=2):
        kind = line.pop("type", None)
        if kind not in found:
            raise DataError(f"unknown line type {kind!r}", file=str(path), row=f"line {number}")
        found[kind].append(_validate(_KINDS[kind], line, number, path))
    _require_complete(header, found, path)
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
        raise DataError(f"not JSON: {error}", file=str(path), row=f"line {number}") from None
    if not isinstance(value, dict):
        raise DataError("not a JSON object", file=str(path), row=f"line {number}")
    return value


def _header(lines: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    header = lines[0] if lines else {}
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
            first["msg"], file=str(path), row=f"line {number}", field=field or None
        ) from None


def _require_complete(header: dict[str, Any], found: dict[str, list[Any]], path: Path) -> None:
    for kind, values in found.items():
        expected = header["counts"].get(kind)
        if expected != len(values):
            raise DataError(
                f"the header counts {expected} {kind} lines, the file has {len(values)}",
                remedy="The file was cut short or edited; evaluate again",
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
