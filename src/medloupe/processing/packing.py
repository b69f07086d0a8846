"""The questions of an image behind one prefix, and what a row costs.

Rows about the same images that begin with the same tokens become one row: what they have in common once,
then each row's remainder as a branch that sees the prefix and itself, its positions counted from the end
of the prefix. Loss and gradients equal the separate rows'.

A prefix ends before the first label of any of its rows, and leaves each branch a token of its own that
predicts it. Whole images are shared, as many as rows begin with: those that only some rows have (another
prior study) stand in their branches, since there is one prefix and no tree of them. Rows without an
image stay alone: what these have in common is mostly the system message, and sharing so little behind a
dense mask is slower than padding.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from pydantic import Field

from medloupe.config import Config
from medloupe.types import ImageRef, ModelInput

IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What rows ask of the machine: tokens of text and of images, how often encoders run (tiles, slices),
    and the numbers that they read (pixels or voxels, times channels)."""

    text_tokens: int = 0
    image_tokens: int = 0
    passes: int = 0
    voxels: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            text_tokens=self.text_tokens + other.text_tokens,
            image_tokens=self.image_tokens + other.image_tokens,
            passes=self.passes + other.passes,
            voxels=self.voxels + other.voxels,
        )


CostOf = Callable[[ImageRef], Cost]
"""What one image costs, wherever it stands."""


class Budget(Config):
    """The most that a row of several branches may cost, in the parts of `Cost`."""

    text_tokens: int = Field(default=1024, ge=1)
    image_tokens: int = Field(default=4096, ge=1)
    passes: int = Field(default=256, ge=1)
    voxels: int = Field(default=100_000_000, ge=1)

    def holds(self, cost: Cost) -> bool:
        """Whether nothing of `cost` is more than its limit."""
        return (
            cost.text_tokens <= self.text_tokens
            and cost.image_tokens <= self.image_tokens
            and cost.passes <= self.passes
            and cost.voxels <= self.voxels
        )


def pack_branches(
    rows: Iterable[ModelInput], *, image_token_id: int, cost_of: CostOf, budget: Budget
) -> list[ModelInput]:
    """Pack rows that share a prefix; others stay as they are. Order of first appearance.

    A packed row keeps the budget, if more than one branch is in it.
    """
    known = [_Row.of(row, image_token_id, cost_of) for row in rows]
    return [
        _packed([known[number] for number in part], images)
        for images, members in _groups(known)
        for part in _parts(known, members, images, budget, cost_of)
    ]


def row_cost(row: ModelInput, *, image_token_id: int, cost_of: CostOf) -> Cost:
    """What a row costs, packed or not."""
    text = int((row.input_ids != image_token_id).sum())
    return sum(map(cost_of, row.images), Cost(text_tokens=text))


def prefix_length(row: ModelInput, image_token_id: int) -> int:
    """The number of tokens up to the end of the last image; 0 where a label comes before that."""
    images = (row.input_ids == image_token_id).nonzero()
    if len(images) == 0:
        return 0
    end = int(images[-1]) + 1
    return 0 if bool((row.labels[:end] >= 0).any()) else end


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row, where its images `starts` and `ends`, and the longest prefix that it could share: `limit`
    tokens with `leading` images."""

    row: ModelInput
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    limit: int
    leading: int

    @classmethod
    def of(cls, row: ModelInput, image_token_id: int, cost_of: CostOf) -> _Row:
        counts = [cost_of(image).image_tokens for image in row.images]
        places = (row.input_ids == image_token_id).nonzero().flatten().tolist()
        assert sum(counts) == len(places), "each image has its tokens in the row"
        bounds = list(accumulate(counts, initial=0))
        starts = tuple(places[first] for first in bounds[:-1])
        ends = tuple(places[last - 1] + 1 for last in bounds[1:])
        learned = (row.labels >= 0).nonzero().flatten().tolist()
        limit = (learned[0] if learned else len(row.input_ids)) - 1
        return cls(
            row=row,
            starts=starts,
            ends=ends,
            limit=limit,
            leading=sum(end <= limit for end in ends),
        )

    def beginning(self, images: int) -> tuple[object, ...]:
        """Equal for rows that can share a prefix with so many images."""
        tokens = self.row.input_ids[: self.ends[images - 1]].numpy()
        return *self.row.images[:images], hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()

    def reach(self, images: int) -> int:
        """The most tokens of a prefix with so many images."""
        return min((self.limit, *self.starts[images : images + 1]))


def _groups(rows: Sequence[_Row]) -> list[tuple[int, list[int]]]:
    """Rows by number with the number of images that they share, most images first; 0 for those alone."""
    found: list[tuple[int, list[int]]] = []
    waiting = list(range(len(rows)))
    for images in range(max((row.leading for row in rows), default=0), 0, -1):
        alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for number in waiting:
            if rows[number].leading >= images:
                alike[rows[number].beginning(images)].append(number)
        found += [(images, members) for members in alike.values() if len(members) > 1]
        taken = {number for members in alike.values() if len(members) > 1 for number in members}
        waiting = [number for number in waiting if number not in taken]
    found += [(0, [number]) for number in waiting]
    return sorted(found, key=lambda group: group[1][0])


def _shared(rows: Sequence[_Row], images: int) -> int:
    """The number of tokens with which all rows begin."""
    most = min(row.reach(images) for row in rows)
    starts = torch.stack([row.row.input_ids[:most] for row in rows])
    return int((starts == starts[0]).all(0).cumprod(0).sum())


def _parts(
    rows: Sequence[_Row], members: Sequence[int], images: int, budget: Budget, cost_of: CostOf
) -> list[list[int]]:
    """The members of a group, in order, in as few rows as hold them so."""
    if len(members) == 1:
        return [list(members)]
    end = _shared([rows[number] for number in members], images)
    first = rows[members[0]]
    prefix = sum(map(cost_of, first.row.images[:images]), Cost())
    prefix += Cost(text_tokens=end - prefix.image_tokens)
    parts: list[list[int]] = []
    used = prefix
    for number in members:
        own = [cost_of(image) for image in rows[number].row.images[images:]]
        branch = sum(own, Cost())
        branch += Cost(text_tokens=len(rows[number].row.input_ids) - end - branch.image_tokens)
        if not parts or not budget.holds(used + branch):
            parts.append([])
            used = prefix
        parts[-1].append(number)
        used += branch
    return parts


def _packed(rows: Sequence[_Row], images: int) -> ModelInput:
    if len(rows) == 1:
        return rows[0].row
    end, branches = _shared(rows, images), [row.row for row in rows]
    first = branches[0]
    own = [torch.full((len(row.input_ids) - end,), n) for n, row in enumerate(branches, start=1)]
    return ModelInput(
        ids=tuple(name for row in branches for name in row.ids),
        input_ids=torch.cat([first.input_ids[:end], *(row.input_ids[end:] for row in branches)]),
        labels=torch.cat([first.labels[:end], *(row.labels[end:] for row in branches)]),
        position_ids=torch.cat(
            [first.position_ids[:end], *(r.position_ids[end:] for r in branches)]
        ),
        segments=torch.cat([torch.zeros(end, dtype=torch.long), *own]),
        images=first.images[:images] + tuple(i for row in branches for i in row.images[images:]),
        anchors=_anchors(branches, images, end),
    )


def _anchors(rows: Sequence[ModelInput], images: int, end: int) -> torch.Tensor | None:
    """Of shared images those of the first row, of a branch's own images where they have come to lie."""
    anchors = [row.anchors for row in rows if row.anchors is not None]
    if len(anchors) < len(rows):
        return None
    moved = accumulate((len(row.input_ids) - end for row in rows[:-1]), initial=0)
    own = [one[images:] + by for one, by in zip(anchors, moved, strict=True)]
    return torch.cat([anchors[0][:images], *own])
