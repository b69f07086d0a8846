"""Which prompts are decoded together, and how much of them is read only once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medloupe.processing.packing import prefix_length
from medloupe.types import ModelInput


@dataclass(frozen=True, kw_only=True)
class Group:
    """Prompts, by number, that begin with the same `prefix` tokens about the same images."""

    prefix: int
    rows: tuple[int, ...]


def group_rows(prompts: Sequence[ModelInput], image_token_id: int, *, share: bool) -> list[Group]:
    """Group prompts that are equal up to the end of their last image; others stand alone.

    A prefix holds whole images, and never a whole prompt: the last token must be read to predict the
    answer. So prompts that end with an image stand alone.
    """
    if not share:
        return [Group(prefix=0, rows=(number,)) for number in range(len(prompts))]
    found: dict[tuple[object, ...], list[int]] = {}
    ends = [prefix_length(prompt, image_token_id) for prompt in prompts]
    for number, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        key: tuple[object, ...] = ("alone", number)
        if 0 < end < len(prompt.input_ids):
            key = (*prompt.images, *prompt.input_ids[:end].tolist())
        found.setdefault(key, []).append(number)
    return [
        Group(prefix=ends[rows[0]] if len(rows) > 1 else 0, rows=tuple(rows))
        for rows in found.values()
    ]


def plan_batches(
    groups: Iterable[Group], prompts: Sequence[ModelInput], *, size: int
) -> list[tuple[Group, ...]]:
    """Batches of at most `size` prompts, of similar length to keep padding small.

    A group is read in one batch unless it is larger than `size`. Groups with and without a prefix
    are kept apart.
    """

    def shape(group: Group) -> tuple[int, int]:
        return group.prefix, max(len(prompts[row].input_ids) for row in group.rows) - group.prefix

    batches: list[list[Group]] = []
    for group in sorted(_cut(groups, size), key=shape):
        last = batches[-1] if batches else None
        fits = last is not None and sum(len(g.rows) for g in last) + len(group.rows) <= size
        if last is None or not fits or bool(last[0].prefix) != bool(group.prefix):
            batches.append([group])
        else:
            last.append(group)
    return [tuple(batch) for batch in batches]


def _cut(groups: Iterable[Group], size: int) -> list[Group]:
    return [
        Group(prefix=group.prefix, rows=group.rows[start : start + size])
        for group in groups
        for start in range(0, len(group.rows), size)
    ]
