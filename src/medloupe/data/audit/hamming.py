"""All pairs of 64-bit hashes within a Hamming radius, without comparing all with all.

Multi-index hashing (Norouzi, Punjani and Fleet 2012): cut a hash into m bands; two hashes within
radius r agree in at least one band up to floor(r / m) bits. Hashes are filed by the value of each
band, and a query looks only into the drawers near its own. The number of bands follows the number of
hashes, so that a drawer holds few.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]

_BITS = 64
# Pairs held at once: 2^21 of 8 bytes and a few copies of them.
_CHUNK = 1 << 21


class HammingIndex:
    """Finds, for queries, the filed hashes within `radius`; `compared` counts the pairs looked at."""

    def __init__(self, hashes: Hashes, radius: int) -> None:
        self.hashes, self.radius = hashes, radius
        self.compared = 0
        bands = min(range(3, 9), key=lambda m: _cost(len(hashes), radius, m))
        self._flips = _flips(_widths(bands)[0], radius // bands)
        self._bands = [
            _Band(hashes, shift, width)
            for shift, width in zip(_shifts(bands), _widths(bands), strict=True)
        ]

    def pairs(self, queries: Hashes) -> Iterator[tuple[Numbers, Numbers]]:
        """(query numbers, filed numbers) within the radius, in pieces; a pair may come twice."""
        for band in self._bands:
            flips = self._flips[self._flips < (1 << band.width)]
            keys = band.keys(queries)[:, None] ^ flips[None]
            starts, ends = band.bounds[keys].ravel(), band.bounds[keys + 1].ravel()
            asked = np.repeat(np.arange(len(queries)), len(flips))
            for low, high in _pieces(ends - starts):
                yield from self._within(
                    band, queries, asked[low:high], starts[low:high], ends[low:high]
                )

    def _within(
        self, band: _Band, queries: Hashes, asked: Numbers, starts: Numbers, ends: Numbers
    ) -> Iterator[tuple[Numbers, Numbers]]:
        sizes = ends - starts
        total = int(sizes.sum())
        if not total:
            return
        self.compared += total
        query = np.repeat(asked, sizes)
        offset = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        filed = band.order[np.repeat(starts, sizes) + offset]
        near = np.bitwise_count(queries[query] ^ self.hashes[filed]) <= self.radius
        yield query[near], filed[near]


class _Band:
    """Some bits of every hash, and the hashes sorted by them."""

    def __init__(self, hashes: Hashes, shift: int, width: int) -> None:
        self.shift, self.width = shift, width
        keys = self.keys(hashes)
        self.order = np.argsort(keys, kind="stable")
        counts = np.bincount(keys, minlength=1 << width)
        self.bounds = np.concatenate([[0], np.cumsum(counts)])

    def keys(self, hashes: Hashes) -> Numbers:
        mask = np.uint64((1 << self.width) - 1)
        return ((hashes >> np.uint64(self.shift)) & mask).astype(np.int64)


def _widths(bands: int) -> list[int]:
    """How many bits each band has, the wider ones first."""
    short, wide = divmod(_BITS, bands)
    return [short + 1] * wide + [short] * (bands - wide)


def _shifts(bands: int) -> list[int]:
    return [0, *itertools.accumulate(_widths(bands))][:-1]


def _flips(width: int, radius: int) -> Numbers:
    """Every number of `width` bits with at most `radius` of them set."""
    return np.array(
        [
            sum(1 << bit for bit in bits)
            for number in range(radius + 1)
            for bits in itertools.combinations(range(width), number)
        ]
    )


def _cost(number: int, radius: int, bands: int) -> float:
    """Drawers opened by a query, and hashes found in them."""
    width = _BITS // bands
    drawers = sum(math.comb(width, flipped) for flipped in range(radius // bands + 1))
    return bands * drawers * (1 + number / (1 << width))


def _pieces(sizes: Numbers) -> Iterator[tuple[int, int]]:
    """Runs of `sizes` whose sum is at most a chunk (or one that is larger by itself)."""
    reached = np.cumsum(sizes)
    low, done = 0, 0
    while low < len(sizes):
        high = int(np.searchsorted(reached, done + _CHUNK, side="right"))
        high = max(high, low + 1)
        yield low, high
        low, done = high, int(reached[high - 1])
