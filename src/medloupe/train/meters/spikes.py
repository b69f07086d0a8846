"""Steps whose loss stands out from those before: their rows are worth a look."""

from __future__ import annotations

import math
import statistics
from collections import deque
from itertools import pairwise

# A normal distribution's standard deviation is so many median absolute deviations; that of the
# difference of two draws is larger by the root of two.
NORMAL = 1.4826 / math.sqrt(2)
RECENT = 10


class Spikes:
    """Compares each loss with the `window` before it.

    A spike lies more than `deviations` robust standard deviations, and more than a tenth, above the
    median of the newest ten. The deviation is taken from the differences of neighbours, so a loss that
    falls does not widen it. Spikes stay out of the window, unless `window` of them come in a row.
    """

    def __init__(self, *, window: int = 50, deviations: float = 8.0, least: int = 20) -> None:
        self.deviations, self.least = deviations, least
        self._losses: deque[float] = deque(maxlen=window)
        self._row = 0

    def is_spike(self, loss: float) -> bool:
        """Whether this loss is one; it then counts as seen. Non-finite losses are none: the loop refuses
        them by itself."""
        if not math.isfinite(loss):
            return False
        spike = len(self._losses) >= self.least and loss > self._limit()
        self._row = self._row + 1 if spike else 0
        if not spike or self._row >= (self._losses.maxlen or 0):
            self._losses.append(loss)
        return spike

    def _limit(self) -> float:
        losses = list(self._losses)
        middle = statistics.median(losses[-RECENT:])
        away = statistics.median(abs(later - before) for before, later in pairwise(losses))
        return middle + max(self.deviations * NORMAL * away, 0.1 * abs(middle))
