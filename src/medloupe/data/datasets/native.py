"""Your own rows in the native form: images taken in and hashed, splits given where there are none.

The folder holds `conversations.jsonl` (and `records.jsonl`, `dataset.json` where you have them);
`uri`s are relative to it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medloupe.data.adopt import Images, adopt_rows
from medloupe.data.dataset import (
    CARD_FILE,
    Dataset,
    DatasetCard,
    Progress,
    read_card,
    read_rows,
    write_dataset,
)
from medloupe.data.datasets.base import DatasetConfig, source_folder
from medloupe.data.splits import DEFAULT_FRACTIONS, assign_splits, refuse_leaks
from medloupe.errors import DataError
from medloupe.types import Split


class NativeConfig(DatasetConfig):
    """`allow_leak` accepts patients or images in two splits; every score then says so."""

    images: Images = "copy"
    fractions: dict[Split, float] = Field(default_factory=lambda: dict(DEFAULT_FRACTIONS))
    seed: int = 0
    allow_leak: bool = False

    def prepare(self, out: Path, *, root: Path | None, progress: Progress) -> Dataset:
        """Raises `DataError` on the first faulty row (`medloupe check` lists all of them)."""
        source = source_folder(self, root)
        card = _card_of(source)
        conversations, records, faults = read_rows(source, card)
        if faults:
            raise DataError.of(faults[0])
        adopted = adopt_rows(
            conversations, records, source=source, out=out, images=self.images, progress=progress
        )
        rows = assign_splits(*adopted, self.fractions, self.seed)
        leak = refuse_leaks(*rows, allow_leak=self.allow_leak)
        return write_dataset(out, card.model_copy(update={"leak": leak}), *rows)


def _card_of(source: Path) -> DatasetCard:
    """The card in the folder, else one with its name."""
    if not (source / CARD_FILE).exists():
        return DatasetCard(name=source.resolve().name)
    card, faults = read_card(source)
    if card is None:
        raise DataError.of(faults[0])
    return card
