"""A data set read from its publisher's files: what all of them do after reading."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from medloupe.data.adopt import Images, adopt_rows
from medloupe.data.dataset import Dataset, DatasetCard, Progress, write_dataset
from medloupe.data.datasets.base import DatasetConfig, source_folder
from medloupe.data.source import partial_copy
from medloupe.data.splits import DEFAULT_FRACTIONS, assign_splits, refuse_leaks
from medloupe.types import Conversation, Record, Split


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was read. Image uris are relative to `images` (absolute ones stay as they are).

    `card` states everything but counts, `partial` and `leak`; `found` counts here what
    `card.published` counts there.
    """

    card: DatasetCard
    images: Path
    conversations: Sequence[Conversation]
    records: Sequence[Record] = ()
    found: Mapping[str, int] = field(default_factory=dict)


class PublishedConfig(DatasetConfig, abc.ABC):
    """`images`: copy the files into the data set, or refer to them where they lie. Rows without a
    published split are split by patient with `fractions` and `seed`. `allow_leak` accepts patients
    or images in two splits; every score then says so.
    """

    images: Images = "copy"
    fractions: dict[Split, float] = Field(default_factory=lambda: dict(DEFAULT_FRACTIONS))
    seed: int = 0
    allow_leak: bool = False

    @abc.abstractmethod
    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Every row of the copy in `source`; files that have to be made go below `out`."""

    def prepare(self, out: Path, *, root: Path | None, progress: Progress) -> Dataset:
        """Raises `DataError` on the first faulty row, `LeakError` on shared patients or images."""
        reading = self.read(source_folder(self, root), out, progress)
        card = reading.card
        partial = partial_copy(card.name, reading.found, card.published)
        adopted = adopt_rows(
            reading.conversations,
            reading.records,
            source=reading.images,
            out=out,
            images=self.images,
            progress=progress,
            folder="" if reading.images == out else "images",
        )
        rows = assign_splits(*adopted, self.fractions, self.seed)
        leak = refuse_leaks(*rows, allow_leak=self.allow_leak)
        card = card.model_copy(
            update={"counts": dict(reading.found), "partial": partial, "leak": leak}
        )
        return write_dataset(out, card, *rows)
