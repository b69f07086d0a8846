"""Estimates with intervals, where the unit of chance is the patient.

Questions about one patient share the patient, so resampling questions makes intervals too narrow:
whole clusters are drawn (Efron and Tibshirani 1993, percentile interval; Cameron, Gelbach and
Miller 2008 for clusters). Equal input and seed give equal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
_CHUNK = 2_000_000  # drawn cluster indices held at once: 16 MB


class Estimate(NamedTuple):
    """A mean and its interval; the ends are None where there is nothing to resample."""

    estimate: float | None
    low: float | None
    high: float | None


def bootstrap_mean(
    values: ArrayLike, clusters: Sequence[str], *, resamples: int = 2000, seed: int
) -> Estimate:
    """The mean of scores in 0..1 with the 95 % percentile interval over resampled clusters.

    Where every score is 0, or every one is 1, all resamples agree and the percentile interval has
    no width, however few patients stand behind it; its open end is then the exact binomial bound
    (Clopper and Pearson 1934) with one trial per cluster.
    """
    scores = np.asarray(values, dtype=np.float64)
    found = _bootstrap(scores, clusters, resamples, seed)
    if found.estimate is None or not (np.all(scores == 0) or np.all(scores == 1)):
        return found
    tail = ((1 - LEVEL) / 2) ** (1 / len(set(clusters)))
    return Estimate(1.0, tail, 1.0) if scores[0] == 1 else Estimate(0.0, 0.0, 1 - tail)


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: Sequence[str], *, resamples: int = 2000, seed: int
) -> Estimate:
    """The mean of `a - b`, sample by sample, with its interval; `a[i]` and `b[i]` are one sample."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert first.shape == second.shape, "a paired difference needs pairs"
    return _bootstrap(first - second, clusters, resamples, seed)


def resampled_means(
    values: NDArray[np.float64], clusters: Sequence[str], *, resamples: int, seed: int
) -> NDArray[np.float64]:
    """`[resamples]` means, each over as many clusters as there are, drawn with replacement."""
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(member, weights=values, minlength=len(names))
    sizes = np.bincount(member, minlength=len(names))
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _CHUNK // len(names))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.integers(0, len(names), size=(count, len(names)))
        means[start : start + count] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def _bootstrap(
    values: NDArray[np.float64], clusters: Sequence[str], resamples: int, seed: int
) -> Estimate:
    assert len(values) == len(clusters), "one cluster per value"
    if len(values) == 0:
        return Estimate(None, None, None)
    estimate = float(values.mean())
    if len(set(clusters)) < 2:
        return Estimate(estimate, None, None)
    means = resampled_means(values, clusters, resamples=resamples, seed=seed)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(estimate, float(low), float(high))
