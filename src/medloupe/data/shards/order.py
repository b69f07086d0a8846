"""The order of rows in shards: shuffled, yet close together on disk, and any sample found at once.

In each epoch the shards are shuffled and taken in groups of `group`; the rows of a group are shuffled
among each other. So only a few shards are open at a time, and sample k is still a function of
(seed, k).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medloupe.data.shuffle import Shuffle


class ShardOrder:
    """`order[k]` is the row of sample k, counted over all epochs. `sizes` are the rows per shard."""

    def __init__(self, sizes: Sequence[int], seed: int, *, group: int = 4) -> None:
        self.sizes, self.seed, self.group = np.asarray(sizes, dtype=np.int64), seed, group
        self.length = int(self.sizes.sum())
        self._first = np.cumsum(self.sizes) - self.sizes
        self._epoch = -1
        self._shards: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._ends: NDArray[np.int64] = self._shards

    def __getitem__(self, sample: int) -> int:
        epoch, place = divmod(sample, self.length)
        self._begin(epoch)
        position = int(np.searchsorted(self._ends, place, side="right"))
        low = (
            position - position % self.group
        )  # the first shard of the group, in this epoch's order
        start = int(self._ends[low - 1]) if low else 0
        stop = int(self._ends[min(low + self.group, len(self._ends)) - 1])
        shuffled = int(Shuffle(stop - start, (self.seed, epoch, low))(place - start)[0]) + start
        number = int(np.searchsorted(self._ends, shuffled, side="right"))
        shard = self._shards[number]
        return int(self._first[shard] + shuffled - (self._ends[number] - self.sizes[shard]))

    def _begin(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        number = len(self.sizes)
        self._shards = Shuffle(number, (self.seed, epoch))(np.arange(number))
        self._ends = np.cumsum(self.sizes[self._shards])
        self._epoch = epoch
