"""A shuffle whose k-th item is computed alone, in constant memory, however many items there are.

A balanced Feistel network (Luby and Rackoff 1988) permutes the numbers below a power of four that holds
the range; a number that falls outside is sent through again until it falls inside (cycle walking), at
most four times on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDS: Final = 6


class Shuffle:
    """A permutation of `range(length)`, a function of `length` and `seed` alone."""

    def __init__(self, length: int, seed: Sequence[int]) -> None:
        self.length = length
        self._half = np.uint64((max(length - 1, 1).bit_length() + 1) // 2)
        self._mask = (np.uint64(1) << self._half) - np.uint64(1)
        self._keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)

    def __call__(self, places: ArrayLike) -> NDArray[np.int64]:
        """The items at these places (each in `range(length)`)."""
        values = np.atleast_1d(np.asarray(places)).astype(np.uint64)
        values = self._network(values)
        outside = np.flatnonzero(values >= self.length)
        while len(outside):
            values[outside] = self._network(values[outside])
            outside = outside[values[outside] >= self.length]
        return values.astype(np.int64).reshape(np.shape(places) or (1,))

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return (left << self._half) | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
