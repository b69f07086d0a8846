"""Does HiA find small lesions that its base misses? All held-out questions, by the width of the lesion.

    medloupe reproduce hia --seeds 3 --out runs/hia
    python benchmarks/hia_small_lesions.py runs/hia
    python benchmarks/hia_small_lesions.py runs/hia --also "base at 192, fine-tuned"

The grid scores at most 90 rows a task, nine of them comparisons of lesions under 5 % of the width. Here the
models that it trained answer every row of the test split. Differences are of HiA less the base that was
fine-tuned on the same rows, and less LoRA of as many parameters, with the grid's intervals (over patients
and seeds, 95 %).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from medloupe.evaluate.log import read_log
from medloupe.recipes.run import EVALUATION_FILE
from medloupe.reproduce.compare import Logs, compare
from medloupe.reproduce.grid import Claim, Grid, Row
from medloupe.reproduce.grids.hia import (
    HIA,
    LORA,
    TUNED,
    hia,
    hia_layers,
    hia_parts,
    hia_queries,
    hia_resolution,
)
from medloupe.reproduce.ledger import Ledger
from medloupe.types import EvalLog, EvalRow

WIDTHS: dict[str, tuple[float, float]] = {
    "under 5": (0, 5),
    "5 to 8": (5, 8),
    "8 and more": (8, 101),
    "all, of any or no width": (0, float("inf")),
}


def main() -> None:
    """Evaluate what is not yet, and print the tables."""
    wanted = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    wanted.add_argument("out", type=Path, help="the folder of a reproduced hia")
    wanted.add_argument("--also", action="append", default=[], help="another row of HiA's grids")
    args = wanted.parse_args()
    asked = narrowed(hia(), args.also)
    labels = [row.label for row in asked.rows]
    logs = evaluated(args.out, labels)
    seeds = sorted({seed for _, seed in logs})
    for measure in asked.measures:
        print(f"\n{measure.label}; seeds {seeds}\n")
        heads = ["lesion, % of the width", "rows", "patients", *labels]
        heads += [f"{claim.first} less {claim.second}" for claim in asked.claims]
        print(f"| {' | '.join(heads)} |")
        print("|" + "---|" * len(heads))
        for width, (low, high) in WIDTHS.items():
            found = compare(
                asked.model_copy(update={"measures": (measure,)}),
                within(logs, lambda row, low=low, high=high: low <= width_of(row) < high),
                seeds,
            )
            cells = [found.cell(label, measure.label) for label in labels]
            first = cells[0]
            if first is None:  # a question about no lesion in particular
                continue
            line = [width, str(first.rows), str(first.patients)]
            line += [
                f"{100 * cell.estimate.estimate or 0:.1f}" for cell in cells if cell is not None
            ]
            for answer in found.answers:
                value, below, above = (100 * (number or 0) for number in answer.difference)
                line.append(f"{value:+.1f} ({below:+.1f} to {above:+.1f})")
            print(f"| {' | '.join(line)} |")


def evaluated(out: Path, labels: Sequence[str]) -> Logs:
    """The answers of every seed's models, asked now where there are none yet."""
    grids = (hia(), hia_parts(), hia_resolution(), hia_queries(), hia_layers())
    of = {row.label: grid for grid in grids for row in grid.rows}
    data = out / "data" / hia().base.data.fingerprint()
    entries = Ledger(out / "ledger.jsonl").entries()
    logs = {}
    for label, seed in product(labels, sorted({entry.seed for entry in entries})):
        key = of[label].key(label, seed)
        folder = out / "small_lesions" / key
        if not (folder / EVALUATION_FILE).is_file():
            words = ["evaluate", "--model", out / "runs" / key, "--data", data, "--out", folder]
            sets = ["--set", "benchmark.limit=null", "--set", "probes=[]"]
            subprocess.run([sys.executable, "-m", "medloupe.cli", *words, *sets], check=True)
        logs[label, seed] = read_log(folder / EVALUATION_FILE)
    return logs


def narrowed(grid: Grid, also: Sequence[str]) -> Grid:
    """The grid's three rows that differ in how they went on from the base alone, and others that did."""
    pairs = [(HIA, TUNED), (HIA, LORA), *((label, TUNED) for label in also)]
    return grid.model_copy(
        update={
            "rows": tuple(Row(label=label) for label in (TUNED, LORA, HIA, *also)),
            "claims": tuple(Claim(first=a, second=b, paper="section 4") for a, b in pairs),
        }
    )


def within(logs: Logs, wanted: Callable[[EvalRow], bool]) -> Logs:
    """The rows that are wanted."""

    def kept(log: EvalLog) -> EvalLog:
        return log.model_copy(update={"rows": tuple(row for row in log.rows if wanted(row))})

    return {place: kept(log) for place, log in logs.items()}


def width_of(row: EvalRow) -> float:
    """In percent of the image's width; 1000 where no lesion's is known, which is in "all" alone."""
    return float(row.attributes.get("lesion_width") or 1000)


if __name__ == "__main__":
    main()
