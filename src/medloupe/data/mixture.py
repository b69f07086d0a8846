"""Several data sets as one: how much of each, in which order, and where it comes from.

An epoch of a mixture is a number of samples with an exact count from every source. Sample k of a run is
a function of the seed and k alone, so a run resumes at any sample without a cursor. A source is gone
through without repetition: its k-th pass begins when its (k-1)-th is used up, and over any number of
epochs no row of a source comes twice more often than another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from medloupe.config import Config
from medloupe.data.dataset import Dataset, DatasetCard, image_path
from medloupe.data.rows import AnyRow, with_images
from medloupe.data.shuffle import Shuffle
from medloupe.errors import ConfigError, DataError
from medloupe.types import ImageRef

SEPARATOR = ":"


class MixtureSource(Config):
    """One data set of a mixture: its name there, the folder where it lies prepared, its weight."""

    name: str = Field(min_length=1, pattern=r"^[^:]+$")
    data: str = Field(min_length=1)
    weight: float | None = Field(default=None, gt=0)


class Mixture(Config):
    """Which data sets, and how much of each.

    Shares are proportional to the `weight`s; where none is given, to size to the power 1/`temperature`
    (1 is by size, a high temperature comes close to equal shares). `samples` is the length of an
    epoch, by default the rows of all sources together.
    """

    sources: tuple[MixtureSource, ...] = Field(min_length=1)
    temperature: float = Field(default=1.0, ge=1)
    samples: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Mixture:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"two sources have one name: {names}")
        weighted = [source.name for source in self.sources if source.weight is not None]
        if weighted and len(weighted) != len(names):
            raise ValueError(f"give all sources a weight or none; only {weighted} have one")
        if weighted and self.temperature != 1.0:
            raise ValueError("weights and a temperature exclude each other")
        return self

    def order(self, sizes: Mapping[str, int]) -> MixtureOrder:
        """The samples, for sources that hold so many rows.

        Raises:
            DataError: a source is empty.
        """
        for source in self.sources:
            if not sizes.get(source.name):
                raise DataError(
                    f"the source {source.name!r} of the mixture has no rows for this",
                    file=source.data,
                    remedy="Check its splits and the tasks asked for, or leave the source out",
                )
        rows = tuple(sizes[source.name] for source in self.sources)
        counts = apportion(self.samples or sum(rows), self._shares(rows))
        return MixtureOrder(rows, counts, self.seed)

    def _shares(self, rows: Sequence[int]) -> list[float]:
        given = [source.weight for source in self.sources if source.weight is not None]
        return given or [number ** (1 / self.temperature) for number in rows]


class MixtureOrder:
    """Sample k -> (source, row). `sizes` are the rows and `counts` the samples an epoch per source."""

    def __init__(self, sizes: Sequence[int], counts: Sequence[int], seed: int) -> None:
        self.sizes, self.counts, self.seed = tuple(sizes), tuple(counts), seed
        self.length = sum(counts)
        self._ends = np.cumsum(counts)

    def __getitem__(self, sample: int) -> tuple[int, int]:
        """(source, row) of one sample, counted from 0 over all epochs."""
        source, row = self.at([sample])
        return int(source[0]), int(row[0])

    def at(self, samples: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sources and rows of many samples at once."""
        epoch, place = np.divmod(np.asarray(samples, dtype=np.int64), self.length)
        slot = np.empty_like(place)
        for number in np.unique(epoch):
            here = epoch == number
            slot[here] = Shuffle(self.length, (self.seed, 0, int(number)))(place[here])
        source = np.searchsorted(self._ends, slot, side="right")
        row = np.empty_like(slot)
        for number in np.unique(source):
            here = source == number
            first = self._ends[number] - self.counts[number]
            row[here] = self._rows(
                int(number), epoch[here] * self.counts[number] + slot[here] - first
            )
        return source.astype(np.int64), row

    def _rows(self, source: int, draws: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of these draws from one source, pass after pass."""
        passes, place = np.divmod(draws, self.sizes[source])
        row = np.empty_like(place)
        for number in np.unique(passes):
            here = passes == number
            seed = (self.seed, 1 + source, int(number))
            row[here] = Shuffle(self.sizes[source], seed)(place[here])
        return row


def apportion(total: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers that add up to `total`, by largest remainder; ties go to the earlier share."""
    whole = sum(Fraction(share) for share in shares)
    exact = [total * Fraction(share) / whole for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda n: (counts[n] - exact[n], n))
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return tuple(counts)


def merge(datasets: Mapping[str, Dataset]) -> Dataset:
    """Several data sets in memory as one: ids and patients get the source's name in front, image
    paths become absolute.

    Raises:
        ConfigError: no data set.
    """
    if not datasets:
        raise ConfigError("there is nothing to merge")
    conversations = [
        _named(row, name, one.root) for name, one in datasets.items() for row in one.conversations
    ]
    records = [_named(row, name, one.root) for name, one in datasets.items() for row in one.records]
    records = [
        row
        if row.prior is None
        else row.model_copy(update={"prior": _name(source_of(row.id), row.prior)})
        for row in records
    ]
    cards = [one.card for one in datasets.values()]
    card = DatasetCard(
        name="+".join(datasets),
        licence="; ".join(dict.fromkeys(card.licence for card in cards if card.licence)),
        access="; ".join(dict.fromkeys(card.access for card in cards if card.access)),
        leak="; ".join(
            f"{name}: {one.card.leak}" for name, one in datasets.items() if one.card.leak
        ),
        partial="; ".join(
            f"{name}: {one.card.partial}" for name, one in datasets.items() if one.card.partial
        ),
    )
    return Dataset(Path(), card, tuple(conversations), tuple(records))


def source_of(row_id: str) -> str:
    """The source that a row of a merged data set comes from."""
    return row_id.partition(SEPARATOR)[0]


def _named(row: AnyRow, name: str, root: Path) -> AnyRow:
    def absolute(ref: ImageRef) -> ImageRef:
        uri = image_path(root.resolve(), ref.uri).as_posix()
        return ref.model_copy(update={"uri": uri})

    patient = None if row.patient_id is None else _name(name, row.patient_id)
    update = {"id": _name(name, row.id), "patient_id": patient}
    return with_images(row, absolute).model_copy(update=update)


def _name(source: str, name: str) -> str:
    return f"{source}{SEPARATOR}{name}"
