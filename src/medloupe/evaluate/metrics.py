"""Rows -> scores -> metrics: what can be computed again from a log, without the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from medloupe.evaluate.benchmark import Benchmark, cluster_of
from medloupe.evaluate.majority import MAJORITY
from medloupe.evaluate.pools import Means, Place, Pool, Sets, Totals
from medloupe.evaluate.probes.base import probe_class
from medloupe.evaluate.scorers.base import CorpusScorer, Scorer, SetScorer
from medloupe.evaluate.statistics import Estimate
from medloupe.types import AnswerType, Arm, EvalRow, Metric, Score

ANSWER_TYPES: tuple[AnswerType, ...] = ("closed", "box", "open")
"""In the order in which they are reported."""

MODEL, DIFFERENCE, MINUS = "model", "difference", "minus "
BLIND_ARMS: tuple[Arm, ...] = ("swapped", MAJORITY)
"""Those that cannot know by looking; the stronger of them stands beside every result."""

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
        for arm in (MODEL, *row.others)
        if (answered := row.under(arm)) is not None
    )


def about_arm(arm: Arm) -> str:
    """ "the model shown another patient's image": who answers under an arm, or is compared by it."""
    if arm == MAJORITY:
        return "the most frequent training answer"
    if arm == DIFFERENCE:
        return "the model minus the stronger image-blind answerer"
    if arm.startswith(MINUS):
        return f"the model minus {about_arm(arm.removeprefix(MINUS))}"
    return "the model" if arm == MODEL else f"the model {probe_class(arm).about}"


def arms_of(rows: Iterable[EvalRow]) -> tuple[Arm, ...]:
    """The arms that answered some row: the model, the image-blind ones, then the others by name."""
    found = {arm for row in rows for arm in row.others}
    first = [arm for arm in BLIND_ARMS if arm in found]
    return (MODEL, *first, *sorted(found - set(first)))


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
    and the model answered; "all rows" compares each row with its task's. Every probe has a paired
    difference of its own ("minus NAME"). `note` ends every metric's, after what the scorer states.
    """
    table = _Table(rows, scores, benchmark, seed, note)
    return tuple(
        metric
        for cell in table.cells()
        for scorer in benchmark.scorers_of(cell.answer_type)
        for metric in table.metrics(cell, scorer)
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
    arm: Arm = MODEL,
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
    """The scores of a run: a pool for each scorer, and the rows of each cell."""

    def __init__(
        self,
        rows: Sequence[EvalRow],
        scores: Iterable[Score],
        benchmark: Benchmark,
        seed: int,
        note: str,
    ) -> None:
        self.benchmark, self.note, self.arms = benchmark, note, arms_of(rows)
        self.pools = _pools(rows, scores, benchmark, seed)
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

    def metrics(self, cell: _Cell, scorer: Scorer) -> list[Metric]:
        arms = [arm for arm in self.arms if self._answered(cell, scorer, arm)]
        found = [self._arm(cell, scorer, arm) for arm in arms]
        found += [self._minus(cell, scorer, arm) for arm in arms if arm not in (MODEL, MAJORITY)]
        difference = self._difference(cell, scorer)
        if difference is not None:
            found.append(difference)
        return found if cell.stratum else [*found, *self._parts(cell, scorer)]

    def stronger(self, answer_type: AnswerType, task: str, scorer: Scorer) -> Arm | None:
        """The image-blind arm that scores higher on a task; None where neither answered."""
        points: dict[Arm, float] = {}
        for arm in BLIND_ARMS:
            compared = self._compared(self.rows[_Cell(answer_type, task)], scorer, arm)
            if compared:
                points[arm] = self.pools[scorer.name].point([(id, arm) for id in compared])
        return max(points.items(), key=lambda item: item[1])[0] if points else None

    def _answered(self, cell: _Cell, scorer: Scorer, arm: Arm) -> bool:
        return any(self.pools[scorer.name].answered((row.id, arm)) for row in self.rows[cell])

    def _arm(self, cell: _Cell, scorer: Scorer, arm: Arm) -> Metric:
        rows, pool = self.rows[cell], self.pools[scorer.name]
        places: list[Place] = [(row.id, arm) for row in rows if pool.scored((row.id, arm))]
        clusters = [self.cluster[id] for id, _ in places]
        found = pool.estimate(places, clusters)
        about = "" if arm == MODEL else about_arm(arm)
        return self._metric(cell, scorer, arm, found, clusters, len(rows) - len(places), about)

    def _minus(self, cell: _Cell, scorer: Scorer, arm: Arm) -> Metric:
        """The model minus itself under a probe, over the rows that have both scores."""
        rows, pool = self.rows[cell], self.pools[scorer.name]
        ids = self._compared(rows, scorer, arm)
        clusters = [self.cluster[id] for id in ids]
        own: list[Place] = [(id, MODEL) for id in ids]
        found = pool.difference(own, [(id, arm) for id in ids], clusters)
        asked = sum(pool.answered((row.id, arm)) for row in rows)
        about = f"against {about_arm(arm)}"
        return self._metric(cell, scorer, f"{MINUS}{arm}", found, clusters, asked - len(ids), about)

    def _parts(self, cell: _Cell, scorer: Scorer) -> list[Metric]:
        """What a set scorer says of each finding, for the model alone."""
        pool = self.pools[scorer.name]
        if not isinstance(pool, Sets):
            return []
        places: list[Place] = [(r.id, MODEL) for r in self.rows[cell] if pool.scored((r.id, MODEL))]
        clusters = [self.cluster[id] for id, _ in places]
        missing = len(self.rows[cell]) - len(places)
        return [
            self._metric(
                cell._replace(stratum=name), scorer, MODEL, estimate, clusters, missing, ""
            )
            for name, estimate in pool.parts(places, clusters).items()
        ]

    def _difference(self, cell: _Cell, scorer: Scorer) -> Metric | None:
        tasks = sorted({task_of(row) for row in self.rows[cell]})
        against = {task: self.stronger(cell.answer_type, task, scorer) for task in tasks}
        others: list[Place] = [
            (id, arm)
            for task, arm in against.items()
            if arm is not None
            for id in self._compared(
                [r for r in self.rows[cell] if task_of(r) == task], scorer, arm
            )
        ]
        if not others:
            return None
        own: list[Place] = [(id, MODEL) for id, _ in others]
        clusters = [self.cluster[id] for id, _ in others]
        found = self.pools[scorer.name].difference(own, others, clusters)
        arms = {arm for arm in against.values() if arm is not None}
        name = about_arm(arms.pop()) if len(arms) == 1 else "the stronger of the two, task by task"
        missing = len(self.rows[cell]) - len(others)
        return self._metric(cell, scorer, DIFFERENCE, found, clusters, missing, f"against {name}")

    def _compared(self, rows: Iterable[EvalRow], scorer: Scorer, arm: Arm) -> list[str]:
        """The rows that have a score of the model and one of the arm."""
        pool = self.pools[scorer.name]
        return [
            row.id for row in rows if pool.scored((row.id, MODEL)) and pool.scored((row.id, arm))
        ]

    def _metric(
        self,
        cell: _Cell,
        scorer: Scorer,
        arm: Arm,
        found: Estimate,
        clusters: Sequence[str],
        unscored: int,
        about: str,
    ) -> Metric:
        return Metric(
            name=scorer.name,
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
            note="; ".join(part for part in (about, scorer.stated, self.note) if part),
        )


def _pools(
    rows: Sequence[EvalRow], scores: Iterable[Score], benchmark: Benchmark, seed: int
) -> dict[str, Pool]:
    """By the scorer's name."""
    values: dict[str, dict[Place, float | None]] = defaultdict(dict)
    for score in scores:
        values[score.scorer][score.id, score.arm] = score.value
    counts = _counts(rows, benchmark)
    by_place: dict[Place, EvalRow] = {
        (row.id, arm): answered
        for row in rows
        for arm in (MODEL, *row.others)
        if (answered := row.under(arm)) is not None
    }
    pools: dict[str, Pool] = {}
    for scorer in (scorer for kind in benchmark.scorers.values() for scorer in kind):
        name, made = scorer.name, {"resamples": benchmark.resamples, "seed": seed}
        if isinstance(scorer, CorpusScorer):
            pools[name] = Totals(values=values[name], scorer=scorer, counts=counts[name], **made)
        elif isinstance(scorer, SetScorer):
            pools[name] = Sets(values=values[name], scorer=scorer, rows=by_place, **made)
        else:
            pools[name] = Means(values=values[name], **made)
    return pools


def _counts(
    rows: Sequence[EvalRow], benchmark: Benchmark
) -> dict[str, dict[Place, tuple[int, ...]]]:
    """What each row adds, by scorer. A log does not store it: it follows from the answers."""
    counts: dict[str, dict[Place, tuple[int, ...]]] = defaultdict(dict)
    for row in rows:
        scorers = benchmark.scorers_of(row.answer_type)
        for scorer in (scorer for scorer in scorers if isinstance(scorer, CorpusScorer)):
            for arm in (MODEL, *row.others):
                answered = row.under(arm)
                counted = None if answered is None else scorer.count(answered)[0]
                if counted is not None:
                    counts[scorer.name][row.id, arm] = counted
    return counts
