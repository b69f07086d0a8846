"""LLaVA-Pretrain, LCS-558K (Liu et al., "Improved baselines with visual instruction tuning", CVPR
2024): captions by BLIP for images of LAION, CC and SBU. General domain; MedM-VL trains its 2D
connector on it (section 3.2).

Layout, from the data page of the official repository (haotian-liu/LLaVA, docs/Data.md) and the data
set `liuhaotian/LLaVA-Pretrain`, whose `images.zip` is unpacked into `images`:

    blip_laion_cc_sbu_558k.json     LLaVA's form: one image and one question and answer a row
    images/00453/004539375.jpg      the name that the row gives in `image`

(Some unpack the archive beside the JSON; the numbered folders are found there too.) The publisher
writes 558K; the file holds 558,128 rows, as several of its users count. Nothing is held out.

The images stay where they are unless `images=copy`. All rows are in memory at once: 5 kB each, so
about 3 GB, and twice that while they are being adopted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import Field

from medloupe.data.adopt import Images
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.llava import import_llava
from medloupe.errors import DataError
from medloupe.types import Conversation, Split

NAME: Final = "llava_pretrain"
FILE: Final = "blip_laion_cc_sbu_558k.json"
ROWS: Final = 558_128
SHARES: Final[Mapping[Split, float]] = {"train": 1.0}
LICENCE: Final = "other (the terms of LAION, CC-3M, SBU and BLIP)"
CITATION: Final = (
    "Liu H, Li C, Li Y, Lee YJ. Improved baselines with visual instruction tuning. CVPR 2024."
)


class LlavaPretrainConfig(PublishedConfig):
    """Everything trains by default, as the publisher has it."""

    images: Images = "reference"
    fractions: dict[Split, float] = Field(default_factory=lambda: dict(SHARES))

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `DataError` on a faulty row, a missing image or a row with several images."""
        folder = source / "images" if (source / "images").is_dir() else source
        rows = [_labelled(row, source / FILE) for row in import_llava(source / FILE, folder)]
        return Reading(
            card=_card(), images=folder, conversations=rows, found={"image-text pairs": len(rows)}
        )


def _labelled(row: Conversation, file: Path) -> Conversation:
    if len(row.images) != 1 or len(row.messages) != 2:
        raise DataError(
            f"the row has {len(row.images)} images and {len(row.messages)} messages",
            remedy="A row of this set is one image, one question and its caption",
            file=str(file),
            row=row.id,
        )
    return row.model_copy(
        update={
            "id": f"{NAME}/{row.id}",
            "dataset": NAME,
            "licence": LICENCE,
            "task": "caption",
            "template": "caption",
        }
    )


def _card() -> DatasetCard:
    return DatasetCard(
        name=NAME,
        version="LCS-558K",
        description="Captions by BLIP for images from the web (not medical)",
        licence=LICENCE,
        citation=CITATION,
        access="open: https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain",
        tasks=("caption",),
        splits="the publisher holds nothing out",
        published={"image-text pairs": ROWS},
    )
