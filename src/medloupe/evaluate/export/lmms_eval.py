"""lmms-eval 0.7's result files: MODEL/DATE_results.json and MODEL/DATE_samples_TASK.jsonl.

A benchmark becomes one task, `medloupe_NAME`. Every row keeps its metrics under "ANSWER_TYPE/SCORER" and
that of the first scorer under `score`, the key by which lmms-eval compares two runs. A metric's key in the
results is "ANSWER_TYPE/SCORER,none"; standard errors are "N/A", since intervals are resampled by patient:
they stand under `medloupe`, which lmms-eval leaves alone. Rows without an answer stay, with `error`; a
score that is None is null.
Form read from lmms_eval/loggers/evaluation_tracker.py and evaluator.py (revision 75571cf, 0.7.2).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medloupe.data.store import write_lines
from medloupe.errors import DataError
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.export.boxes import corners, said
from medloupe.evaluate.metrics import MODEL
from medloupe.types import EvalLog, EvalRow, Metric

_UNSAFE_MODEL = re.compile(r"[\"<>:/\|\\?\*\[\]]+")
_UNSAFE_TASK = re.compile(r"\W")


def write_lmms_eval(log: EvalLog, out: Path, model: str) -> list[Path]:
    """Write both files below `out`.

    Raises:
        DataError: the log does not hold the benchmark it was made with.
    """
    asked = _benchmark_of(log)
    date = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
    folder = out / _safe_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    task = _task_name(log)
    samples = list(_samples(log, asked))
    results_file = folder / f"{date}_results.json"
    samples_file = folder / f"{date}_samples_{task}.jsonl"
    results = json.dumps(_results(log, asked, samples, model, date), indent=2, ensure_ascii=False)
    write_lines(results_file, [results])
    write_lines(samples_file, [json.dumps(sample, ensure_ascii=False) for sample in samples])
    return [results_file, samples_file]


def _safe_model(name: str) -> str:
    """A model's name as lmms-eval makes a folder of it: the last two parts of a path, joined by "__"."""
    return _UNSAFE_MODEL.sub("__", "/".join(name.split("/")[-2:]))


def _task_name(log: EvalLog) -> str:
    """One task for all rows."""
    return "medloupe_" + _UNSAFE_TASK.sub("_", log.benchmark)


def _benchmark_of(log: EvalLog) -> Benchmark:
    """The benchmark that a log keeps.

    Raises:
        DataError: it keeps none.
    """
    if "benchmark" not in log.manifest:
        raise DataError(
            "the log does not say how it was scored",
            remedy="Export a log that medloupe evaluate wrote",
            field="manifest.benchmark",
        )
    return Benchmark.parse(log.manifest.get("benchmark"))


def _samples(log: EvalLog, asked: Benchmark) -> Iterable[dict[str, Any]]:
    values: dict[str, dict[str, float | None]] = defaultdict(dict)
    for score in log.scores:
        if score.arm == MODEL:
            values[score.id][score.scorer] = score.value
    for number, row in enumerate(log.rows):
        yield _sample(number, row, values[row.id], asked)


def _sample(
    number: int, row: EvalRow, values: Mapping[str, float | None], asked: Benchmark
) -> dict[str, Any]:
    first = asked.scorers_of(row.answer_type)[0].name
    sample: dict[str, Any] = {
        "doc_id": number,
        "target": said(row.truth, row.truth_boxes),
        "filtered_resps": said(row.prediction, row.predicted_boxes),
        "token_counts": [None],
        "doc_hash": _hash(json.dumps(row.to_dict(), sort_keys=True, ensure_ascii=False)),
        "score": values.get(first),
        **{f"{row.answer_type}/{name}": value for name, value in sorted(values.items())},
        "input": row.question,
        "medloupe": {
            "id": row.id,
            "task": row.task,
            "images": [image.uri for image in row.images],
            "options": list(row.options),
            "truth_boxes": [corners(box) for box in row.truth_boxes],
            "predicted_boxes": [corners(box) for box in row.predicted_boxes],
        },
    }
    if row.error:
        sample["error"] = row.error
    return sample


def _results(
    log: EvalLog, asked: Benchmark, samples: list[dict[str, Any]], model: str, date: str
) -> dict[str, Any]:
    task = _task_name(log)
    overall = [m for m in log.metrics if m.arm == MODEL and not m.group and not m.stratum]
    scores: dict[str, Any] = {"alias": log.benchmark}
    for metric in overall:
        key = f"{metric.answer_type}/{metric.name}"
        scores[f"{key},none"] = metric.estimate
        scores[f"{key}_stderr,none"] = "N/A"
    return {
        "results": {task: scores},
        "group_subtasks": {task: []},
        "configs": {
            task: {
                "task": task,
                "output_type": "generate_until",
                "generation_kwargs": {"max_new_tokens": asked.max_new_tokens, "do_sample": False},
                "score_key": "score",
            }
        },
        "versions": {task: log.version},
        "n-shot": {task: 0},
        "higher_is_better": {task: {}},
        "n-samples": {task: {"original": len(log.rows), "effective": len(log.rows)}},
        "config": {"model": "medloupe", "model_args": f"pretrained={model}", "limit": asked.limit},
        "git_hash": str(log.manifest.get("revision", "")),
        "date": date,
        "task_hashes": {
            task: _hash("".join(f"sample_{n}{one['doc_hash']}" for n, one in enumerate(samples)))
        },
        "model_source": "medloupe",
        "model_name": model,
        "model_name_sanitized": _safe_model(model),
        "medloupe": {"version": log.version, "metrics": [_interval(metric) for metric in overall]},
    }


def _interval(metric: Metric) -> dict[str, Any]:
    kept = ("name", "answer_type", "estimate", "low", "high", "n", "clusters", "unscored", "note")
    return {name: value for name, value in metric.to_dict().items() if name in kept}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
