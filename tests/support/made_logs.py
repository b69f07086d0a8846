"""Evaluations without a model: rows with given answers, scored as any log is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from medloupe.data.dataset import DatasetCard
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.runner import rescore
from medloupe.types import EvalLog, EvalRow, ImageRef

BENCHMARK = Benchmark(name="made", resamples=200)


def made_row(number: int, said: str, truth: str = "yes", **fields: Any) -> EvalRow:
    """A closed question of a patient of its own."""
    given: dict[str, Any] = {
        "id": f"r{number:04d}",
        "patient_id": f"p{number:04d}",
        "task": "presence",
        "template": "presence",
        "answer_type": "closed",
        "images": (ImageRef(uri=f"{number}.png", modality="CT" if number % 2 else "MR"),),
        "question": f"Is there a lesion in {number}?",
        "truth": truth,
        "options": ("yes", "no"),
        "prediction": said,
    }
    return EvalRow.parse(given | fields)


def made_log(rows: Iterable[EvalRow], benchmark: Benchmark = BENCHMARK, **manifest: Any) -> EvalLog:
    """The rows, scored."""
    kept = {
        "benchmark": benchmark.to_dict(),
        "dataset": DatasetCard(name="made").to_dict(),
        "rows_digest": "0123456789abcdef",
        "evaluation_seed": 5,
        **manifest,
    }
    log = EvalLog(benchmark=benchmark.name, version="", manifest=kept, rows=tuple(rows))
    return rescore(log)


def answers(number: int, right: Callable[[int], bool], **fields: Any) -> list[EvalRow]:
    """Rows that are answered right where `right(n)` says so."""
    return [made_row(n, "yes" if right(n) else "no", **fields) for n in range(number)]
