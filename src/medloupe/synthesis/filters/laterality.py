"""Drafts that put a finding, or the part of the body that is shown, on the other side."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from medloupe.synthesis.filters.assertions import Assertion, assertions, of_turn
from medloupe.synthesis.filters.sides import OTHER, Side, sides_in
from medloupe.synthesis.filters.texts import excerpt, sentences, source_text
from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow

# Parts of the body that come in pairs, by the word that follows the side.
_ORGANS: Final = {
    "lung": r"(?:(?:upper|middle|lower)\s)?(?:lobes?|lungs?)|hemithorax|pleural\s\w+|lung\s\w+|(?:上"
    r"|中|下)?肺(?:上|中|下)?(?:叶|野)?|胸腔",
    "kidney": r"kidneys?|renal|肾",
    "breast": r"breasts?|乳",
    "femur": r"(?:\w+\s)?(?:femur|femoral|thigh)|股骨|大腿",
    "knee": r"knees?|膝",
    "hip": r"hips?|髋",
    "shoulder": r"shoulders?|肩",
    "eye": r"eyes?|orbits?|眼",
    "hand": r"(?:hands?|wrists?)|手|腕",
    "foot": r"(?:foot|feet|ankles?)|足|踝",
    "tibia": r"(?:\w+\s)?(?:tibia|fibula|leg)|胫骨|腓骨|小腿",
    "arm": r"(?:\w+\s)?(?:humerus|arm|forearm|radius|ulna|elbow)|肱骨|上臂|前臂|桡骨|尺骨|肘",
    "brain": r"(?:\w+\s)?(?:(?:frontal|temporal|parietal|occipital)\s(?:lobes?|regions?|cort\w+)"
    r"|hemisphere|cerebellum|thalamus|basal\sganglia)|(?:额|颞|顶|枕)叶|大脑半球|基底节|丘脑",
    "adrenal": r"adrenals?|肾上腺",
    "ovary": r"(?:ovary|ovarian|adnex\w+)|卵巢|附件",
    "clavicle": r"clavicles?|锁骨",
}
_ORGAN_NAMES: Final = tuple(_ORGANS)
_PART: Final = re.compile(
    r"[\s-]*(?:sided\s)?(?:(?:distal|proximal|mid|medial|lateral|anterior|posterior|superior"
    r"|inferior)\s|侧)?(?:"
    + "|".join(f"(?P<o{number}>{_ORGANS[name]})" for number, name in enumerate(_ORGAN_NAMES))
    + ")",
    re.IGNORECASE,
)
_HEALTHY: Final = re.compile(
    r"\b(?:clear|normal|unremarkable|unaffected|intact|healthy|no|not|without|compared"
    r"|contralateral|opposite|comparison)\b"
    r"|正常|清晰|未见|无异常|对侧|没有|相比|不是",
    re.IGNORECASE,
)


class Laterality(Filter):
    """Contradicts the source on left and right."""

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        source = source_text(row)
        stated = _by_finding(assertions(source))
        parts = _parts(sentences(source))
        affirmed = [item for turn in draft.turns for item in of_turn(turn) if item.polarity != "no"]
        for item in affirmed:
            if item.side in OTHER and stated.get(item.finding) == {OTHER[item.side]}:
                shown = excerpt(item.sentence, 0, 80)
                return f"{item.finding} is on the {OTHER[item.side]} in the source: {shown!r}"
        answers = [s for turn in draft.turns for s in sentences(turn.answer)]
        said = _parts(s for s in answers if not _HEALTHY.search(s))
        for name, sides in _parts(answers).items():
            if (
                name in said
                and len(sides) == 1
                and (side := next(iter(sides))) in OTHER
                and parts.get(name) == {OTHER[side]}
            ):
                return f"the source speaks of the {OTHER[side]} {name}, the draft of the {side} one"
        return None


def _by_finding(said: Iterable[Assertion]) -> dict[str, set[Side]]:
    found: dict[str, set[Side]] = defaultdict(set)
    for item in said:
        if item.side is not None and item.polarity != "no":
            found[item.finding].add(item.side)
    return found


def _parts(texts: Iterable[str]) -> dict[str, set[Side]]:
    """Part of the body -> the sides on which it is named."""
    found: dict[str, set[Side]] = defaultdict(set)
    for text in texts:
        for side, _, end in sides_in(text):
            match = _PART.match(text, end)
            if match is not None:
                found[_ORGAN_NAMES[int(str(match.lastgroup)[1:])]].add(side)
    return found
