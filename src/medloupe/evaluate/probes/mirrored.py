"""The mirrored image: what was on the left is on the right, and so must the answer be.

Sides in the question are exchanged too: it then asks of the mirrored image what was asked of the other,
so "Is it in the left lung?" keeps its yes, and "Which side?" takes the other answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Final

from medloupe.errors import ImageError
from medloupe.evaluate.benchmark import limited_rows
from medloupe.evaluate.probes.base import Asked, Expect, Look, Probe, with_images
from medloupe.imaging.flips import HorizontalFlip, swap_sides
from medloupe.types import Box, Conversation

# Where exchanging "left" and "right" is not what mirroring does, or mirroring shows what nobody has:
# organs of one side and parts named after one, turns and clock faces, "right" that is no side.
_NO_MIRROR: Final = re.compile(
    r"\b(?:heart|cardiac|cardio\w*|pericardi\w*|ventric\w*|atri(?:um|a|al)|aort\w*|mediastin\w*|apex"
    r"|coronar\w*|lad|lcx|rca|rv|lv|ra|la|svc|ivc|vena cava|caval|azygos|liver|hepat\w*|biliary"
    r"|gallbladder|bile|spleen|splenic|stomach|gastr\w*|duoden\w*|pancrea\w*|colon\w*|colic|c(?:a)?ecum"
    r"|appendi\w*|sigmoid|middle lobe|rml|lingula\w*|situs|dextro\w*|levo\w*"
    r"|clockwise|counterclockwise|anticlockwise|o'clock"
    r"|[rl][uml]z|all right|right (?:now|away|angle\w*|answer|option|choice|diagnosis|order))\b"
    r"|心|主动脉|纵隔|冠脉|冠状动脉|腔静脉|肝|胆|脾|胃|十二指肠|胰|结肠|盲肠|阑尾|中叶|舌叶|舌段|顺时针|逆时针",
    re.IGNORECASE,
)
# Views whose columns do not run between the sides, as far as words or attributes say so.
_SIDEWAYS: Final = re.compile(
    r"\bsagittal\b|\blateral (?:view|film|radiograph|x-?ray|projection|image)\b|矢状|侧位",
    re.IGNORECASE,
)
_VIEW_ATTRIBUTES: Final = frozenset({"plane", "view", "projection", "orientation", "view_position"})
_SIDEWAYS_VALUES: Final = frozenset({"sagittal", "lateral", "ll", "rl", "lat"})


class Mirrored(Probe):
    """Images mirrored, with sides exchanged in question, options and answer, and boxes mirrored.

    Only rows that name a side or answer with a box, and whose images' columns run between the patient's
    sides (`Look.mirrors`). Not asked: organs of one side, views from the side, and options that are not
    the same ones after the exchange.
    """

    about: ClassVar[str] = "shown the mirrored image"
    expect: ClassVar[Expect] = "same"

    def ask(self, rows: Sequence[Conversation], *, seed: int, look: Look) -> Asked:
        del seed
        sided = [row for row in rows if has_side(row)]
        # looking means reading files: only at those that may be asked
        chosen = sided if self.limit is None else limited_rows(sided, self.limit)
        wanted = {row.id for row in chosen}
        return [mirror(row, look) if row.id in wanted else None for row in rows]


def has_side(row: Conversation) -> bool:
    """Does the row name a side or answer with a box, and can it be mirrored, as far as words tell?"""
    answer = row.answer
    if not row.images or answer is None:
        return False
    labels = [part.label for part in row.parts() if isinstance(part, Box)]
    words = "\n".join([row.question, answer.text, *row.options, *labels])
    boxed = any(isinstance(part, Box) for part in answer.content)
    swapped = {swap_sides(option) for option in row.options}
    return (
        (boxed or swap_sides(words) != words)
        and swapped == set(row.options)
        and not _NO_MIRROR.search(words)
        and not _SIDEWAYS.search(words)
        and not _seen_from_the_side(row)
    )


def mirror(row: Conversation, look: Look) -> Conversation | None:
    """The row about its mirrored images; None where one of them cannot be mirrored, or not be read."""
    boxed = any(isinstance(part, Box) for part in row.parts())
    try:
        if not all(look.mirrors(ref) for ref in row.images):
            return None
        sizes = [look.size_of(ref)[:2] if boxed else (1, 1) for ref in row.images]
    except ImageError:  # the row itself, which is asked as it is, tells of it
        return None
    flipped = HorizontalFlip().flip_conversation(row, [(size[0], size[1]) for size in sizes])
    # the same options in the order of the row, in which probabilities of options are kept
    flipped = flipped.model_copy(update={"options": row.options})
    return with_images(flipped, [ref.model_copy(update={"edit": "mirrored"}) for ref in row.images])


def _seen_from_the_side(row: Conversation) -> bool:
    views = (row.attributes[name] for name in _VIEW_ATTRIBUTES & row.attributes.keys())
    return any(view.strip().casefold() in _SIDEWAYS_VALUES for view in views)
