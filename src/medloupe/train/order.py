"""The order of rows: a pure function of (seed, step), so resuming needs no cursor but the step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medloupe.data.mixture import Mixture, source_of
from medloupe.processing.packing import Budget, Cost
from medloupe.train.stages import CurriculumConfig

# Rows are sorted by length inside windows of this many batches, then the batches are shuffled.
WINDOW = 16


class Order(Protocol):
    """Which rows stand in batch `number`, from nothing but that number."""

    def batch(self, number: int) -> list[int]: ...


def share(rows: Sequence[int], lengths: Sequence[int], rank: int, world: int) -> list[int]:
    """The rows of a batch that process `rank` of `world` takes, in the batch's order: dealt out from the
    longest to the shortest and back again, so that all get about the same to do. A batch of fewer rows
    than processes leaves some without."""
    longest = sorted(range(len(rows)), key=lambda place: -lengths[rows[place]])
    mine = []
    for dealt, place in enumerate(longest):
        round_, seat = divmod(dealt, world)
        if rank == (seat if round_ % 2 == 0 else world - 1 - seat):
            mine.append(place)
    return [rows[place] for place in sorted(mine)]


def portions(rows: Sequence[int], costs: Sequence[Cost], budget: Budget) -> list[list[int]]:
    """`rows` in order, cut so that each part holds the budget. A row that alone costs more stays alone."""
    parts: list[list[int]] = []
    spent = Cost()
    for row in rows:
        whole = spent + costs[row]
        if parts and budget.holds(whole):
            parts[-1].append(row)
            spent = whole
        else:
            parts.append([row])
            spent = costs[row]
    return parts


class BatchOrder:
    """Batches of similar length; every row once an epoch, or as often as `mixed` draws it. The last
    batch may be smaller."""

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        mixed: MixedRows | None = None,
    ) -> None:
        self.lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
        self.mixed = mixed
        self.per_epoch = math.ceil((mixed.length if mixed else len(lengths)) / batch_size)
        self._epoch: tuple[int, list[list[int]]] | None = None

    def batch(self, number: int) -> list[int]:
        """The rows of batch `number`, counted over all epochs."""
        epoch, place = divmod(number, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._batches(epoch)
        return self._epoch[1][place]

    def _batches(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, epoch])
        shuffled = self.mixed.rows(epoch) if self.mixed else rng.permutation(len(self.lengths))
        window = self.batch_size * WINDOW
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), window):
            part = shuffled[start : start + window]
            ordered = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [
                ordered[i : i + self.batch_size].tolist()
                for i in range(0, len(ordered), self.batch_size)
            ]
        return [batches[i] for i in rng.permutation(len(batches))]


class CurriculumOrder:
    """Before `order`, `ramp` batches drawn from the easiest rows, of which more and more are let in.

    `ease` is one number per row, the largest is easiest; see `CurriculumConfig`.
    """

    def __init__(
        self, order: BatchOrder, ease: Sequence[float], ramp: int, config: CurriculumConfig
    ) -> None:
        assert len(ease) == len(order.lengths), "one ease per row"
        self.order, self.ramp, self.start = order, ramp, config.start
        self.easiest_first = np.argsort(-np.asarray(ease), kind="stable")

    def batch(self, number: int) -> list[int]:
        """The rows of batch `number`; after the ramp, those of the order behind it."""
        if number >= self.ramp:
            return self.order.batch(number - self.ramp)
        share = self.start + (1 - self.start) * number / self.ramp
        size = min(self.order.batch_size, len(self.easiest_first))
        pool = self.easiest_first[: max(size, math.ceil(share * len(self.easiest_first)))]
        # a third number keeps this stream apart from the epochs of `order`
        rng = np.random.default_rng([self.order.seed, number, 1])
        return [int(row) for row in rng.choice(pool, size, replace=False)]


class MixedRows:
    """The rows of each epoch of a mixture; `names` are ids of a merged data set, one a row.

    Raises:
        DataError: a source has no row.
    """

    def __init__(self, mixture: Mixture, names: Sequence[str]) -> None:
        found: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(names):
            found[source_of(name)].append(row)
        self._rows = [np.asarray(found[source.name]) for source in mixture.sources]
        self._order = mixture.order({name: len(rows) for name, rows in found.items()})
        self.counts = dict(zip((s.name for s in mixture.sources), self._order.counts, strict=True))
        self.length = self._order.length

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """The rows of an epoch, shuffled."""
        sources, within = self._order.at(np.arange(epoch * self.length, (epoch + 1) * self.length))
        rows = np.empty_like(within)
        for number, own in enumerate(self._rows):
            here = sources == number
            rows[here] = own[within[here]]
        return rows
