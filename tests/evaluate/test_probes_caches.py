"""An image that a probe changes is never taken for the one it was made of, whatever keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medloupe.data.dataset import Dataset
from medloupe.evaluate.probes import Probe, default_probes
from medloupe.evaluate.probes.mirrored import mirror
from medloupe.imaging.blobs import BlobLog
from medloupe.imaging.read import read_ref
from medloupe.imaging.store import DecodedStore
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.features import KnownFeatures
from medloupe.processing.images import ImageSource
from medloupe.types import Box, Edit, ImageInput, ImageLayout, ImageRef

EDITS: tuple[Edit | None, ...] = (None, "mirrored", "blank")
SQUARE = ImageTransform(size=16, fit="stretch")


class Encoder:
    """Features are the views' sums; remembers how many images it has read."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.read = 0

    def encode(self, images: list[ImageInput]) -> list[ImageInput]:
        self.read += len(images)
        return [
            ImageInput(features=one.views.sum(dim=0), grid=ImageLayout(rows=1, columns=1))
            for one in images
        ]


def edited(dataset: Dataset, edit: Edit | None) -> ImageRef:
    return dataset.conversations[0].images[0].model_copy(update={"edit": edit})


@pytest.mark.parametrize("kept", [False, True])
def test_an_image_source_keeps_three_views_of_one_file(
    kept: bool, squares: Dataset, tmp_path: Path
) -> None:
    store = DecodedStore(tmp_path / "store") if kept else None
    source = ImageSource(squares.root, SQUARE, store=store)
    for _ in range(2):
        for edit in EDITS:
            ref = edited(squares, edit)
            wanted = SQUARE.apply(read_ref(ref, squares.root))
            assert np.array_equal(source.view(ref).numpy(), wanted)
    views = [source.view(edited(squares, edit)).numpy().tobytes() for edit in EDITS]
    assert len(set(views)) == 3
    assert len({source.size_of(edited(squares, edit)) for edit in EDITS}) == 1


def test_stored_features_are_those_of_the_edited_image(squares: Dataset, tmp_path: Path) -> None:
    source, encoder = ImageSource(squares.root, SQUARE), Encoder()
    known = KnownFeatures(BlobLog(tmp_path / "features", 2**20), encoder, "fp32", b"tiny")
    for _ in range(2):
        for edit in EDITS:
            views = source.view(edited(squares, edit))
            made = known.of(ImageInput(views=views)).features
            assert made is not None
            assert torch.equal(made, views.sum(dim=0))
    assert encoder.read == 3


def test_a_mirrored_box_holds_what_it_held(squares: Dataset) -> None:
    """Of the real file: the bright square lies in the mirrored box of the mirrored image."""
    source = ImageSource(squares.root, SQUARE)
    rows = [row for row in squares.conversations if row.task == "rec"]
    assert rows
    for row in rows:
        found = mirror(row, source)
        assert found is not None
        (box,) = (part for part in found.parts() if isinstance(part, Box))
        pixels = read_ref(found.images[0], squares.root).array[0]
        inside = pixels[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)]
        assert inside.size
        assert (inside == pixels.max()).all()
        assert (pixels == pixels.max()).sum() == inside.size


def test_probes_are_named_in_configs() -> None:
    for probe in default_probes():
        assert Probe.parse(probe.to_dict()) == probe
