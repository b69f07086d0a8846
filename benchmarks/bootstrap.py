"""How long intervals for 10,000 predictions with 1,000 bootstraps take: all tasks, arms and scorers.

Side by side, in one run: what `rescore` does after scoring, and a plain loop that draws patients anew
for every number (as `scipy.stats.bootstrap` and most evaluation scripts do), over the same rows. The
loop is timed on every tenth metric unless `--whole`. Also: scoring the rows, and scipy itself on one metric.

    python benchmarks/bootstrap.py --rows 10000 --resamples 1000
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import numpy as np

from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.metrics import DIFFERENCE, MINUS, score_rows, summarise, task_of
from medloupe.types import Answer, Box, EvalRow, ImageRef, Metric, Score

TASKS = {"presence": "closed", "side": "closed", "plane": "closed", "count": "closed",
         "size": "closed", "rec": "box", "diagnosis": "open", "report": "open"}  # fmt: skip
ARMS = ("swapped", "majority", "blank", "negated")
WORDS = ("yes", "no", "left", "right", "axial", "a bright ring in the left lobe", "none seen")
BOX = Box(label="lesion", x1=10, y1=10, x2=60, y2=50)


def made_rows(number: int, patients: int, seed: int) -> list[EvalRow]:
    """Rows of random answers, with every arm on most of them."""
    rng = np.random.default_rng(seed)

    def said() -> dict[str, object]:
        shift = float(rng.uniform(0, 30))
        box = Box(label="", x1=10 + shift, y1=10, x2=60 + shift, y2=50)
        return {"text": WORDS[rng.integers(len(WORDS))], "boxes": (box,)}

    rows = []
    for index in range(number):
        task = list(TASKS)[index % len(TASKS)]
        own = said()
        rows.append(
            EvalRow(
                id=f"r{index:06d}",
                patient_id=f"p{rng.integers(patients):05d}",
                task=task,
                template=task,
                answer_type=TASKS[task],
                images=(ImageRef(uri=f"{index}.png"),),
                question=task,
                truth=WORDS[rng.integers(len(WORDS))],
                truth_boxes=(BOX,) if task == "rec" else (),
                prediction=str(own["text"]),
                predicted_boxes=own["boxes"] if task == "rec" else (),
                others={arm: Answer(**said()) for arm in ARMS if rng.random() < 0.97},
                attributes={"lesion_width": f"{rng.uniform(2, 12):.1f}"},
            )
        )
    return rows


def plainly(
    metrics: list[Metric], rows: list[EvalRow], scores: tuple[Score, ...], resamples: int
) -> None:
    """One metric after another; patients drawn in a loop, their rows gathered, the mean taken."""
    values = {(s.id, s.scorer, s.arm): s.value for s in scores}
    for metric in metrics:
        arm = metric.arm.removeprefix(MINUS)
        of: dict[str | None, list[float]] = defaultdict(list)
        for row in rows:
            if row.answer_type != metric.answer_type or metric.group not in ("", task_of(row)):
                continue
            own = values.get((row.id, metric.name, "model"))
            other = values.get((row.id, metric.name, arm))
            value = other if metric.arm == arm else own and other and own - other
            if value is not None:
                of[row.patient_id].append(value)
        per_patient = [np.array(found) for found in of.values()]
        rng = np.random.default_rng(0)
        means = np.empty(resamples)
        for index in range(resamples):
            drawn = rng.integers(0, len(per_patient), size=len(per_patient))
            means[index] = np.concatenate([per_patient[i] for i in drawn]).mean()
        np.quantile(means, [0.025, 0.975])


def by_scipy(values: np.ndarray, resamples: int) -> float:
    """Seconds that `scipy.stats.bootstrap` takes for the mean of independent values."""
    from scipy.stats import bootstrap

    begun = time.perf_counter()
    bootstrap((values,), np.mean, n_resamples=resamples, method="percentile", rng=0)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--patients", type=int, default=2_000)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="loop over every metric, not a tenth")
    asked = parser.parse_args()

    rows = made_rows(asked.rows, asked.patients, seed=1)
    benchmark = Benchmark(
        name="made",
        resamples=asked.resamples,
        strata=({"attribute": "lesion_width", "edges": (4, 8)},),
    )
    begun = time.perf_counter()
    scores = score_rows(rows, benchmark)
    print(
        f"{len(rows):,} rows, {len(scores):,} scores: {time.perf_counter() - begun:.2f} s to score"
    )
    seconds, busy = [], []
    for repeat in range(asked.repeats):
        begun, worked = time.perf_counter(), time.process_time()
        metrics = summarise(rows, scores, benchmark, seed=repeat)  # a new seed: nothing is kept
        seconds.append(time.perf_counter() - begun)
        busy.append(time.process_time() - worked)
    print(
        f"MedLoupe: {len(metrics):,} metrics in {min(seconds):.2f} s, {min(busy):.2f} s of them on the"
        f" processor (of {asked.repeats}: {', '.join(f'{s:.2f}' for s in seconds)})"
    )

    means = [m for m in metrics if m.arm != DIFFERENCE and not m.stratum]
    some = means if asked.whole else means[::10]
    begun = time.perf_counter()
    plainly(some, rows, scores, asked.resamples)
    loop = (time.perf_counter() - begun) * len(means) / len(some)
    print(f"plain loop: {loop:.1f} s for {len(means)} of them (timed on {len(some)}), "
          f"{loop / len(means) / (min(seconds) / len(metrics)):.0f} times as long for each")  # fmt: skip
    values = np.array([s.value for s in scores if s.arm == "model" and s.value is not None])[
        : asked.rows
    ]
    once = by_scipy(values, asked.resamples)
    print(f"scipy.stats.bootstrap, rows taken as independent: {once:.2f} s for one metric")


if __name__ == "__main__":
    main()
