"""How the rows of one scorer become one number: as a mean, by summing what they count, or as a set."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medloupe.evaluate import significance
from medloupe.evaluate.scorers.base import Collected, CorpusScorer, SetScorer
from medloupe.evaluate.statistics import (
    NOTHING,
    Clustered,
    Clusters,
    Estimate,
    Weighted,
    bootstrap_mean,
    bootstrap_set,
    bootstrap_total,
    known,
    mean,
    paired_difference,
    paired_total_difference,
    percentiles,
    resampled_means,
    resampled_scores,
    resampled_totals,
)
from medloupe.types import Arm, EvalRow

Place = tuple[str, Arm]
"""A row's id, and whose answer to it."""

_SET_PERMUTATIONS = 999  # each sorts all rows anew


class Tested(NamedTuple):
    """A difference with its interval, p (two-sided), and the smallest difference that the data would
    show four times in five; None where there is too little for it."""

    difference: Estimate
    p: float | None = None
    visible: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pool(ABC):
    """All that one scorer made of a run; `values` is None where an answer could not be scored."""

    values: Mapping[Place, float | None]
    resamples: int
    seed: int

    def answered(self, place: Place) -> bool:
        """Did that arm answer the row at all?"""
        return place in self.values

    def scored(self, place: Place) -> bool:
        return self.values.get(place) is not None

    def scored_ids(self, arm: Arm) -> AbstractSet[str]:
        """The rows of which the arm's answer has a score."""
        return self._scored.get(arm, {}).keys()

    @cached_property
    def _scored(self) -> dict[Arm, dict[str, float]]:
        found: dict[Arm, dict[str, float]] = {}
        for (id, arm), value in self.values.items():
            if value is not None:
                found.setdefault(arm, {})[id] = value
        return found

    @abstractmethod
    def point(self, places: Sequence[Place]) -> float:
        """The score of some scored answers."""

    @abstractmethod
    def estimate(self, places: Sequence[Place], clusters: Clusters) -> Estimate:
        """Their score with its interval; one cluster per place."""

    @abstractmethod
    def difference(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Clusters
    ) -> Estimate:
        """The score of `own` minus that of `other`, which answer the same rows, with its interval."""

    @abstractmethod
    def resampled(self, places: Sequence[Place], clusters: Clustered) -> NDArray[np.float64]:
        """`[R]` scores over drawn clusters, NaN where none of the places is drawn."""

    @abstractmethod
    def _exchanged(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Clustered
    ) -> float:
        """p if the two answered alike."""

    def tested(self, own: Sequence[Place], other: Sequence[Place], clusters: Clusters) -> Tested:
        """`difference`, tested."""
        rows = Clustered.of(clusters)
        found = self.difference(own, other, rows)
        if found.estimate is None or rows.number < 2:
            return Tested(found)
        error = self._error(own, other, rows)
        return Tested(found, self._exchanged(own, other, rows), significance.visible(error))

    def contrasted(
        self, inside: Sequence[Place], outside: Sequence[Place], clusters: Clusters
    ) -> Tested:
        """The score of some answers minus that of others, tested; `clusters` are of both in turn, and a
        patient with answers on both sides is drawn with both."""
        rows = Clustered.of(clusters)
        if not inside or not outside:
            return Tested(NOTHING)
        gap = self.point(inside) - self.point(outside)
        if rows.number < 2 or math.isnan(gap):
            return Tested(Estimate(None if math.isnan(gap) else gap, None, None))
        first = rows._replace(member=rows.member[: len(inside)])
        second = rows._replace(member=rows.member[len(inside) :])
        gaps_R = self.resampled(inside, first) - self.resampled(outside, second)
        found = percentiles(gap, gaps_R)
        if found.low is None:
            return Tested(found)
        p = self._apart(inside, outside, rows, gaps_R)
        return Tested(found, p, significance.visible(float(np.nanstd(gaps_R, ddof=1))))

    def _error(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Clustered
    ) -> float | None:
        gaps_R = self.resampled(own, clusters) - self.resampled(other, clusters)
        found = known(gaps_R)
        return float(found.std(ddof=1)) if len(found) else None

    def _apart(
        self,
        inside: Sequence[Place],  # noqa: ARG002
        outside: Sequence[Place],  # noqa: ARG002
        clusters: Clustered,  # noqa: ARG002
        gaps_R: NDArray[np.float64],
    ) -> float | None:
        """p if a group and the rest were alike."""
        return significance.beyond_zero(gaps_R)


@dataclass(frozen=True, kw_only=True)
class Means(Pool):
    """Each row has a score of its own, and all count alike."""

    def point(self, places: Sequence[Place]) -> float:
        return mean(np.array(self._values(places)))

    def estimate(self, places: Sequence[Place], clusters: Clusters) -> Estimate:
        return bootstrap_mean(
            self._values(places), clusters, resamples=self.resamples, seed=self.seed
        )

    def difference(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Clusters
    ) -> Estimate:
        first, second = self._values(own), self._values(other)
        return paired_difference(first, second, clusters, resamples=self.resamples, seed=self.seed)

    def resampled(self, places: Sequence[Place], clusters: Clustered) -> NDArray[np.float64]:
        values = np.array(self._values(places))
        return resampled_means(values, clusters, resamples=self.resamples, seed=self.seed)

    def _exchanged(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Clustered
    ) -> float:
        sums = significance.cluster_sums(significance.grains(self._gaps(own, other)), clusters)
        return significance.sign_flip(sums, seed=self.seed)

    def _error(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Clustered
    ) -> float | None:
        gaps = self._gaps(own, other)
        centred = gaps - mean(gaps)
        shares = np.bincount(clusters.member, weights=centred, minlength=clusters.number)
        return significance.standard_error(shares / len(gaps))

    def _apart(
        self,
        inside: Sequence[Place],
        outside: Sequence[Place],
        clusters: Clustered,
        gaps_R: NDArray[np.float64],  # noqa: ARG002
    ) -> float | None:
        """Each patient's share in the difference, with the mean of all rows as the common one."""
        values = np.array(self._values([*inside, *outside]))
        centred = values - mean(values)
        centred[: len(inside)] /= len(inside)
        centred[len(inside) :] /= -len(outside)
        shares = np.bincount(clusters.member, weights=centred, minlength=clusters.number)
        largest = float(np.abs(shares).max())
        whole = np.rint(shares / largest * 2.0**32) if largest else shares
        return significance.sign_flip(whole.astype(np.int64), seed=self.seed)

    def _gaps(self, own: Sequence[Place], other: Sequence[Place]) -> NDArray[np.float64]:
        gaps: NDArray[np.float64] = np.array(self._values(own)) - np.array(self._values(other))
        return gaps

    def _values(self, places: Sequence[Place]) -> list[float]:
        return [self._scored[arm][id] for id, arm in places]


@dataclass(frozen=True, kw_only=True)
class Totals(Pool):
    """The rows' counts are summed and scored together."""

    scorer: CorpusScorer
    counts: Mapping[Place, tuple[int, ...]]

    def point(self, places: Sequence[Place]) -> float:
        return float(self.scorer.combine(self._counts(places).sum(axis=0)))

    def estimate(self, places: Sequence[Place], clusters: Clusters) -> Estimate:
        return bootstrap_total(
            self._counts(places),
            clusters,
            self.scorer.combine,
            resamples=self.resamples,
            seed=self.seed,
        )

    def difference(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Clusters
    ) -> Estimate:
        return paired_total_difference(
            self._counts(own),
            self._counts(other),
            clusters,
            self.scorer.combine,
            resamples=self.resamples,
            seed=self.seed,
        )

    def resampled(self, places: Sequence[Place], clusters: Clustered) -> NDArray[np.float64]:
        counts_NK = self._counts(places)
        counts_NK = np.hstack([counts_NK, np.ones((len(counts_NK), 1), dtype=np.int64)])
        totals_RK = resampled_totals(counts_NK, clusters, resamples=self.resamples, seed=self.seed)
        scores_R: NDArray[np.float64] = self.scorer.combine(totals_RK[:, :-1])
        scores_R[totals_RK[:, -1] == 0] = np.nan
        return scores_R

    def _exchanged(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Clustered
    ) -> float:
        own_NK, other_NK = self._counts(own), self._counts(other)
        gaps_CK = np.zeros((clusters.number, own_NK.shape[1]), dtype=np.int64)
        np.add.at(gaps_CK, clusters.member, other_NK - own_NK)
        first, second = own_NK.sum(axis=0), other_NK.sum(axis=0)

        def difference(moved_PC: NDArray[np.int64]) -> NDArray[np.float64]:
            # whole numbers below 2^53, as floats for the sake of speed
            moved = (moved_PC.astype(np.float64) @ gaps_CK.astype(np.float64)).astype(np.int64)
            return self.scorer.combine(first + moved) - self.scorer.combine(second - moved)

        return significance.exchanged(
            difference, clusters.number, seed=self.seed, permutations=significance.FLIPS
        )

    def _counts(self, places: Sequence[Place]) -> NDArray[np.int64]:
        return np.array([self.counts[place] for place in places], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Sets(Pool):
    """The rows are scored together, under the weights of each resample."""

    scorer: SetScorer
    rows: Mapping[Place, EvalRow]

    def point(self, places: Sequence[Place]) -> float:
        return float(self.collected(places).score(np.ones((1, len(places)), dtype=np.int64))[0])

    def estimate(self, places: Sequence[Place], clusters: Clusters) -> Estimate:
        return self._bootstrap(self.collected(places).score, clusters)

    def difference(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Clusters
    ) -> Estimate:
        first, second = self.collected(own), self.collected(other)

        def gap(weights_RN: NDArray[np.int64]) -> NDArray[np.float64]:
            return first.score(weights_RN) - second.score(weights_RN)

        return self._bootstrap(gap, clusters)

    def parts(self, places: Sequence[Place], clusters: Clusters) -> dict[str, Estimate]:
        """The scores of the parts of what the rows say, by name."""
        return {
            name: self._bootstrap(part.score, clusters)
            for name, part in self.collected(places).parts().items()
        }

    def resampled(self, places: Sequence[Place], clusters: Clustered) -> NDArray[np.float64]:
        score = self.collected(places).score
        return resampled_scores(score, clusters, resamples=self.resamples, seed=self.seed)

    def collected(self, places: Sequence[Place]) -> Collected:
        return self.scorer.collect([self.rows[place] for place in places])

    def _exchanged(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Clustered
    ) -> float:
        both = self.collected([*own, *other])

        def difference(moved_PC: NDArray[np.int64]) -> NDArray[np.float64]:
            moved_PN = moved_PC[:, clusters.member]
            first = both.score(np.hstack([1 - moved_PN, moved_PN]))
            return first - both.score(np.hstack([moved_PN, 1 - moved_PN]))

        return significance.exchanged(
            difference, clusters.number, seed=self.seed, permutations=_SET_PERMUTATIONS
        )

    def _bootstrap(self, score: Weighted, clusters: Clusters) -> Estimate:
        return bootstrap_set(score, clusters, resamples=self.resamples, seed=self.seed)
