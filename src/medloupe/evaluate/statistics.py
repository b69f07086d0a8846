"""Estimates with intervals, where the unit of chance is the patient.

Questions about one patient share the patient, so resampling questions makes intervals too narrow:
whole clusters are drawn (Efron and Tibshirani 1993, percentile interval; Cameron, Gelbach and
Miller 2008 for clusters). Equal input and seed give equal numbers.

A score of a row is averaged; a score of all rows together (corpus BLEU) is no mean, so its counts are
summed over the drawn clusters and combined once per resample. Counts are integers: their sums are
exact in any order.
Shapes: N rows, K counts of a row, C clusters, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
_CHUNK = 2_000_000  # drawn cluster indices held at once: 16 MB

Combine = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Summed counts `[..., K]` -> scores `[...]` in 0..1."""


class Estimate(NamedTuple):
    """A score and its interval; the ends are None where there is nothing to resample."""

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
    return _open_end(float(scores[0]), clusters)


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: Sequence[str], *, resamples: int = 2000, seed: int
) -> Estimate:
    """The mean of `a - b`, sample by sample, with its interval; `a[i]` and `b[i]` are one sample."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert first.shape == second.shape, "a paired difference needs pairs"
    return _bootstrap(first - second, clusters, resamples, seed)


def bootstrap_total(
    counts_NK: NDArray[np.int64],
    clusters: Sequence[str],
    combine: Combine,
    *,
    resamples: int = 2000,
    seed: int,
) -> Estimate:
    """The score of all rows together with its 95 % percentile interval over resampled clusters.

    Where every resample scores 0, or every one 1 (but for a millionth, the guards of some formulas), the
    open end is the same bound as a mean's: the share of clusters that could be otherwise, each counted
    alike.
    """
    assert len(counts_NK) == len(clusters), "one cluster per row of counts"
    if not clusters:
        return Estimate(None, None, None)
    estimate = float(combine(counts_NK.sum(axis=0)))
    if len(set(clusters)) < 2:
        return Estimate(estimate, None, None)
    scores_R = combine(resampled_totals(counts_NK, clusters, resamples=resamples, seed=seed))
    whole = round(estimate, 6)
    if whole in (0, 1) and np.allclose(scores_R, whole, rtol=0, atol=1e-6):
        return _open_end(whole, clusters)._replace(estimate=estimate)
    return _between(estimate, scores_R)


def paired_total_difference(
    a_NK: NDArray[np.int64],
    b_NK: NDArray[np.int64],
    clusters: Sequence[str],
    combine: Combine,
    *,
    resamples: int = 2000,
    seed: int,
) -> Estimate:
    """`bootstrap_total` of `a` minus that of `b`; both sides of a resample are the same clusters."""
    assert a_NK.shape == b_NK.shape, "a paired difference needs pairs"
    if not clusters:
        return Estimate(None, None, None)
    estimate = float(combine(a_NK.sum(axis=0)) - combine(b_NK.sum(axis=0)))
    if len(set(clusters)) < 2:
        return Estimate(estimate, None, None)
    both = np.hstack([a_NK, b_NK])
    a_RK, b_RK = np.hsplit(resampled_totals(both, clusters, resamples=resamples, seed=seed), 2)
    return _between(estimate, combine(a_RK) - combine(b_RK))


def resampled_means(
    values: NDArray[np.float64], clusters: Sequence[str], *, resamples: int, seed: int
) -> NDArray[np.float64]:
    """`[R]` means, each over as many clusters as there are, drawn with replacement."""
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(member, weights=values, minlength=len(names))
    sizes = np.bincount(member, minlength=len(names))
    means = [
        sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
        for drawn in _draws(len(names), resamples, seed)
    ]
    return np.concatenate(means)


def resampled_totals(
    counts_NK: NDArray[np.int64], clusters: Sequence[str], *, resamples: int, seed: int
) -> NDArray[np.int64]:
    """`[R, K]` sums of counts over the clusters that `resampled_means` draws."""
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    sums_CK = np.zeros((len(names), counts_NK.shape[1]), dtype=np.int64)
    np.add.at(sums_CK, member, counts_NK)
    totals = []
    for drawn in _draws(len(names), resamples, seed):
        places = drawn + np.arange(len(drawn))[:, None] * len(names)
        times = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape)
        totals.append(times @ sums_CK)
    return np.concatenate(totals)


def _draws(clusters: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Cluster numbers drawn with replacement, `[some, C]` at a time, R rows in all."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // clusters)
    for start in range(0, resamples, step):
        yield rng.integers(0, clusters, size=(min(step, resamples - start), clusters))


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
    return _between(estimate, means)


def _between(estimate: float, resampled: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(estimate, float(low), float(high))


def _open_end(estimate: float, clusters: Sequence[str]) -> Estimate:
    """0 or 1 in every cluster, with the exact binomial bound on the other side."""
    tail: float = ((1 - LEVEL) / 2) ** (1 / len(set(clusters)))
    return Estimate(1.0, tail, 1.0) if estimate == 1 else Estimate(0.0, 0.0, 1 - tail)
