"""Any data set in LLaVA's JSON form."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medloupe.data.adopt import Images, adopt_rows
from medloupe.data.dataset import Dataset, DatasetCard, Progress, write_dataset
from medloupe.data.datasets.base import DatasetConfig, source_folder
from medloupe.data.llava import Ids, import_llava
from medloupe.data.splits import DEFAULT_FRACTIONS, assign_splits, carve, refuse_leaks
from medloupe.errors import DataError
from medloupe.types import Conversation, Split


class LlavaConfig(DatasetConfig):
    """`files` names the JSON file of each split below `root`; without it, the one JSON file there
    is split by patient (by image where rows name no patient).

    `image_folder` is below `root`, too. `validation` is the share of the training patients that
    becomes the validation split where no file is named for it.
    """

    title: str = "llava"
    licence: str = ""
    citation: str = ""
    files: dict[Split, str] = Field(default_factory=dict)
    image_folder: str = "images"
    images: Images = "copy"
    ids: Ids = "keep"
    fractions: dict[Split, float] = Field(default_factory=lambda: dict(DEFAULT_FRACTIONS))
    validation: float = Field(default=0.1, ge=0, lt=1)
    seed: int = 0
    allow_leak: bool = False

    def prepare(self, out: Path, *, root: Path | None, progress: Progress) -> Dataset:
        """Raises `DataError` on the first faulty row."""
        source = source_folder(self, root)
        folder = source / self.image_folder
        read = self._with_splits(source, folder) if self.files else self._unsplit(source, folder)
        rows = [self._labelled(row) for row in read]
        adopted, _ = adopt_rows(
            rows,
            (),
            source=folder,
            out=out,
            images=self.images,
            progress=progress,
            folder="images",
        )
        split, _ = assign_splits(adopted, (), self.fractions, self.seed)
        if self.files and "validation" not in self.files:
            split = carve(split, self.validation, seed=self.seed)
        leak = refuse_leaks(split, allow_leak=self.allow_leak)
        card = DatasetCard(
            name=self.title,
            licence=self.licence,
            citation=self.citation,
            languages=tuple(sorted({row.language for row in split})),
            leak=leak,
        )
        return write_dataset(out, card, split)

    def _with_splits(self, source: Path, folder: Path) -> list[Conversation]:
        """The rows of the named files; an id that two files share is prefixed with the split."""
        files = {
            split: import_llava(source / file, folder, ids=self.ids)
            for split, file in self.files.items()
        }
        names = [row.id for rows in files.values() for row in rows]
        repeated = len(set(names)) < len(names)
        return [
            row.model_copy(
                update={"split": split, "id": f"{split}-{row.id}" if repeated else row.id}
            )
            for split, rows in files.items()
            for row in rows
        ]

    def _unsplit(self, source: Path, folder: Path) -> list[Conversation]:
        found = sorted([*source.glob("*.json"), *source.glob("*.jsonl")])
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise DataError(
                f"one JSON file was expected here, found: {names}",
                remedy="Name the file of each split: --set data.files.train=train.json",
                file=str(source),
            )
        return list(import_llava(found[0], folder, ids=self.ids))

    def _labelled(self, row: Conversation) -> Conversation:
        return row.model_copy(
            update={"dataset": row.dataset or self.title, "licence": row.licence or self.licence}
        )
