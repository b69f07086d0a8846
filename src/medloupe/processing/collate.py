"""Rows -> a padded batch. Padding carries segment -1, label -100 and position 0; it stands behind
a row, so that its anchors stay where they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from medloupe.types import Batch, ImageInput, ModelInput


def collate(rows: Sequence[ModelInput], *, pad_id: int, images: Sequence[ImageInput] = ()) -> Batch:
    """Pad on the right. `images` are those of the rows, in order."""

    def padded(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        return pad_sequence(tensors, batch_first=True, padding_value=value)

    anchors = [row.anchors for row in rows if row.anchors is not None]
    return Batch(
        ids=tuple(name for row in rows for name in row.ids),
        input_ids=padded([row.input_ids for row in rows], pad_id),
        labels=padded([row.labels for row in rows], -100),
        position_ids=padded([row.position_ids for row in rows], 0),
        segments=padded([row.segments for row in rows], -1),
        images=tuple(images),
        anchors=torch.cat(anchors) if len(anchors) == len(rows) else None,
    )
