"""Rows -> one batch: padded, or one after another in a single row.

Padding carries segment -1, label -100 and position 0; it stands behind a row, so that its anchors stay
where they are. Rows one after another are documents of one row (`models.attention`): each begins with
position 0 and sees nothing of the others, and there is no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch.nn.utils.rnn import pad_sequence

from medloupe.types import Batch, ImageInput, ModelInput

IGNORE = -100


def collate(
    rows: Sequence[ModelInput],
    *,
    pad_id: int,
    images: Sequence[ImageInput] = (),
    joined: bool = False,
) -> Batch:
    """Pad on the right, or put rows one after another. `images` are those of the rows, in order."""
    if joined:
        rows = [_joined(rows)]

    def padded(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        return pad_sequence(tensors, batch_first=True, padding_value=value)

    anchors = [row.anchors for row in rows if row.anchors is not None]
    return Batch(
        ids=tuple(name for row in rows for name in row.ids),
        input_ids=padded([row.input_ids for row in rows], pad_id),
        labels=padded([row.labels for row in rows], IGNORE),
        position_ids=padded([row.position_ids for row in rows], 0),
        segments=padded([row.segments for row in rows], -1),
        images=tuple(images),
        anchors=torch.cat(anchors) if len(anchors) == len(rows) else None,
    )


def _joined(rows: Sequence[ModelInput]) -> ModelInput:
    """The rows as documents of one. Nothing predicts the first token of a row, so it is no label."""
    begin = list(accumulate((len(row.input_ids) for row in rows[:-1]), initial=0))
    labels = torch.cat([row.labels for row in rows])
    labels[begin] = IGNORE
    anchors = [
        row.anchors + by for row, by in zip(rows, begin, strict=True) if row.anchors is not None
    ]
    return ModelInput(
        ids=tuple(name for row in rows for name in row.ids),
        input_ids=torch.cat([row.input_ids for row in rows]),
        labels=labels,
        position_ids=torch.cat([row.position_ids for row in rows]),
        segments=torch.cat([row.segments for row in rows]),
        images=tuple(image for row in rows for image in row.images),
        anchors=torch.cat(anchors) if len(anchors) == len(rows) else None,
    )
