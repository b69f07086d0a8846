"""Estimates with intervals, where the unit of chance is the patient.

Questions about one patient share the patient, so resampling questions makes intervals too narrow:
whole clusters are drawn (Efron and Tibshirani 1993, percentile interval; Cameron, Gelbach and
Miller 2008 for clusters). Equal input and seed give equal numbers, on every machine.

How often each cluster is drawn depends on their number and the seed alone, so it is drawn once and kept;
a resample is then one row of a matrix product. Its terms are whole numbers below 2^53, which floats add
without rounding: neither the order of summing nor the number of threads changes a bit.

A score of a row is averaged; a score of all rows together (corpus BLEU) is no mean, so its counts are
summed over the drawn clusters and combined once per resample.
Shapes: N rows, K counts of a row, C clusters, R resamples.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
CHUNK = 2_000_000
"""Numbers of a matrix held at once: 16 MB."""

_KEPT_BYTES = 200_000_000  # of draws; the largest that is kept is a quarter of it
_WHOLE = 53  # floats hold every whole number below 2^53

Combine = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Summed counts `[..., K]` -> scores `[...]` in 0..1."""

Weighted = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""How often each row counts `[R, N]` -> scores `[R]`, NaN where there is none."""


class Estimate(NamedTuple):
    """A score and its interval; the ends are None where there is nothing to resample."""

    estimate: float | None
    low: float | None
    high: float | None


NOTHING = Estimate(None, None, None)


class Clustered(NamedTuple):
    """The number of each row's cluster, 0 to C - 1, and C; a cluster may have no row here."""

    member: NDArray[np.intp]
    number: int

    @classmethod
    def of(cls, clusters: Clusters) -> Clustered:
        """Number clusters by name; equal numbers of rows may come as names or as whole numbers."""
        if isinstance(clusters, Clustered):
            return clusters
        names, member = np.unique(np.asarray(clusters), return_inverse=True)
        return cls(member, len(names))


Clusters: TypeAlias = "Sequence[str] | NDArray[np.intp] | Clustered"
"""One name per row, or whole numbers in the order of the names."""


def bootstrap_mean(
    values: ArrayLike, clusters: Clusters, *, resamples: int = 2000, seed: int
) -> Estimate:
    """The mean of scores in 0..1 with the 95 % percentile interval over resampled clusters.

    Where every score is 0, or every one is 1, all resamples agree and the percentile interval has
    no width, however few patients stand behind it; its open end is then the exact binomial bound
    (Clopper and Pearson 1934) with one trial per cluster.
    """
    scores = np.asarray(values, dtype=np.float64)
    rows = Clustered.of(clusters)
    if rows.number > 1 and (np.all(scores == 0) or np.all(scores == 1)):
        return _open_end(float(scores[0]), rows.number)
    return _bootstrap(scores, rows, resamples, seed)


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: Clusters, *, resamples: int = 2000, seed: int
) -> Estimate:
    """The mean of `a - b`, sample by sample, with its interval; `a[i]` and `b[i]` are one sample."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert first.shape == second.shape, "a paired difference needs pairs"
    return _bootstrap(first - second, Clustered.of(clusters), resamples, seed)


def bootstrap_total(
    counts_NK: NDArray[np.int64],
    clusters: Clusters,
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
    rows = Clustered.of(clusters)
    assert len(counts_NK) == len(rows.member), "one cluster per row of counts"
    if not rows.number:
        return NOTHING
    estimate = float(combine(counts_NK.sum(axis=0)))
    if rows.number < 2:
        return Estimate(estimate, None, None)
    scores_R = combine(resampled_totals(counts_NK, rows, resamples=resamples, seed=seed))
    whole = round(estimate, 6)
    if whole in (0, 1) and np.allclose(scores_R, whole, rtol=0, atol=1e-6):
        return _open_end(whole, rows.number)._replace(estimate=estimate)
    return percentiles(estimate, scores_R)


def paired_total_difference(
    a_NK: NDArray[np.int64],
    b_NK: NDArray[np.int64],
    clusters: Clusters,
    combine: Combine,
    *,
    resamples: int = 2000,
    seed: int,
) -> Estimate:
    """`bootstrap_total` of `a` minus that of `b`; both sides of a resample are the same clusters."""
    assert a_NK.shape == b_NK.shape, "a paired difference needs pairs"
    rows = Clustered.of(clusters)
    if not rows.number:
        return NOTHING
    estimate = float(combine(a_NK.sum(axis=0)) - combine(b_NK.sum(axis=0)))
    if rows.number < 2:
        return Estimate(estimate, None, None)
    both = np.hstack([a_NK, b_NK])
    a_RK, b_RK = np.hsplit(resampled_totals(both, rows, resamples=resamples, seed=seed), 2)
    return percentiles(estimate, combine(a_RK) - combine(b_RK))


def bootstrap_set(
    score: Weighted, clusters: Clusters, *, resamples: int = 2000, seed: int
) -> Estimate:
    """The score of all rows together with its 95 % percentile interval over resampled clusters; from
    those resamples that are `known` (in others no positive row was drawn, ...)."""
    rows = Clustered.of(clusters)
    if not rows.number:
        return NOTHING
    (estimate,) = score(np.ones((1, len(rows.member)), dtype=np.int64)).tolist()
    if math.isnan(estimate):
        return NOTHING
    if rows.number < 2:
        return Estimate(estimate, None, None)
    scores_R = resampled_scores(score, rows, resamples=resamples, seed=seed)
    return percentiles(estimate, scores_R)


def resampled_scores(
    score: Weighted, clusters: Clusters, *, resamples: int, seed: int
) -> NDArray[np.float64]:
    """`[R]` scores of the rows of the drawn clusters, NaN where there is none."""
    weights = resampled_weights(clusters, resamples=resamples, seed=seed)
    return np.concatenate([_scored(score, weights_RN) for weights_RN in weights])


def _scored(score: Weighted, weights_RN: NDArray[np.int64]) -> NDArray[np.float64]:
    """NaN where no row is drawn. A score is asked of as many resamples still: of a matrix of another
    shape, products may round otherwise."""
    none_R = weights_RN.sum(axis=1) == 0
    if not none_R.any():
        return score(weights_RN)
    return np.where(none_R, np.nan, score(np.where(none_R[:, None], 1, weights_RN)))


def resampled_weights(
    clusters: Clusters, *, resamples: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """How often each row is drawn when clusters are, `[some, N]` at a time, R rows in all."""
    rows = Clustered.of(clusters)
    step = max(1, CHUNK // max(1, len(rows.member)))
    for times in _times(rows.number, resamples, seed):
        for start in range(0, len(times), step):
            yield times[start : start + step, rows.member].astype(np.int64)


def resampled_means(
    values: NDArray[np.float64], clusters: Clusters, *, resamples: int, seed: int
) -> NDArray[np.float64]:
    """`[R]` means, each over as many clusters as there are, drawn with replacement.

    Correctly rounded sums over the drawn rows, each divided by their number; NaN where none was drawn.
    """
    rows = Clustered.of(clusters)
    sizes = np.bincount(rows.member, minlength=rows.number)
    terms = _whole_parts(values, rows)
    columns = np.stack([*(column for column, _ in terms), sizes.astype(np.float64)], axis=1)
    drawn = _products(columns, rows.number, resamples, seed)
    parts = (np.ldexp(drawn[:, i], -shift) for i, (_, shift) in enumerate(terms))
    totals = sum(parts, start=np.zeros(len(drawn)))
    with np.errstate(invalid="ignore"):
        return np.asarray(totals / drawn[:, -1])


def resampled_totals(
    counts_NK: NDArray[np.int64], clusters: Clusters, *, resamples: int, seed: int
) -> NDArray[np.int64]:
    """`[R, K]` sums of counts over the clusters that `resampled_means` draws."""
    rows = Clustered.of(clusters)
    sums_CK = np.zeros((rows.number, counts_NK.shape[1]), dtype=np.int64)
    np.add.at(sums_CK, rows.member, counts_NK)
    most = int(np.abs(sums_CK).max(initial=0)) * rows.number
    assert most < 1 << _WHOLE, f"counts of up to {most} are not added exactly"
    return _products(sums_CK.astype(np.float64), rows.number, resamples, seed).astype(np.int64)


def percentiles(estimate: float, resampled: NDArray[np.float64]) -> Estimate:
    """The interval between the outer quantiles of the resamples that are `known`."""
    found = known(resampled)
    if not len(found):
        return Estimate(estimate, None, None)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(estimate, float(low), float(high))


def known(resampled: NDArray[np.float64]) -> NDArray[np.float64]:
    """The resamples that are not NaN; none of them where they are fewer than half."""
    found = resampled[~np.isnan(resampled)]
    return found if 2 * len(found) >= len(resampled) else found[:0]


def mean(values: NDArray[np.float64]) -> float:
    """The correctly rounded sum, divided: the same in any order."""
    return math.fsum(values.tolist()) / len(values)


def _bootstrap(values: NDArray[np.float64], rows: Clustered, resamples: int, seed: int) -> Estimate:
    assert len(values) == len(rows.member), "one cluster per value"
    if len(values) == 0:
        return NOTHING
    estimate = mean(values)
    if rows.number < 2:
        return Estimate(estimate, None, None)
    return percentiles(estimate, resampled_means(values, rows, resamples=resamples, seed=seed))


def _open_end(estimate: float, clusters: int) -> Estimate:
    """0 or 1 in every cluster, with the exact binomial bound on the other side."""
    tail: float = ((1 - LEVEL) / 2) ** (1 / clusters)
    return Estimate(1.0, tail, 1.0) if estimate == 1 else Estimate(0.0, 0.0, 1 - tail)


def _whole_parts(
    values: NDArray[np.float64], rows: Clustered
) -> list[tuple[NDArray[np.float64], int]]:
    """Sums per cluster as (whole numbers `[C]`, s), the value being their sum over 2^s; what the first
    leaves over is in the second.

    Every sum over C drawn clusters stays below 2^53, so it is exact. Two parts hold a value in 0..1 of
    10,000 rows to 2^-75.
    """
    largest = int(np.bincount(rows.member, minlength=1).max())
    rest, parts = np.asarray(values, dtype=np.float64), []
    for _ in range(2):
        bound = float(np.abs(rest).max(initial=0.0)) * largest * rows.number
        if not bound:
            break
        shift = _WHOLE - 1 - math.frexp(bound)[1]
        whole = np.rint(np.ldexp(rest, shift))
        rest = rest - np.ldexp(whole, -shift)
        sums = np.bincount(rows.member, weights=whole, minlength=rows.number).astype(np.float64)
        parts.append((sums, shift))
    return parts


def _products(
    columns_CK: NDArray[np.float64], clusters: int, resamples: int, seed: int
) -> NDArray[np.float64]:
    """`[R, K]`: the columns summed over the drawn clusters."""
    return np.concatenate(
        [times.astype(np.float64) @ columns_CK for times in _times(clusters, resamples, seed)]
    )


class _Kept:
    """Draws that were made, the latest used last; they are the same for all scorers, tasks and arms
    with as many clusters."""

    def __init__(self) -> None:
        self._draws: OrderedDict[tuple[int, int, int], list[NDArray[np.unsignedinteger]]] = (
            OrderedDict()
        )
        self._bytes = 0

    def get(self, key: tuple[int, int, int]) -> list[NDArray[np.unsignedinteger]] | None:
        if key in self._draws:
            self._draws.move_to_end(key)
        return self._draws.get(key)

    def put(self, key: tuple[int, int, int], blocks: list[NDArray[np.unsignedinteger]]) -> None:
        self._draws[key] = blocks
        self._bytes += sum(block.nbytes for block in blocks)
        while self._bytes > _KEPT_BYTES:
            _, oldest = self._draws.popitem(last=False)
            self._bytes -= sum(block.nbytes for block in oldest)


_KEPT = _Kept()


def _times(clusters: int, resamples: int, seed: int) -> Iterator[NDArray[np.unsignedinteger]]:
    """How often each cluster is drawn, `[some, C]` at a time, R rows in all."""
    key = (clusters, resamples, seed)
    kept = _KEPT.get(key)
    if kept is not None:
        yield from kept
        return
    kind = np.min_scalar_type(clusters)
    keep = clusters * resamples * kind.itemsize <= _KEPT_BYTES // 4
    blocks = []
    for drawn in _draws(clusters, resamples, seed):
        places = drawn + np.arange(len(drawn))[:, None] * clusters
        times = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(kind)
        if keep:
            blocks.append(times)
        yield times
    if keep:
        _KEPT.put(key, blocks)


def _draws(clusters: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Cluster numbers drawn with replacement, `[some, C]` at a time, R rows in all."""
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // clusters)
    for start in range(0, resamples, step):
        yield rng.integers(0, clusters, size=(min(step, resamples - start), clusters))
