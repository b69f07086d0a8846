"""Finished runs -> estimates and verdicts, with intervals over patients and seeds at once.

Patients and seeds are crossed: every seed answers for every patient. A resample draws patients with
replacement and seeds with replacement, and the mean is over the answers in both (Owen 2007, the
pigeonhole bootstrap). Of three seeds that is a rough measure, but one of patients alone would say that
another start of the same training cannot matter.
Shapes: P patients, S seeds, R resamples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medloupe.evaluate.benchmark import cluster_of
from medloupe.evaluate.statistics import LEVEL, Estimate
from medloupe.reproduce.grid import Claim, Grid, Measure
from medloupe.types import Arm, EvalLog

Verdict = Literal["agrees", "differs", "undecided", "not measured"]
Logs = Mapping[tuple[str, int], EvalLog]
"""By row label and seed."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A measure of one row: `sums_PS` of its scores and how many they are, `counts_PS`."""

    patients: tuple[str, ...]
    sums_PS: NDArray[np.float64]
    counts_PS: NDArray[np.float64]

    @property
    def mean(self) -> float:
        return float(self.sums_PS.sum() / self.counts_PS.sum())


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a row scored in one measure; `per_seed` in the order of the seeds."""

    label: str
    measure: str
    estimate: Estimate
    per_seed: tuple[float, ...]
    patients: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the runs say to a claim in one measure; `difference` is first minus second."""

    claim: Claim
    measure: str
    difference: Estimate
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of a grid's results. `majority` is what the most frequent training answers score."""

    grid: Grid
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    answers: tuple[Answer, ...]
    majority: Mapping[str, float]

    def cell(self, label: str, measure: str) -> Cell | None:
        """The one at that place; None where the row's runs have no score there."""
        for cell in self.cells:
            if (cell.label, cell.measure) == (label, measure):
                return cell
        return None


def compare(grid: Grid, logs: Logs, seeds: Sequence[int]) -> Comparison:
    """Estimates of every row with all of `seeds`, verdicts where both rows of a claim have them."""
    done = [r.label for r in grid.rows if all((r.label, seed) in logs for seed in seeds)]
    scored = {
        (label, measure.label): found
        for label in done
        for measure in grid.measures
        if (found := _scored([logs[label, seed] for seed in seeds], measure, "model")) is not None
    }
    majority: dict[str, float] = {}
    for measure, label in product(grid.measures, done):  # not every row is asked everything
        found = _scored([logs[label, seeds[0]]], measure, "majority")
        if found is not None:
            majority.setdefault(measure.label, found.mean)
    return Comparison(
        grid=grid,
        seeds=tuple(seeds),
        cells=tuple(_cell(*place, found, grid.resamples) for place, found in scored.items()),
        answers=tuple(
            _answer(claim, measure.label, scored, grid.resamples)
            for claim in grid.claims
            for measure in grid.measures
        ),
        majority=majority,
    )


def crossed_means(scored: Scored, resamples: int) -> NDArray[np.float64]:
    """`[R]` means over patients and seeds drawn with replacement; equal shapes draw equally, so the
    means of two rows are paired."""
    patients, seeds = scored.sums_PS.shape
    rng = np.random.default_rng(0)
    drawn_RP = rng.multinomial(patients, np.full(patients, 1 / patients), resamples)
    drawn_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
    sums_R = ((drawn_RP @ scored.sums_PS) * drawn_RS).sum(1)
    counts_R = ((drawn_RP @ scored.counts_PS) * drawn_RS).sum(1)
    means: NDArray[np.float64] = sums_R / np.maximum(counts_R, 1)
    return means


def _scored(logs: Sequence[EvalLog], measure: Measure, arm: Arm) -> Scored | None:
    """The rows that were scored under every seed."""
    values: dict[str, list[float]] = defaultdict(list)
    patient: dict[str, str] = {}
    for log in logs:
        for row in log.rows:
            if row.task in measure.tasks:
                uris = [image.uri for image in row.images]
                patient[row.id] = cluster_of(row.id, row.patient_id, uris)
        for score in log.scores:
            asked = score.scorer == measure.scorer and score.arm == arm and score.id in patient
            if asked and score.value is not None:
                values[score.id].append(score.value)
    whole = sorted(id for id, found in values.items() if len(found) == len(logs))
    if not whole:
        return None
    patients = sorted({patient[id] for id in whole})
    place = {name: number for number, name in enumerate(patients)}
    sums_PS = np.zeros((len(patients), len(logs)))
    counts_PS = np.zeros_like(sums_PS)
    for id in whole:
        sums_PS[place[patient[id]]] += values[id]
        counts_PS[place[patient[id]]] += 1
    return Scored(patients=tuple(patients), sums_PS=sums_PS, counts_PS=counts_PS)


def _cell(label: str, measure: str, scored: Scored, resamples: int) -> Cell:
    return Cell(
        label=label,
        measure=measure,
        estimate=_interval(scored.mean, crossed_means(scored, resamples), scored),
        per_seed=tuple((scored.sums_PS.sum(0) / scored.counts_PS.sum(0)).tolist()),
        patients=len(scored.patients),
        rows=int(scored.counts_PS[:, 0].sum()),
    )


def _answer(
    claim: Claim, measure: str, scored: Mapping[tuple[str, str], Scored], resamples: int
) -> Answer:
    first, second = scored.get((claim.first, measure)), scored.get((claim.second, measure))
    if first is None or second is None or first.patients != second.patients:
        nothing = Estimate(None, None, None)
        return Answer(claim=claim, measure=measure, difference=nothing, verdict="not measured")
    means_R = crossed_means(first, resamples) - crossed_means(second, resamples)
    found = _interval(first.mean - second.mean, means_R, first)
    return Answer(claim=claim, measure=measure, difference=found, verdict=judge(claim, found))


def judge(claim: Claim, difference: Estimate) -> Verdict:
    """ "agrees" and "differs" only where the whole interval says so. A claim of no more is met by any
    interval that is not wholly above 0."""
    if difference.low is None or difference.high is None:
        return "undecided"
    if claim.says == "no more":
        return "differs" if difference.low > 0 else "agrees"
    if difference.low > 0:
        return "agrees"
    return "differs" if difference.high < 0 else "undecided"


def _interval(estimate: float, means_R: NDArray[np.float64], scored: Scored) -> Estimate:
    if len(scored.patients) < 2:
        return Estimate(estimate, None, None)
    low, high = np.quantile(means_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(estimate, float(low), float(high))
