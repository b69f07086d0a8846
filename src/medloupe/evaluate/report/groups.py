"""What the samples of a page can be grouped by: their attributes, numbers along the benchmark's strata."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from medloupe.evaluate.benchmark import Stratum
from medloupe.types import EvalRow

MOST_VALUES = 12
"""An attribute with more values, or with numbers, is no group to choose from; see `Stratum`."""


class Groups:
    """`names` are those with which some rows can be told from others, in order."""

    def __init__(self, rows: Sequence[EvalRow], strata: Sequence[Stratum]) -> None:
        self._strata = [stratum for stratum in strata if stratum.edges]
        values: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            for name, value in row.attributes.items():
                values[name].add(value)
        self._shown = {name for name, found in values.items() if _is_group(found)}
        made = [set(self.of(row)) for row in rows]
        every: set[str] = set.intersection(*made) if made else set()
        told = {name for groups in made for name in groups} - every
        order = [label for stratum in self._strata for label in stratum.labels]
        self.names = [label for label in order if label in told] + sorted(told - set(order))

    def of(self, row: EvalRow) -> list[str]:
        """The groups of one row: "4 <= lesion_width < 8", "plane = axial"."""
        labels = [stratum.label(row.attributes) for stratum in self._strata]
        named = [f"{k} = {v}" for k, v in sorted(row.attributes.items()) if k in self._shown]
        return [label for label in labels if label is not None] + named


def _is_group(values: set[str]) -> bool:
    return len(values) <= MOST_VALUES and not all(_is_number(value) for value in values)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
