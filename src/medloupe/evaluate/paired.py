"""Two runs over the same questions: what differs, how surely, and for whom.

Rows meet by id. A row counts if both runs asked the same question about the same image, with the same
truth; every other one is left out and counted. The difference is the second run minus the first, sample
by sample, with an interval over patients and a p value (see `significance`); the p values of all tasks
and scorers are corrected together, those of the subgroups of a scorer apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from medloupe.errors import DataError
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.metrics import (
    ANSWER_TYPES,
    FEWEST_PATIENTS,
    MODEL,
    clusters_of,
    pool_of,
    score_rows,
    task_of,
)
from medloupe.evaluate.pools import Place, Pool
from medloupe.evaluate.scorers.base import Scorer
from medloupe.evaluate.significance import Corrected, corrected
from medloupe.evaluate.statistics import NOTHING, Estimate
from medloupe.evaluate.subgroups import dataset_name, groups_of, seed_of
from medloupe.types import AnswerType, EvalLog, EvalRow, Score

FIRST, SECOND = "first", "second"
SIGNIFICANT = 0.05
FEW_PATIENTS = 50
"""Below this a note says which difference could have been seen at all."""


@dataclass(frozen=True, kw_only=True)
class PairedLine(Corrected):
    """Two runs under one scorer, over the rows that both answered and that both have a score for.

    `group` "" is all rows of the answer type. `difference` is the second minus the first;
    `visible` is the smallest true difference that this many
    patients would show four times in five. `unscored` rows lack a score of one run or both.
    """

    scorer: str
    answer_type: AnswerType
    group: str
    dimension: str = ""
    value: str = ""
    n: int
    patients: int
    unscored: int
    first: float | None = None
    second: float | None = None
    difference: Estimate = NOTHING
    visible: float | None = None
    lower_is_better: bool = False
    note: str = ""

    @property
    def winner(self) -> Literal["first", "second", "neither"]:
        """Which run is better by the test corrected for all of them, at 5 %."""
        gap = self.difference.estimate
        if self.holm is None or self.holm >= SIGNIFICANT or not gap:
            return "neither"
        return "second" if (gap > 0) is not self.lower_is_better else "first"


class Pair(NamedTuple):
    """One question under the scorer that headlines it; a value is None where it could not be scored."""

    first: EvalRow
    second: EvalRow
    scorer: str
    first_value: float | None
    second_value: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`left_out` are the ids of rows that were not compared, by reason; `versions` says what differs
    between the benchmarks, () where nothing does."""

    names: tuple[str, str]
    lines: tuple[PairedLine, ...]
    subgroups: tuple[PairedLine, ...]
    pairs: tuple[Pair, ...]
    left_out: Mapping[str, tuple[str, ...]]
    versions: tuple[str, ...] = ()


def compare_logs(
    first: EvalLog,
    second: EvalLog,
    *,
    names: tuple[str, str] = ("first", "second"),
    allow_different_versions: bool = False,
) -> Comparison:
    """Compare two runs of one benchmark.

    Of different versions, where they are allowed, the rows that are alike are compared under the first
    run's scorers.

    Raises:
        DataError: the versions differ, naming in what; or no row is in both.
        ConfigError: a manifest does not hold its benchmark.
    """
    benchmark = Benchmark.parse(first.manifest.get("benchmark"))
    versions = version_differences(first, second)
    if versions and not allow_different_versions:
        raise DataError(
            f"{names[0]} and {names[1]} are of different versions of a benchmark: "
            + "; ".join(versions),
            remedy="Evaluate both alike, or compare what is alike with --allow-different-versions",
        )
    matched, left_out = match(first, second, names)
    if not matched:
        raise DataError(
            f"{names[0]} and {names[1]} have no question in common",
            remedy="Compare runs of the same benchmark on the same data",
        )
    table = _Table(matched, first, second, benchmark, rescored=bool(versions))
    lines = table.lines()
    return Comparison(
        names=names,
        lines=corrected(lines),
        subgroups=tuple(table.subgroups(dataset_name(first))),
        pairs=tuple(table.pairs()),
        left_out=left_out,
        versions=versions,
    )


def version_differences(first: EvalLog, second: EvalLog) -> tuple[str, ...]:
    """In what the versions of two logs differ ("limit: 8 and null"), () where they are equal."""
    if first.version == second.version:
        return ()
    own, other = (_asked(log) for log in (first, second))
    found = [f"{name}: {a} and {b}" for name, a, b in differences(own, other)]
    return (f"version: {first.version} and {second.version}", *found)


def differences(first: Any, second: Any, at: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two JSON values differ: (dotted place, first, second); "-" where one has nothing."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in sorted({*first, *second}):
            place = f"{at}.{name}" if at else str(name)
            yield from differences(first.get(name, _ABSENT), second.get(name, _ABSENT), place)
    elif first != second:
        yield at, _shown(first), _shown(second)


def match(
    first: EvalLog, second: EvalLog, names: tuple[str, str]
) -> tuple[list[tuple[EvalRow, EvalRow]], dict[str, tuple[str, ...]]]:
    """The rows that can be compared, in the first log's order, and the ids of the others by reason."""
    own, other = ({row.id: row for row in log.rows} for log in (first, second))
    left_out: dict[str, list[str]] = defaultdict(list)
    pairs = []
    for id, row in own.items():
        reason = f"only in {names[0]}" if id not in other else _unlike(row, other[id], names)
        if reason:
            left_out[reason].append(id)
        else:
            pairs.append((row, other[id]))
    for id in other:
        if id not in own:
            left_out[f"only in {names[1]}"].append(id)
    return pairs, {reason: tuple(ids) for reason, ids in sorted(left_out.items())}


class _Absent:
    def __str__(self) -> str:
        return "-"


_ABSENT = _Absent()


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    text = str(value) if isinstance(value, str | int | float | _Absent) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _asked(log: EvalLog) -> dict[str, Any]:
    """What goes into a version."""
    card = log.manifest.get("dataset")
    return {
        "benchmark": log.manifest.get("benchmark"),
        "rows": log.manifest.get("rows_digest"),
        "data set": card.get("version") if isinstance(card, dict) else None,
    }


def _unlike(first: EvalRow, second: EvalRow, names: tuple[str, str]) -> str:
    """Why two rows with one id cannot be compared, "" if they can."""
    if first.question != second.question or first.question_boxes != second.question_boxes:
        return "another question"
    if _truth(first) != _truth(second):
        return "another truth"
    hashes = [[image.sha256 for image in row.images] for row in (first, second)]
    if len(hashes[0]) != len(hashes[1]) or any(
        a is not None and b is not None and a != b for a, b in zip(*hashes, strict=True)
    ):
        return "another image"
    if first.patient_id != second.patient_id:
        return "another patient"
    for row, name in zip((first, second), names, strict=True):
        if row.error:
            return f"no answer of {name}"
    return ""


def _truth(row: EvalRow) -> tuple[Any, ...]:
    return row.truth, row.truth_boxes, row.answer_type, row.options, task_of(row)


class _Table:
    """The scores of two runs, the arms of which are `FIRST` and `SECOND`."""

    def __init__(
        self,
        matched: Sequence[tuple[EvalRow, EvalRow]],
        first: EvalLog,
        second: EvalLog,
        benchmark: Benchmark,
        *,
        rescored: bool,
    ) -> None:
        self.matched, self.benchmark = matched, benchmark
        self.rows = [row for row, _ in matched]
        self.clusters = clusters_of(self.rows)
        self.seed = seed_of(first)
        self.pools = self._pools(
            first.scores if first.scores else score_rows(self.rows, benchmark),
            score_rows((row for _, row in matched), benchmark)
            if rescored or not second.scores
            else second.scores,
        )

    def lines(self) -> list[PairedLine]:
        """All rows of an answer type, then each task, under every scorer."""
        return [
            self._line(scorer, kind, group, ids)
            for kind in ANSWER_TYPES
            for group, ids in self._groups(kind)
            for scorer in self.benchmark.scorers_of(kind)
        ]

    def subgroups(self, dataset: str) -> Iterator[PairedLine]:
        """The scorers that headline, over each group that the rows tell of but the tasks."""
        for kind in ANSWER_TYPES:
            rows = [row for row in self.rows if row.answer_type == kind]
            if rows:
                yield from corrected(
                    replace(
                        self._line(
                            self.benchmark.scorers_of(kind)[0],
                            kind,
                            "",
                            [row.id for row in rows if row.id in ids],
                        ),
                        dimension=dimension,
                        value=value,
                    )
                    for dimension, values in groups_of(rows, dataset).items()
                    if dimension != "question type"
                    for value, ids in values.items()
                )

    def pairs(self) -> Iterator[Pair]:
        """Every question, under the scorer that headlines it."""
        for first, second in self.matched:
            scorer = self.benchmark.scorers_of(first.answer_type)[0].name
            values = self.pools[scorer].values
            yield Pair(
                first, second, scorer, values.get((first.id, FIRST)), values.get((first.id, SECOND))
            )

    def _pools(self, first: Iterable[Score], second: Iterable[Score]) -> dict[str, Pool]:
        values: dict[str, dict[Place, float | None]] = defaultdict(dict)
        for arm, scores in ((FIRST, first), (SECOND, second)):
            for score in scores:
                if score.arm == MODEL and score.id in self.clusters:
                    values[score.scorer][score.id, arm] = score.value
        answers = {
            (row.id, arm): row
            for pair in self.matched
            for arm, row in zip((FIRST, SECOND), pair, strict=True)
        }
        resamples = self.benchmark.resamples
        return {
            scorer.name: pool_of(scorer, values[scorer.name], answers, resamples, self.seed)
            for scorers in self.benchmark.scorers.values()
            for scorer in scorers
        }

    def _groups(self, kind: AnswerType) -> list[tuple[str, list[str]]]:
        tasks: dict[str, list[str]] = defaultdict(list)
        for row in self.rows:
            if row.answer_type == kind:
                tasks[task_of(row)].append(row.id)
        if not tasks:
            return []
        every = [row.id for row in self.rows if row.answer_type == kind]
        one = len(tasks) == 1  # all of them would say the same again
        return [*([] if one else [("", every)]), *sorted(tasks.items())]

    def _line(self, scorer: Scorer, kind: AnswerType, group: str, ids: Sequence[str]) -> PairedLine:
        pool = self.pools[scorer.name]
        both = pool.scored_ids(FIRST) & pool.scored_ids(SECOND)
        compared = [id for id in ids if id in both]
        first: list[Place] = [(id, FIRST) for id in compared]
        second: list[Place] = [(id, SECOND) for id in compared]
        clusters = np.array([self.clusters[id] for id in compared], dtype=np.intp)
        patients = len(np.unique(clusters))
        line = PairedLine(
            scorer=scorer.name,
            answer_type=kind,
            group=group,
            n=len(compared),
            patients=patients,
            unscored=len(ids) - len(compared),
            lower_is_better=scorer.lower_is_better,
        )
        if not compared:
            return line
        tested = pool.tested(second, first, clusters)
        return replace(
            line,
            first=pool.point(first),
            second=pool.point(second),
            difference=tested.difference,
            p=tested.p,
            visible=tested.visible,
            note=_power(patients, tested.p, tested.visible),
        )


def _power(patients: int, p: float | None, visible: float | None) -> str:
    """What a reader must know of a test on few patients, "" with many."""
    if patients >= FEW_PATIENTS or p is None:
        return "" if patients > 1 else "one patient: no interval and no test"
    few = f"fewer than {FEWEST_PATIENTS} patients" if patients < FEWEST_PATIENTS else ""
    seen = "" if visible is None else f"differences below {visible:.2f} would mostly be missed"
    return "; ".join(part for part in (few, seen) if part)
