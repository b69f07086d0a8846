"""Tests of a difference, where the unit of chance is the patient, and what many tests at once need.

Sign flips: if two runs are alike, each patient's difference could as well have had the other sign (Fisher
1935; with one 0/1 score per patient it is McNemar's exact test). A score of all rows together is tested
by exchanging the two runs' answers of whole patients (approximate randomisation, Noreen 1989). A group
and the rest are different patients; their test flips the signs of each patient's share in the difference
(wild cluster score bootstrap with the null imposed, Kline and Santos 2012).
Equal input and seed give equal numbers: ties are decided on whole numbers.
Shapes: C clusters, R resamples, P permutations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medloupe.evaluate.statistics import CHUNK, Clustered, known, mean

FLIPS = 9_999
"""Permutations drawn where they are too many to be counted; the smallest p is then 1 / 10,000."""

VISIBLE = 1.959964 + 0.841621
"""Standard errors at which a two-sided test at 5 % finds a difference four times in five."""

_GRAIN = 720_720 * 4096  # differences of fractions up to sixteenths are whole numbers of this grain
_ENUMERATED = 14  # clusters whose 2^C signs are all tried
_LATTICE = 100_000_000  # steps in which the distribution of whole sums is worked out


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A line of a table of tests: p (two-sided), and what `holm` and `benjamini_hochberg` (q) make of it
    among all lines; None where nothing was tested."""

    p: float | None = None
    holm: float | None = None
    q: float | None = None


Line = TypeVar("Line", bound=Corrected)


def grains(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Differences of scores in whole numbers, so that equal ones are equal."""
    return np.rint(values * _GRAIN).astype(np.int64)


def cluster_sums(values: NDArray[np.int64], clusters: Clustered) -> NDArray[np.int64]:
    """`[C]` sums, exact."""
    sums = np.zeros(clusters.number, dtype=np.int64)
    np.add.at(sums, clusters.member, values)
    return sums


def sign_flip(sums: NDArray[np.int64], *, seed: int) -> float:
    """Two-sided p of the sum of `[C]` whole numbers if each could have had either sign.

    Exact where the signs or the possible sums are few, else over `FLIPS` random signs.
    """
    sizes = np.abs(sums[sums != 0])
    if not len(sizes):
        return 1.0
    step = int(np.gcd.reduce(sizes))
    sizes, seen = np.sort(sizes // step), abs(int(sums.sum())) // step
    if len(sizes) <= _ENUMERATED:
        return _enumerated(sizes, seen)
    if len(sizes) * int(sizes.sum()) <= _LATTICE:
        return _worked_out(sizes, seen)
    hits = sum(
        int(np.count_nonzero(np.abs(signs @ sizes.astype(np.float64)) >= seen))
        for signs in random_signs(len(sizes), FLIPS, seed)
    )
    return (1 + hits) / (1 + FLIPS)


def random_signs(clusters: int, permutations: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """-1 or +1, `[some, C]` at a time, P rows in all."""
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // clusters)
    for start in range(0, permutations, step):
        shape = (min(step, permutations - start), clusters)
        yield (2 * rng.integers(0, 2, size=shape, dtype=np.int8) - 1).astype(np.float64)


def exchanged(
    difference: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    clusters: int,
    *,
    seed: int,
    permutations: int,
) -> float:
    """Two-sided p of a difference if each cluster's answers could as well have been exchanged.

    `difference` takes `[P, C]`, 1 where they are and 0 where not, and gives `[P]`, NaN where there is
    none; such permutations count as no smaller than what was seen.
    """
    (seen,) = np.abs(difference(np.zeros((1, clusters), dtype=np.int64)))
    hits = 0
    for signs in random_signs(clusters, permutations, seed):
        found = np.abs(difference((signs < 0).astype(np.int64)))
        hits += int(np.count_nonzero(~(found < seen - 1e-12)))
    return (1 + hits) / (1 + permutations)


def beyond_zero(resampled: NDArray[np.float64]) -> float | None:
    """Two-sided p from resamples of a difference: how often they fall on the other side of 0."""
    found = known(resampled)
    if not len(found):
        return None
    tail = min(np.count_nonzero(found <= 0), np.count_nonzero(found >= 0))
    return min(1.0, 2 * (1 + int(tail)) / (1 + len(found)))


def standard_error(shares: NDArray[np.float64]) -> float:
    """Of a sum of `[C]` shares that patients have in a difference (cluster-robust, C / (C - 1))."""
    number = len(shares)
    squares = math.fsum(((shares - mean(shares)) ** 2).tolist())
    return math.sqrt(squares * number / (number - 1))


def visible(error: float | None) -> float | None:
    """The smallest true difference that a test at 5 % finds with 80 % probability, given the standard
    error; None where nothing varies."""
    return VISIBLE * error if error else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p corrected for all of them together (Holm 1979): below 5 %, the chance of one false find is."""
    order = _ranked(p_values)
    found: dict[int, float] = {}
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        found[index] = largest
    return [found.get(index) for index in range(len(p_values))]


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """q: the share of false finds to expect among all that are no larger (Benjamini and Hochberg 1995)."""
    order = _ranked(p_values)
    found: dict[int, float] = {}
    smallest = 1.0
    for rank, (p, index) in reversed(list(enumerate(order, start=1))):
        smallest = min(smallest, p * len(order) / rank)
        found[index] = smallest
    return [found.get(index) for index in range(len(p_values))]


def corrected(lines: Iterable[Line]) -> tuple[Line, ...]:
    """The lines, their p values corrected for all of them together."""
    found = list(lines)
    p_values = [line.p for line in found]
    both = zip(found, holm(p_values), benjamini_hochberg(p_values), strict=True)
    return tuple(replace(line, holm=p, q=q) for line, p, q in both)


def _ranked(p_values: Sequence[float | None]) -> list[tuple[float, int]]:
    return sorted((p, index) for index, p in enumerate(p_values) if p is not None)


def _enumerated(sizes: NDArray[np.int64], seen: int) -> float:
    sums = np.zeros(1, dtype=np.int64)
    for size in sizes:
        sums = np.concatenate([sums + size, sums - size])
    return int(np.count_nonzero(np.abs(sums) >= seen)) / len(sums)


def _worked_out(sizes: NDArray[np.int64], seen: int) -> float:
    """The distribution of the sum, one size after another; index `reach` stands for 0."""
    reach = int(sizes.sum())
    share = np.zeros(2 * reach + 1)
    share[reach] = 1.0
    for size in sizes.tolist():
        moved = np.zeros_like(share)
        moved[size:] += share[:-size] / 2
        moved[:-size] += share[size:] / 2
        share = moved
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, math.fsum(share[sums >= seen].tolist()))
