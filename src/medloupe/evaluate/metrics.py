"""Rows -> scores -> metrics: what can be computed again from a log, without the model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from medloupe.evaluate.benchmark import Benchmark, cluster_of
from medloupe.evaluate.statistics import Estimate, bootstrap_mean, paired_difference
from medloupe.types import AnswerType, Arm, EvalRow, Metric, Score

ANSWER_TYPES: tuple[AnswerType, ...] = ("closed", "box", "open")
"""In the order in which they are reported."""

ARMS: tuple[Arm, ...] = ("model", "blind", "majority")
ARM_NAMES = {
    "model": "the model",
    "blind": "the model shown another patient's image",
    "majority": "the most frequent training answer",
}
FEWEST_PATIENTS = 10
"""Below this a resampled interval is too narrow to base a verdict on."""

Verdict = Literal["yes", "no", "too few patients", "not compared"]


class _Cell(NamedTuple):
    """Where a metric stands: the rows of one task (or all, ""), in one stratum (or all, "")."""

    answer_type: AnswerType
    group: str
    stratum: str = ""


def score_rows(rows: Iterable[EvalRow], benchmark: Benchmark) -> tuple[Score, ...]:
    """Every row under every scorer of its answer type, once per arm that answered."""
    return tuple(
        scorer.score(answered).model_copy(update={"arm": arm})
        for row in rows
        for scorer in benchmark.scorers_of(row.answer_type)
        for arm in ARMS
        if (answered := _as_arm(row, arm)) is not None
    )


def summarise(
    rows: Sequence[EvalRow],
    scores: Iterable[Score],
    benchmark: Benchmark,
    *,
    seed: int,
    note: str = "",
) -> tuple[Metric, ...]:
    """Per answer type and scorer: all rows, each task, each stratum of a task.

    The arms and, where something was compared, the paired difference between the model and the
    stronger image-blind arm. Which one is stronger is decided per task over the rows that both it
    and the model answered; "all rows" compares each row with its task's. `note` ends every metric's.
    """
    table = _Table(rows, scores, benchmark, seed, note)
    return tuple(
        metric
        for cell in table.cells()
        for scorer in benchmark.scorers_of(cell.answer_type)
        for metric in table.metrics(cell, scorer.name)
    )


def verdict(difference: Metric | None) -> Verdict:
    """Does the model beat its image-blind comparison? "yes" if the whole interval is above 0."""
    if difference is None or difference.estimate is None:
        return "not compared"
    if difference.clusters < FEWEST_PATIENTS or difference.low is None:
        return "too few patients"
    return "yes" if difference.low > 0 else "no"


def task_of(row: EvalRow) -> str:
    """The kind of question; rows of a data set that names none stand together."""
    return row.task or f"{row.answer_type} questions"


def find_metric(
    metrics: Iterable[Metric],
    *,
    name: str,
    arm: str = "model",
    answer_type: str,
    group: str = "",
    stratum: str = "",
) -> Metric | None:
    """The one metric at a place, None where there is none."""
    wanted = (name, arm, answer_type, group, stratum)
    for metric in metrics:
        if (metric.name, metric.arm, metric.answer_type, metric.group, metric.stratum) == wanted:
            return metric
    return None


class _Table:
    """The scores of a run, looked up by (id, scorer, arm)."""

    def __init__(
        self,
        rows: Sequence[EvalRow],
        scores: Iterable[Score],
        benchmark: Benchmark,
        seed: int,
        note: str,
    ) -> None:
        self.benchmark, self.seed, self.note = benchmark, seed, note
        self.values = {(score.id, score.scorer, score.arm): score.value for score in scores}
        self.cluster = {
            row.id: cluster_of(row.id, row.patient_id, [image.uri for image in row.images])
            for row in rows
        }
        self.rows: dict[_Cell, list[EvalRow]] = defaultdict(list)
        for row in rows:
            self.rows[_Cell(row.answer_type, "")].append(row)
            self.rows[_Cell(row.answer_type, task_of(row))].append(row)
            for stratum in benchmark.strata:
                label = stratum.label(row.attributes)
                if label is not None:
                    self.rows[_Cell(row.answer_type, task_of(row), label)].append(row)

    def cells(self) -> list[_Cell]:
        """All rows first, then tasks by name, each followed by its strata in order."""
        order = [label for stratum in self.benchmark.strata for label in stratum.labels]
        place = {label: index for index, label in enumerate(order)}
        return sorted(
            self.rows,
            key=lambda cell: (
                ANSWER_TYPES.index(cell.answer_type),
                cell.group,
                bool(cell.stratum),
                place.get(cell.stratum, len(place)),
                cell.stratum,
            ),
        )

    def metrics(self, cell: _Cell, scorer: str) -> list[Metric]:
        found = [self._arm(cell, scorer, arm) for arm in ARMS if self._answered(cell, scorer, arm)]
        difference = self._difference(cell, scorer)
        return found if difference is None else [*found, difference]

    def stronger(self, answer_type: AnswerType, task: str, scorer: str) -> Arm | None:
        """The image-blind arm with the higher mean on a task; None where neither answered."""
        means: dict[Arm, float] = {}
        for arm in ARMS[1:]:
            pairs = self._pairs(self.rows[_Cell(answer_type, task)], scorer, arm)
            if pairs:
                means[arm] = math.fsum(other for _, _, other in pairs) / len(pairs)
        return max(means.items(), key=lambda item: item[1])[0] if means else None

    def _answered(self, cell: _Cell, scorer: str, arm: Arm) -> bool:
        return any((row.id, scorer, arm) in self.values for row in self.rows[cell])

    def _arm(self, cell: _Cell, scorer: str, arm: Arm) -> Metric:
        rows = self.rows[cell]
        scored = [(row, self.values.get((row.id, scorer, arm))) for row in rows]
        values = [value for _, value in scored if value is not None]
        clusters = [self.cluster[row.id] for row, value in scored if value is not None]
        found = bootstrap_mean(values, clusters, resamples=self.benchmark.resamples, seed=self.seed)
        about = "" if arm == "model" else ARM_NAMES[arm]
        return self._metric(cell, scorer, arm, found, clusters, len(rows) - len(values), about)

    def _difference(self, cell: _Cell, scorer: str) -> Metric | None:
        tasks = sorted({task_of(row) for row in self.rows[cell]})
        against = {task: self.stronger(cell.answer_type, task, scorer) for task in tasks}
        pairs = [
            pair
            for task, arm in against.items()
            if arm is not None
            for pair in self._pairs([r for r in self.rows[cell] if task_of(r) == task], scorer, arm)
        ]
        if not pairs:
            return None
        ids, own, other = zip(*pairs, strict=True)
        clusters = [self.cluster[id] for id in ids]
        found = paired_difference(
            own, other, clusters, resamples=self.benchmark.resamples, seed=self.seed
        )
        arms = {arm for arm in against.values() if arm is not None}
        name = ARM_NAMES[arms.pop()] if len(arms) == 1 else "the stronger of the two, task by task"
        missing = len(self.rows[cell]) - len(pairs)
        return self._metric(cell, scorer, "difference", found, clusters, missing, f"against {name}")

    def _pairs(
        self, rows: Iterable[EvalRow], scorer: str, arm: Arm
    ) -> list[tuple[str, float, float]]:
        """(id, model's value, the arm's value) of the rows that have both."""
        pairs = []
        for row in rows:
            own = self.values.get((row.id, scorer, "model"))
            other = self.values.get((row.id, scorer, arm))
            if own is not None and other is not None:
                pairs.append((row.id, own, other))
        return pairs

    def _metric(
        self,
        cell: _Cell,
        scorer: str,
        arm: Arm | Literal["difference"],
        found: Estimate,
        clusters: Sequence[str],
        unscored: int,
        about: str,
    ) -> Metric:
        return Metric(
            name=scorer,
            arm=arm,
            answer_type=cell.answer_type,
            group=cell.group,
            stratum=cell.stratum,
            estimate=found.estimate,
            low=found.low,
            high=found.high,
            n=len(clusters),
            clusters=len(set(clusters)),
            unscored=unscored,
            note="; ".join(part for part in (about, self.note) if part),
        )


def _as_arm(row: EvalRow, arm: Arm) -> EvalRow | None:
    """The row as an arm answered it, None where it did not."""
    if arm == "model":
        return row
    text = row.blind_prediction if arm == "blind" else row.majority_prediction
    if text is None:
        return None
    boxes = row.blind_boxes if arm == "blind" else ()
    return row.model_copy(update={"prediction": text, "predicted_boxes": boxes})
