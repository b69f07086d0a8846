"""Rows -> scores -> metrics: what can be computed again from a log, without the model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from medloupe.evaluate.benchmark import Benchmark, cluster_of
from medloupe.evaluate.majority import MAJORITY
from medloupe.evaluate.pools import Means, Place, Pool, Sets, Totals
from medloupe.evaluate.probes.base import probe_class
from medloupe.evaluate.scorers.base import CorpusScorer, Scorer, SetScorer
from medloupe.evaluate.statistics import Clustered, Estimate
from medloupe.types import AnswerType, Arm, EvalLog, EvalRow, Metric, Score

ANSWER_TYPES: tuple[AnswerType, ...] = ("closed", "box", "open")
"""In the order in which they are reported."""

MODEL, DIFFERENCE, MINUS = "model", "difference", "minus "
BLIND_ARMS: tuple[Arm, ...] = ("swapped", MAJORITY)
"""Those that cannot know by looking; the stronger of them stands beside every result."""

DECIMALS = 10
"""What is stored of a number: beyond it the logarithms and powers of some scorers differ between machines."""

FEWEST_PATIENTS = 10
"""Below this a resampled interval is too narrow to base a verdict on."""

Verdict = Literal["yes", "no", "too few patients", "not compared"]


class _Cell(NamedTuple):
    """Where a metric stands: the rows of one task (or all, ""), in one stratum (or all, "")."""

    answer_type: AnswerType
    group: str
    stratum: str = ""


def score_rows(rows: Iterable[EvalRow], benchmark: Benchmark) -> tuple[Score, ...]:
    """Every row under every scorer of its answer type, once per arm that answered.

    A row with an `error` has no answer and so no value. Values are rounded to `DECIMALS`.
    """
    return tuple(score for row in rows for score in _scores(row, benchmark))


def _scores(row: EvalRow, benchmark: Benchmark) -> Iterator[Score]:
    answers = _answers(row)
    for scorer in benchmark.scorers_of(row.answer_type):
        for arm, answered in answers.items():
            yield _scored(scorer, answered, arm)


def _answers(row: EvalRow) -> dict[Arm, EvalRow]:
    """The row as each arm answered it; by name, for a log keeps no other order."""
    found = {arm: row.under(arm) for arm in (MODEL, *sorted(row.others))}
    return {arm: answered for arm, answered in found.items() if answered is not None}


def _scored(scorer: Scorer, row: EvalRow, arm: Arm) -> Score:
    value, reason = scorer.judge(row)
    if arm == MODEL and row.error:
        value, reason = None, f"no answer: {row.error}"
    if value is not None and not math.isfinite(value):
        value, reason = None, f"the score is {value}"
    return Score(id=row.id, scorer=scorer.name, arm=arm, value=_rounded(value), reason=reason)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)


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
    """Does the model beat its image-blind comparison? "yes" if the whole interval is on the better side
    of 0."""
    if difference is None or difference.estimate is None:
        return "not compared"
    low, high = difference.low, difference.high
    if difference.clusters < FEWEST_PATIENTS or low is None or high is None:
        return "too few patients"
    return "yes" if (high < 0 if difference.lower_is_better else low > 0) else "no"


def task_of(row: EvalRow) -> str:
    """The kind of question; rows of a data set that names none stand together."""
    return row.task or f"{row.answer_type} questions"


def headline(log: EvalLog) -> list[Metric]:
    """The model's metrics under the first scorer of each answer type, without strata: that scorer's come
    first (`Benchmark.primary`)."""
    first: dict[str, str] = {}
    for metric in log.metrics:
        first.setdefault(metric.answer_type, metric.name)
    return [
        metric
        for metric in log.metrics
        if metric.arm == MODEL and not metric.stratum and metric.name == first[metric.answer_type]
    ]


def stronger_blind(metrics: Iterable[Metric]) -> Metric | None:
    """Of metrics that differ in nothing but their arm, the better one that cannot know by looking; None
    where none has a value."""
    values = {metric.arm: metric for metric in metrics if metric.estimate is not None}
    found = [values[arm] for arm in BLIND_ARMS if arm in values]
    choose = min if any(metric.lower_is_better for metric in found) else max
    return choose(found, key=lambda metric: metric.estimate or 0.0, default=None)


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
        self.pools = pools_of(rows, scores, benchmark, seed)
        self.cluster = clusters_of(rows)
        self.task = {row.id: task_of(row) for row in rows}
        self.ids: dict[_Cell, list[str]] = defaultdict(list)
        self._stronger: dict[tuple[AnswerType, str, str], Arm | None] = {}
        for row in rows:
            self.ids[_Cell(row.answer_type, "")].append(row.id)
            self.ids[_Cell(row.answer_type, task_of(row))].append(row.id)
            for stratum in benchmark.strata:
                label = stratum.label(row.attributes)
                if label is not None:
                    self.ids[_Cell(row.answer_type, task_of(row), label)].append(row.id)

    def cells(self) -> list[_Cell]:
        """All rows first, then tasks by name, each followed by its strata in order."""
        order = [label for stratum in self.benchmark.strata for label in stratum.labels]
        place = {label: index for index, label in enumerate(order)}
        return sorted(
            self.ids,
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
        """The image-blind arm that scores better on a task; None where neither has a score."""
        key = (answer_type, task, scorer.name)
        if key not in self._stronger:
            points: dict[Arm, float] = {}
            for arm in BLIND_ARMS:
                compared = self._compared(self.ids[_Cell(answer_type, task)], scorer, arm)
                if compared:
                    points[arm] = self.pools[scorer.name].point([(id, arm) for id in compared])
            choose = min if scorer.lower_is_better else max
            known = {arm: point for arm, point in points.items() if not math.isnan(point)}
            self._stronger[key] = choose(known, key=lambda arm: known[arm]) if known else None
        return self._stronger[key]

    def _answered(self, cell: _Cell, scorer: Scorer, arm: Arm) -> bool:
        return any(self.pools[scorer.name].answered((id, arm)) for id in self.ids[cell])

    def _arm(self, cell: _Cell, scorer: Scorer, arm: Arm) -> Metric:
        pool = self.pools[scorer.name]
        scored = pool.scored_ids(arm)
        ids = [id for id in self.ids[cell] if id in scored]
        clusters = self._clusters(ids)
        found = pool.estimate([(id, arm) for id in ids], clusters)
        about = "" if arm == MODEL else about_arm(arm)
        missing = len(self.ids[cell]) - len(ids)
        return self._metric(cell, scorer, arm, found, clusters, missing, about)

    def _minus(self, cell: _Cell, scorer: Scorer, arm: Arm) -> Metric:
        """The model minus itself under a probe, over the rows that have both scores."""
        pool = self.pools[scorer.name]
        ids = self._compared(self.ids[cell], scorer, arm)
        clusters = self._clusters(ids)
        own: list[Place] = [(id, MODEL) for id in ids]
        found = pool.difference(own, [(id, arm) for id in ids], clusters)
        asked = sum(pool.answered((id, arm)) for id in self.ids[cell])
        about = f"against {about_arm(arm)}"
        return self._metric(cell, scorer, f"{MINUS}{arm}", found, clusters, asked - len(ids), about)

    def _parts(self, cell: _Cell, scorer: Scorer) -> list[Metric]:
        """What a set scorer says of each finding, for the model alone."""
        pool = self.pools[scorer.name]
        if not isinstance(pool, Sets):
            return []
        scored = pool.scored_ids(MODEL)
        places: list[Place] = [(id, MODEL) for id in self.ids[cell] if id in scored]
        clusters = self._clusters(id for id, _ in places)
        missing = len(self.ids[cell]) - len(places)
        return [
            self._metric(
                cell._replace(stratum=name), scorer, MODEL, estimate, clusters, missing, ""
            )
            for name, estimate in pool.parts(places, clusters).items()
        ]

    def _difference(self, cell: _Cell, scorer: Scorer) -> Metric | None:
        of: dict[str, list[str]] = defaultdict(list)
        for id in self.ids[cell]:
            of[self.task[id]].append(id)
        against = {task: self.stronger(cell.answer_type, task, scorer) for task in sorted(of)}
        others: list[Place] = [
            (id, arm)
            for task, arm in against.items()
            if arm is not None
            for id in self._compared(of[task], scorer, arm)
        ]
        if not others:
            return None
        own: list[Place] = [(id, MODEL) for id, _ in others]
        clusters = self._clusters(id for id, _ in others)
        found = self.pools[scorer.name].difference(own, others, clusters)
        arms = {arm for arm in against.values() if arm is not None}
        name = about_arm(arms.pop()) if len(arms) == 1 else "the stronger of the two, task by task"
        missing = len(self.ids[cell]) - len(others)
        return self._metric(cell, scorer, DIFFERENCE, found, clusters, missing, f"against {name}")

    def _clusters(self, ids: Iterable[str]) -> Clustered:
        return Clustered.of(np.array([self.cluster[id] for id in ids], dtype=np.intp))

    def _compared(self, ids: Iterable[str], scorer: Scorer, arm: Arm) -> list[str]:
        """The rows that have a score of the model and one of the arm."""
        pool = self.pools[scorer.name]
        both = pool.scored_ids(MODEL) & pool.scored_ids(arm)
        return [id for id in ids if id in both]

    def _metric(
        self,
        cell: _Cell,
        scorer: Scorer,
        arm: Arm,
        found: Estimate,
        clusters: Clustered,
        unscored: int,
        about: str,
    ) -> Metric:
        return Metric(
            name=scorer.name,
            arm=arm,
            answer_type=cell.answer_type,
            group=cell.group,
            stratum=cell.stratum,
            estimate=_rounded(found.estimate),
            low=_rounded(found.low),
            high=_rounded(found.high),
            n=len(clusters.member),
            clusters=clusters.number,
            unscored=unscored,
            lower_is_better=scorer.lower_is_better,
            note="; ".join(part for part in (about, scorer.stated, self.note) if part),
        )


def clusters_of(rows: Iterable[EvalRow]) -> dict[str, int]:
    """The number of each row's cluster, in the order of the clusters' names."""
    names = {
        row.id: cluster_of(row.id, row.patient_id, [image.uri for image in row.images])
        for row in rows
    }
    numbers = {name: number for number, name in enumerate(sorted(set(names.values())))}
    return {id: numbers[name] for id, name in names.items()}


def pools_of(
    rows: Sequence[EvalRow], scores: Iterable[Score], benchmark: Benchmark, seed: int
) -> dict[str, Pool]:
    """What each scorer made of a run, by the scorer's name."""
    values: dict[str, dict[Place, float | None]] = defaultdict(dict)
    for score in scores:
        values[score.scorer][score.id, score.arm] = score.value
    answers: dict[Place, EvalRow] = {}
    for row in rows:
        scorers = benchmark.scorers_of(row.answer_type)
        if any(isinstance(scorer, CorpusScorer | SetScorer) for scorer in scorers):
            answers |= {(row.id, arm): answered for arm, answered in _answers(row).items()}
    return {
        scorer.name: pool_of(scorer, values[scorer.name], answers, benchmark.resamples, seed)
        for scorers in benchmark.scorers.values()
        for scorer in scorers
    }


def pool_of(
    scorer: Scorer,
    values: Mapping[Place, float | None],
    answers: Mapping[Place, EvalRow],
    resamples: int,
    seed: int,
) -> Pool:
    """The pool of one scorer. What a row adds to a corpus is counted anew from `answers`: it follows from
    them, so no log stores it."""
    if isinstance(scorer, SetScorer):
        return Sets(values=values, scorer=scorer, rows=answers, resamples=resamples, seed=seed)
    if not isinstance(scorer, CorpusScorer):
        return Means(values=values, resamples=resamples, seed=seed)
    counted = {
        place: scorer.count(answered)[0]
        for place, answered in answers.items()
        if values.get(place) is not None
    }
    counts = {place: counts for place, counts in counted.items() if counts is not None}
    return Totals(values=values, scorer=scorer, counts=counts, resamples=resamples, seed=seed)
