"""The questions of an image behind one image prefix.

Rows that begin with the same tokens up to the end of their last image before any label, about the same
images, become one row: the prefix once, then each row's remainder as a branch that sees the prefix and
itself, its positions counted from the end of the prefix. Loss and gradients equal the separate rows'.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from medloupe.types import ModelInput


def pack_branches(
    rows: Iterable[ModelInput], *, image_token_id: int, max_tokens: int
) -> list[ModelInput]:
    """Pack rows that share an image prefix; others stay as they are. Order of first appearance.

    A packed row holds at most `max_tokens` tokens, if more than one branch is in it.
    """
    groups: dict[tuple[object, ...], list[ModelInput]] = {}
    for number, row in enumerate(rows):
        end = prefix_length(row, image_token_id)
        key: tuple[object, ...] = (
            ("alone", number)
            if end == 0
            else (*(image.to_json() for image in row.images), *row.input_ids[:end].tolist())
        )
        groups.setdefault(key, []).append(row)
    packed = []
    for members in groups.values():
        end = prefix_length(members[0], image_token_id)
        packed += [_packed(part, end) for part in _parts(members, end, max_tokens)]
    return packed


def prefix_length(row: ModelInput, image_token_id: int) -> int:
    """The number of tokens up to the end of the last image; 0 where a label comes before that."""
    images = (row.input_ids == image_token_id).nonzero()
    if len(images) == 0:
        return 0
    end = int(images[-1]) + 1
    return 0 if bool((row.labels[:end] >= 0).any()) else end


def _parts(members: Sequence[ModelInput], end: int, max_tokens: int) -> list[list[ModelInput]]:
    parts: list[list[ModelInput]] = []
    used = 0
    for row in members:
        branch = len(row.input_ids) - end
        if not parts or used + branch > max_tokens:
            parts.append([])
            used = end
        parts[-1].append(row)
        used += branch
    return parts


def _packed(rows: Sequence[ModelInput], end: int) -> ModelInput:
    if len(rows) == 1:
        return rows[0]
    first = rows[0]
    branches = [
        torch.full((len(row.input_ids) - end,), number) for number, row in enumerate(rows, start=1)
    ]
    return ModelInput(
        ids=tuple(name for row in rows for name in row.ids),
        input_ids=torch.cat([first.input_ids[:end], *(row.input_ids[end:] for row in rows)]),
        labels=torch.cat([first.labels[:end], *(row.labels[end:] for row in rows)]),
        position_ids=torch.cat([first.position_ids[:end], *(r.position_ids[end:] for r in rows)]),
        segments=torch.cat([torch.zeros(end, dtype=torch.long), *branches]),
        images=first.images,
        anchors=first.anchors,
    )
