"""Left, right and both sides of the body in running text; sides of the picture are no sides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

Side = Literal["left", "right", "both"]
BOTH: Final[Side] = "both"
OTHER: Final[dict[Side, Side]] = {"left": "right", "right": "left"}

_PICTURE: Final = (
    r"(?:image|picture|figure|panel|photo(?:graph)?|frame|screen|view|column|row|inset|corner"
    r"|part of the (?:image|picture|figure)"
    r"|slide|field|border of the (?:image|picture)|arrow|arrowhead|marker)s?\b"
)
_SIDE: Final = re.compile(
    rf"""
    (?P<none>
      \b(?:left|right)(?:[- ](?:hand|most|side|half|portion|part|upper|lower|top|bottom|edge
        |aspect|central|middle))*
        (?:\ (?:of|in|on)\ (?:the|this|each)\ )?[- ]?\s?{_PICTURE}
      | \b(?:upper|lower|top|bottom|middle|on\ the|to\ the)[- ](?:left|right)\ (?:of|in)\ the\ {_PICTURE}
      | \b(?:upper|lower|top|bottom)[- ](?:left|right)(?:[- ]hand)?\ (?:corner|panel|image|picture)
      | \bright\ (?:angles?|now|away|after|before)\b | \bleft\ (?:untreated|behind|unchanged|intact)\b
      | \b(?:is|are|was|were|been)\ left\ (?!lung|side|kidney|breast|lobe|-) | \ball\ right\b 
        | \bthat's\ right\b
      | (?:图像|图片|画面|图中|影像|图)(?:的)?(?:左|右)(?:侧|边|上|下|半|部)? | [左右][上下]角 
        | 左右(?!两?侧|肺|肾|两)
    )
    | (?P<both>\bbilateral(?:ly)?\b | \bboth\b(?!\ (?:the|of|a|an|images?|studies|views)\b) 
      | \bon\ either\ side\b
      | \b(?:left\ and\ right|right\ and\ left)\b
      | \b(?:left|right)\ (?:(?:greater|more|larger|worse)\ than|>)\ (?:the\ )?(?:left|right)\b
      | 双侧|两侧|双肺|两肺|双肾|双(?=[\u4e00-\u9fff])|左右(?:两?侧|肺|肾|两))
    | (?P<left>\bleft(?:[- ]sided|wards?)?\b | 左)
    | (?P<right>\bright(?:[- ]sided|wards?)?\b | 右)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_REACH: Final = 60  # characters between a finding and its side
_BOUNDARY: Final = re.compile(r"[,，;]|\b(?:while|whereas|but|and (?:a|an|the|there|no))\b|而|但")
_CLOSE: Final = 8
_AMBIGUOUS: Final = 1.4  # two sides nearly as near: it is not clear which one is meant


def sides_in(text: str) -> list[tuple[Side, int, int]]:
    """(side, start, end) of every side of the body that is named."""
    found: list[tuple[Side, int, int]] = []
    for match in _SIDE.finditer(text):
        if match["left"]:
            found.append(("left", *match.span()))
        elif match["right"]:
            found.append(("right", *match.span()))
        elif match["both"]:
            found.append(("both", *match.span()))
    return found


def side_near(
    sentence: str, place: tuple[int, int], others: Sequence[tuple[int, int]]
) -> Side | None:
    """The side that stands nearest to `place`; of two nearly as near ones, both.

    Beyond a comma a side counts only if it stands before and no finding lies between ("in the left lung, a
    mass"), or if it is close and there is no other finding ("cyst, right adnexa").
    """
    near: dict[Side, float] = {}
    for side, start, end in sides_in(sentence):
        before = end <= place[0]
        gap = (end, place[0]) if before else (place[1], start)
        distance = float(max(1, gap[1] - gap[0]))
        crossed = any(gap[0] <= other[0] < gap[1] for other in others)
        beyond = _BOUNDARY.search(sentence[gap[0] : gap[1]]) and (crossed or not before)
        if beyond and (len(others) > 1 or distance > _CLOSE):
            continue
        if distance <= _REACH:
            near[side] = min(distance, near.get(side, distance))
    if not near:
        return None
    ranked = sorted(near.items(), key=lambda item: item[1])
    if len(ranked) > 1 and ranked[1][1] <= _AMBIGUOUS * ranked[0][1]:
        return BOTH
    return ranked[0][0]
