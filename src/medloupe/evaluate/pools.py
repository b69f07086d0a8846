"""How the rows of one scorer become one number: as a mean, by summing what they count, or as a set."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medloupe.evaluate.scorers.base import Collected, CorpusScorer, SetScorer
from medloupe.evaluate.statistics import (
    Estimate,
    Weighted,
    bootstrap_mean,
    bootstrap_set,
    bootstrap_total,
    paired_difference,
    paired_total_difference,
)
from medloupe.types import Arm, EvalRow

Place = tuple[str, Arm]
"""A row's id, and whose answer to it."""


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

    @abstractmethod
    def point(self, places: Sequence[Place]) -> float:
        """The score of some scored answers."""

    @abstractmethod
    def estimate(self, places: Sequence[Place], clusters: Sequence[str]) -> Estimate:
        """Their score with its interval; one cluster per place."""

    @abstractmethod
    def difference(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Sequence[str]
    ) -> Estimate:
        """The score of `own` minus that of `other`, which answer the same rows, with its interval."""


@dataclass(frozen=True, kw_only=True)
class Means(Pool):
    """Each row has a score of its own, and all count alike."""

    def point(self, places: Sequence[Place]) -> float:
        return math.fsum(self._values(places)) / len(places)

    def estimate(self, places: Sequence[Place], clusters: Sequence[str]) -> Estimate:
        return bootstrap_mean(
            self._values(places), clusters, resamples=self.resamples, seed=self.seed
        )

    def difference(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Sequence[str]
    ) -> Estimate:
        first, second = self._values(own), self._values(other)
        return paired_difference(first, second, clusters, resamples=self.resamples, seed=self.seed)

    def _values(self, places: Sequence[Place]) -> list[float]:
        return [value for place in places if (value := self.values[place]) is not None]


@dataclass(frozen=True, kw_only=True)
class Totals(Pool):
    """The rows' counts are summed and scored together."""

    scorer: CorpusScorer
    counts: Mapping[Place, tuple[int, ...]]

    def point(self, places: Sequence[Place]) -> float:
        return float(self.scorer.combine(self._counts(places).sum(axis=0)))

    def estimate(self, places: Sequence[Place], clusters: Sequence[str]) -> Estimate:
        return bootstrap_total(
            self._counts(places),
            clusters,
            self.scorer.combine,
            resamples=self.resamples,
            seed=self.seed,
        )

    def difference(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Sequence[str]
    ) -> Estimate:
        return paired_total_difference(
            self._counts(own),
            self._counts(other),
            clusters,
            self.scorer.combine,
            resamples=self.resamples,
            seed=self.seed,
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

    def estimate(self, places: Sequence[Place], clusters: Sequence[str]) -> Estimate:
        return self._bootstrap(self.collected(places).score, clusters)

    def difference(
        self, own: Sequence[Place], other: Sequence[Place], clusters: Sequence[str]
    ) -> Estimate:
        first, second = self.collected(own), self.collected(other)

        def gap(weights_RN: NDArray[np.int64]) -> NDArray[np.float64]:
            return first.score(weights_RN) - second.score(weights_RN)

        return self._bootstrap(gap, clusters)

    def parts(self, places: Sequence[Place], clusters: Sequence[str]) -> dict[str, Estimate]:
        """The scores of the parts of what the rows say, by name."""
        return {
            name: self._bootstrap(part.score, clusters)
            for name, part in self.collected(places).parts().items()
        }

    def collected(self, places: Sequence[Place]) -> Collected:
        return self.scorer.collect([self.rows[place] for place in places])

    def _bootstrap(self, score: Weighted, clusters: Sequence[str]) -> Estimate:
        return bootstrap_set(score, clusters, resamples=self.resamples, seed=self.seed)
