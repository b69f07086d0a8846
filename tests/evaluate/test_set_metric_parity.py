"""The benchmark that compares set metrics with their references, run here on fewer rows and weightings."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from by_path import loaded

from medloupe.evaluate.scorers.base import Scorer, SetScorer
from medloupe.types import EvalRow

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
EDGES_OF_ALL = "ece_adaptive."  # a resample keeps the bins of the rows as they were answered


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    return loaded(ROOT / "benchmarks" / "set_metric_parity.py")


def names() -> list[str]:
    known = (name for name in Scorer.table if isinstance(Scorer.parse(name), SetScorer))
    return [name for name in known if not name.startswith(EDGES_OF_ALL)]


@pytest.fixture(scope="module")
def rows(parity: ModuleType) -> dict[str, list[EvalRow]]:
    return {
        "labels": parity.label_texts(60, parity.ENGLISH, "en")[0],
        "yes/no": parity.yes_no_rows(60),
        "boxes": parity.box_rows(60),
    }


def unversioned(line: str) -> str:
    """The metric, its flavour and the reference without its version."""
    return re.sub(r"(scikit-learn|pycocotools|MONAI) [\d.]+", r"\1", line.rsplit("|", 4)[0])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_our_scores_are_those_of_the_references(parity: ModuleType) -> None:
    found = list(parity.rows(200, 3))
    compared = [row for row in found if row.difference is not None]
    assert {row.flavour for row in compared} >= {
        "label_{precision,recall,f1}_*.strict", "auroc.macro", "auprc.micro", "ece.options",
        "brier.multi_class", "map.coco", "map_0.5.coco",
    }  # fmt: skip
    for row in compared:
        assert row.difference <= 1e-9, row
    guide = {unversioned(line) for line in GUIDE.splitlines()}
    assert {unversioned(line) for line in parity.table(found)} <= guide


def test_boxes_of_equal_confidence_stand_in_pycocotools_order(parity: ModuleType) -> None:
    rows = [
        row.model_copy(
            update={
                "predicted_boxes": tuple(
                    box.model_copy(update={"score": round(box.score or 0, 1)})
                    for box in row.predicted_boxes
                )
            }
        )
        for row in parity.box_rows(200)
    ]
    once = np.ones((1, 200), dtype=np.int64)
    theirs = parity.by_pycocotools(rows, once[0])
    ours = [float(parity.ours(name, rows, once)[0]) for name in ("map.coco", "map_0.5.coco")]
    assert ours == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("name", names())
def test_a_weight_is_that_many_rows(name: str, rows: dict[str, list[EvalRow]]) -> None:
    scorer = Scorer.parse(name)
    assert isinstance(scorer, SetScorer)
    kind = "labels" if name.startswith("label") else "yes/no"
    kind = "boxes" if name.startswith(("map", "froc")) else kind
    asked = rows[kind]
    weights = np.random.default_rng(8).integers(0, 3, size=(4, len(asked)))
    found = scorer.collect(asked)
    parts = {"": found, **found.parts()}
    for number, weight in enumerate(weights):
        repeated = [row for row, times in zip(asked, weight, strict=True) for _ in range(times)]
        again = scorer.collect(repeated)
        of_repeated = {"": again, **again.parts()}
        once = np.ones((1, len(repeated)), dtype=np.int64)
        for part, collected in parts.items():
            ours = float(collected.score(weights)[number])
            wanted = float(of_repeated[part].score(once)[0]) if part in of_repeated else np.nan
            assert ours == pytest.approx(wanted, abs=1e-12, nan_ok=True), part
